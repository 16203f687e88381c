"""Figures of a suite, read from the files of its runs and evaluations."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from sddlm.errors import ConfigError
from sddlm.io import read_json
from sddlm.models.dit import DiT
from sddlm.suite.config import Suite, jobs_of
from sddlm.suite.job import Job
from sddlm.training.monitor import SPENT, read_metrics

#: figures by seed
Seeds = dict[int, float]
#: what a file holds by variant and seed
Found = dict[str, dict[int, Any]]

#: path in a file of results, as a regular expression, and name in a table
FIGURES = (
    (r"likelihood\.bpc", "bits per character"),
    (r"likelihood\.complete_nll", "nats per token, complete bound"),
    (r"samples\.generated\.entropy", "entropy of samples (nats)"),
    (r"samples\.real\.entropy", "entropy of real text (nats)"),
    (r"samples\.generated\.known_words", "known words"),
    (r"samples\.generated\.bpc_5gram", "bits per character under a 5-gram"),
    (r"copying\.samples\.overlap", "in the training text"),
    (r"generative\.samples\.ppl", "generative perplexity"),
    (r"generative\.real\.ppl", "generative perplexity of real text"),
    (r"mauve\.mauve", "MAUVE"),
    (r"distance\.distance", "energy distance"),
    (r"distance\.real", "energy distance of real text"),
    (r"own\.neutral\.gen_ppl\.value", "generative perplexity, neutral"),
    (r"own\.neutral\.entropy\.value", "entropy, neutral (nats)"),
    (r"own\.ppl_at_real_entropy\.(\w+)\.ppl\.value", r"perplexity at real entropy, \1"),
    (r"real\.gen_ppl\.value", "perplexity of real text"),
    (r"against\.(.+)", r"nats per token less \1"),
    (r"zero_shot\.(.+)\.bpc", r"\1, bits per character"),
    (r"tasks\.(.+)\.metrics\.(.+)", r"\1: \2"),
    (r"correction\.shares\.(.+)\.auto\.(restored|damaged)", r"\2, \1 of the tokens wrong"),
)


@dataclass
class Results:
    """What is there of a suite.

    Attributes:
        suite: the suite.
        metrics: rows of ``metrics.csv`` of the finished runs.
        runs: figures of trainings: name to variant to seed.
        flops: FLOPs of a training, by the variant.
        evaluations: files of results, by the evaluation; controls are further variants.
        texts: drawn texts, by the evaluation.
        missing: names of the jobs without a result.
    """

    suite: Suite
    metrics: Found = field(default_factory=dict)
    runs: dict[str, dict[str, Seeds]] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)
    evaluations: dict[str, Found] = field(default_factory=dict)
    texts: dict[str, Found] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, suite: Suite, folder: Path) -> Results:
        """Read all files; damaged ones count as missing."""
        found = cls(suite)
        for job in jobs_of(suite, folder):
            if job.progress < 1 or not found._add(job):
                found.missing.append(job.name)
        return found

    def _add(self, job: Job) -> bool:
        """Add the result of a job; returns whether it could be read."""
        try:
            if job.verb == "sample":
                texts = [json.loads(line)["text"] for line in _lines(job.out)]
                _at(self.texts, job)[job.seed] = texts
            elif job.evaluation:
                found = arranged(read_json(job.out))
                self._add_controls(job, found.pop("controls", {}))
                _at(self.evaluations, job)[job.seed] = found
            elif job.variant in self.suite.variants:
                self._add_run(job)
        except (ConfigError, OSError, ValueError, LookupError, TypeError):
            return False
        return True

    def _add_controls(self, job: Job, found: dict[str, Any]) -> None:
        """Add the controls of an evaluation: once for all variants with the same tokens."""
        there = self.evaluations.setdefault(job.evaluation, {})
        for name, figures in found.items():
            label = f"{name} (control)"
            first = there.setdefault(label, {}).setdefault(job.seed, figures)
            same, own = ({n: f"{x:.6g}" for n, x in flat(each)} for each in (first, figures))
            if same != own:
                there.setdefault(f"{name} (control of {job.variant})", {})[job.seed] = figures

    def _add_run(self, job: Job) -> None:
        parts = [job.out]
        if job.verb == "distill":
            parts = [job.out / f"round-{k + 1}" for k in range(int(job.options.get("rounds", 1)))]
        tables = [read_metrics(part) for part in parts]
        rows, spent = tables[-1], Counter[str]()
        for each in tables:
            spent.update({name: each[-1].get(name, 0) for name in SPENT})
        self.metrics.setdefault(job.variant, {})[job.seed] = rows
        newest = {name: value for row in rows for name, value in row.items()}
        late = [
            r["gradient_norm"]
            for r in rows
            if "gradient_norm" in r and 2 * r["step"] > newest["step"]
        ]
        figures = {
            "bits per character": newest.get("val_bpc"),
            "nats per token": newest.get("val_nelbo"),
            "gradient norm, later half": fmean(late) if late else None,
            "logit range (nats)": newest.get("logit_range"),
            "steps": newest.get("step"),
            "seconds": spent["seconds"],
            "CPU seconds": spent["cpu_seconds"] or None,  # a run of an earlier version has none
            "FLOPs": self.flops.get(job.variant) or self._count_flops(job),
            "million parameters": _parameters(job),
        }
        for name, value in figures.items():
            if value is not None and isfinite(value):
                self.runs.setdefault(name, {}).setdefault(job.variant, {})[job.seed] = value

    def _count_flops(self, job: Job) -> float | None:
        """FLOPs of a training, the same for all seeds; None where the cost model has no network."""
        if job.verb != "train":
            return None
        try:
            self.flops[job.variant] = job.flops()
        except (ConfigError, OSError, LookupError, TypeError):
            return None
        return self.flops[job.variant]

    def table(self, evaluation: str) -> dict[str, dict[str, Seeds]]:
        """Figures of an evaluation: name to variant to seed, in the order of `FIGURES`."""
        found: dict[tuple[int, str], dict[str, Seeds]] = {}
        for variant, seeds in self.evaluations.get(evaluation, {}).items():
            for seed, result in seeds.items():
                for path, value in flat(result):
                    if name := _name(path):
                        found.setdefault(name, {}).setdefault(variant, {})[seed] = value
        return {name: found[place, name] for place, name in sorted(found)}


def _parameters(job: Job) -> float | None:
    """Million parameters of a finished run, from its configuration; None for a foreign network."""
    try:
        with torch.device("meta"):
            return sum(p.numel() for p in DiT(job.network()).parameters()) / 1e6
    except ConfigError:
        return None


def _at(found: dict[str, Found], job: Job) -> dict[int, Any]:
    """Where the results of a job are, by its seed."""
    return found.setdefault(job.evaluation, {}).setdefault(job.variant, {})


def flat(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Finite numbers in a file of results, by their dotted paths."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from flat(each, f"{path}.{name}".lstrip("."))
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and isfinite(value):
        yield path, float(value)


def _name(path: str) -> tuple[int, str] | None:
    """Place and name of a figure in a table."""
    for place, (pattern, name) in enumerate(FIGURES):
        if found := re.fullmatch(pattern, path):
            return place, found.expand(name)
    return None


def arranged(found: Any) -> Any:
    """A file of results with names in the place of numbers of lists, and without names of runs."""
    if models := found.get("models"):  # a frontier, whose first model is the one evaluated
        found["own"] = next(iter(models.values()))
        found["against"] = {
            f"{run_name(each['against'])} at the entropy of {run_name(each['at'])}": each["nats"][
                "value"
            ]
            for each in found["differences"]
            if each["knob"] == "best"
        }
    if correction := found.get("correction"):
        correction["shares"] = {f"{each['share']:g}": each for each in correction["shares"]}
    return found


def run_name(run: str) -> str:
    """Name of a run without its seed, or any other name, such as ``real text``."""
    return re.sub(r"-\d+(?=$|,)", "", Path(run).name)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()
