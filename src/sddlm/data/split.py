"""Which documents are held out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sddlm.data.scan import FEW, Scan, place
from sddlm.data.sources import Part

_NEAR = 1000  # characters back to the next line end or blank


@dataclass(frozen=True)
class Split:
    """A rule for which documents are for validation.

    A whole ``held_out`` of 1 or more holds so many documents at the end out. A share in (0, 1)
    chooses documents by the SHA-256 of their text alone, so the same document never lies on both
    sides, whatever the order; if the hashes choose none, the document with the smallest one is
    chosen. With fewer than 20 documents the last ``share`` of each is held out instead, cut behind
    a line end or a blank where one is near.

    Attributes:
        held_out: the share or the number.
        scan: of the documents.
    """

    held_out: float
    scan: Scan

    def __str__(self) -> str:
        return f"{self.held_out:g}"

    def sides(self, parts: Iterable[Part]) -> Iterator[tuple[str, Part]]:
        """Each part with ``train`` or ``validation``, in the given order.

        Args:
            parts: of the good documents (`scan.good`).
        """
        if self.held_out >= 1:
            return self._last(parts)
        return self._by_hash(parts) if self.scan.documents >= FEW else self._tails(parts)

    def _last(self, parts: Iterable[Part]) -> Iterator[tuple[str, Part]]:
        first = self.scan.documents - int(self.held_out)
        number = 0
        for part in parts:
            yield ("train" if number < first else "validation"), part
            number += part.ends

    def _by_hash(self, parts: Iterable[Part]) -> Iterator[tuple[str, Part]]:
        limit = max(self.held_out, self.scan.least)
        places = iter(self.scan.long.values())  # of documents in several parts, in their order
        begins, at = True, 0.0
        for part in parts:
            if begins:
                whole = place(hashlib.sha256(part.text.encode()).digest()) if part.ends else None
                at = next(places) if whole is None else whole
            begins = part.ends
            yield ("train" if at > limit else "validation"), part

    def _tails(self, parts: Iterable[Part]) -> Iterator[tuple[str, Part]]:
        lengths = iter(self.scan.lengths)
        document: _Cut | None = None
        for part in parts:
            document = document or _Cut(round(next(lengths) * (1 - self.held_out)))
            yield from document.take(part)
            if part.ends:
                document = None


class _Cut:
    """A document that is cut in two while it comes in."""

    def __init__(self, cut: int) -> None:
        self.cut = cut  # at most here
        self.given = 0  # characters for training that were passed on
        self.held = ""  # what follows them, until it is known where to cut
        self.behind = False  # the cut was made
        self.second = False  # something came behind it

    def take(self, part: Part) -> Iterator[tuple[str, Part]]:
        if self.behind:
            yield from self._second(part)
            return
        self.held += part.text
        if self.given + len(self.held) < self.cut:  # the document goes on
            if self.given + len(self.held) < self.cut - _NEAR:
                yield "train", Part(self.held, ends=False)
                self.given, self.held = self.given + len(self.held), ""
            return
        at = self._mark()
        before, behind = self.held[:at], self.held[at:]
        if self.given + at:
            yield "train", Part(before)
        self.behind = True
        yield from self._second(Part(behind, part.ends))

    def _second(self, part: Part) -> Iterator[tuple[str, Part]]:
        if part.text or self.second:
            self.second = True
            yield "validation", part

    def _mark(self) -> int:
        """Where to cut what is held: behind a line end or a blank near, else there."""
        cut = self.cut - self.given
        for mark in ("\n", " "):
            near = self.held.rfind(mark, max(0, cut - _NEAR), cut)
            if near + self.given > 0 and near >= 0:
                return near + 1
        return cut
