"""Batches for Lightning: which rows an optimiser step takes is a function of (seed, step)."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import BatchSampler, DataLoader, Dataset

from sddlm.data.packed import Rows
from sddlm.data.shuffle import order
from sddlm.data.steps import StepSampler, TrainRows
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
        return item


class _StepLoader(DataLoader[Any]):
    """Data loader with the length of the *whole* run, also when it starts in the middle.

    Lightning counts batches from the beginning of a resumed run.
    """

    batches: int

    def __len__(self) -> int:
        return self.batches


class TrainData(LightningDataModule):
    """Training rows from ``start_step`` on, and the held-out rows.

    Args:
        train: packed training rows.
        validation: packed held-out rows.
        args: batch sizes.
        seed: seed of the order.
        start_step: first optimiser step, that of the checkpoint when a run is resumed.
    """

    def __init__(
        self,
        train: Rows,
        validation: Rows,
        args: TrainArgs,
        *,
        seed: int,
        start_step: int,
    ) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.args, self.seed, self.start_step = args, seed, start_step

    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Loader of training micro-batches."""
        rank, world = self._world()
        args = self.args
        sampler = StepSampler(
            rows=self.train,
            batch=args.batch,
            seed=self.seed,
            start_step=self.start_step,
            stop_step=args.steps,
            rank=rank,
            world=world,
        )
        size = micro_batch(args, world)
        loader = _StepLoader(
            TrainRows(self.train, seed=self.seed, batch=args.batch),
            batch_size=None,  # a batch is one item
            sampler=BatchSampler(sampler, size, drop_last=False),  # type: ignore[arg-type]
            num_workers=args.workers,
            persistent_workers=args.workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
        loader.batches = args.steps * (args.batch // world // size)
        return loader

    def val_dataloader(self) -> DataLoader[Any]:
        """Loader of held-out rows, distributed over the processes."""
        rank, world = self._world()
        return DataLoader(
            _ValidationRows(self.validation, self.args.validation_rows, rank, world),
            batch_size=micro_batch(self.args, world),
        )
