"""The verb ``sddlm suite``: a grid of ordinary runs and evaluations, each in its own process."""

from __future__ import annotations

import ctypes
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from sddlm.errors import ConfigError, check_arguments
from sddlm.io import append, atomic_write, locked
from sddlm.progress import bar
from sddlm.suite.config import SUITE, jobs_of, read_suite, resolve
from sddlm.suite.job import PROMPT, Job
from sddlm.training.args import has_checkpoint

logger = logging.getLogger(__name__)

#: seconds between two looks at the processes, and looks between two of the progress
_SECONDS, _LOOKS = 0.2, 25
#: of Linux's prctl: the signal that a process gets when its parent ends
_PARENT_DEATH = 1


@check_arguments
def run_suite(
    suite: str,
    out: str | None = None,
    jobs: int = 1,
    seeds: int | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    train: dict[str, Any] | None = None,
    evaluation: dict[str, Any] | None = None,
) -> Path:
    """Train all variants of a suite with all seeds, and evaluate them.

    Every run and every evaluation is an ordinary command line in a process of its own. What is
    finished is skipped, and what was interrupted is resumed, so a suite that was killed, or has
    got more variants, goes on when the same command is typed again. A job that fails costs those
    that need it; the others go on.

    Args:
        suite: YAML file of the suite.
        out: directory of the runs and results.
        jobs: number of processes at a time; with several GPUs each has one of them.
        seeds: number of seeds, instead of those of the file.
        data: options of ``sddlm train`` for all runs, over those of the file.
        model: likewise, for the network.
        train: likewise, for the training.
        evaluation: options of all evaluations that have them, over those of the file, such as
            count and rows.

    Returns:
        ``out``.

    Raises:
        ConfigError: an option of any variant or evaluation cannot be used, or differs from that of
            results that are there; nothing is run.
        ChildProcessError: jobs have failed; their errors were reported.
        KeyboardInterrupt: it was stopped; interrupted runs are saved.
    """
    if not out:
        raise ConfigError("`out` is missing: give a directory for the runs and results")
    if jobs < 1:
        raise ConfigError(f"`jobs` is {jobs}, must be at least 1")
    sections = {"data": data, "model": model, "train": train}
    given = {name: options for name, options in sections.items() if options}
    wanted = read_suite(Path(suite))
    wanted = wanted if seeds is None else replace(wanted, seeds=seeds)
    wanted = resolve(wanted, Path(suite), given, evaluation or {})
    folder = Path(out)
    grid = jobs_of(wanted, folder)
    for job in grid:
        job.check()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "logs").mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError(f"cannot write to `out` {folder}: {error.strerror}") from error
    with locked(folder / ".lock", f"`out` {folder} is in use by another process"):
        with atomic_write(folder / SUITE) as file:
            file.write(yaml.safe_dump(asdict(wanted), sort_keys=False, allow_unicode=True))
        _Grid(grid, jobs).run()
    logger.info("all jobs are done; next:  sddlm report %s", shlex.quote(str(folder)))
    return folder


class _Grid:
    """The jobs of a suite, a number of them at a time.

    Args:
        jobs: the jobs; earlier ones are started first where nothing is in their way.
        number: of processes at a time.
    """

    def __init__(self, jobs: Sequence[Job], number: int) -> None:
        self.todo = [job for job in jobs if job.progress < 1]
        self.done = {job.out for job in jobs} - {job.out for job in self.todo}
        self.lost: set[Path] = set()
        """results that will not come"""
        self.running: dict[Job, subprocess.Popen[bytes]] = {}
        self.slots = _slots(number)
        self.used: dict[Job, dict[str, str]] = {}
        self.total = len(jobs)

    def run(self) -> None:
        """Run all that are not done.

        Raises:
            ChildProcessError: some have failed.
            KeyboardInterrupt: it was stopped.
        """
        logger.info("%d of %d jobs are done already", len(self.done), self.total)
        with bar("suite", total=self.total) as advance, _sigterm_stops():
            shown = 0.0
            try:
                while self.todo or self.running:
                    self._start()
                    self._wait()
                    self._collect()
                    now = len(self.done) + sum(job.progress for job in self.running)
                    advance(now - shown)
                    shown = now
            except KeyboardInterrupt as stop:
                self._stop(signal.SIGTERM)  # a training saves its state
                raise KeyboardInterrupt(
                    f"stopped with {len(self.done)} of {self.total} jobs done; the same command "
                    "goes on"
                ) from stop
            finally:
                self._stop(signal.SIGKILL)
        if self.lost:
            raise ChildProcessError(
                f"{len(self.lost)} of {self.total} jobs have no result; the same command tries "
                "them again"
            )

    def _start(self) -> None:
        """Start what can be started."""
        for job in list(self.todo):
            if job.needs & self.lost:
                self.todo.remove(job)
                self.lost.add(job.out)
                logger.warning("%s is left out: it needs a run that failed", job.name)
            elif self.slots and job.needs <= self.done:
                self.todo.remove(job)
                self._launch(job)

    def _launch(self, job: Job) -> None:
        if has_checkpoint(job.out):  # the model of a run that was stopped is of an earlier step
            shutil.rmtree(job.out / "model", ignore_errors=True)
        arguments, self.used[job] = job.arguments(), self.slots.pop(0)
        append(job.log, f"{PROMPT}{shlex.join(arguments)}\n")
        self.running[job] = start(arguments, job.log, {**os.environ, **self.used[job]})

    def _wait(self) -> None:
        """Wait until a job ends, or a few seconds."""
        for _ in range(_LOOKS):
            if not self.running or any(p.poll() is not None for p in self.running.values()):
                return
            time.sleep(_SECONDS)

    def _collect(self) -> None:
        """Take note of jobs that have ended."""
        for job, process in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[job]
            self.slots.append(self.used.pop(job))
            if process.returncode == 0 and job.progress == 1:
                self.done.add(job.out)
                logger.info("%d of %d: %s", len(self.done), self.total, job.name)
            else:
                self.lost.add(job.out)
                text = job.log.read_text(encoding="utf-8", errors="replace")
                how = f"{job.name} failed with exit code {process.returncode}"
                last = text.strip().splitlines()[-1]
                logger.warning("%s: %s (all of it in %s)", how, last, job.log)

    def _stop(self, number: int) -> None:
        """Send a signal to all processes, and wait for their end."""
        for process in self.running.values():
            process.send_signal(number)
        for process in self.running.values():
            process.wait()


def start(
    arguments: list[str], log: Path, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start ``sddlm`` in a process that ends with this one; the log gets what it prints."""
    with log.open("a", encoding="utf-8") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "sddlm", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C comes to this process alone
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )


def _slots(number: int) -> list[dict[str, str]]:
    """Variables of the environment for each of several processes at a time: its GPU or threads."""
    if number == 1:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    gpus = visible.split(",")[:count] if visible else [str(gpu) for gpu in range(count)]
    if gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpus[k % count]} for k in range(number)]
    threads = os.environ.get("OMP_NUM_THREADS") or max(1, (os.cpu_count() or 1) // number)
    return [{"OMP_NUM_THREADS": str(threads)} for _ in range(number)]


@contextmanager
def _sigterm_stops() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, also by a kill."""
    assert _LIBC is not None
    _LIBC.prctl(_PARENT_DEATH, signal.SIGKILL)
