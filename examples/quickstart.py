"""Train a small diffusion language model on real English, write with it, measure it.

Runs the four commands that a user would type, then sums up what they left in ``quickstart/``.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from datetime import date
from importlib.metadata import version
from io import StringIO
from math import log
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sddlm.cli import main as sddlm

RECIPES = Path(__file__).parent.parent / "recipes" / "tiny"
BEGIN, END = "<!-- quickstart:begin -->", "<!-- quickstart:end -->"
HOW = ["--steps", "64", "--tail_cut", "1", "--top_p", "1", "--seed", "1"]


def run(*arguments: str, quiet: bool = False) -> float:
    """Run a command of ``sddlm`` as if it had been typed; the seconds it took."""
    print(f"\n$ sddlm {shlex.join(arguments)}", flush=True)
    started = time.perf_counter()
    with redirect_stdout(StringIO()) if quiet else nullcontext():
        code = sddlm(list(arguments))
    if code:
        sys.exit(code)
    return time.perf_counter() - started


def last(metrics: Path, column: str) -> float:
    """Newest value of a column of ``metrics.csv``."""
    head, *rows = (line.split(",") for line in metrics.read_text().splitlines())
    at = head.index(column)
    return float(next(row[at] for row in reversed(rows) if row[at]))


def main() -> None:
    """Train, judge, sample, evaluate, sum up."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", default="quickstart", help="folder for the results")
    parser.add_argument("--steps", type=int, help="fewer training steps, to try the script")
    parser.add_argument("--readme", help="write the table and two samples into this file as well")
    chosen = parser.parse_args()
    out = Path(chosen.out)
    if (out / "sddlm" / "config.yaml").exists():
        print(f"removing the earlier {out}/")
        shutil.rmtree(out)
    model, judge = str(out / "sddlm"), str(out / "judge")
    fewer = ["--train.steps", str(chosen.steps)] if chosen.steps else []
    started = time.perf_counter()

    training = run("train", "--config", str(RECIPES / "quickstart.yaml"), *fewer, "--out", model)
    run("train", "--config", str(RECIPES / "judge.yaml"), *fewer, "--out", judge)
    # texts from their beginning, to read; whole rows, as real ones are, to measure
    begin = [*HOW, "--prompt", "", "--count", "5"]
    run("demo", model, *begin, "--fps", "0", "--html", str(out / "denoising.html"), quiet=True)
    run("sample", model, *begin, "--out", str(out / "texts.jsonl"), quiet=True)
    run("sample", model, *HOW, "--count", "32", "--batch", "32", "--whole", quiet=True)
    run("eval", model, "--judge", judge, "--samples", str(out / "sddlm" / "samples.jsonl"))
    rows = figures(out, training, time.perf_counter() - started)
    summarise(out, rows)
    if chosen.readme:
        write_readme(Path(chosen.readme), out, rows)


def figures(out: Path, training: float, total: float) -> list[tuple[str, str, str]]:
    """Rows of the short table: what was measured, of this model, of what it is compared to."""
    found = json.loads((out / "sddlm" / "evaluation.json").read_text())
    own, baselines = found["likelihood"], found["baselines"]["bpc"]
    bits, error = own["bpc"], own["bpc_stderr"]
    drawn, real = found["samples"]["generated"], found["samples"]["real"]
    judged = found["generative"]
    steps = last(out / "sddlm" / "metrics.csv", "step")
    causal = last(out / "judge" / "metrics.csv", "val_bpc")
    return [
        ("training", f"{steps:.0f} steps, {training / 60:.1f} min", f"all: {total / 60:.1f} min"),
        (
            "held-out bits per character",
            f"≤ {bits:.2f} ± {error:.2f} ({bits * log(2):.2f} nats)",
            f"5-gram {baselines['5-gram']:.2f}, autoregressive {causal:.2f}",
        ),
        (
            "judge perplexity of the samples",
            f"{judged['samples']['ppl']:.0f}",
            f"real text {judged['real']['ppl']:.0f}",
        ),
        ("entropy (nats)", f"{drawn['entropy']:.2f}", f"real text {real['entropy']:.2f}"),
        (
            "words that are words",
            f"{drawn['known_words']:.0%}",
            f"real text {real['known_words']:.0%}",
        ),
    ]


def samples(out: Path, count: int) -> list[str]:
    """The first texts that the model wrote."""
    lines = (out / "texts.jsonl").read_text().splitlines()
    return [json.loads(line)["text"].strip() for line in lines[:count]]


def summarise(out: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """The short table, five samples, and where to look."""
    table = Table(title="Trained on this machine, just now", title_justify="left")
    for name in ("", "this model", "to compare"):
        table.add_column(name)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.print("\n", table, sep="")
    for i, text in enumerate(samples(out, 5), start=1):
        console.print(f"\n[bold]sample {i}[/bold]")
        console.print(text, markup=False, highlight=False)
    console.print(f"\ncurves of the training      {out / 'sddlm' / 'curves.png'}")
    console.print(f"a page that plays it        {out / 'denoising.html'}")
    console.print(f"everything measured         {out / 'sddlm' / 'evaluation.json'}")
    console.print(f"write more                  sddlm sample {out / 'sddlm'} --tail_cut 1")
    console.print(f"look on                     sddlm demo {out / 'sddlm'} --tail_cut 1")


def machine() -> str:
    """Cores, processor and versions."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    name = found[1].strip() if found else platform.processor() or platform.machine()
    python, torch = platform.python_version(), version("torch").partition("+")[0]
    return f"{cores} cores ({name}), Python {python}, torch {torch}"


def write_readme(readme: Path, out: Path, rows: Sequence[tuple[str, str, str]]) -> None:
    """Replace what stands between the marks, and the picture that the file shows."""
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"{readme} has no {BEGIN} and {END}: nothing is written")
    table = [("", "this model", "to compare"), ("---",) * 3, *rows]
    lines = [f"Measured on {date.today()} by `examples/quickstart.py` on {machine()}:", ""]
    lines += [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in table]
    for sample in samples(out, 2):
        escaped = re.sub(r"([\\`*_\[\]<>])", r"\\\1", " ".join(sample.split()))
        lines += ["", textwrap.fill(escaped, 98, initial_indent="> ", subsequent_indent="> ")]
    readme.write_text("\n".join([before + begin, *lines, end + after]), encoding="utf-8")
    picture = readme.parent / "docs" / "images" / "quickstart-curves.png"
    if picture.parent.is_dir():
        shutil.copyfile(out / "sddlm" / "curves.png", picture)
    print(f"\nwritten into {readme}")


if __name__ == "__main__":
    main()
