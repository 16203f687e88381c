"""Is ``sddlm plan`` right? Predicted against real, seconds of a step and peak memory.

Each prediction and each real run has a process of its own, one after the other, several times: the
ratio of their seconds is formed within such a pair, because a shared machine drifts. The real run
is the library's step (``step.py``): noise, forward, loss, backward, clip, AdamW, EMA. Its memory is
what comes to a process that has imported everything and gone through a step of a network of no
size. With one thread (``OMP_NUM_THREADS=1``) seconds are those of the process.

    python benchmarks/plan.py                    # mini, tiny and small; minutes
    python benchmarks/plan.py --pairs 5 --cells mini:4096:64:32 --objective NELBO
    python benchmarks/plan.py --checkpointing full
    python benchmarks/plan.py --recipes recipes/paper    # the table of docs/plan.md
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from measure import fresh, machine, show
from step import OBJECTIVES, LibraryTrainer, arguments, peak

from sddlm.cli import _parse
from sddlm.data.config import DataArgs
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import Objective
from sddlm.plan.run import make_plan, short
from sddlm.training.args import TrainArgs

CELLS = "mini:4096:64:32,tiny:4096:128:32,small:50257:128:4"


def settings(cell: str, checkpointing: str) -> tuple[ModelArgs, int, TrainArgs, int]:
    """Network, L, training and V of ``preset:V:L:B``; ``toy`` is a preset of no size."""
    name, V, L, B = cell.split(":")
    toy = {"preset": "mini", "width": 32, "blocks": 1, "heads": 2}
    model = ModelArgs(**toy if name == "toy" else {"preset": name}, head_init=0.02)  # type: ignore[arg-type]
    args = replace(arguments(int(B)), activation_checkpointing=checkpointing)
    return model, int(L), args, int(V)


def predicted(cell: str, objective: str, checkpointing: str) -> dict[str, float]:
    """Figures of the plan: seconds, bytes, and seconds that the plan took."""
    model, L, args, V = settings(cell, checkpointing)
    started = time.perf_counter()
    made = make_plan(
        DataArgs(length=L), model, OBJECTIVES[objective](), args, device="here", vocab_size=V
    )
    took = time.perf_counter() - started
    assert made.step_seconds is not None, f"{cell} does not fit"
    return {"seconds": made.step_seconds, "bytes": made.memory["all"], "took": took}


def real(cell: str, objective: str, checkpointing: str, rounds: int) -> dict[str, float]:
    """What a training does: seconds of the median step, bytes above import and first use."""
    several_steps("toy:300:8:2", objective, checkpointing, 1)
    before = peak()
    seconds = several_steps(cell, objective, checkpointing, rounds)
    return {"seconds": statistics.median(seconds), "bytes": (peak() - before) * 2**20}


def several_steps(cell: str, objective: str, checkpointing: str, rounds: int) -> list[float]:
    """Seconds of each step but the first."""
    model, L, args, V = settings(cell, checkpointing)
    causal = OBJECTIVES[objective]().causal
    trainer = LibraryTrainer(DiT(model.build(vocab_size=V, length=L, causal=causal)), args)
    x0 = torch.randint(V, (args.batch, L))
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    seconds = []
    for _ in range(rounds + 1):
        started = clock()
        trainer.update(trainer.loss(objective, x0))
        seconds.append(clock() - started)
    return seconds[1:]


Recipe = tuple[str, DataArgs, ModelArgs, Objective, TrainArgs]

COLUMNS = (
    "recipe", "parameters", "tokens", "FLOPs", "memory a GPU", "micro-batch", "GPU-hours",
    "days on {devices}", "disk",
)  # fmt: skip


def recipes(folder: Path) -> str:
    """A table of what each recipe in a folder would cost, on 8 GPUs."""
    found = []
    for path in sorted(folder.rglob("*.yaml")):
        if path.stem != "base" and path.parent.name != "objectives":  # parts of others
            chosen = _parse("plan", ["--config", str(path)])[1]
            parts = [chosen[name] for name in ("data", "model", "objective", "train")]
            found.append((str(path.relative_to(folder).with_suffix("")), *parts))
    return recipe_table(found)


def recipe_table(recipes: Iterable[Recipe], device: str = "h100-sxm", devices: int = 8) -> str:
    """Markdown table with a row for each recipe."""
    rows = []
    for name, data, model, objective, args in recipes:
        made = make_plan(data, model, objective, replace(args, devices=devices), device=device)
        rows.append(
            [name, short(made.parameters["all"]), short(made.tokens), short(made.run_flops),
             short(made.memory["all"], "B") + ("" if made.fits else " (does not fit)"),
             str(made.micro_batch), f"{round(made.device_hours or 0, 1):,.0f}",
             f"{(made.hours or 0) / 24:,.2f}", short(made.disk["all"], "B")]
        )  # fmt: skip
    head = [column.format(devices=devices) for column in COLUMNS]
    lines = [head, ["---"] * len(COLUMNS), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--cells", default=CELLS, help="preset:V:L:B, by commas [%(default)s]")
    options.add_argument("--objective", default="SDDLM", choices=list(OBJECTIVES))
    options.add_argument("--checkpointing", default="none", choices=["none", "selective", "full"])
    options.add_argument("--rounds", type=int, default=3, help="real steps [%(default)s]")
    options.add_argument("--pairs", type=int, default=3, help="runs of each [%(default)s]")
    options.add_argument("--recipes", type=Path, help="plan the recipes in this folder instead")
    options.add_argument("--one", choices=["predicted", "real"], help="for this process")
    chosen = options.parse_args(argv)
    if chosen.recipes:
        print(recipes(chosen.recipes), end="")
        return
    same = (chosen.objective, chosen.checkpointing)
    if chosen.one:
        cell = chosen.cells
        print(json.dumps(predicted(cell, *same) if chosen.one == "predicted"
                         else real(cell, *same, chosen.rounds)))  # fmt: skip
        return
    columns = ["preset:V:L:B", "s/step predicted", "real", "ratio", "MiB predicted", "real",
               "ratio", "s to predict"]  # fmt: skip
    rows = []
    for cell in chosen.cells.split(","):
        runs: dict[str, list[dict[str, float]]] = {"predicted": [], "real": []}
        for _ in range(chosen.pairs):
            for one in runs:
                runs[one].append(
                    fresh(__file__, "--one", one, "--cells", cell, "--objective", same[0],
                          "--checkpointing", same[1], "--rounds", chosen.rounds)
                )  # fmt: skip
        told, was = ([run["seconds"] for run in runs[one]] for one in runs)
        ratios = [a / b for a, b in zip(told, was, strict=True)]
        MiB, own = (statistics.median(r["bytes"] for r in runs[one]) / 2**20 for one in runs)
        rows.append(
            [cell, f"{statistics.median(told):.3g}", f"{statistics.median(was):.3g}",
             f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
             f"{MiB:,.0f}", f"{own:,.0f}", f"{MiB / max(1, own):.2f}",
             f"{runs['predicted'][0]['took']:.1f}"]
        )  # fmt: skip
    show(f"plan: {same[0]}, checkpointing {same[1]}; {machine()}; "
         f"load {os.getloadavg()[0]:.1f}", columns, rows)  # fmt: skip


if __name__ == "__main__":
    main()
