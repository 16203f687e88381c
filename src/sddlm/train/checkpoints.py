"""Resumable checkpoints, and a Ctrl-C that loses nothing."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from sddlm.train.args import LAST


class Checkpoints(Callback):
    """Saves the whole state every ``every`` steps, at the end, and when asked to stop.

    The first Ctrl-C (or SIGTERM) ends the run after the present step and saves it; the second
    ends it at once. A checkpoint is written beside the old one and renamed, so that a kill at
    any moment leaves a complete one.

    Args:
        run: the run directory.
        every: steps between checkpoints.
        steps: of the whole run.
        start_step: steps done before, in a resumed run.
    """

    def __init__(self, run: Path, *, every: int, steps: int, start_step: int) -> None:
        self.path = run / LAST
        self.every, self.steps = every, steps
        self.saved = start_step
        self.stopping = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over, after Lightning did (only the main thread may)."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        if self.stopping:
            raise KeyboardInterrupt
        self.stopping = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the boundary of an optimiser step."""
        step = trainer.global_step
        if step == self.saved or not self._boundary(trainer, batch_idx):
            return
        stop = self._agreed(trainer)
        if stop or step % self.every == 0 or step == self.steps:
            self.saved = step
            self._save(trainer)
        if stop:
            trainer.should_stop = True

    def _boundary(self, trainer: Trainer, batch_idx: int) -> bool:
        return (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any process was asked to stop: they must all stop at the same step."""
        if trainer.world_size == 1:
            return self.stopping
        flag = torch.tensor(float(self.stopping), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(flag, reduce_op="sum") > 0)

    def _save(self, trainer: Trainer) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        try:
            trainer.save_checkpoint(temporary)
        except (OSError, RuntimeError) as error:  # torch tells a full disk by a RuntimeError
            temporary.unlink(missing_ok=True)
            raise OSError(f"cannot write {self.path}, the one before is intact: {error}") from error
        if trainer.is_global_zero:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(self.path)
        trainer.strategy.barrier()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()


def saved_step(run: Path) -> int:
    """Optimiser steps done in the run's checkpoint."""
    return int(torch.load(run / LAST, map_location="cpu", weights_only=True)["global_step"])
