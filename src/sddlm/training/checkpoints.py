"""Resumable checkpoints, and saving on Ctrl-C."""

from __future__ import annotations

import logging
import os
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import CheckpointIO

from sddlm.errors import ConfigError, one_line
from sddlm.io import make_durable
from sddlm.training.args import LAST, PREVIOUS, TrainArgs, is_first

logger = logging.getLogger(__name__)


class Checkpoints(Callback):
    """Saves the training state at intervals, at the end, and on Ctrl-C.

    The first Ctrl-C (or SIGTERM) ends the run after the current step and saves it; the second ends
    it at once. A checkpoint is written beside the old one and renamed, so a kill at any moment
    leaves a complete one; the previous one is kept. If a step is validated too, validation comes
    first, so that its metrics are part of the resumed state.

    Args:
        run: the run directory.
        args: options of the training.
        start_step: steps completed before, in a resumed run.
    """

    def __init__(self, run: Path, args: TrainArgs, *, start_step: int) -> None:
        self.run, self.args = run, args
        self.done = start_step
        self.due = False
        self.stopping = False
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Install signal handlers after Lightning's (possible in the main thread only)."""
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
        """Save at the end of an optimiser step."""
        step = trainer.global_step
        if step == self.done or not self._boundary(trainer, batch_idx):
            return
        self.done = step
        stop = self._agreed(trainer)
        if stop:
            trainer.should_stop = True
        self.due = stop or step % self.args.checkpoint_every == 0 or step == self.args.steps
        if step % self.args.validate_every:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save a step after its validation."""
        self._save(trainer)

    def _boundary(self, trainer: Trainer, batch_idx: int) -> bool:
        return (batch_idx + 1) % trainer.accumulate_grad_batches == 0

    def _agreed(self, trainer: Trainer) -> bool:
        """Whether any process was signalled: all must stop at the same step."""
        if trainer.world_size == 1:
            return self.stopping
        flag = torch.tensor(float(self.stopping), device=trainer.strategy.root_device)
        return bool(trainer.strategy.reduce(flag, reduce_op="sum") > 0)

    def _save(self, trainer: Trainer) -> None:
        """Write a checkpoint if one is due; a collective call."""
        if not self.due:
            return
        self.due = False
        last = self.run / LAST
        temporary = last.with_suffix(".tmp")
        try:
            last.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(temporary)
            if trainer.is_global_zero:
                if last.exists():
                    last.replace(self.run / PREVIOUS)
                temporary.replace(last)
                make_durable(last.parent)
        except (OSError, RuntimeError) as error:
            temporary.unlink(missing_ok=True)
            # torch reports a full disk by a RuntimeError, which hides the reason
            reason = error.__context__ if isinstance(error.__context__, OSError) else error
            before = ", the one before is intact" if last.exists() else ""
            raise OSError(f"cannot write {last}{before}: {reason}") from error
        trainer.strategy.barrier()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the signal handlers."""
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        self._previous.clear()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Restore the signal handlers; Lightning calls no teardown after an error."""
        self.teardown(trainer, pl_module, "fit")


class CheckpointFiles(CheckpointIO):
    """Checkpoint IO for Lightning: writes directly to the file, returns a state read before.

    Lightning's own writes to memory and to the temporary folder first.

    Args:
        state: result of `newest_checkpoint`, in a resumed run.
        accumulate: micro-batches per step. Lightning continues its count of batches, which changes
            with the micro-batch or the number of processes.
    """

    def __init__(self, state: dict[str, Any] | None, accumulate: int) -> None:
        self.state, self.accumulate = state, accumulate

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write and flush to disk."""
        with open(path, "wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        """Return the state that was read and checked before."""
        assert self.state is not None
        batches = self.state["global_step"] * self.accumulate
        progress = self.state["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for count in (progress["total"], progress["current"]):
            count.update(dict.fromkeys(count, batches))
        return self.state

    def remove_checkpoint(self, path: Any) -> None:
        """Remove a file."""
        Path(path).unlink(missing_ok=True)


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """Read a run's last checkpoint, or the previous one if it is damaged.

    Raises:
        ConfigError: neither is intact.
    """
    last, problems = run / LAST, []
    for path in (last, run / PREVIOUS):
        try:
            state = _read(path)
        except Exception as error:  # torch raises any exception for a damaged archive
            reason = one_line(error)[:200]
            problems.append(f"{path} is damaged ({reason})" if path.exists() else f"no {path}")
            continue
        if problems and is_first():
            logger.warning("%s; resuming from the one before, step %d", problems[0], step_of(state))
            if last.exists():  # otherwise it would replace the intact one
                last.replace(last.with_suffix(".damaged"))
        return state
    raise ConfigError(f"{'; '.join(problems)}: begin anew in another directory")


def _read(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()  # torch does not verify the checksums that it writes
    if wrong:
        raise ValueError(f"the checksum of {wrong} is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    _check(state)
    return state


def _check(state: dict[str, Any]) -> None:
    """Check that the parts of a state are consistent."""
    loops, ema = state["loops"]["fit_loop"], state["callbacks"]["EMA"]
    progress = loops["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]
    counts = {
        step_of(state), progress["total"]["completed"], ema["updates"],
        state["lr_schedulers"][0]["last_epoch"],
    }  # fmt: skip
    if len(counts) > 1 or min(counts) < 1:
        raise ValueError(f"its counts of steps are {sorted(counts)}")
    average, moments = ema["average"], state["optimizer_states"][0]["state"]
    if not moments:
        raise ValueError("it has no state of the optimiser")
    for i, moment in moments.items():
        if not moment["exp_avg"].shape == moment["exp_avg_sq"].shape == average[i].shape:
            raise ValueError(f"the optimiser's state of parameter {i} has another shape")
    weights = {**state["state_dict"], **dict(enumerate(average))}
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"weights {name} are not finite numbers")


def check_network(state: dict[str, Any], module: torch.nn.Module, run: Path) -> None:
    """Check that a checkpoint belongs to the network.

    Raises:
        ConfigError: a parameter has another shape or is missing on one side.
    """
    there, here = (
        {name: list(value.shape) for name, value in weights.items()}
        for weights in (state["state_dict"], module.state_dict())
    )
    for name in there.keys() | here.keys():
        if there.get(name) != here.get(name):
            raise ConfigError(
                f"{run / LAST} is of another network: {name} is {there.get(name)} there and "
                f"{here.get(name)} here; begin anew in another directory"
            )


def step_of(state: dict[str, Any]) -> int:
    """Number of optimiser steps of a checkpoint."""
    return int(state["global_step"])
