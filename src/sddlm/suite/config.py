"""A suite: a grid of runs and their evaluations, read from a YAML file and checked as a whole.

    base: {inherit: ../tiny/dit.yaml}
    variants: {sddlm: {}, nelbo: {objective: NELBO}}
    seeds: 3
    evaluations: {report: {rows: 256}}

Every run and every evaluation is a `Job`, one ordinary command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sddlm.errors import ConfigError, did_you_mean
from sddlm.inherit import inherited, read_files
from sddlm.io import read_yaml
from sddlm.options import Layer, Tree, merge, option_types
from sddlm.suite.job import Job, verb_function
from sddlm.verbs import VERBS

#: the resolved suite, in its directory
SUITE = "suite.yaml"
#: names become parts of paths
_NAME = re.compile(r"[A-Za-z][\w.+-]*")
#: a run in the value of an option: ``$judge`` is its directory
_REFERENCE = re.compile(r"\$([A-Za-z][\w.+-]*)")
#: options that every job gets from the suite
_GIVEN = ("out", "seed", "resume")
_RUNS = ("train", "distill")
_EVALUATIONS = ("sample", *(verb for verb in VERBS if verb.startswith("eval ")))


@dataclass
class Suite:
    """A grid of variants and seeds, each a run that is evaluated.

    Attributes:
        title: heading of the report.
        base: options of ``sddlm train`` for every run, as in a recipe; ``inherit`` names recipes.
        variants: the options of each variant over those of the base, by its name. With
            ``verb: distill`` they are those of ``sddlm distill`` alone. ``$NAME`` in a value is the
            run of another variant with the same seed, or of an auxiliary run.
        auxiliary: runs with the first seed alone, such as a judge: recipes of their own, without
            the base.
        seeds: the seeds, or their number.
        evaluations: the options of each evaluation by its name. The name is that of a subcommand of
            ``sddlm eval`` or sample, unless ``verb`` gives one; ``only`` lists some of the
            variants.
        baseline: the variant that the others are compared with; the first one by default.

    Raises:
        ConfigError: a name or a value that cannot be used.
    """

    title: str = ""
    base: dict[str, Any] = field(default_factory=dict)
    variants: dict[str, Any] = field(default_factory=dict)
    auxiliary: dict[str, Any] = field(default_factory=dict)
    seeds: int | list[int] = 3
    evaluations: dict[str, Any] = field(default_factory=dict)
    baseline: str | None = None

    def __post_init__(self) -> None:
        if not self.variants:
            raise ConfigError("`variants` is empty; name at least one: `variants={'sddlm': {}}`")
        for jobs in (self.variants, self.auxiliary, self.evaluations):
            for name, own in jobs.items():
                if not _NAME.fullmatch(str(name)):
                    raise ConfigError(
                        f"the name {name!r} must be letters, digits and any of . + - _"
                    )
                if not isinstance(own, dict):
                    raise ConfigError(f"{name} is {own!r}, must be options, or {{}} for none")
        for name in self.variants.keys() & self.auxiliary.keys():
            raise ConfigError(f"{name} is a variant and an auxiliary run; name one of them anew")
        seeds = self.seeds
        if not (seeds > 0 if isinstance(seeds, int) else seeds and len({*seeds}) == len(seeds)):
            raise ConfigError(f"`seeds` is {seeds}, must be a number above 0 or different seeds")
        if self.baseline is not None and self.baseline not in self.variants:
            meant = did_you_mean(self.baseline, self.variants)
            raise ConfigError(f"`baseline` is {self.baseline}, which is no variant{meant}")

    @property
    def all_seeds(self) -> list[int]:
        """The seeds, one by one."""
        return [*range(self.seeds)] if isinstance(self.seeds, int) else self.seeds


def read_suite(path: Path) -> Suite:
    """Read a suite's file, the one of a user or that in the suite's directory.

    Raises:
        ConfigError: it cannot be read, or has a name or a value that cannot be used.
    """
    tree = read_yaml(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} must hold a suite: variants, seeds, evaluations")
    try:
        return Suite(**merge([Layer(str(path), tree)], Suite))
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from error


def resolve(
    suite: Suite, path: Path, run_options: Tree | None = None, eval_options: Tree | None = None
) -> Suite:
    """The suite with all options of each run and evaluation, which then need no other file.

    Args:
        suite: read from ``path``.
        path: ``inherit`` is relative to it.
        run_options: sections of ``sddlm train`` that win in every run.
        eval_options: options that win in every evaluation that has them.

    Raises:
        ConfigError: an option that does not exist, or a value that it cannot have.
    """
    eval_options = eval_options or {}

    def run(name: str, own: Tree, kind: str, base: Tree) -> Tree:
        verb, where = _verb(name, own, "train", _RUNS), f"{kind} {name} of {path}"
        layers = _layers(base, path, f"the base of {path}") if verb == "train" else []
        return _options(verb, [*layers, *_layers(own, path, where)], run_options or {})

    def evaluation(name: str, own: Tree) -> Tree:
        verb = _verb(name, own, f"eval {name}" if f"eval {name}" in VERBS else name, _EVALUATIONS)
        only = own.get("only", [*suite.variants])
        if not isinstance(only, list) or not only or not {*only} <= suite.variants.keys():
            raise ConfigError(f"`only` of evaluation {name} is {only}, must be a list of variants")
        rest = {key: value for key, value in own.items() if key != "only"}
        layers = _layers(rest, path, f"evaluation {name} of {path}")
        return {"only": only, **_options(verb, layers, eval_options)}

    evaluations = {name: evaluation(name, own) for name, own in suite.evaluations.items()}
    for option in eval_options:
        if not any(option in option_types(verb_function(e["verb"])) for e in evaluations.values()):
            raise ConfigError(f"`evaluation.{option}` is an option of no evaluation of {path}")
    return replace(
        suite,
        base={},
        variants={n: run(n, own, "variant", suite.base) for n, own in suite.variants.items()},
        auxiliary={n: run(n, own, "auxiliary run", {}) for n, own in suite.auxiliary.items()},
        seeds=suite.all_seeds,
        evaluations=evaluations,
        baseline=suite.baseline or next(iter(suite.variants)),
    )


def _verb(name: str, own: Tree, usual: str, allowed: tuple[str, ...]) -> str:
    """The verb of a job."""
    verb = str(own.get("verb", usual))
    if verb not in allowed:
        meant = did_you_mean(verb, allowed)
        raise ConfigError(f"`verb` of {name} is {verb}, must be {', '.join(allowed)}{meant}")
    return verb


def _options(verb: str, layers: list[Layer], over: Tree) -> Tree:
    """All options of a job, checked by name and type; those of ``over`` that it has win."""
    function = verb_function(verb)
    known = option_types(function)
    tree = merge([*layers, Layer("", {k: v for k, v in over.items() if k in known})], function)
    for name in _GIVEN:
        if name in tree:
            raise ConfigError(f"`{name}` in {layers[-1].file} is given by the suite: leave it out")
    return {"verb": verb, **tree}


def _layers(options: Tree, path: Path, where: str) -> list[Layer]:
    """Options, behind those of the recipes that they inherit."""
    bases = [str(path.parent / base) for base in inherited(options, where)]
    own = {key: value for key, value in options.items() if key not in ("inherit", "verb")}
    return [*read_files(bases), Layer(where, own)]


def jobs_of(suite: Suite, folder: Path) -> list[Job]:
    """All runs of a resolved suite, each behind those that it begins from and before its
    evaluations.

    Args:
        suite: resolved.
        folder: directory of the suite.

    Raises:
        ConfigError: a reference to a run that does not exist.
    """
    place, seeds, found = folder / "runs", suite.all_seeds, list[Job]()

    def add(
        options: Tree, variant: str, seed: int, known: Mapping[str, Path], evaluation: str = ""
    ) -> None:
        run = place / f"{variant}-{seed}"
        needs = {run} if evaluation else set[Path]()
        own = _with_paths({k: v for k, v in options.items() if k != "only"}, known, needs)
        found.append(Job(variant, seed, own.pop("verb"), own, run, needs, evaluation))

    auxiliary: dict[str, Path] = {}
    for name, options in suite.auxiliary.items():
        add(options, name, seeds[0], auxiliary)
        auxiliary[name] = found[-1].run
    for seed in seeds:
        runs = auxiliary | {name: place / f"{name}-{seed}" for name in suite.variants}
        above = dict(auxiliary)
        for name, options in suite.variants.items():
            add(options, name, seed, above)
            above[name] = runs[name]
            for evaluation, own in suite.evaluations.items():
                if name in own["only"]:
                    add(own, name, seed, runs, evaluation)
    return found


def _with_paths(value: Any, runs: Mapping[str, Path], needs: set[Path]) -> Any:
    """The value with directories for references, which are added to ``needs``."""

    def path(found: re.Match[str]) -> str:
        if found[1] not in runs:
            meant = did_you_mean(found[1], runs)
            there = f"there are {', '.join(runs)}" if runs else "there is none"
            raise ConfigError(f"{found[0]} names no run above it; {there}{meant}")
        needs.add(runs[found[1]])
        return str(runs[found[1]])

    if isinstance(value, dict):
        return {key: _with_paths(each, runs, needs) for key, each in value.items()}
    if isinstance(value, list):
        return [_with_paths(each, runs, needs) for each in value]
    return _REFERENCE.sub(path, value) if isinstance(value, str) else value
