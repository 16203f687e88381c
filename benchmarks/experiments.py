"""docs/experiments.md: predictions against outcomes, from the results of the suites.

``add`` keeps of a suite's directory what its report needs: numbers, curves and texts, no weights.
``page`` writes the reports anew and puts the table of predictions into the page. To be run in the
repository's root.

    python benchmarks/experiments.py add runs/masking    # docs/results/masking
    python benchmarks/experiments.py page
"""

from __future__ import annotations

import json
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from math import inf, log
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from results import without_places

from sddlm.io import atomic_write
from sddlm.suite.config import SUITE, jobs_of, read_suite
from sddlm.suite.interval import Mean, paired
from sddlm.suite.report import write_report
from sddlm.suite.results import arranged, flat

RESULTS = Path("docs/results")
PREDICTIONS = RESULTS / "predictions.yaml"
PAGE = Path("docs/experiments.md")
NATS = "nats per token of a judge"
#: path in a file of results, and unit, of a name in `PREDICTIONS`
FIGURES = {
    "bits": ("likelihood.bpc", "bits per character"),
    "judge": ("generative.samples.ppl", NATS),
    "bigrams": ("controls.bigram.generative.samples.ppl", NATS),
    "entropy": ("samples.generated.entropy", "nats of entropy"),
}
#: around the table in the page
BEGIN, END = "<!-- predictions -->\n", "<!-- end of predictions -->\n"
#: of a run: what a report reads
KEPT = ("metrics.csv", "model/config.json", "round-*/metrics.csv")


class Prediction(NamedTuple):
    """A predicted sign of the difference of two figures; both are ``VARIANT/EVALUATION:NAME``.

    Attributes:
        suite: name of the suite.
        text: the prediction.
        figure: the first figure; its name is one of `FIGURES` or a path in the file of results.
        sign: 1 above 0, -1 below 0, 0 none.
        less: the second figure; none where the first is a difference.
        tolerance: of a difference that is none.
    """

    suite: str
    text: str
    figure: str
    sign: int
    less: str = ""
    tolerance: float = 0.0


def predictions() -> list[Prediction]:
    """All predictions."""
    return [Prediction(**each) for each in yaml.safe_load(PREDICTIONS.read_text(encoding="utf-8"))]


def read(figure: str, folder: Path) -> dict[int, float]:
    """A figure by seed, where it is there; of a perplexity the logarithm."""
    place, name = figure.split(":")
    variant, evaluation = place.split("/")
    if not (folder / SUITE).is_file():
        return {}
    path, found = FIGURES.get(name, (name, ""))[0], {}
    for seed in read_suite(folder / SUITE).all_seeds:
        file = folder / "runs" / f"{variant}-{seed}" / f"{evaluation}.json"
        if file.is_file():
            numbers = dict(flat(_by_steps(arranged(json.loads(file.read_text())))))
            if path in numbers:
                found[seed] = log(numbers[path]) if "ppl" in path else numbers[path]
    return found


def unit(figure: str) -> str:
    """Unit of a figure."""
    name = figure.split(":")[1]
    judged = "ppl" in name or name.startswith("against")
    return FIGURES[name][1] if name in FIGURES else NATS if judged else ""


def _by_steps(tree: Any) -> Any:
    """The tree with objects in the place of lists of points."""
    if isinstance(tree, list):
        known = all(isinstance(each, dict) and "steps" in each for each in tree)
        return {str(each["steps"]): _by_steps(each) for each in tree} if tree and known else tree
    if isinstance(tree, dict):
        return {name: _by_steps(each) for name, each in tree.items()}
    return tree


def outcome(prediction: Prediction, difference: Mean | None) -> str:
    """Yes, no, or open where the interval allows both."""
    if difference is None or difference.half is None:
        return "not measured"
    ends = [difference.value + side * difference.half for side in (-1, 1)]
    if prediction.sign == 0:
        low, high = -prediction.tolerance, prediction.tolerance
    else:
        ends = sorted(prediction.sign * end for end in ends)
        low, high = -prediction.tolerance, inf
    inside, outside = low <= ends[0] and ends[1] <= high, ends[0] > high or ends[1] < low
    return "yes" if inside else "**no**" if outside else "open"


def table() -> str:
    """The predictions with their differences and outcomes."""
    lines = ["| suite | prediction | difference | outcome |", "|---|---|---|---|"]
    for each in predictions():
        folder = RESULTS / each.suite
        values = read(each.figure, folder)
        base = read(each.less, folder) if each.less else dict.fromkeys(values, 0.0)
        difference = paired(values, base)
        shown = f"{difference} {unit(each.figure)}".strip() if difference else ""
        link = f"[{each.suite}](results/{each.suite}/report.md)" if difference else each.suite
        lines.append(f"| {link} | {each.text} | {shown} | {outcome(each, difference)} |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The page with its table made anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


def reports() -> None:
    """Write the report of every suite in `RESULTS` anew, Markdown and pictures."""
    for suite in sorted(RESULTS.glob(f"*/{SUITE}")):
        write_report(str(suite.parent))
        (suite.parent / "report.html").unlink()  # the site has the Markdown


def add(source: Path) -> Path:
    """Keep the files of a finished suite that its report needs, without places of this machine."""
    target = RESULTS / source.resolve().name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    jobs = (job for job in jobs_of(read_suite(source / SUITE), source) if job.out.exists())
    (target / SUITE).write_text(without_places((source / SUITE).read_text()))
    for job in jobs:
        out = target / job.out.relative_to(source)
        if not job.evaluation:
            for kept in (path for pattern in KEPT for path in job.out.glob(pattern)):
                copy = out / kept.relative_to(job.out)
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_text(without_places(kept.read_text()))
        elif job.verb == "sample":
            lines = [json.loads(line) for line in job.out.read_text().splitlines()]
            out.write_text("".join(json.dumps({"text": line["text"]}) + "\n" for line in lines))
        else:
            small = without_places(_small(json.loads(job.out.read_text())))
            out.write_text(json.dumps(small) + "\n")
    return target


def _small(tree: Any) -> Any:
    """A file of results without the figures of single texts."""
    if isinstance(tree, dict):
        lists = {"samples"} if isinstance(tree.get("samples"), list) else set()
        return {name: _small(value) for name, value in tree.items() if name not in lists}
    if isinstance(tree, list):
        return [_small(each) for each in tree]
    return round(tree, 9) if isinstance(tree, float) else tree


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["add", "page"])
    parser.add_argument("folder", nargs="*", type=Path, help="directories of suites, for add")
    chosen = parser.parse_args(argv)
    for folder in chosen.folder:
        print(add(folder))
    reports()
    with atomic_write(PAGE) as file:
        file.write(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
