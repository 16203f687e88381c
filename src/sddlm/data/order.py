"""Order of the training rows: a keyed permutation, and the rows of each optimiser step.

Both are functions of the seed and the position, so there is no state to store or restore.

Ten billion tokens are millions of rows; an array of their order would take seconds and gigabytes
before the first step. A Feistel network (Luby and Rackoff 1988) permutes a power of four without
memory; walking its cycles (Black and Rogaway 2002) makes that any number of rows. Its rounds hash
with SplitMix64's finaliser, as `sddlm.rng` does. Nothing but arithmetic of unsigned 64-bit
integers happens, so an order is the same in every version and on every machine.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sddlm.errors import ConfigError

if TYPE_CHECKING:
    from sddlm.data.rows import Rows

Words = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NAME = np.uint64(zlib.crc32(b"order"))  # keeps these numbers apart from any `Draw`'s
#: up to here each permutation is as likely as any other; a Feistel network reaches even ones only
#: of 16, which one sees in the orders of 5 rows: some come up 13% too often
_RANKED = 64
_ROUNDS = 8

#: item of the sampler: step, slot in the global batch, row
Place = tuple[int, int, int]
_AHEAD = 4096  # rows whose places are computed at once; one by one costs more than reading them


def order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Permutation of n rows in an epoch ``[n]`` int64."""
    return shuffled(seed, np.full(n, epoch), np.arange(n), n)


def shuffled(
    seed: int, epoch: npt.NDArray[Any], place: npt.NDArray[Any], n: int
) -> npt.NDArray[np.int64]:
    """Row at each position of an epoch's permutation of n rows ``[m]`` int64.

    Args:
        seed: seed of the order.
        epoch: epoch of each position ``[m]``; each epoch has its own permutation.
        place: position in its epoch, 0 to n - 1 ``[m]``.
        n: number of rows.
    """
    key = np.full(len(place), seed & 0xFFFFFFFFFFFFFFFF, np.uint64)  # [m]
    for word in (np.uint64(0), _NAME, epoch.astype(np.uint64)):
        key = _mix((key ^ word) + _GAMMA)
    if n <= _RANKED:
        bits = _mix(key[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GAMMA)  # [m, n]
        ranks = np.argsort(bits, axis=1, kind="stable")
        return np.take_along_axis(ranks, place[:, None], 1)[:, 0].astype(np.int64, copy=False)
    half = ((n - 1).bit_length() + 1) // 2
    x = _feistel(key, place.astype(np.uint64), half)
    out = np.flatnonzero(x >= n)
    while len(out):  # on along the cycle until it is back among the rows
        x[out] = _feistel(key[out], x[out], half)
        out = out[x[out] >= n]
    return x.astype(np.int64)


def _feistel(key: Words, x: Words, half: int) -> Words:
    """Feistel permutation of the integers of 2 * half bits, one for each key ``[m]``."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for turn in range(1, _ROUNDS + 1):
        word = (np.uint64(turn) << bits) | right
        left, right = right, left ^ (_mix(key + word * _GAMMA) & mask)
    return (left << bits) | right


def _mix(z: Words) -> Words:
    """SplitMix64's finaliser: 64 well-mixed bits for each of 64 bits."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


# ------------------------------------------------------------------ rows of a step


class TrainRows(Dataset[dict[str, Tensor]]):
    """Training rows, a whole batch at a time, addressed by a `StepSampler`.

    Item ``[(step, slot, row), ...]`` is x0 ``[B, L]``, step ``[B]`` and slot ``[B]``, all int64; of
    rows with padding also ``lengths`` ``[B]``, and ``step_lengths`` of *all* rows of the step, on
    whatever process they are; of pairs instead the same of their ``prompts``. Rows are read
    together: rows that the loader has to stack take longer. So it gets lists (``BatchSampler``) and
    has nothing to collate (``batch_size=None``).

    Args:
        rows: the rows.
        seed: seed of the order.
        batch: size of the global batch.
    """

    def __init__(self, rows: Rows, *, seed: int, batch: int) -> None:
        self.rows, self.seed, self.batch = rows, seed, batch

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, places: Sequence[Place]) -> dict[str, Tensor]:
        step, slot, row = np.array(places, np.int64).T.copy()
        x0 = self.rows.read(row)
        item = {"x0": x0, "step": torch.from_numpy(step), "slot": torch.from_numpy(slot)}
        whole = int(step[0]) * self.batch + np.arange(self.batch)
        for name, there in (("lengths", self.rows.padded), ("prompts", self.rows.paired)):
            if there:
                count = getattr(self.rows, name)
                item[name] = count(row)
                item[f"step_{name}"] = count(self.rows.row_indices(self.seed, whole))
        return item


class StepSampler(Sampler[Place]):
    """Sampler of the rows in the global batch of each optimiser step.

    Step k takes positions k*batch to (k+1)*batch of the endless stream `Rows.row_indices`. A batch
    may therefore span epochs, and there may be fewer rows than a batch. Each of ``world`` ranks
    takes its contiguous share of every step. Items are ``(step, slot, row)``, where slot is the
    position in the *global* batch; a loader cuts them into micro-batches in this order.

    Attributes:
        rows: the rows.
        batch: size of the global batch.
        seed: seed of the order.
        start_step: first step (a resumed run starts later).
        stop_step: the step after the last one.
        rank: which share, 0 to world - 1.
        world: number of shares.
    """

    def __init__(
        self,
        *,
        rows: Rows,
        batch: int,
        seed: int,
        stop_step: int,
        start_step: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(rows) < 1 or batch < 1:
            raise ConfigError(
                f"{len(rows)} rows in batches of {batch}: there must be at least 1 of both"
            )
        if batch % world:
            raise ConfigError(
                f"a global batch of {batch} cannot be shared by {world} processes; choose a "
                f"multiple of {world}, such as {-(-batch // world) * world}"
            )
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
            row = self.rows.row_indices(self.seed, step * self.batch + slot)
            yield from zip(step.tolist(), slot.tolist(), row.tolist(), strict=True)
