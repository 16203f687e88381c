"""How long one waits for a verb: its help, its answer to a wrong option, its work on a tiny model.

Every call is a fresh process, as for a user. A round makes each call once; the table shows the
median and the range of the rounds.
``python benchmarks/startup.py [--rounds 5] [--tiny]``
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from measure import show

from sddlm.verbs import VERBS

SDDLM = [sys.executable, "-m", "sddlm"]
#: options of the tiny training; what it leaves is what the other verbs work on
TINY = {
    "data.tokenizer": "bytes", "data.length": 32, "data.validation": 0.1,
    "model.preset": "mini", "model.blocks": 1,
    "train.batch": 4, "train.steps": 2, "train.warmup": 1,
    "train.validation_rows": 4, "train.preview_every": 0,
}  # fmt: skip


def train(folder: Path, out: str) -> list[str]:
    """The command of the tiny training."""
    tiny = [f"--{name}={value}" for name, value in TINY.items()]
    return [*SDDLM, "train", *data(folder), *tiny, "--out", str(folder / out)]


def data(folder: Path) -> list[str]:
    """Options for the tiny corpus."""
    return ["--data.path", str(folder / "text.txt"), "--data.cache", str(folder / "cache")]


def calls(folder: Path, few: bool) -> dict[tuple[str, str], list[str]]:
    """Commands by (verb, case)."""
    run = str(folder / "run")
    real = {
        "sample": [run, "--count", "1", "--steps", "16"],
        "eval": [run, *data(folder), "--rows", "4", "--metrics", "likelihood"],
    }
    found = {
        ("python", "an empty program"): [sys.executable, "-c", "pass"],
        ("python", "import torch"): [sys.executable, "-c", "import torch"],
        ("sddlm", "--help"): [*SDDLM, "--help"],
        ("sddlm", "no such verb"): [*SDDLM, "trian"],
    }
    for verb in ["sample"] if few else VERBS:
        found[verb, "--help"] = [*SDDLM, verb, "--help"]
        found[verb, "a wrong option"] = [*SDDLM, verb, "--no_such_option", "1"]
        if verb in real:
            found[verb, "tiny model"] = [*SDDLM, verb, *real[verb]]
    return found


def wait(command: list[str]) -> tuple[float, float]:
    """Seconds until a process says its first word, and until it is gone."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(1)
        first = time.perf_counter() - started
        process.stdout.read()
    if process.returncode not in (0, 2):
        raise SystemExit(f"{' '.join(command)} failed with code {process.returncode}")
    return first, time.perf_counter() - started


def spread(seconds: list[float]) -> list[str]:
    """Median and range, for a table."""
    return [f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f} to {max(seconds):.2f}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round of few calls, for a test")
    chosen = parser.parse_args(argv)
    seconds: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 200)
        commands = calls(folder, chosen.tiny)
        wait(train(folder, "run"))
        for turn in range(1 if chosen.tiny else chosen.rounds):
            if not chosen.tiny:
                commands["train", "tiny model"] = train(folder, f"run-{turn}")
            for (verb, case), command in commands.items():
                first, total = wait(command)
                seconds.setdefault((verb, case), []).append(total)
                if (verb, case) == ("sample", "tiny model"):
                    seconds.setdefault((verb, "its first sample is there"), []).append(first)
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    show(
        f"seconds of a fresh process, Python {platform.python_version()}, {threads} threads",
        ["verb", "case", "median", "range"],
        [[verb, case, *spread(own)] for (verb, case), own in seconds.items()],
    )


if __name__ == "__main__":
    main()
