"""How everything here is measured: arms side by side in one run, memory in fresh processes.

Speed of a shared machine drifts by tens of percent within minutes, so seconds of two runs are
never compared. In each round every arm runs once, one after the other (A B A B); a ratio is formed
within a round, and the table shows the median and the range of these ratios.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from sddlm.progress import bar


@dataclass(frozen=True)
class Timing:
    """Seconds of an arm in each round, and what it is compared with: the first arm's."""

    seconds: list[float]
    baseline: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def ratios(self) -> list[float]:
        """How many times faster than the baseline, round by round."""
        return [b / s for b, s in zip(self.baseline, self.seconds, strict=True)]

    @property
    def ratio(self) -> str:
        """Median and range of the ratios."""
        r = self.ratios
        return f"{statistics.median(r):.2f}x ({min(r):.2f} to {max(r):.2f})"


def interleaved(
    arms: Mapping[str, Callable[[], Any]],
    *,
    rounds: int = 5,
    warmup: int = 1,
    units: Mapping[str, int] | None = None,
    label: str = "measuring",
) -> dict[str, Timing]:
    """Time the arms A B A B; the first is the baseline.

    Args:
        arms: what to run, by name.
        rounds: how often each runs.
        warmup: rounds before them that do not count.
        units: parts (steps) that one run of an arm consists of, 1 if not named; seconds are those
            of one part.
        label: for the progress on stderr.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    with progress(label, (rounds + warmup) * len(arms)) as advance:
        for turn in range(rounds + warmup):
            for name, run in arms.items():
                synchronize()
                started = time.perf_counter()
                run()
                synchronize()
                took = time.perf_counter() - started
                if turn >= warmup:
                    seconds[name].append(took / (units or {}).get(name, 1))
                advance()
    baseline = next(iter(seconds.values()))
    return {name: Timing(own, baseline) for name, own in seconds.items()}


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar on stderr; where that is no terminal, a line every half minute.

    Args:
        label: what is being done.
        total: how often what this gives will be called.
    """
    started = told = time.monotonic()
    done = 0

    def line() -> None:
        nonlocal done, told
        done += 1
        now = time.monotonic()
        if now - told > 30 and done < total:
            left = (now - started) / done * (total - done) / 60
            print(f"{label}: {done} of {total}, {left:.1f} min left", file=sys.stderr, flush=True)
            told = now

    with bar(label, total=total) as advance:
        yield advance if sys.stderr.isatty() else line


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fresh(script: str, *arguments: object) -> dict[str, Any]:
    """Run ``python script arguments`` and read the JSON object in its last line of output.

    Peak memory is a property of a process, so each arm needs one of its own.
    """
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; Markdown when the output is a file or a pipe, so that docs can take it."""
    if sys.stdout.isatty():
        table = Table(*columns, title=title)
        for row in rows:
            table.add_row(*map(str, row))
        Console().print(table)
        return
    lines = [f"**{title}**", "", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [f"| {' | '.join(map(str, row))} |" for row in rows]
    print("\n".join(lines), end="\n\n", flush=True)


def times(value: float, than: float) -> str:
    """``2.1x``, or a dash where there is nothing to divide by."""
    return f"{value / than:.2f}x" if than else "-"


def machine() -> str:
    """What the figures were measured on."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        device = f"CPU, {torch.get_num_threads()} threads"
    return f"{device}, torch {torch.__version__}"
