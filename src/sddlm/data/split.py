"""Split of documents into training and validation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sddlm.data.scan import FEW, Scan, hash_fraction
from sddlm.data.sources import TextChunk

_NEAR = 1000  # characters back to the next line end or blank


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

    def assign(self, parts: Iterable[TextChunk]) -> Iterator[tuple[str, TextChunk]]:
        """Assign each chunk to ``train`` or ``validation``, in the given order.

        Args:
            parts: chunks of the valid documents (`scan.valid_documents`).
        """
        if self.held_out >= 1:
            return self._last(parts)
        return self._by_hash(parts) if self.scan.documents >= FEW else self._tails(parts)

    def _last(self, parts: Iterable[TextChunk]) -> Iterator[tuple[str, TextChunk]]:
        first = self.scan.documents - int(self.held_out)
        number = 0
        for chunk in parts:
            yield ("train" if number < first else "validation"), chunk
            number += chunk.is_last

    def _by_hash(self, parts: Iterable[TextChunk]) -> Iterator[tuple[str, TextChunk]]:
        limit = max(self.held_out, self.scan.least)
        fractions = iter(self.scan.long.values())  # of documents in several chunks, in order
        begins, at = True, 0.0
        for chunk in parts:
            if begins:
                if chunk.is_last:
                    at = hash_fraction(hashlib.sha256(chunk.text.encode()).digest())
                else:
                    at = next(fractions)
            begins = chunk.is_last
            yield ("train" if at > limit else "validation"), chunk

    def _tails(self, parts: Iterable[TextChunk]) -> Iterator[tuple[str, TextChunk]]:
        lengths = iter(self.scan.lengths)
        document: _Cut | None = None
        for chunk in parts:
            document = document or _Cut(round(next(lengths) * (1 - self.held_out)))
            yield from document.take(chunk)
            if chunk.is_last:
                document = None


class _Cut:
    """A document that is cut in two while it is read."""

    def __init__(self, cut: int) -> None:
        self.cut = cut  # at most here
        self.given = 0  # characters for training that were passed on
        self.held = ""  # what follows them, until it is known where to cut
        self.behind = False  # the cut was made
        self.second = False  # something came behind it

    def take(self, chunk: TextChunk) -> Iterator[tuple[str, TextChunk]]:
        if self.behind:
            yield from self._second(chunk)
            return
        self.held += chunk.text
        if self.given + len(self.held) < self.cut:  # the document goes on
            if self.given + len(self.held) < self.cut - _NEAR:
                yield "train", TextChunk(self.held, is_last=False)
                self.given, self.held = self.given + len(self.held), ""
            return
        at = self._mark()
        before, behind = self.held[:at], self.held[at:]
        if self.given + at:
            yield "train", TextChunk(before)
        self.behind = True
        yield from self._second(TextChunk(behind, chunk.is_last))

    def _second(self, chunk: TextChunk) -> Iterator[tuple[str, TextChunk]]:
        if chunk.text or self.second:
            self.second = True
            yield "validation", chunk

    def _mark(self) -> int:
        """Position of the cut: after a line end or a blank nearby, or exactly there."""
        cut = self.cut - self.given
        for mark in ("\n", " "):
            near = self.held.rfind(mark, max(0, cut - _NEAR), cut)
            if near + self.given > 0 and near >= 0:
                return near + 1
        return cut
