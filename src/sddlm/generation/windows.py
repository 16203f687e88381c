"""A text longer than the model in windows, and windows of several texts in batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from sddlm.generation.drafts import Draft
from sddlm.generation.filling import fill, filled_width
from sddlm.generation.requests import digest
from sddlm.lm import LanguageModel


@dataclass(frozen=True)
class Window:
    """A part of a text that the model sees at once.

    Attributes:
        start: its first token.
        end: the one behind.
        first: the first token that it corrects; those before are known.
        stop: the one behind. Those after are seen as they were written, and corrected by the next.
    """

    start: int
    end: int
    first: int
    stop: int


def windows(count: int, width: int) -> list[Window]:
    """Windows that correct each of ``count`` tokens once, ``width`` or all of them wide.

    A quarter of the width is seen on either side of what a window corrects, as far as there is
    text: before it what is corrected already, behind it the draft.
    """
    if count <= width:
        return [Window(0, count, 0, count)]
    margin, found, done = width // 4, list[Window](), 0
    while done < count:
        start = min(max(0, done - margin), count - width)
        end = start + width
        stop = count if end == count else end - margin
        found.append(Window(start, end, done, stop))
        done = stop
    return found


@dataclass
class Text:
    """A draft that is being corrected.

    Attributes:
        draft: the draft.
        tokens: those of the draft, and before them what stands in front of a text ``[n]`` int64.
        known: which are not to change ``[n]`` bool.
        front: how many stand before the draft.
        windows: the parts that it is corrected in.
        right: probability of each that it is right ``[n]`` float64.
    """

    draft: Draft
    tokens: Tensor
    known: Tensor
    front: int
    windows: list[Window]
    right: Tensor
    t: float = math.nan
    nfe: int = 0
    seconds: float = 0.0

    @cached_property
    def key(self) -> int:
        """Names the randomness: a text is corrected in one way, whatever else is."""
        return digest(self.draft.tokens)


@dataclass(frozen=True)
class Batch:
    """Windows of one width that are seen together; ``rows`` are (text, window)."""

    rows: list[tuple[Text, Window]]
    tokens: Tensor  # [B, L]
    known: Tensor  # [B, L]
    lengths: Tensor | None  # [B]
    front: int

    def own(self, row: int) -> tuple[slice, slice]:
        """The places that a window corrects: in its text, and in the batch."""
        window = self.rows[row][1]
        shift = self.front - window.start
        return (
            slice(window.first, window.stop),
            slice(window.first + shift, window.stop + shift),
        )

    def share(self, seconds: float) -> None:
        """Each text's part of the time that was spent on the batch."""
        for text, _ in self.rows:
            text.seconds += seconds / len(self.rows)


def batches(loaded: LanguageModel, size: int, rows: Sequence[tuple[Text, Window]]) -> list[Batch]:
    """Windows in batches of one width; rows of unequal lengths are filled up to share it.

    Args:
        loaded: the model.
        size: windows in a batch at most.
        rows: texts, each with the window of it that is to be seen.
    """
    width = loaded.network.length
    groups: dict[tuple[int, bool, int], list[tuple[Text, Window]]] = {}
    for text, window in rows:
        front = int(loaded.bos_in_rows and window.start > 0)
        wide = window.end - window.start + front
        even = filled_width(wide, width)
        groups.setdefault((even, even != wide, front), []).append((text, window))
    return [
        _batch(loaded, which[at : at + size], wide, padded, front)
        for (wide, padded, front), which in groups.items()
        for at in range(0, len(which), size)
    ]


def _batch(
    loaded: LanguageModel, rows: list[tuple[Text, Window]], wide: int, padded: bool, front: int
) -> Batch:
    parts = []
    for text, window in rows:
        known = text.known[window.start : window.end].clone()
        known[: window.first - window.start] = True
        parts.append((text.tokens[window.start : window.end], known))
    bos = [loaded.tokenizer.bos_id] * front
    tokens, known, lengths = fill(parts, wide, front=bos, pad=loaded.tokenizer.pad_id)
    return Batch(rows, tokens, known, lengths if padded else None, front)
