"""The text of docs/results.md: a pure function of what the files in results say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

Runs = Mapping[str, Mapping[str, Any]]  # by file
Table = Mapping[str, Any]  # of `results/reported.json`

SETTINGS = {
    "lm1b": "LM1B, a sentence a row",
    "lm1b-wrap": "LM1B, sentences packed",
    "owt": "OpenWebText",
    "slimpajama-170m": "SlimPajama, small",
    "slimpajama-1.1b": "SlimPajama, 1.1 billion parameters",
}
#: the objective whose likelihood is exact; all others report a bound
EXACT = "ar"
#: of the small runs: heading and where the figure is; a column that no run has is left out
FIGURES = (
    ("perplexity", ("likelihood", "ppl")),
    ("nll", ("likelihood", "nll")),
    ("stderr", ("likelihood", "stderr")),
    ("bits per character", ("likelihood", "bpc")),
    ("5-gram", ("baselines", "bpc", "5-gram")),
    ("entropy", ("samples", "generated", "entropy")),
    ("of real text", ("samples", "real", "entropy")),
    ("known words", ("samples", "generated", "known_words")),
    ("generative perplexity", ("generative", "samples", "ppl")),
    ("of real text", ("generative", "real", "ppl")),
    ("MAUVE", ("mauve", "mauve")),
)

INTRO = """# Results

Figures of papers, measured runs of this library, and the cost of what was not run. **No recipe of a
paper was run at full size here.**

| cell | meaning |
|---|---|
| a figure | reported by a paper ([sources](#sources)); ≤ marks an upper bound on perplexity |
| *not known* | the tables of the SDDLM paper could not be obtained |
| not run | GPU-hours of the run, estimated by `sddlm plan` (`results/plan.json`) |
| [our small runs](#small-runs-of-our-own) | measured here, each with its command |
| no recipe here | another paper's model |

- Reported figures stand in `results/reported.json`, each with its convention and with where it was
  read. Several were read in notes on a paper, not in the paper. Nothing is filled in from memory.
- Conventions differ between papers, and from ours ([evaluation](evaluation.md)). Columns are not a
  ranking.
- GPU-hours are for {devices} {device} at {share:.0%} of their rate. The estimate was not checked on
  such a device.
- A run of ours names command, seed, hash of the tokens, commit and machine. In the row of a paper's
  recipe it lists the options in which it differs from that recipe.
- Objectives at equal time on one GPU: `results/devices/h200.json`, with its table in
  [performance](performance-tables.md#one-gpu).

This page is generated from the files in `results`, and `tests/test_results.py` compares them:

```bash
python benchmarks/results.py add runs/x --row lm1b/sddlm
python benchmarks/results.py plan
python benchmarks/results.py page
```
"""


def at(tree: Any, *names: str) -> Any:
    """The value at the end of nested names; None if any of them is missing."""
    for name in names:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def shown(value: Any) -> str:
    """A figure as the page shows it: four digits of a measured one; nothing where there is none."""
    if value is None or isinstance(value, str):  # a reported figure has the digits of its source
        return value or ""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def page(reported: Mapping[str, Any], plan: Mapping[str, Any], runs: Runs) -> str:
    """The whole page.

    Args:
        reported: ``results/reported.json``.
        plan: ``results/plan.json``.
        runs: what `results.record` found, by file.
    """
    tables = reported["tables"]
    parts = [
        INTRO.format(devices=plan["devices"], device=plan["device"], share=plan["utilization"])
    ]
    for name in SETTINGS:
        parts.append(likelihoods(name, tables, plan["rows"], runs))
        parts += [part for part in (zero_shot(name, tables, runs), generated(name, tables, runs))
                  if part]  # fmt: skip
    parts += [small(runs), *(made(file, run) for file, run in runs.items()), sources(tables)]
    return "\n".join(parts)


def of_setting(tables: Iterable[Table], setting: str, metric: str) -> list[Table]:
    """Reported tables about a setting."""
    return [t for t in tables if t["metric"] == metric and setting in t["settings"]]


def models(setting: str, names: Iterable[str]) -> list[str]:
    """The models of a setting, each once: those that are recipes, then others."""
    found = {name.partition("/")[2]: None for name in names if inside(setting, name)}
    return sorted(found, key=lambda model: (model != model.lower(), model))


def bound(model: str, value: Any, table: Table | None = None) -> str:
    """A figure, marked if it is an upper bound or given as about so much."""
    if value is None:
        return ""
    about = "about " if table and table.get("approximate") else ""
    return f"{'' if model == EXACT else '≤ '}{about}{shown(value)}"


def own(runs: Runs, row: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Our runs of a row."""
    return [(file, run) for file, run in runs.items() if run["row"] == row]


def origin(file: str, run: Mapping[str, Any]) -> str:
    """Which file, and whether the run is not as the recipe has it."""
    differs = f", [differs from the recipe](#{anchor(title(file))})" if run["differs"] else ""
    return f"`{file}`{differs}"


def inside(setting: str, row: str | None) -> bool:
    """Does a row belong to a setting?"""
    return row is not None and row.partition("/")[0] == setting


def trained_as(row: str) -> str:
    """A row that is a recipe as one can type it, another by its model's name."""
    return f"`{row}`" if row == row.lower() else row.partition("/")[2]


def likelihoods(setting: str, tables: Sequence[Table], plan: Mapping[str, Any], runs: Runs) -> str:
    """Perplexities of a setting: reported, ours, or what a run would take."""
    reported = of_setting(tables, setting, "perplexity")
    names = [*plan, *(name for table in reported for name in table["numbers"])]
    rows = []
    for model in models(setting, names):
        row = f"{setting}/{model}"
        cells = [bound(model, t["numbers"].get(row)) or ("" if t["numbers"] else "not known")
                 for t in reported]  # fmt: skip
        ours = "; ".join(
            f"{bound(model, at(run, 'metrics', 'likelihood', 'ppl')) or 'no likelihood'} "
            f"(nll {shown(at(run, 'metrics', 'likelihood', 'nll'))} ± "
            f"{shown(at(run, 'metrics', 'likelihood', 'stderr'))}), {origin(file, run)}"
            for file, run in own(runs, row)
        )
        if not ours and row in plan:
            ours = f"not run: needs {plan[row]['gpu_hours']:,.0f} GPU-hours"
        recipe = f"`{row}`" if row in plan else f"{model} (no recipe here)"
        rows.append([recipe, *cells, ours])
    columns = ["recipe", *(f"[{t['id']}](#{t['id']})" for t in reported), "ours"]
    return f"## {SETTINGS[setting]}\n\nPerplexity per token.\n\n{markdown(columns, rows)}"


def zero_shot(setting: str, tables: Sequence[Table], runs: Runs) -> str:
    """Perplexities on sets that the model was not trained on; empty if there are none."""
    rows: list[tuple[str, str, Mapping[str, Any]]] = []
    for table in of_setting(tables, setting, "zero_shot"):
        rows += [
            (row, f"[{table['id']}](#{table['id']})", n) for row, n in table["numbers"].items()
        ]
    for file, run in runs.items():
        found = at(run, "metrics", "zero_shot")
        if found and inside(setting, run["row"]):
            rows.append((run["row"], f"`{file}`", {k: at(one, "ppl") for k, one in found.items()}))
    if not rows:
        return ""
    sets = list(dict.fromkeys(name for _, _, figures in rows for name in figures))
    lines = []
    for row, source, figures in sorted(rows, key=lambda r: (r[0] != r[0].lower(), r[0])):
        model = row.partition("/")[2]
        cells = [bound(model, figures.get(name)) for name in sets]
        lines.append([trained_as(row), source, *cells])
    title = f"Zero-shot perplexity of models trained on {SETTINGS[setting]}"
    return f"{title}. Rows that are not here were not run.\n\n" + markdown(
        ["trained as", "from", *sets], lines
    )


def generated(setting: str, tables: Sequence[Table], runs: Runs) -> str:
    """Perplexity of samples under a judge beside their entropy; empty if there are none."""
    lines = []
    for table in of_setting(tables, setting, "generative"):
        about = "about " if table.get("approximate") else ""
        for row, one in table["numbers"].items():
            if not inside(setting, row):
                continue
            cells = [f"{about}{shown(one[k])}" if k in one else "" for k in ("ppl", "entropy")]
            steps = shown(one.get("steps")) or "not known"
            lines.append((row, f"[{table['id']}](#{table['id']})", steps, *cells))
    for file, run in runs.items():
        ppl = at(run, "metrics", "generative", "samples", "ppl")
        if ppl is not None and inside(setting, run["row"]):
            samples = at(run, "metrics", "samples")
            steps = shown(at(samples, "origin", "steps")) or "not known"
            entropy = shown(at(samples, "generated", "entropy"))
            lines.append((run["row"], f"`{file}`", steps, shown(ppl), entropy))
    if not lines:
        return ""
    rows = [
        [trained_as(row), *cells]
        for row, *cells in sorted(lines, key=lambda line: (line[0] != line[0].lower(), line[0]))
    ]
    columns = ["trained as", "from", "steps", "generative perplexity", "entropy (nats)"]
    return (
        f"Generative perplexity, {SETTINGS[setting]}. Judges and conventions differ; a low value "
        f"with a low entropy is no success.\n\n{markdown(columns, rows)}"
    )


def title(file: str) -> str:
    """A run's name: that of its file."""
    return PurePosixPath(file).stem


def small(runs: Runs) -> str:
    """Our runs that are no row of a paper's table."""
    ours = [(title(file), run) for file, run in runs.items() if run["row"] is None]
    head = (
        "## Small runs of our own\n\nMini models on small texts, to compare objectives with each "
        "other on one machine; no paper reports them.\n"
    )
    if not ours:
        return f"{head}\nNone is in `results/runs` yet.\n"
    used = [(name, path) for name, path in FIGURES
            if any(at(run["metrics"], *path) is not None for _, run in ours)]  # fmt: skip
    rows = []
    for name, run in ours:
        figures = run["metrics"]
        cells = [shown(at(figures, *path)) for _, path in used]
        if at(figures, "likelihood", "bound"):
            limited = ("ppl", "bpc")
            cells = [f"≤ {cell}" if cell and path[0] == "likelihood" and path[-1] in limited
                     else cell for cell, (_, path) in zip(cells, used, strict=True)]  # fmt: skip
        steps, hours = run["training"]["steps"], run["training"]["device_hours"]
        rows.append([f"[{name}](#{anchor(name)})", str(run["text"]), run["objective"],
                     str(run["seed"]), shown(steps), *cells, shown(hours)])  # fmt: skip
    columns = ["run", "text", "loss", "seed", "steps", *(name for name, _ in used), "device-hours"]
    tasks = accuracies(ours)
    return f"{head}\n{markdown(columns, rows)}" + (f"\n{tasks}" if tasks else "")


def accuracies(ours: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
    """Every number of every task that our small runs were asked; empty if there are none."""
    rows = [
        [name, task, figure, shown(value)]
        for name, run in ours
        for task, figures in (at(run, "metrics", "tasks") or {}).items()
        if isinstance(figures, Mapping)
        for figure, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return "Tasks.\n\n" + markdown(["run", "task", "figure", "value"], rows) if rows else ""


def anchor(heading: str) -> str:
    """The address of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower())).strip("-")


def made(file: str, run: Mapping[str, Any]) -> str:
    """How a result came about."""
    changed = {None: ", state of the tree not recorded", True: " with changes", False: ""}
    commit = run["commit"]
    tree = "unknown" if commit is None else f"`{commit}`{changed[run.get('changed')]}"
    hashes = ", ".join(f"{name} `{value}`" for name, value in run["data_sha256"].items())
    training = run["training"]
    hours = shown(training["device_hours"]) or "not known"
    facts = {
        "file": f"`{file}`",
        "row": "none of a paper's" if run["row"] is None else f"`{run['row']}`",
        "differs from the recipe in": ", ".join(run["differs"]),
        "seed": f"{run['seed']}; of the evaluation {at(run, 'evaluation', 'seed')}",
        "text": f"{run['text']}; evaluated on {at(run, 'evaluation', 'text')}",
        "sha256 of the tokens": hashes or "unknown",
        "commit": tree,
        "machine": f"{run['devices'] or 'unknown number of'} x {run['device']}, {run['threads']} "
        f"threads, torch {run['torch']}, {run['platform']}",
        "training": f"{shown(training['steps'])} steps, {shown(training['tokens'])} tokens, "
        f"{shown(training['seconds'])} seconds, {hours} device-hours",
    }
    lines = [f"### {title(file)}", "", *(f"- {k}: {v}" for k, v in facts.items() if v), ""]
    if run["commands"]["eval"] is None:
        lines += ["The command of the evaluation was not recorded.", ""]
    typed = [line for line in run["commands"].values() if line]
    return "\n".join([*lines, "```bash", *typed, "```", ""])


def sources(tables: Iterable[Table]) -> str:
    """What the short names of reported tables stand for."""
    lines = ["## Sources", "", "All in `results/reported.json`.", ""]
    for table in tables:
        lines += [
            f"### {table['id']}", "",
            f"{table['paper']}; version: {table['version']}; {table['table']}.", "",
            f"- Convention: {table['convention']}", f"- How known: {table['how_known']}", "",
        ]  # fmt: skip
    return "\n".join(lines)
