"""Packed tokens in rows, and in which order training sees them.

One long file of tokens is cut into rows when read, so the same file serves every length. Training
reads rows from all over it, evaluation maps it and goes from row to row. The order is a function of
(seed, epoch, place), see `shuffle`: nothing to store, nothing to restore, and no more memory or
time for a longer file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sddlm.data.shuffle import shuffled
from sddlm.errors import ConfigError

#: What a loader's item says: where the row lies in training, and which row it is.
Place = tuple[int, int, int]
_AHEAD = 4096  # rows whose places are computed at once; one by one costs more than reading them


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

    def gather(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """Rows from anywhere in the file ``[B, L]`` int64.

        They are read, not mapped: for every row of a map that is not in the system's cache yet the
        system reads ahead (20 times the time), and what was read counts as this process's memory.
        """
        found = np.empty((len(rows), self.length), token_dtype(self.vocab_size))
        with self.path.open("rb", buffering=0) as file:
            for row, i in zip(found, rows.tolist(), strict=True):
                file.seek(i * row.nbytes)
                if file.readinto(row) != row.nbytes:
                    raise OSError(f"{self.path} ends before row {i} does")
        return torch.from_numpy(found.astype(np.int64))

    def counts(self, vocab_size: int | None = None, *, chunk: int = 1 << 22) -> Tensor:
        """How often each token occurs in the rows ``[V]`` int64; reads the file once.

        Args:
            vocab_size: V, if it is larger than that of the file.
            chunk: tokens read at a time.
        """
        whole = len(self) * self.length
        counts = np.zeros(vocab_size or self.vocab_size, np.int64)
        with self.path.open("rb") as file:
            for start in range(0, whole, chunk):
                size = min(chunk, whole - start)
                tokens = np.fromfile(file, token_dtype(self.vocab_size), size)
                counts += np.bincount(tokens, minlength=len(counts))
        return torch.from_numpy(counts)

    def _tokens(self) -> npt.NDArray[Any]:
        """The file as it lies."""
        if self._map is None:  # opened by whoever reads: a loader's worker opens its own
            # as a plain array, whose slices cost a tenth of a memmap's
            self._map = np.asarray(np.memmap(self.path, token_dtype(self.vocab_size), mode="r"))
        return self._map

    @property
    def characters_per_token(self) -> float:
        """Characters behind one token, on average over the file."""
        return self.characters / self.tokens

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


class TrainRows(Dataset[dict[str, Tensor]]):
    """Rows for training, a whole batch at a time, addressed by a ``StepSampler``.

    Item ``[(step, slot, row), ...]`` is x0 ``[B, L]``, step ``[B]`` and slot ``[B]``, all int64.
    They are read together: rows that the loader has to stack take longer. So it gets lists
    (``BatchSampler``) and has nothing to collate (``batch_size=None``).
    """

    def __init__(self, rows: PackedTokens) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Sequence[Place]) -> dict[str, Tensor]:
        step, slot, row = np.array(places, np.int64).T.copy()
        x0 = self.rows.gather(row)
        return {"x0": x0, "step": torch.from_numpy(step), "slot": torch.from_numpy(slot)}


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
        slots = np.arange(self.rank * share, (self.rank + 1) * share)
        ahead = max(1, _AHEAD // share)
        for first in range(self.start_step, self.stop_step, ahead):
            steps = np.arange(first, min(first + ahead, self.stop_step))
            step, slot = np.repeat(steps, share), np.tile(slots, len(steps))
            epoch, place = np.divmod(step * self.batch + slot, self.rows)
            row = shuffled(self.seed, epoch, place, self.rows)
            yield from zip(step.tolist(), slot.tolist(), row.tolist(), strict=True)
