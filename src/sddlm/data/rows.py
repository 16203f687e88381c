"""Rows of prepared tokens: documents packed into full rows, one document a row, or pairs.

The same files serve every length and both packings: rows are made when they are read.
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

from sddlm.data.order import shuffled
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
        paired: rows begin with a prompt, see `prompts`.
        tokens: number of tokens behind the rows, ends of text included.
        characters: number of characters of the text behind them.
    """

    length: int
    vocab_size: int
    padded: bool = False
    paired: bool = False
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

    def prompts(self, rows: Ints) -> Tensor:
        """Number of tokens of the prompt that each row begins with ``[B]`` int64."""
        return torch.zeros(len(rows), dtype=torch.int64)

    @property
    @abstractmethod
    def characters_per_token(self) -> float:
        """Mean number of characters per token of a row, without padding and prompt."""

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
    #: ends in the index for each row
    parts = 1

    def __init__(self, path: Path, *, eos: bool, pad: int, **shape: Any) -> None:
        super().__init__(path, **shape)
        self.index = self.path.with_suffix(".idx")
        self.pad = pad
        self.cut = int(eos and self.bos_eos is not None)  # the row's own end replaces the file's

    def __len__(self) -> int:
        return self.index.stat().st_size // INDEX_DTYPE.itemsize // self.parts

    def lengths(self, rows: Ints) -> Tensor:
        """See `Rows.lengths`."""
        return torch.tensor([n for _, n in self._spans(rows)]) + (self.length - self.inner)

    def _spans(self, rows: Ints) -> list[tuple[int, int]]:
        return [
            (start, min(stop - start - self.cut, self.inner))
            for start, *_, stop in self._bounds(rows)
        ]

    def _bounds(self, rows: Ints) -> list[list[int]]:
        """Start of each row's document in the file, and the ends of its parts."""
        bounds, size = [], INDEX_DTYPE.itemsize
        with self.index.open("rb", buffering=0) as file:
            for i in rows.tolist():
                file.seek(max(0, i * self.parts - 1) * size)
                read = np.frombuffer(file.read(size * (self.parts + (i > 0))), INDEX_DTYPE)
                found: list[int] = [0, *read.tolist()][-1 - self.parts :]
                rises = found == sorted(found) and found[-2] + self.cut <= found[-1]
                if not (rises and found[-1] <= self.tokens):
                    at = f"{found[0]} to {found[-1]}"
                    raise self._damaged(f"its index puts row {i} at tokens {at}")
                bounds.append(found)
        return bounds

    @property
    def row_lengths(self) -> Ints:
        """See `Rows.row_lengths`."""
        return self._row_lengths

    @cached_property
    def _row_lengths(self) -> Ints:
        """Number of documents of each length in a row ``[L + 1]``; reads the index once."""
        found = np.zeros(self.length + 1, np.int64)
        before = 0
        with self.index.open("rb") as file:
            while len(ends := np.fromfile(file, INDEX_DTYPE, _CHUNK)):
                stops = ends[self.parts - 1 :: self.parts]
                n = np.diff(stops.astype(np.int64), prepend=before) - self.cut
                n = n.clip(max=self.inner) + (self.length - self.inner)
                found += np.bincount(n, minlength=self.length + 1)
                before = int(stops[-1])
        return found

    @property
    def lost(self) -> float:
        """Share of the documents' tokens that are truncated."""
        found = self._row_lengths
        mean = found @ np.arange(self.length + 1) / found.sum()
        kept = float(mean) - (self.length - self.inner)  # of a document, on average
        return 1 - kept * len(self) / (self.tokens - self.cut * len(self))

    @property
    def characters_per_token(self) -> float:
        """See `Rows.characters_per_token`."""
        kept = (self.mean_length - (self.length - self.inner)) / self.mean_length
        return self.characters / (self.tokens - self.cut * len(self)) * kept


class PairRows(DocumentRows):
    """A prompt with its text per row, and ends of text behind it; the index has the ends of both.

    All behind the prompt is scored, so that the model learns where a text ends.

    Args:
        path: see `DocumentRows`.
        prompt_tokens: number of tokens of all prompts.
        prompt_characters: number of their characters.
        shape: see `DocumentRows`; the padding token is the end of text.
    """

    padded = False
    paired = True
    parts = 2

    def __init__(
        self, path: Path, *, prompt_tokens: int, prompt_characters: int, **shape: Any
    ) -> None:
        super().__init__(path, **shape)
        self.prompt_tokens, self.prompt_characters = prompt_tokens, prompt_characters

    def lengths(self, rows: Ints) -> Tensor:
        """See `Rows.lengths`."""
        return super(DocumentRows, self).lengths(rows)  # no padding

    @property
    def row_lengths(self) -> Ints:
        """See `Rows.row_lengths`."""
        return super(DocumentRows, self).row_lengths

    def prompts(self, rows: Ints) -> Tensor:
        """See `Rows.prompts`; a beginning-of-text token is part of it."""
        first = int(self.bos_eos is not None)
        spans = [min(middle - start, self.inner) for start, middle, _ in self._bounds(rows)]
        return torch.tensor(spans) + first

    @property
    def characters_per_token(self) -> float:
        """Mean number of characters per scored token, of texts that are not truncated."""
        given = self.prompt_tokens + len(self) * int(self.bos_eos is not None)
        tokens = len(self) * self.length - given
        return (self.characters - self.prompt_characters) / max(tokens, 1)
