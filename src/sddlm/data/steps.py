"""Rows of each optimiser step, as a function of the seed and the step.

There is no state to store or restore, and no cost that grows with the file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from sddlm.data.packed import Rows
from sddlm.errors import ConfigError

#: item of the sampler: step, slot in the global batch, row
Place = tuple[int, int, int]
_AHEAD = 4096  # rows whose places are computed at once; one by one costs more than reading them


class TrainRows(Dataset[dict[str, Tensor]]):
    """Training rows, a whole batch at a time, addressed by a `StepSampler`.

    Item ``[(step, slot, row), ...]`` is x0 ``[B, L]``, step ``[B]`` and slot ``[B]``, all int64; of
    rows with padding also ``lengths`` ``[B]``, and ``step_lengths`` of *all* rows of the step, on
    whatever process they are. Rows are read together: rows that the loader has to stack take
    longer. So it gets lists (``BatchSampler``) and has nothing to collate (``batch_size=None``).

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
        if self.rows.padded:
            item["lengths"] = self.rows.lengths(row)
            whole = int(step[0]) * self.batch + np.arange(self.batch)
            item["step_lengths"] = self.rows.lengths(self.rows.row_indices(self.seed, whole))
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
            row = self.rows.row_indices(self.seed, step * self.batch + slot)
            yield from zip(step.tolist(), slot.tolist(), row.tolist(), strict=True)
