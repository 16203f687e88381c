"""How fast recipes learn: held-out bits per character against steps, CPU seconds and FLOPs.

Recipes train on the same rows with the same seeds, so their differences are paired. A run is an
ordinary run directory: what is finished is not repeated, and what was interrupted goes on.

    python benchmarks/learning.py --text stories=stories.txt --text books=books.jsonl --out learning
    python benchmarks/learning.py --text stories=stories.txt --recipes adamw,hollow --steps 250,1000
"""

from __future__ import annotations

import csv
import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from measure import machine, show

from sddlm import (
    SDDLM,
    AdamW,
    Autoregressive,
    Muon,
    Polynomial,
    UniformProcess,
    make_plan,
    train,
)
from sddlm.suite.interval import Mean, paired
from sddlm.training.run import _sections

#: network and optimisation; steps, batch and text are the same for all
MINI = {"preset": "mini"}
LOCAL = {**MINI, "input_conv": 5, "gate_init": 1.0}
#: embedding and head are one, and begin with what is counted in the training rows
COUNTED = {"tie_embeddings": True, "head_bias": "unigram", "embedding_init": "pmi"}
FAST = {**COUNTED, "optimizer": Muon(lr=1e-2), "lr": 3e-3}
SHORT = {"warmup": 30, "ema": 0.995}
ADAMW = {**LOCAL, **SHORT, "head_init": 0.02, "optimizer": AdamW(), "lr": 3e-3, "curriculum": 0.65}
RECIPES: dict[str, dict[str, Any]] = {
    # Duo's and SDDLM's optimisation (arXiv:2506.10892), with a warm-up that fits into a short run
    "published": {**MINI, "lr": 3e-4, "schedule": "constant", "warmup": 100},
    "adamw": ADAMW,
    "muon": {**ADAMW, "optimizer": Muon()},
    "hollow": {
        **LOCAL, **SHORT, **FAST, "architecture": "hollow",
        "objective": SDDLM(UniformProcess(Polynomial(power=2.0)), positions="all"),
    },
    "ar": {**MINI, **SHORT, **FAST, "objective": Autoregressive()},
}  # fmt: skip
DATA = {"tokenizer": "bpe", "vocab_size": 4096, "length": 64, "validation": 0.1}


def trained(text: str, recipe: str, seed: int, steps: int, chosen: Namespace) -> dict[str, Any]:
    """Figures of one run; trains it unless it is there."""
    out = Path(chosen.out)
    run = out / text.partition("=")[0] / f"{recipe}-{steps}-{seed}"
    figures = run / "learning.json"
    if not figures.is_file():
        options = RECIPES[recipe] | DATA | {"steps": steps, "batch": chosen.batch}
        options |= {"blocks": chosen.blocks, "cache": str(out / "cache")}
        every = max(steps // chosen.validations, 1)
        options |= {"validate_every": every, "checkpoint_every": every, "validation_rows": 1024}
        options |= {"preview_every": 0}
        resumed, started = run.exists(), time.process_time()
        lm = train(text.partition("=")[2], out=run, seed=seed, resume=resumed, **options)
        seconds = None if resumed else round(time.process_time() - started, 1)
        with (run / "metrics.csv").open() as file:
            rows = [row for row in csv.DictReader(file) if row["val_bpc"]]
        found = {
            "text": text.partition("=")[0], "recipe": recipe, "seed": seed, "steps": steps,
            "batch": chosen.batch, "blocks": chosen.blocks,
            "bits": {row["step"]: float(row["val_bpc"]) for row in rows},
            "cpu_seconds": seconds, "machine": machine(),
            "parameters": sum(p.numel() for p in lm.network.parameters()),
        }  # fmt: skip
        figures.write_text(json.dumps(found, indent=1) + "\n")
    return json.loads(figures.read_text())  # type: ignore[no-any-return]


def flops(run: dict[str, Any]) -> float:
    """FLOPs of a run, by formula."""
    options = RECIPES[run["recipe"]] | DATA
    options |= {name: run[name] for name in ("steps", "batch", "blocks")}
    objective = options.pop("objective", SDDLM())
    data, model, args = _sections(None, options)
    return make_plan(data, model, objective, args, device="h200").run_flops


def newest(run: dict[str, Any]) -> float:
    """Bits per character at the last validation."""
    return float(run["bits"][max(run["bits"], key=int)])


def interval(found: Mean | None) -> str:
    """Mean, and half the width of its 95% interval over seeds; nothing without a seed."""
    if found is None:
        return ""
    return f"{found.value:.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")


def cpu(runs: Iterable[dict[str, Any]]) -> str:
    """Mean CPU seconds of the runs that were not interrupted."""
    known = [run["cpu_seconds"] for run in runs if run["cpu_seconds"] is not None]
    return f"{mean(known):.0f}" if known else "-"


def table(found: Iterable[dict[str, Any]], text: str) -> None:
    """One row for each recipe and number of steps; differences to the first recipe, by seed."""
    groups: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for each in found:
        if each["text"] == text:
            groups.setdefault((each["recipe"], each["steps"]), {})[each["seed"]] = each
    first = next(iter(groups))[0]
    rows = []
    for (recipe, steps), runs in groups.items():
        base = {seed: newest(run) for seed, run in groups.get((first, steps), {}).items()}
        last = {seed: newest(run) for seed, run in runs.items()}
        one = next(iter(runs.values()))
        rows.append([
            recipe, steps, f"{one['parameters'] / 1e6:.2f}M", interval(Mean.of([*last.values()])),
            interval(paired(last, base)) if recipe != first else "",
            cpu(runs.values()), f"{flops(one):.2e}",
        ])  # fmt: skip
    columns = ["recipe", "steps", "parameters", "bits per character", f"less {first}", "CPU s"]
    show(f"{text}: held-out bits per character", [*columns, "FLOPs"], rows)


def picture(found: Iterable[dict[str, Any]], path: Path) -> None:
    """Bits per character against steps and against CPU seconds, a panel each; seed 0."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for run in (run for run in found if run["seed"] == 0):
        steps, bits = zip(*sorted((int(n), bits) for n, bits in run["bits"].items()), strict=True)
        (line,) = left.plot(steps, bits, label=run["recipe"])
        if run["cpu_seconds"] is not None:  # start-up and validations are spread over the steps
            seconds = [n * run["cpu_seconds"] / run["steps"] for n in steps]
            right.plot(seconds, bits, color=line.get_color(), label=run["recipe"])
    left.set(xlabel="steps", ylabel="held-out bits per character")
    right.set(xlabel="CPU seconds")
    right.legend(loc="upper right")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what is missing, print a table for each text."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--text", action="append", required=True, help="NAME=PATH; may be repeated")
    parser.add_argument(
        "--recipes", default=",".join(RECIPES), help="the first one is the baseline"
    )
    parser.add_argument("--steps", default="500", help="one or more lengths of a run")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--validations", type=int, default=2, help="held-out bounds of a run")
    parser.add_argument(
        "--picture", help="file for the curves of the first text and number of steps"
    )
    parser.add_argument("--out", default="learning", help="folder of the runs")
    chosen = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds of one thread are those of its work
    found = []
    steps, recipes = [int(n) for n in chosen.steps.split(",")], chosen.recipes.split(",")
    for seed, text, number, recipe in product(range(chosen.seeds), chosen.text, steps, recipes):
        found.append(trained(text, recipe, seed, number, chosen))
    for text in chosen.text:
        table(found, text.partition("=")[0])
    if chosen.picture:
        name = chosen.text[0].partition("=")[0]
        drawn = [run for run in found if (run["text"], run["steps"]) == (name, steps[0])]
        picture(drawn, Path(chosen.picture))


if __name__ == "__main__":
    main()
