"""Output of a run: progress bar, ``metrics.csv``, sample previews, curves."""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from math import inf, log
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from sddlm.io import append, atomic_write, current_names
from sddlm.progress import PlainConsole
from sddlm.training.alarms import Alarms
from sddlm.training.args import TrainArgs
from sddlm.training.curves import draw_curves
from sddlm.training.diagnostics import GRADIENT_COLUMNS, OUTPUT_COLUMNS
from sddlm.training.loggers import Loggers

logger = logging.getLogger(__name__)

#: what a run has taken so far: time, and CPU time of the first process
SPENT = ("seconds", "cpu_seconds")
COLUMNS = (
    "step", "tokens", *SPENT, "learning_rate", "t_max", "loss", "loss_per_row",
    "gradient_norm", "val_loss", "val_nelbo", "val_bpc", *OUTPUT_COLUMNS, *GRADIENT_COLUMNS,
    "preview_entropy", "text_entropy",
)  # fmt: skip
LOG_EVERY = 10
Metrics = Callable[[], dict[str, float]]
_REDRAWN = 10.0  # seconds between plots: one costs as much as a hundred steps of a tiny network


class Monitor:
    """Records of a run in the first process: progress bar, metrics, previews, curves.

    A context: the bar closes and the records are written at its end, also after an error.

    Args:
        run: run directory.
        args: options of the training.
        start_step: steps completed before, in a resumed run.
        spent: what these took (`spent`); None if that is not known but from the table.
        length: mean number of tokens of a row.
        characters_per_token: ratio of the held-out text, for bits per character.
        preview: samples texts from the network; returns them and their entropy.
        averaged: context in which the network has its averaged weights.
        probe: returns the diagnostics of the present weights (`diagnostics.diagnostics`).
        text_entropy: entropy of held-out rows as long as the previews.
        vocab_size: V.
    """

    def __init__(
        self,
        run: Path,
        args: TrainArgs,
        *,
        start_step: int,
        spent: dict[str, float] | None,
        length: int,
        characters_per_token: float,
        preview: Callable[[], tuple[list[str], float]],
        averaged: Callable[[], AbstractContextManager[None]],
        probe: Callable[[], dict[str, float]],
        text_entropy: float,
        vocab_size: int,
    ) -> None:
        self.run, self.args, self.length = run, args, length
        self.characters_per_token = characters_per_token
        self.preview, self.averaged, self.probe = preview, averaged, probe
        self.text_entropy = text_entropy
        # keep the records up to the checkpoint: later steps are repeated
        for name in ("previews.jsonl", "alarms.jsonl"):
            _keep_until(run / name, start_step)
        self.loggers = Loggers(run, args.loggers, start_step)
        self.rows = [row for row in read_metrics(run) if row["step"] <= start_step]
        self.newest = {name: value for row in self.rows for name, value in row.items()}
        self.alarms = Alarms(run, self.rows, vocab_size=vocab_size, warmup=args.warmup)
        self.fresh = bool(self.rows)
        """whether `write` may not have written all metrics, perhaps because of a kill"""
        self.done = self.first = start_step
        self.started = (0.0, 0.0)
        self.earlier = spent or {name: self.newest.get(name, 0.0) for name in SPENT}
        self.drawn = time.perf_counter()
        self._metrics: Metrics = dict
        self.console = PlainConsole(stderr=True)
        self.bar: Progress | None = None
        self.task: Any = None

    def __enter__(self) -> Monitor:
        """Open the bar."""
        self.started = _clocks()
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}  {task.fields[figures]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self.console,
            )
            self.bar.start()
            self.task = self.bar.add_task("", total=self.args.steps, figures="")
        return self

    def __exit__(self, *error: object) -> None:
        """Close the bar and write what there is."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
        self.loggers.close()
        if self.fresh:
            try:
                self.write()
            except OSError as full:  # which must not cost the model, or hide another error
                logger.warning("cannot write the figures: %s", full)

    def after_step(self, step: int, metrics: Metrics) -> None:
        """Update the bar; add a row of metrics and write a preview at their intervals.

        Args:
            step: optimiser steps that are done.
            metrics: returns the metrics of the step, which synchronises the device.
        """
        self.done, self._metrics = step, metrics
        if step % LOG_EVERY == 0 or step == self.args.steps:
            self._record(step)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, figures=self._figures())
        every = self.args.preview_every
        if every and step % every == 0:
            self._write_preview(step)

    def spent(self) -> dict[str, float]:
        """Seconds and CPU seconds of all steps that are done, also of those before a resumption."""
        now = zip(SPENT, _clocks(), self.started, strict=True)
        return {name: round(self.earlier[name] + end - start, 3) for name, end, start in now}

    def _record(self, step: int) -> None:
        row = {
            "step": step,
            "tokens": step * self.args.batch * self.length,
            **self.spent(),
            "learning_rate": self.args.lr * self.args.lr_factor(step - 1),
            "t_max": self.args.t_max(step - 1),
        }
        row.update({name: value for name, value in self._metrics().items() if name in COLUMNS})
        self.rows.append(row)
        self.newest.update(row)
        self.loggers.log(step, {name: value for name, value in row.items() if name != "step"})
        self.fresh = True

    def _figures(self) -> str:
        rate = (self.done - self.first) * self.args.batch * self.length
        rate = int(rate / max(1e-9, time.perf_counter() - self.started[0]))
        shown = [f"{rate:,} tokens/s"]
        columns = ("loss", "val_nelbo", "val_bpc")
        shown += [f"{name} {self.newest[name]:.3f}" for name in columns if name in self.newest]
        return "  ".join([*shown, *self.alarms.near])

    def after_validation(self, step: int, found: dict[str, float]) -> None:
        """Add the validation metrics and diagnostics to the table; write it, sometimes the plot.

        Validation uses the averaged weights. Diagnostics use the trained weights, where failures
        show first.

        Args:
            step: optimiser steps that are done.
            found: metrics of the validation.
        """
        if "val_nelbo" in found:
            found["val_bpc"] = found["val_nelbo"] / self.characters_per_token / log(2)
        self._add(step, {**found, **self.probe()})
        self.alarms.check()
        logger.info("step %d: %s", step, self._figures())
        if time.perf_counter() - self.drawn > _REDRAWN:
            self.write()
        else:
            self.write_table()

    def _add(self, step: int, found: dict[str, float]) -> None:
        """Add metrics to the row of this step."""
        if not self.rows or self.rows[-1]["step"] != step:
            self._record(step)
        self.rows[-1].update(found)
        self.newest.update(found)
        self.loggers.log(step, found)
        self.fresh = True

    def write(self) -> None:
        """Write ``metrics.csv`` and, where matplotlib is installed, ``curves.png``."""
        self.write_table()
        self.drawn = time.perf_counter()
        draw_curves({self.run.name: self.rows}, self.run / "curves.png")
        self.fresh = False

    def write_table(self) -> None:
        """Write ``metrics.csv``."""
        with atomic_write(self.run / "metrics.csv") as file:
            table = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
            table.writeheader()
            table.writerows(self.rows)

    def _write_preview(self, step: int) -> None:
        with self.averaged():
            texts, entropy = self.preview()
        self._add(step, {"preview_entropy": entropy, "text_entropy": self.text_entropy})
        self.alarms.check()
        records = [json.dumps({"step": step, "text": t}, ensure_ascii=False) + "\n" for t in texts]
        append(self.run / "previews.jsonl", "".join(records))
        if self.bar is not None:
            self.console.print(f"step {step}: {' '.join(texts[0].split())[:200]}")


def _clocks() -> tuple[float, float]:
    """Time and CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def _keep_until(path: Path, last: int) -> None:
    """Remove records of later steps and invalid lines from a file of JSON lines."""
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace", newline="\n") as file:
        lines = list(file)
    kept = [line for line in lines if _step(line) <= last]
    if kept != lines:
        with atomic_write(path) as file:
            file.writelines(kept)


def _step(line: str) -> float:
    """Step of a record; infinite for an incomplete line."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, LookupError):
        return inf


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Read the rows of a run's ``metrics.csv``, without empty fields; empty if it has none.

    Damaged rows are skipped with a warning.
    """
    path, rows, damaged = run / "metrics.csv", [], 0
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        table = csv.DictReader(file)
        while True:
            try:
                rows.append(_numbers(current_names(next(table))))
            except StopIteration:
                break
            except (ValueError, TypeError, AttributeError, KeyError, csv.Error):
                damaged += 1
    if damaged:
        logger.warning("%s: damaged rows are left out: %d", path, damaged)
    return rows


def _numbers(row: dict[str, str]) -> dict[str, float]:
    """Convert the non-empty fields of a row; every row has a step."""
    return {"step": int(row["step"])} | {
        name: int(value) if value.isdigit() else float(value)
        for name, value in row.items()
        if value
    }
