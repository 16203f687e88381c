"""Packed tokens in rows, and in which order training sees them.

One long file of tokens is mapped into memory and cut into rows when read, so the same file serves
every length. The order is a pure function of (seed, epoch): nothing to store, nothing to restore.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sddlm.errors import ConfigError

#: What a loader's item says: where the row lies in training, and which row it is.
Place = tuple[int, int, int]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """How tokens lie in a file: little-endian, 2 bytes while every id fits (V <= 65536), else 4."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class PackedTokens(Dataset[Tensor]):
    """Rows of ``length`` tokens of a memory-mapped file; row i is ``[L]`` int64.

    Tokens behind the last whole row are in no row; ``tokens`` and ``characters`` count the whole
    file. Pickling takes the path, not the tokens.

    Attributes:
        path: the file, nothing but tokens.
        length: L.
        vocab_size: V.
        tokens: number of tokens in the file, ends of text included.
        characters: number of characters of the text behind them.
    """

    def __init__(self, path: Path, *, length: int, vocab_size: int, characters: int) -> None:
        if length < 1:
            raise ConfigError(f"--data.length {length} is too small; a row has at least 1 token")
        self.path = Path(path)
        self.length = length
        self.vocab_size = vocab_size
        self.characters = characters
        self.tokens = self.path.stat().st_size // token_dtype(vocab_size).itemsize
        self._map: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        return self.tokens // self.length

    def __getitem__(self, i: int) -> Tensor:
        return torch.from_numpy(self.row_tokens(i).astype(np.int64))

    def row_tokens(self, i: int) -> npt.NDArray[Any]:
        """Row i as it lies in the file ``[L]`` uint16 or uint32, not to be written to."""
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self._tokens()[i * self.length : (i + 1) * self.length]

    def counts(self, vocab_size: int | None = None, *, chunk: int = 1 << 22) -> Tensor:
        """How often each token occurs in the rows ``[V]`` int64; reads the file once.

        Args:
            vocab_size: V, if it is larger than that of the file.
            chunk: tokens read at a time.
        """
        tokens = self._tokens()[: len(self) * self.length]
        counts = np.zeros(vocab_size or self.vocab_size, np.int64)
        for start in range(0, len(tokens), chunk):
            counts += np.bincount(tokens[start : start + chunk], minlength=len(counts))
        return torch.from_numpy(counts)

    def _tokens(self) -> npt.NDArray[Any]:
        """The file as it lies."""
        if self._map is None:  # opened by whoever reads: a loader's worker opens its own
            self._map = np.memmap(self.path, token_dtype(self.vocab_size), mode="r")
        return self._map

    @property
    def characters_per_token(self) -> float:
        """Characters behind one token, on average over the file."""
        return self.characters / self.tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


class TrainRows(Dataset[dict[str, Any]]):
    """Rows for training, addressed by a ``StepSampler``.

    Item ``(step, slot, row)`` is ``{"x0": [L] int64, "step": int, "slot": int}``; the default
    collation makes that x0 ``[B, L]``, step ``[B]`` and slot ``[B]``, all int64.
    """

    def __init__(self, rows: PackedTokens) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: Place) -> dict[str, Any]:
        step, slot, row = place
        return {"x0": self.rows[row], "step": step, "slot": slot}


def order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """The order of n rows in an epoch: a permutation of 0..n-1 ``[n]`` int64.

    The ranks of Philox's raw output under the key (seed, epoch); NumPy promises those bits in
    every version, which it does not for ``Generator.permutation``.
    """
    mask = (1 << 64) - 1
    key = np.array([seed & mask, epoch & mask], dtype=np.uint64)
    bits = np.random.Philox(key=key).random_raw(n)
    return np.argsort(bits, kind="stable").astype(np.int64, copy=False)


class StepSampler(Sampler[Place]):
    """Which row lies where in the global batch of each optimiser step.

    The epochs' orders, one behind the other, are one endless stream; step k takes its items
    k*batch to (k+1)*batch. So a batch may span epochs, and there may be fewer rows than a batch.
    Each of ``world`` ranks takes its contiguous share of every step. The items are
    ``(step, slot, row)``, slot being the place in the *global* batch; a loader cuts them into
    micro-batches in this order.

    Attributes:
        rows: number of rows.
        batch: size of the global batch.
        seed: of the order.
        start_step: first step (a resumed run starts later).
        stop_step: the step after the last one.
        rank: which share, 0 to world - 1.
        world: number of shares.
    """

    def __init__(
        self,
        *,
        rows: int,
        batch: int,
        seed: int,
        stop_step: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if rows < 1 or batch < 1:
            raise ConfigError(
                f"{rows} rows in batches of {batch}: there must be at least 1 of both"
            )
        if batch % world:
            raise ConfigError(
                f"a global batch of {batch} cannot be shared by {world} processes; choose a "
                f"multiple of {world}, such as {-(-batch // world) * world}"
            )
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self.rows, self.batch, self.seed = rows, batch, seed
        self.start_step, self.stop_step = start_step, stop_step
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step) * (self.batch // self.world)

    def __iter__(self) -> Iterator[Place]:
        share = self.batch // self.world
        current, permutation = -1, np.empty(0, np.int64)
        for step in range(self.start_step, self.stop_step):
            for slot in range(self.rank * share, (self.rank + 1) * share):
                epoch, place = divmod(step * self.batch + slot, self.rows)
                if epoch != current:
                    current, permutation = epoch, order(self.seed, epoch, self.rows)
                yield step, slot, int(permutation[place])
