"""Split of documents into training and validation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sddlm.data.documents import cut_near
from sddlm.data.scan import Scan, hash_fraction, sha256

_FEW = 20  # with fewer documents, each is cut instead of choosing among them


@dataclass(frozen=True)
class Split:
    """Rule that selects the validation documents.

    A whole ``held_out`` of 1 or more selects that number of documents at the end. A share in (0, 1)
    selects documents by the SHA-256 of their text alone, so the same document is never in both
    splits, whatever the order. If it selects none, the document with the smallest hash is selected.
    With fewer than 20 documents the last ``share`` of each is held out instead, cut after a line
    end or a blank if one is near.

    Attributes:
        held_out: the share or the number.
        scan: scan of the documents.
    """

    held_out: float
    scan: Scan

    def __str__(self) -> str:
        return f"{self.held_out:g}"

    def assign(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Assign each document to ``train`` or ``validation``, in the given order.

        Args:
            texts: the valid documents (`scan.valid_documents`).
        """
        if self.held_out >= 1:
            first = self.scan.documents - int(self.held_out)
            for number, text in enumerate(texts):
                yield ("train" if number < first else "validation"), text
        elif self.scan.documents >= _FEW:
            limit = max(self.held_out, self.scan.least)
            for text in texts:
                yield ("train" if hash_fraction(sha256(text)) > limit else "validation"), text
        else:
            for text in texts:
                at = cut_near(text, round(len(text) * (1 - self.held_out)))
                if at:
                    yield "train", text[:at]
                if text[at:]:
                    yield "validation", text[at:]
