"""docs/results.md, made from the files in results: reported figures, our runs, what is not run.

No figure is typed by hand: ``add`` makes a file of a finished and evaluated run, ``plan`` one of
what the paper's recipes would cost, and ``results/reported.json`` says where it was read. To be
run in the repository's root.

    python benchmarks/results.py add runs/x                   # results/runs/x.json
    python benchmarks/results.py add runs/y --row lm1b/sddlm  # a row of the paper's tables
    python benchmarks/results.py plan                         # results/plan.json; minutes
    python benchmarks/results.py page                         # docs/results.md
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from results_page import page

from sddlm.cli import _parse
from sddlm.errors import ConfigError
from sddlm.io import atomic_write
from sddlm.plan.run import make_plan

RECIPES = Path("recipes/paper")
RESULTS = Path("results")
PAGE = Path("docs/results.md")
#: what the figures of the plan are for
DEVICE, DEVICES, UTILIZATION = "h100-sxm", 8, 0.4
#: options that change the speed of a run or what it tells, and not what it learns
FREE = {
    "data.cache", "data.workers", "train.workers", "train.devices", "train.accelerator",
    "train.micro_batch", "train.activation_checkpointing", "train.validate_every",
    "train.validation_rows", "train.preview_every", "train.checkpoint_every",
}  # fmt: skip
#: of an evaluation: what says how it was made, and not how good the model is
CIRCUMSTANCES = ("command", "text", "estimate", "seed", "sddlm_version", "seconds")
#: a place of one machine; an address (https://...) and "and/or" are none
PLACE = re.compile(r"(?<![\w./:])/(?:[^\s/'\"]+/)*([^\s/'\"]+)")


def recipe_names() -> list[str]:
    """Rows of the paper's tables: what can be trained in `RECIPES`, not what is inherited."""
    paths = (p for p in RECIPES.rglob("*.yaml") if p.stem != "base")
    names = (p.relative_to(RECIPES).with_suffix("").as_posix() for p in paths)
    return sorted(name for name in names if not name.startswith("objectives/"))


def options(config: Path) -> dict[str, Any]:
    """What a recipe, or the ``config.yaml`` of a run, stands for: data, model, objective, train."""
    chosen = _parse("plan", ["--config", str(config)])[1]
    return {name: chosen[name] for name in ("data", "model", "objective", "train")}


def planned(name: str) -> dict[str, float]:
    """What the training of a row would take on `DEVICES` of `DEVICE`."""
    chosen = options(RECIPES / f"{name}.yaml")
    chosen["train"] = replace(chosen["train"], devices=DEVICES)
    made = make_plan(**chosen, device=DEVICE, utilization=UTILIZATION)
    assert made.device_hours is not None
    return {
        "gpu_hours": round(made.device_hours, 1),
        "parameters": made.parameters["all"],
        "tokens": made.tokens,
    }


def write(path: Path, tree: Any) -> None:
    """JSON, whole or not at all; NaN is refused, since the format has none."""
    with atomic_write(path) as file:
        file.write(json.dumps(tree, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A JSON file of a run.

    Raises:
        ConfigError: it is not there or cannot be read; says what makes it.
    """
    makes = {
        "environment.json": "give the directory of a training run",
        "evaluation.json": f"run sddlm eval {path.parent}",
    }
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = "there is no" if isinstance(error, FileNotFoundError) else "cannot read"
        raise ConfigError(f"{why} {path}; {makes[path.name]} first") from error
    return found


def without_places(tree: Any) -> Any:
    """The tree with every absolute path cut to its last part."""
    if isinstance(tree, str):
        return PLACE.sub(r"\1", tree)
    if isinstance(tree, dict):
        return {key: without_places(value) for key, value in tree.items()}
    return [without_places(item) for item in tree] if isinstance(tree, list) else tree


def command(words: list[str] | str | None) -> str | None:
    """A command as it can be typed; the program without its folder."""
    if not words:
        return None
    if isinstance(words, str):
        return words
    program = "sddlm" if Path(words[0]).name == "__main__.py" else Path(words[0]).name
    python = ["python"] if program.endswith(".py") else []
    return shlex.join([*python, program, *words[1:]])


def leaves(tree: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Nested options by dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        inner = isinstance(value, dict) and value
        found |= leaves(value, f"{section}{key}.") if inner else {section + key: value}
    return found


def differences(run: Path, row: str) -> list[str]:
    """Options in which a run differs from the recipe of its row, but for `FREE` ones."""

    def resolved(config: Path) -> dict[str, Any]:
        parts = options(config)
        kind = {"objective.class": type(parts["objective"]).__name__}
        return leaves({name: asdict(part) for name, part in parts.items()}) | kind

    own, asked = resolved(run / "config.yaml"), resolved(RECIPES / f"{row}.yaml")
    names = (own.keys() | asked.keys()) - FREE
    return sorted(name for name in names if own.get(name, ...) != asked.get(name, ...))


def trained(run: Path, devices: int | None) -> dict[str, float | None]:
    """The last line of ``metrics.csv``: steps, tokens, seconds; and the hours of all devices."""
    try:
        with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
            *_, last = csv.DictReader(file)
    except (OSError, ValueError) as error:
        raise ConfigError(f"no metrics in {run}; give the directory of a training run") from error
    seconds = float(last["seconds"])
    hours = None if devices is None else round(seconds * devices / 3600, 4)
    return {
        "steps": int(last["step"]),
        "tokens": int(last["tokens"]),
        "seconds": seconds,
        "device_hours": hours,
    }


def record(run: Path, row: str | None) -> dict[str, Any]:
    """Everything that the page says of a run.

    Args:
        run: a run directory with ``evaluation.json``.
        row: recipe under `RECIPES` that it belongs to; None for one of the small runs.

    Raises:
        ConfigError: the run is not finished or not evaluated, or there is no such row.
    """
    if row is not None and row not in recipe_names():
        raise ConfigError(f"--row is {row}, must be one of: {', '.join(recipe_names())}")
    environment = read(run / "environment.json")
    evaluation = read(run / "evaluation.json")
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    device = environment["device"]
    asked = config["train"]["devices"]
    devices = asked if isinstance(asked, int) else 1 if device == "cpu" else None
    data = environment.get("data", {})
    same = ("commit", "changed", "sddlm", "python", "torch", "platform", "threads", "device")
    found = {
        "row": row,
        "differs": [] if row is None else differences(run, row),
        "commands": {
            "train": command(environment["command"]),
            "eval": command(evaluation.get("command")),
        },
        "seed": config["seed"],
        "objective": config["objective"]["class_path"].rpartition(".")[2],
        "text": data.get("source"),
        "data_sha256": {name: part["sha256"] for name, part in data.get("splits", {}).items()},
        **{name: environment.get(name) for name in same},
        "devices": devices,
        "training": trained(run, devices),
        "evaluation": {k: evaluation[k] for k in CIRCUMSTANCES if k in evaluation},
        "metrics": {k: v for k, v in evaluation.items() if isinstance(v, dict)},
    }
    cleaned: dict[str, Any] = without_places(found)
    return cleaned


def add(run: Path, row: str | None, name: str | None) -> Path:
    """Make the file of a run.

    Raises:
        ConfigError: as `record`; the file is there already.
    """
    target = RESULTS / "runs" / f"{name or run.resolve().name}.json"
    if target.exists():
        raise ConfigError(f"{target} exists; give another --name, or remove it first")
    found = record(run, row)
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target, found)
    return target


def plan() -> Path:
    """Every row's cost, anew."""
    rows = {}
    for name in recipe_names():
        rows[name] = planned(name)
        print(f"{name}: {rows[name]['gpu_hours']:,} GPU-hours", file=sys.stderr, flush=True)
    target = RESULTS / "plan.json"
    made = {"device": DEVICE, "devices": DEVICES, "utilization": UTILIZATION, "rows": rows}
    write(target, made)
    return target


def text() -> str:
    """The page, from all files in `RESULTS`."""

    def load(path: Path) -> Any:
        return json.loads(path.read_text(encoding="utf-8"))

    runs = {path.as_posix(): load(path) for path in sorted(RESULTS.glob("runs/*.json"))}
    return page(load(RESULTS / "reported.json"), load(RESULTS / "plan.json"), runs)


def main(argv: Sequence[str] | None = None) -> int:
    """Read the command; a wrong one is told in a line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("do", choices=["add", "plan", "page"], help="what to make")
    parser.add_argument("run", nargs="?", type=Path, help="for add: a run directory")
    parser.add_argument("--row", help="for add: recipe that was run, such as lm1b/sddlm")
    parser.add_argument("--name", help="for add: of the file; the directory's if not given")
    chosen = parser.parse_args(argv)
    if chosen.do == "add" and chosen.run is None:
        parser.error("add needs a run directory")
    if chosen.do != "add" and (chosen.run or chosen.row or chosen.name):
        parser.error(f"a run directory, --row and --name are for add, not for {chosen.do}")
    try:
        if chosen.do == "add":
            print(add(chosen.run, chosen.row, chosen.name))
        elif chosen.do == "plan":
            print(plan())
        else:
            PAGE.write_text(text(), encoding="utf-8")
            print(PAGE)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
