"""Rows of prepared tokens: documents packed into full rows, or one document per row.

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
_CHUNK = 1 << 20  # numbers read at a time from a whole file


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

        The stream concatenates the permutations of all epochs (see `shuffle`).
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


class _TokenFile(Rows):
    """Rows of one file of tokens. Pickling stores its path, not the tokens.

    Attributes:
        path: file of tokens.
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
        if length < 1:
            raise ConfigError(f"`length` is {length}, must be at least 1 token")
        self.path = Path(path)
        self.length = length
        self.inner = length - (2 if bos_eos else 0)
        self.vocab_size = vocab_size
        self.characters = characters
        self.bos_eos = bos_eos
        self.dtype = token_dtype(vocab_size)
        self.tokens = self.path.stat().st_size // self.dtype.itemsize

    def _inside(self, rows: int) -> npt.NDArray[Any]:
        """Allocate rows, with their first and last tokens set."""
        found = np.empty((rows, self.length), self.dtype)
        if self.bos_eos:
            found[:, 0], found[:, -1] = self.bos_eos
        return found

    def _checked(self, tokens: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the tokens if all are in the vocabulary."""
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
    """Concatenated documents, cut into full rows.

    A row may contain the end of one document and the beginning of the next. Tokens after the last
    full row are in no row; ``tokens`` and ``characters`` count the whole file.
    """

    def __len__(self) -> int:
        return self.tokens // self.inner

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.row_tokens(i).astype(np.int64))

    def row_tokens(self, i: int) -> npt.NDArray[Any]:
        """Row i in the dtype of the file ``[L]`` uint16 or uint32; read-only."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        text = self._checked(self._map[i * self.inner : (i + 1) * self.inner])
        if not self.bos_eos:
            return text
        row: npt.NDArray[Any] = self._inside(1)[0]
        row[1:-1] = text
        return row

    def read(self, rows: Ints) -> Tensor:
        """Read rows by index ``[B, L]`` int64.

        Read, not memory-mapped: for a row that is not cached the system reads ahead (20 times the
        time), and mapped pages count as memory of this process.
        """
        found = self._inside(len(rows))
        texts = found[:, 1:-1] if self.bos_eos else found
        with self.path.open("rb", buffering=0) as file:
            for text, i in zip(texts, rows.tolist(), strict=True):
                file.seek(i * text.nbytes)
                if file.readinto(text.data) != text.nbytes:
                    raise OSError(f"{self.path} ends before row {i} does")
        return torch.from_numpy(self._checked(found).astype(np.int64))

    @property
    def characters_per_token(self) -> float:
        """Mean number of characters per token of the file."""
        return self.characters / self.tokens * self.inner / self.length

    def counts(self, vocab_size: int | None = None) -> Tensor:
        """See `Rows.counts`; reads the file once, from its beginning to its end."""
        whole = len(self) * self.inner
        counts = np.zeros(vocab_size or self.vocab_size, np.int64)
        with self.path.open("rb") as file:
            for start in range(0, whole, _CHUNK):
                tokens = self._checked(np.fromfile(file, self.dtype, min(_CHUNK, whole - start)))
                counts += np.bincount(tokens, minlength=len(counts))
        for end in self.bos_eos or ():
            counts[end] += len(self)
        return torch.from_numpy(counts)

    @cached_property
    def _map(self) -> npt.NDArray[Any]:
        """The memory-mapped file; each worker of a loader opens its own."""
        # a plain array: its slices cost a tenth of those of a memmap
        return np.asarray(np.memmap(self.path, self.dtype, mode="r"))


class DocumentRows(_TokenFile):
    """One document per row, truncated to the length, or padded.

    Attributes:
        index: file of the end offset of each document, in tokens.
        eos: whether an end-of-text token follows each document in the file.
        pad: padding token.
    """

    padded = True

    def __init__(
        self,
        path: Path,
        *,
        length: int,
        vocab_size: int,
        characters: int,
        bos_eos: tuple[int, int] | None = None,
        eos: bool,
        pad: int,
    ) -> None:
        super().__init__(
            path, length=length, vocab_size=vocab_size, characters=characters, bos_eos=bos_eos
        )
        self.index = self.path.with_suffix(".idx")
        self.cut = int(
            eos and bos_eos is not None
        )  # the row's own end takes the place of the file's
        self.pad = pad

    def __len__(self) -> int:
        return self.index.stat().st_size // INDEX_DTYPE.itemsize

    def read(self, rows: Ints) -> Tensor:
        """Read rows by index ``[B, L]`` int64 (see `PackedTokens.read`)."""
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
        return torch.from_numpy(self._checked(found).astype(np.int64))

    def lengths(self, rows: Ints) -> Tensor:
        """See `Rows.lengths`."""
        return torch.tensor([n for _, n in self._spans(rows)]) + (self.length - self.inner)

    def _spans(self, rows: Ints) -> list[tuple[int, int]]:
        """Start of each row's text in the file, and number of its tokens in the row."""
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
        extra = self.length - self.inner
        return 1 - (self.mean_length - extra) * len(self) / (self.tokens - self.cut * len(self))

    @property
    def characters_per_token(self) -> float:
        """Mean number of characters per token of a row."""
        text = self.tokens - self.cut * len(self)
        kept = (self.mean_length - (self.length - self.inner)) / self.mean_length
        return self.characters / text * kept
