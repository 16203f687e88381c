"""Which documents are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_FEW = 20  # with fewer documents, each is cut instead of choosing among them
_NEAR = 1000  # characters back to the next line end or blank


def split_documents(texts: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """Training and validation documents, each in the given order.

    A document's side depends on the SHA-256 of its text alone, so the same document never lies on
    both sides, whatever the order. If the hashes choose none for validation, the document with the
    smallest one is chosen. With fewer than 20 documents the last ``share`` of each is held out
    instead, cut behind a line end or a blank where one is near.

    Args:
        texts: the documents.
        share: of the documents (or of each document) to hold out, in (0, 1).
    """
    if len(texts) < _FEW:
        halves = [_cut_tail(text, share) for text in texts]
        return [head for head, _ in halves if head], [tail for _, tail in halves if tail]
    places = [_place(text) for text in texts]
    limit = max(share, min(places))
    train = [text for text, place in zip(texts, places, strict=True) if place > limit]
    return train, [text for text, place in zip(texts, places, strict=True) if place <= limit]


def _place(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _cut_tail(text: str, share: float) -> tuple[str, str]:
    cut = round(len(text) * (1 - share))
    for mark in ("\n", " "):
        near = text.rfind(mark, max(0, cut - _NEAR), cut)
        if near > 0:
            cut = near + 1
            break
    return text[:cut], text[cut:]
