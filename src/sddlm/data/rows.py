"""Rows of prepared tokens: documents packed into full rows, one document a row, or a mixture.

The same files serve every length and both packings: rows are made when they are read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sddlm.data.order import shuffled
from sddlm.errors import ConfigError
from sddlm.types import before_padding

Ints = npt.NDArray[np.int64]
INDEX_DTYPE = np.dtype("<u8")
_CHUNK = 1 << 20  # numbers read at a time from a whole file
_CYCLE = 1000  # rows in which every part of a mixture has its exact share, to a thousandth


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """dtype of tokens in a file: little-endian, 2 bytes if every id fits (V <= 65536), else 4."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Rows(Dataset[Tensor], ABC):
    """Rows of ``length`` tokens; row i is ``[L]`` int64.

    Attributes:
        length: L.
        vocab_size: V.
        padded: rows may end with padding, see `lengths`.
        tokens: number of tokens behind the rows, ends of text included.
        characters: number of characters of the text behind them.
    """

    length: int
    vocab_size: int
    padded: bool = False
    tokens: int
    characters: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, rows: Ints) -> Tensor:
        """Read rows by index ``[B, L]`` int64."""

    def lengths(self, rows: Ints) -> Tensor:
        """Number of tokens before the padding of each row ``[B]`` int64."""
        return torch.full((len(rows),), self.length)

    @property
    @abstractmethod
    def characters_per_token(self) -> float:
        """Mean number of characters per token of a row, without padding."""

    @property
    def row_lengths(self) -> Ints:
        """Number of rows of each length before padding ``[L + 1]``."""
        return np.bincount([self.length], [len(self)], self.length + 1).astype(np.int64)

    @property
    def mean_length(self) -> float:
        """Mean number of tokens of a row before its padding."""
        lengths = self.row_lengths
        return float(lengths @ np.arange(self.length + 1)) / float(lengths.sum())

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self.read(np.array([i]))[0]

    def row_indices(self, seed: int, places: Ints) -> Ints:
        """Row indices at positions of the endless training stream ``[m]``.

        The stream concatenates the permutations of all epochs (see `order`).
        """
        epoch, place = np.divmod(places, len(self))
        return shuffled(seed, epoch, place, len(self))

    def subsample(self, count: int | None) -> Ints:
        """Indices of at most ``count`` evenly spaced rows; None is all."""
        total = len(self)
        n = total if count is None else min(count, total)
        return np.arange(n) * total // max(n, 1)

    def counts(self, vocab_size: int | None = None) -> Tensor:
        """Count each token in the rows, without padding ``[V]`` int64.

        Args:
            vocab_size: V, if it is larger than that of the file.
        """
        counts = torch.zeros(vocab_size or self.vocab_size, dtype=torch.int64)
        step = max(1, _CHUNK // self.length)
        for start in range(0, len(self), step):
            rows = np.arange(start, min(start + step, len(self)))
            real = before_padding(self.lengths(rows), self.length)
            counts += torch.bincount(self.read(rows)[real], minlength=len(counts))
        return counts


class PackedTokens(Rows):
    """Concatenated documents, cut into full rows.

    A row may contain the end of one document and the beginning of the next. Tokens after the last
    full row are in no row; ``tokens`` and ``characters`` count the whole file.

    Args:
        path: file of tokens.
        length: L.
        vocab_size: V.
        characters: number of characters of the whole text.
        bos_eos: first and last token of every row; None for rows of text alone.
    """

    def __init__(
        self,
        path: Path,
        *,
        length: int,
        vocab_size: int,
        characters: int,
        bos_eos: tuple[int, int] | None = None,
    ) -> None:
        self.path = Path(path)
        self.length, self.vocab_size = length, vocab_size
        self.characters, self.bos_eos = characters, bos_eos
        self.inner, self.pad = length - (2 if bos_eos else 0), 0  # tokens of text in a row
        self.dtype = token_dtype(vocab_size)
        self.tokens = self.path.stat().st_size // self.dtype.itemsize

    def __len__(self) -> int:
        return self.tokens // self.inner

    def _spans(self, rows: Ints) -> list[tuple[int, int]]:
        """Start of each row's text in the file, and number of its tokens."""
        return [(i * self.inner, self.inner) for i in rows.tolist()]

    def read(self, rows: Ints) -> Tensor:
        """Read rows by index ``[B, L]`` int64.

        Read, not memory-mapped: for a row that is not cached the system reads ahead (20 times the
        time), mapped pages count as memory of this process, and a file that shrinks kills it.
        """
        found = np.full((len(rows), self.length), self.pad, self.dtype)
        first = int(self.bos_eos is not None)
        with self.path.open("rb", buffering=0) as file:
            for row, (start, n) in zip(found, self._spans(rows), strict=True):
                text = row[first : first + n]
                file.seek(start * self.dtype.itemsize)
                if file.readinto(text.data) != text.nbytes:
                    raise OSError(f"{self.path} ends before token {start + n}")
                if self.bos_eos:
                    row[0], row[n + 1] = self.bos_eos
        if (largest := found.max(initial=0)) >= self.vocab_size:
            raise self._damaged(f"it holds the token {largest}, V is {self.vocab_size}")
        return torch.from_numpy(found.astype(np.int64))

    def _damaged(self, wrong: str) -> ConfigError:
        return ConfigError(
            f"{self.path} is damaged: {wrong}; sddlm prepare with the same `data` options makes "
            "it anew"
        )

    @property
    def characters_per_token(self) -> float:
        """See `Rows.characters_per_token`."""
        return self.characters / self.tokens * self.inner / self.length


class DocumentRows(PackedTokens):
    """One document per row, truncated to the length, or padded.

    Args:
        path: file of tokens; beside it lies the index, the end offset of each document in tokens.
        eos: whether an end-of-text token follows each document in the file.
        pad: padding token.
        shape: see `PackedTokens`.
    """

    padded = True

    def __init__(self, path: Path, *, eos: bool, pad: int, **shape: Any) -> None:
        super().__init__(path, **shape)
        self.index = self.path.with_suffix(".idx")
        self.pad = pad
        self.cut = int(eos and self.bos_eos is not None)  # the row's own end replaces the file's

    def __len__(self) -> int:
        return self.index.stat().st_size // INDEX_DTYPE.itemsize

    def lengths(self, rows: Ints) -> Tensor:
        """See `Rows.lengths`."""
        return torch.tensor([n for _, n in self._spans(rows)]) + (self.length - self.inner)

    def _spans(self, rows: Ints) -> list[tuple[int, int]]:
        spans = []
        with self.index.open("rb", buffering=0) as file:
            for i in rows.tolist():
                file.seek(max(0, i - 1) * INDEX_DTYPE.itemsize)
                found = np.frombuffer(file.read(8 + 8 * (i > 0)), INDEX_DTYPE).tolist()
                start, stop = [0, *found][-2:]
                if not start + self.cut <= stop <= self.tokens:
                    raise self._damaged(f"its index puts row {i} at tokens {start} to {stop}")
                spans.append((start, min(stop - start - self.cut, self.inner)))
        return spans

    @cached_property
    def row_lengths(self) -> Ints:  # type: ignore[override]
        """See `Rows.row_lengths`; reads the index once."""
        found = np.zeros(self.length + 1, np.int64)
        before = 0
        with self.index.open("rb") as file:
            while len(stops := np.fromfile(file, INDEX_DTYPE, _CHUNK)):
                n = np.diff(stops.astype(np.int64), prepend=before) - self.cut
                n = n.clip(max=self.inner) + (self.length - self.inner)
                found += np.bincount(n, minlength=self.length + 1)
                before = int(stops[-1])
        return found

    @property
    def lost(self) -> float:
        """Share of the documents' tokens that are truncated."""
        kept = self.mean_length - (self.length - self.inner)  # of a document, on average
        return 1 - kept * len(self) / (self.tokens - self.cut * len(self))

    @property
    def characters_per_token(self) -> float:
        """See `Rows.characters_per_token`."""
        kept = (self.mean_length - (self.length - self.inner)) / self.mean_length
        return self.characters / (self.tokens - self.cut * len(self)) * kept


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
        self.length, self.vocab_size, self.padded = first.length, first.vocab_size, first.padded
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
