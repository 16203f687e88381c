"""Train a small diffusion language model on real English, write with it, measure it.

Runs the four commands that a user would type, then sums up what they left in ``quickstart/``.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
import time
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from math import log
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sddlm.cli import main as sddlm

RECIPES = Path(__file__).parent.parent / "recipes" / "tiny"
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
    page = out / "denoising.html"
    # whole rows, as real ones are; five are shown below
    run("sample", model, *HOW, "--count", "32", "--batch", "32", "--whole", quiet=True)
    run("demo", model, *HOW, "--count", "4", "--fps", "0", "--html", str(page), quiet=True)
    run("eval", model, "--judge", judge, "--samples", str(out / "sddlm" / "samples.jsonl"))
    summarise(out, training, time.perf_counter() - started)


def summarise(out: Path, training: float, total: float) -> None:
    """The short table, five samples, and where to look."""
    found = json.loads((out / "sddlm" / "evaluation.json").read_text())
    bits, baselines = found["likelihood"]["bpc"], found["baselines"]["bpc"]
    drawn, real = found["samples"]["generated"], found["samples"]["real"]
    judged = found["generative"]
    table = Table(title="Trained on this machine, just now", title_justify="left")
    for name in ("", "this model", "to compare"):
        table.add_column(name)
    steps = last(out / "sddlm" / "metrics.csv", "step")
    table.add_row(
        "training", f"{steps:.0f} steps, {training / 60:.1f} min", f"all: {total / 60:.1f} min"
    )
    table.add_row(
        "held-out bits per character",
        f"≤ {bits:.2f} ({bits * log(2):.2f} nats)",
        f"unigram {baselines['unigram']:.2f}, 5-gram {baselines['5-gram']:.2f}",
    )
    table.add_row(
        "judge perplexity of the samples",
        f"{judged['samples']['ppl']:.0f}",
        f"real text {judged['real']['ppl']:.0f}",
    )
    table.add_row("entropy (nats)", f"{drawn['entropy']:.2f}", f"real text {real['entropy']:.2f}")
    table.add_row(
        "words that are words",
        f"{drawn['known_words']:.0%}",
        f"real text {real['known_words']:.0%}",
    )
    console = Console()
    console.print("\n", table, sep="")
    lines = (out / "sddlm" / "samples.jsonl").read_text().splitlines()
    for i, line in enumerate(lines[:5], start=1):
        console.print(f"\n[bold]sample {i}[/bold]")
        console.print(json.loads(line)["text"].strip(), markup=False, highlight=False)
    console.print(f"\ncurves of the training      {out / 'sddlm' / 'curves.png'}")
    console.print(f"a page that plays it        {out / 'denoising.html'}")
    console.print(f"everything measured         {out / 'sddlm' / 'evaluation.json'}")
    console.print(f"write more                  sddlm sample {out / 'sddlm'} --tail_cut 1")
    console.print(f"look on                     sddlm demo {out / 'sddlm'} --tail_cut 1")


if __name__ == "__main__":
    main()
