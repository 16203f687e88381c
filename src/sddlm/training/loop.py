"""The training loop: micro-batches, update, average, previews, validation, checkpoint.

There is no state beside the weights, the optimisers and the average: rows and noise are functions
of (seed, step), and so is the learning rate. A resumed run therefore repeats no step.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from sddlm.data.rows import Rows
from sddlm.training.args import TrainArgs, micro_batch
from sddlm.training.batches import train_batches, validation_batches
from sddlm.training.checkpoints import save_checkpoint, step_of
from sddlm.training.ema import EMA
from sddlm.training.module import TrainModule
from sddlm.training.monitor import Monitor
from sddlm.training.optimizers import Update
from sddlm.training.processes import Processes


class Trainer:
    """A training on one or several processes.

    Args:
        module: network and objective; moved to the device.
        args: options of the training.
        processes: this process among all.
    """

    def __init__(self, module: TrainModule, args: TrainArgs, processes: Processes) -> None:
        self.module, self.args, self.processes = module.to(processes.device), args, processes
        if args.compile:
            module.model.compile()  # in place, so that no name of a weight changes
        self.ema = EMA(module.model)
        self.update = Update(module.model, args)
        self.step = 0
        """optimiser steps that are done"""
        self.stopped = False
        """whether a signal ended it"""
        self._signalled = False
        self.monitor: Monitor | None = None

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        self.module.load_state_dict(state["state_dict"])
        self.update.load_state_dict(state["optimizer_states"])
        self.ema.load_state_dict(state["ema"])
        self.step = step_of(state)

    def state_dict(self) -> dict[str, Any]:
        """State for the checkpoint."""
        return {
            "global_step": self.step,
            "state_dict": self.module.state_dict(),
            "optimizer_states": self.update.state_dict(),
            "ema": self.ema.state_dict(),
        }

    def fit(self, run: Path, train: Rows, held_out: Rows, monitor: Monitor | None) -> None:
        """Train up to the last step, or to the one in which Ctrl-C or SIGTERM came.

        A checkpoint is written behind the validation of its step, so that a resumed run has all
        figures of the steps that it does not repeat.

        Args:
            run: run directory.
            train: training rows.
            held_out: validation rows.
            monitor: records of the run, in the first process.
        """
        args, share = self.args, {"rank": self.processes.rank, "world": self.processes.world}
        seed, self.monitor = self.module.seed, monitor
        batches = iter(train_batches(train, args, seed=seed, start_step=self.step, **share))
        self._held_out = validation_batches(held_out, args, **share)
        device, several = self.processes.device, self.processes.world > 1
        ids = [device.index] if device.type == "cuda" else None
        network = DistributedDataParallel(self.module, ids) if several else self.module
        self.module.train()
        with self._signals():
            while self.step < args.steps and not self.stopped:
                self._train_step(network, batches)
                self.stopped = self.processes.any(self._signalled)  # all at the same step
                if self.step % args.validate_every == 0:
                    self._validate()
                last = self.stopped or self.step == args.steps
                if monitor and (last or self.step % args.checkpoint_every == 0):
                    monitor.write_table()  # a resumed run does not compute these metrics again
                    save_checkpoint(run, {**self.state_dict(), "spent": monitor.spent()})

    def _train_step(self, network: torch.nn.Module, batches: Iterator[dict[str, Tensor]]) -> None:
        """One optimiser step: the gradient of all its micro-batches, update, average."""
        parts = self.args.batch // self.processes.world
        parts //= micro_batch(self.args, self.processes.world)
        for part in range(parts):
            batch = self._moved(next(batches))
            waits = self.processes.world > 1 and part < parts - 1
            with network.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with self._autocast():
                    loss = network(batch)
                (loss / parts).backward()
        norm = self.update.step(self.step)
        figures = self._summed(norm)
        self.step += 1
        self.ema.updates = self.step
        self.ema.update(self.args.ema_decay(self.step))
        if self.monitor:
            self.monitor.after_step(self.step, lambda: _means(figures))

    def _summed(self, norm: Tensor) -> dict[str, Tensor]:
        """Metrics of the step as sums and counts over all processes."""
        figures = self.module.figures
        sums = self.processes.sum(torch.stack(list(figures.values())))  # [figures, 2]
        one = torch.stack((norm, torch.ones_like(norm))).double()
        return {**dict(zip(figures, sums, strict=True)), "gradient_norm": one}

    @torch.no_grad()
    def _validate(self) -> None:
        """Bound and loss of the averaged weights on held-out rows."""
        sums = torch.zeros(4, dtype=torch.float64)
        self.module.eval()
        with self.ema.applied(), self._autocast():
            for batch in self._held_out:
                sums += self.module.validation_sums(self._moved(batch)).cpu()
        self.module.train()
        sums = self.processes.sum(sums.to(self.processes.device))
        if self.monitor:
            with self._autocast():
                figures = {"val_nelbo": sums[:2], "val_loss": sums[2:]}
                self.monitor.after_validation(self.step, _means(figures))

    def _moved(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        device = self.processes.device
        return {name: value.to(device, non_blocking=True) for name, value in batch.items()}

    def _autocast(self) -> torch.autocast:
        """Matrix products in bfloat16 if chosen.

        Without the cache: it would sum the gradients of a weight that is used twice in bfloat16.
        """
        kind = self.processes.device.type
        bf16 = self.args.bf16(gpu=kind == "cuda")
        return torch.autocast(kind, torch.bfloat16, enabled=bf16, cache_enabled=False)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM stops after the current step; the second one at once.

        Possible in the main thread only.
        """
        previous = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, self._stop)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        if self._signalled:
            raise KeyboardInterrupt
        self._signalled = True


def _means(figures: dict[str, Tensor]) -> dict[str, float]:
    """Means of sums and counts ``[2]``, without those of nothing; synchronises the device."""
    pairs = {name: sums.tolist() for name, sums in figures.items()}
    return {name: total / count for name, (total, count) in pairs.items() if count}
