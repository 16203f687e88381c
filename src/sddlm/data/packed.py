"""Prepared tokens in rows: documents wrapped into full rows, or one document a row.

The same files serve every length and both packings: rows are made when they are read. Training
reads rows from all over a file, evaluation maps it and goes from row to row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sddlm.data.shuffle import shuffled
from sddlm.errors import ConfigError
from sddlm.types import before_padding

Ints = npt.NDArray[np.int64]

INDEX_DTYPE = np.dtype("<u8")
_CHUNK = 1 << 20  # numbers read at a time where a whole file is


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How tokens lie in a file: little-endian, 2 bytes while every id fits (V <= 65536), else 4."""
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
    def gather(self, rows: Ints) -> Tensor:
        """Rows from anywhere ``[B, L]`` int64."""

    def lengths(self, rows: Ints) -> Tensor:
        """Tokens before the padding in each of the rows ``[B]`` int64."""
        return torch.full((len(rows),), self.length)

    @property
    @abstractmethod
    def characters_per_token(self) -> float:
        """Characters behind one token of a row, padding not counted, on average."""

    @property
    def row_lengths(self) -> Ints:
        """How many rows have so many tokens before their padding ``[L + 1]``."""
        return np.bincount([self.length], [len(self)], self.length + 1).astype(np.int64)

    @property
    def mean_length(self) -> float:
        """Tokens before the padding of a row, on average."""
        lengths = self.row_lengths
        return float(lengths @ np.arange(self.length + 1)) / float(lengths.sum())

    def __getitem__(self, i: int) -> Tensor:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self.gather(np.array([i]))[0]

    def at(self, seed: int, places: Ints) -> Ints:
        """Which rows training takes at places of its endless stream ``[m]``.

        The stream is the epochs' orders, one behind the other (see `shuffle`).
        """
        epoch, place = np.divmod(places, len(self))
        return shuffled(seed, epoch, place, len(self))

    def choose(self, count: int | None) -> Ints:
        """So many rows for an evaluation, spread evenly; all of them for None."""
        total = len(self)
        n = total if count is None else min(count, total)
        return np.arange(n) * total // max(n, 1)

    def counts(self, vocab_size: int | None = None) -> Tensor:
        """How often each token occurs in the rows, padding not counted ``[V]`` int64.

        Args:
            vocab_size: V, if it is larger than that of the file.
        """
        counts = torch.zeros(vocab_size or self.vocab_size, dtype=torch.int64)
        step = max(1, _CHUNK // self.length)
        for start in range(0, len(self), step):
            rows = np.arange(start, min(start + step, len(self)))
            real = before_padding(self.lengths(rows), self.length)
            counts += torch.bincount(self.gather(rows)[real], minlength=len(counts))
        return counts


class _TokenFile(Rows):
    """Rows of one file of tokens. Pickling takes its path, not the tokens.

    Attributes:
        path: the file, nothing but tokens.
        ends: first and last token of every row; None leaves all places to the text.
    """

    def __init__(
        self,
        path: Path,
        *,
        length: int,
        vocab_size: int,
        characters: int,
        ends: tuple[int, int] | None = None,
    ) -> None:
        if length < 1:
            raise ConfigError(f"`length` is {length}, must be at least 1 token")
        self.path = Path(path)
        self.length = length
        self.inner = length - (2 if ends else 0)
        self.vocab_size = vocab_size
        self.characters = characters
        self.ends = ends
        self.dtype = token_dtype(vocab_size)
        self.tokens = self.path.stat().st_size // self.dtype.itemsize

    def _inside(self, rows: int) -> npt.NDArray[Any]:
        """Rows to fill, and their ends filled in."""
        found = np.empty((rows, self.length), self.dtype)
        if self.ends:
            found[:, 0], found[:, -1] = self.ends
        return found

    def _checked(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The same tokens, if the vocabulary has them all."""
        if tokens.size and tokens.max() >= self.vocab_size:
            raise self._damaged(f"it holds the token {tokens.max()}, V is {self.vocab_size}")
        return tokens

    def _damaged(self, wrong: str) -> ConfigError:
        return ConfigError(
            f"{self.path} is damaged: {wrong}; sddlm prepare with the same `data` options makes "
            "it anew"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_map"}


class PackedTokens(_TokenFile):
    """Documents one behind the other, cut into full rows.

    A row may hold the end of one document and the beginning of the next. Tokens behind the last
    whole row are in no row; ``tokens`` and ``characters`` count the whole file.
    """

    def __len__(self) -> int:
        return self.tokens // self.inner

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.row_tokens(i).astype(np.int64))

    def row_tokens(self, i: int) -> npt.NDArray[Any]:
        """Row i in the file's own type ``[L]`` uint16 or uint32, not to be written to."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        text = self._checked(self._map[i * self.inner : (i + 1) * self.inner])
        if not self.ends:
            return text
        row: npt.NDArray[Any] = self._inside(1)[0]
        row[1:-1] = text
        return row

    def gather(self, rows: Ints) -> Tensor:
        """Rows from anywhere in the file ``[B, L]`` int64.

        They are read, not mapped: for every row of a map that is not in the system's cache yet the
        system reads ahead (20 times the time), and what was read counts as this process's memory.
        """
        found = self._inside(len(rows))
        texts = found[:, 1:-1] if self.ends else found
        with self.path.open("rb", buffering=0) as file:
            for text, i in zip(texts, rows.tolist(), strict=True):
                file.seek(i * text.nbytes)
                if file.readinto(text.data) != text.nbytes:
                    raise OSError(f"{self.path} ends before row {i} does")
        return torch.from_numpy(self._checked(found).astype(np.int64))

    @property
    def characters_per_token(self) -> float:
        """Characters behind one token, on average over the file."""
        return self.characters / self.tokens * self.inner / self.length

    def counts(self, vocab_size: int | None = None) -> Tensor:
        """See `Rows.counts`; reads the file once, from its beginning to its end."""
        whole = len(self) * self.inner
        counts = np.zeros(vocab_size or self.vocab_size, np.int64)
        with self.path.open("rb") as file:
            for start in range(0, whole, _CHUNK):
                tokens = self._checked(np.fromfile(file, self.dtype, min(_CHUNK, whole - start)))
                counts += np.bincount(tokens, minlength=len(counts))
        for end in self.ends or ():
            counts[end] += len(self)
        return torch.from_numpy(counts)

    @cached_property
    def _map(self) -> npt.NDArray[Any]:
        """The file as it lies; opened by whoever reads: a loader's worker opens its own."""
        # as a plain array, whose slices cost a tenth of a memmap's
        return np.asarray(np.memmap(self.path, self.dtype, mode="r"))


class DocumentRows(_TokenFile):
    """One document a row, cut at the length, padding behind it.

    Attributes:
        index: file of the places behind each document's last token.
        eos: whether an end of text stands behind each document in the file.
        pad: what fills up a row.
    """

    padded = True

    def __init__(
        self,
        path: Path,
        *,
        length: int,
        vocab_size: int,
        characters: int,
        ends: tuple[int, int] | None = None,
        eos: bool,
        pad: int,
    ) -> None:
        super().__init__(
            path, length=length, vocab_size=vocab_size, characters=characters, ends=ends
        )
        self.index = self.path.with_suffix(".idx")
        self.cut = int(eos and ends is not None)  # the row's own end takes the place of the file's
        self.pad = pad

    def __len__(self) -> int:
        return self.index.stat().st_size // INDEX_DTYPE.itemsize

    def gather(self, rows: Ints) -> Tensor:
        """Rows from anywhere in the file ``[B, L]`` int64; read, as in `PackedTokens.gather`."""
        found = np.full((len(rows), self.length), self.pad, self.dtype)
        first = int(self.ends is not None)
        with self.path.open("rb", buffering=0) as file:
            for row, (start, n) in zip(found, self._spans(rows), strict=True):
                text = row[first : first + n]
                file.seek(start * self.dtype.itemsize)
                if file.readinto(text.data) != text.nbytes:
                    raise OSError(f"{self.path} ends before token {start + n}")
                if self.ends:
                    row[0], row[n + 1] = self.ends
        return torch.from_numpy(self._checked(found).astype(np.int64))

    def lengths(self, rows: Ints) -> Tensor:
        """See `Rows.lengths`."""
        return torch.tensor([n for _, n in self._spans(rows)]) + (self.length - self.inner)

    def _spans(self, rows: Ints) -> list[tuple[int, int]]:
        """Where each row's text begins in the file, and how many of its tokens the row takes."""
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
            while len(ends := np.fromfile(file, INDEX_DTYPE, _CHUNK)):
                n = np.diff(ends.astype(np.int64), prepend=before) - self.cut
                n = n.clip(max=self.inner) + (self.length - self.inner)
                found += np.bincount(n, minlength=self.length + 1)
                before = int(ends[-1])
        return found

    @property
    def lost(self) -> float:
        """Share of the documents' tokens that are cut off at the end of their rows."""
        ends = self.length - self.inner
        return 1 - (self.mean_length - ends) * len(self) / (self.tokens - self.cut * len(self))

    @property
    def characters_per_token(self) -> float:
        """Characters behind one token of a row, on average."""
        text = self.tokens - self.cut * len(self)
        kept = (self.mean_length - (self.length - self.inner)) / self.mean_length
        return self.characters / text * kept
