"""Rows of several texts, each with its exact share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sddlm.data.order import shuffled
from sddlm.data.rows import Ints, Rows

_CYCLE = 1000  # rows in which every part of a mixture has its exact share, to a thousandth


class Mixture(Rows):
    """Rows of several parts: those of the first part, then those of the second, ...

    In every cycle of a thousand positions of the training stream each part has its exact share, in
    an order specific to the cycle. Within a part the stream is that of the part alone. So the mix
    is exact, every row of a part occurs once before any occurs again, and the row at a position is
    a function of the seed and the position.

    Args:
        parts: of equal length, vocabulary and packing.
        weights: shares, in any unit.
    """

    def __init__(self, parts: Sequence[Rows], weights: Sequence[float]) -> None:
        self.parts = list(parts)
        first = self.parts[0]
        self.length, self.vocab_size = first.length, first.vocab_size
        self.padded, self.paired = first.padded, first.paired
        self.tokens = sum(part.tokens for part in self.parts)
        self.characters = sum(part.characters for part in self.parts)
        self.share = _apportion(np.array(weights, np.float64))  # [parts], sums to _CYCLE
        self.owner = np.repeat(np.arange(len(self.parts)), self.share)  # [_CYCLE]
        self.starts = np.cumsum([0, *(len(part) for part in self.parts)])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, rows: Ints) -> Tensor:
        """Read rows of any parts ``[B, L]`` int64."""
        return self._of_parts(rows, lambda part, mine: part.read(mine), (self.length,))

    def lengths(self, rows: Ints) -> Tensor:
        """See `Rows.lengths`."""
        return self._of_parts(rows, lambda part, mine: part.lengths(mine), ())

    def prompts(self, rows: Ints) -> Tensor:
        """See `Rows.prompts`."""
        return self._of_parts(rows, lambda part, mine: part.prompts(mine), ())

    def _of_parts(self, rows: Ints, ask: Any, shape: tuple[int, ...]) -> Tensor:
        found = torch.empty((len(rows), *shape), dtype=torch.int64)
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        for k in np.unique(owner):
            mine = np.flatnonzero(owner == k)
            found[torch.from_numpy(mine)] = ask(self.parts[k], rows[mine] - self.starts[k])
        return found

    def row_indices(self, seed: int, places: Ints) -> Ints:
        """See `Rows.row_indices`."""
        rows = np.empty_like(places)
        cycles, place = np.divmod(places, _CYCLE)
        for cycle in np.unique(cycles):
            here = np.flatnonzero(cycles == cycle)
            owners = self.owner[shuffled(~seed, np.full(_CYCLE, cycle), np.arange(_CYCLE), _CYCLE)]
            for k, part in enumerate(self.parts):
                earlier = np.cumsum(owners == k) - 1 + cycle * self.share[k]  # of the part's own
                mine = here[owners[place[here]] == k]
                rows[mine] = part.row_indices(seed + k, earlier[place[mine]]) + self.starts[k]
        return rows

    def subsample(self, count: int | None) -> Ints:
        """See `Rows.subsample`; each part contributes its share, limited by its rows."""
        if count is None or count >= len(self):
            return np.arange(len(self))
        shares = count * np.cumsum([0, *self.share]) // _CYCLE
        counts = zip(self.parts, np.diff(shares).tolist(), self.starts[:-1], strict=True)
        return np.concatenate([part.subsample(n) + start for part, n, start in counts])

    @property
    def characters_per_token(self) -> float:
        """See `Rows.characters_per_token`, each part by its share."""
        text = [part.characters_per_token * part.mean_length for part in self.parts]
        return float(self.share @ np.array(text)) / _CYCLE / self.mean_length

    @property
    def row_lengths(self) -> Ints:
        """Number of rows of each length in a million ``[L + 1]``."""
        found = np.zeros(self.length + 1)
        for part, share in zip(self.parts, self.share, strict=True):
            found += part.row_lengths / len(part) * share * 1000
        return found.round().astype(np.int64)


def _apportion(weights: npt.NDArray[np.float64]) -> Ints:
    """Integer shares of a cycle, at least 1 each, by the largest-remainder method."""
    exact = weights / weights.sum() * _CYCLE
    share = np.maximum(np.floor(exact), 1).astype(np.int64)
    while missing := np.sign(_CYCLE - share.sum()):
        share[np.argmax(missing * (exact - share))] += missing
    return share
