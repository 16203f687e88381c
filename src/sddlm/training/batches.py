"""Loaders of micro-batches: which rows an optimiser step takes is a function of (seed, step)."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset

from sddlm.data.order import StepSampler, TrainRows, order
from sddlm.data.rows import Rows
from sddlm.training.args import TrainArgs, micro_batch


class _ValidationRows(Dataset[dict[str, Any]]):
    """Evenly spaced held-out rows; a fixed permutation assigns their times.

    In text order, the time of a row would depend on its position in the text.
    """

    def __init__(self, tokens: Rows, rows: int, rank: int, world: int) -> None:
        self.tokens = tokens
        self.chosen = tokens.subsample(rows)
        self.rows = len(self.chosen)
        self.mine = range(rank, self.rows, world)
        self.slots = order(0, 0, self.rows)

    def __len__(self) -> int:
        return len(self.mine)

    def __getitem__(self, i: int) -> dict[str, Any]:
        n = self.mine[i]
        row = int(self.chosen[n])
        item = {"x0": self.tokens[row], "slot": int(self.slots[n]), "rows": self.rows}
        if self.tokens.padded:
            item["lengths"] = self.tokens.lengths(self.chosen[n : n + 1])[0]
        if self.tokens.paired:
            item["prompts"] = self.tokens.prompts(self.chosen[n : n + 1])[0]
        return item


def train_batches(
    rows: Rows, args: TrainArgs, *, seed: int, start_step: int, rank: int = 0, world: int = 1
) -> DataLoader[Any]:
    """Loader of a process's training micro-batches (`data.order.TrainRows`), in order.

    Args:
        rows: training rows.
        args: batch sizes, steps and workers.
        seed: seed of the order.
        start_step: first optimiser step (0-based), that of the checkpoint in a resumed run.
        rank: number of the process.
        world: number of processes.
    """
    sampler = StepSampler(
        rows=rows,
        batch=args.batch,
        seed=seed,
        start_step=start_step,
        stop_step=args.steps,
        rank=rank,
        world=world,
    )
    return DataLoader(
        TrainRows(rows, seed=seed, batch=args.batch),
        batch_size=None,  # a batch is one item
        sampler=BatchSampler(sampler, micro_batch(args, world), drop_last=False),  # type: ignore[arg-type]
        num_workers=args.workers,
        pin_memory=torch.cuda.is_available(),
    )


def validation_batches(
    rows: Rows, args: TrainArgs, *, rank: int = 0, world: int = 1
) -> DataLoader[Any]:
    """Loader of a process's share of the held-out rows, in micro-batches."""
    return DataLoader(
        _ValidationRows(rows, args.validation_rows, rank, world),
        batch_size=micro_batch(args, world),
    )
