"""Scores of lm-eval's tasks, computed by its own code."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from sddlm.errors import ConfigError, closest, one_line
from sddlm.eval.conditional import check_draws
from sddlm.eval.evaluation import EvalConfig, Subject, names_in, run
from sddlm.eval.result import Result, plus_minus
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel


@dataclass(frozen=True)
class TasksConfig(EvalConfig):
    """Options of lm-eval's tasks."""

    tasks: str | list[str] = ""
    """comma-separated, such as hellaswag,piqa, or paths of task files (YAML)"""
    limit: int | None = None
    """most questions of a task"""
    draws: int = 128
    """most noise levels per question"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_tasks(names_in(self.tasks), self.limit)
        check_draws(self.draws)


@dataclass(frozen=True)
class TaskScore:
    """The score of a task or a group; figures of questions are None for a group.

    Attributes:
        metrics: as lm-eval computes them.
        stderr: their standard errors over questions.
        version: of lm-eval's definition.
        documents: number of questions.
        draws: mean noise levels per question.
        monte_carlo: mean standard error of log p, nats.
        cut: prompts that were cut.
        seconds: of all processes together.
    """

    metrics: dict[str, float]
    stderr: dict[str, float]
    version: Any
    documents: int | None
    draws: float | None = None
    monte_carlo: float | None = None
    cut: int | None = None
    seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without what does not apply."""
        optional = ("draws", "monte_carlo", "cut", "seconds")
        return {k: v for k, v in vars(self).items() if v is not None or k not in optional}


@dataclass(frozen=True, kw_only=True)
class TaskScores(Result):
    """Scores by task."""

    tasks: dict[str, TaskScore]

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        for name, own in self.tasks.items():
            for metric, value in own.metrics.items():
                shown = f"{value:.4g}{plus_minus(own.stderr.get(metric))}"
                table.add_row(f"{name}: {metric}", shown, f"{own.documents} questions")
        return []


def evaluate_tasks(
    model: str | LanguageModel,
    *,
    device: str = "auto",
    out: str | None = None,
    **options: Annotated[Any, TasksConfig],
) -> TaskScores:
    """Score a model on tasks of lm-eval, by a bound on log p of each answer.

    Args:
        model: run or model directory, or a loaded model.
        device: cpu, cuda, or auto.
        out: the JSON file to write; on the command line tasks.json in the model's directory.
        options: which tasks, and how many questions.

    Returns:
        the metrics of each task; ``print`` shows a table, ``as_dict()`` is the JSON file.

    Raises:
        ConfigError: a wrong choice, or lm-eval is not installed.
    """
    return run("tasks", _measure, TasksConfig(**options), model, device, out)


def _measure(config: TasksConfig, subject: Subject) -> TaskScores:
    tasks = load_tasks(names_in(config.tasks), limit=config.limit)
    how = {"draws": config.draws, "seed": config.seed, "batch": config.batch}
    return TaskScores(
        tasks=run_tasks(subject.lm, tasks, limit=config.limit, job=subject.job, **how)
    )


def check_tasks(names: Sequence[str], limit: int | None = None) -> None:
    """Refuse what cannot be evaluated, before lm-eval or a model is loaded.

    Args:
        names: of tasks, as in lm-eval, or paths of YAML files.
        limit: most questions of a task; None is all.

    Raises:
        ConfigError: lm-eval is missing, there are no names, a name is given twice, a file is
            missing, or the limit is below 1.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("`tasks` needs lm-eval; type: pip install 'sddlm[tasks]'")
    if not names or not all(names):
        raise ConfigError("`tasks` is empty; name tasks of lm-eval, such as hellaswag,piqa")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"`tasks` names {twice} twice; name it once")
    if limit is not None and limit < 1:
        raise ConfigError(f"`limit` is {limit}, must be at least 1; leave it out for all questions")
    for name in names:
        task_files(name)


def task_files(name: str) -> list[Path]:
    """The YAML files that a name means: a file, or those of a folder; none for a task of lm-eval.

    Raises:
        ConfigError: it is written as a path, and nothing is there.
    """
    given = Path(name)
    if given.suffix not in (".yaml", ".yml") and given.name == name:
        return []
    found = sorted(given.glob("*.yaml")) if given.is_dir() else [given]
    if not found or not found[0].is_file():
        raise ConfigError(f"`tasks` is {name}: no such YAML file of a task, or folder with some")
    return found


def load_tasks(names: Sequence[str], *, limit: int | None = None) -> Any:
    """Tasks of lm-eval with their questions, before any model is loaded.

    Args:
        names: of tasks, groups and tags of lm-eval; or YAML files of tasks, or folders with some.
        limit: most questions of a task; only checked here.

    Raises:
        ConfigError: see `check_tasks`; or a name that lm-eval does not know, or questions that
            cannot be loaded.
    """
    check_tasks(names, limit)
    from lm_eval.tasks import TaskManager

    own = [str(path) for name in names for path in task_files(name)]
    names = [name for name in names if not task_files(name)]
    with _quiet():
        # its list of all tasks takes half a minute
        manager = TaskManager(include_defaults=bool(names))
        for name in names:
            if name not in manager.all_tasks:
                near = closest(name, manager.all_tasks)
                meant = f"did you mean {near}?" if near else "type: lm_eval ls tasks"
                raise ConfigError(f"lm-eval has no task {name}: {meant}")
        try:
            found = manager.load([*own, *names])
        except Exception as error:  # anything can be wrong in a file, or missing in its data
            raise ConfigError(
                f"{', '.join([*own, *names])} cannot be loaded: {one_line(error)} (questions "
                "in files of your own need a task file: docs/evaluation.md)"
            ) from error
    for task in found["tasks"].values():  # as lm-eval's own command line does
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    return found


def run_tasks(
    lm: LanguageModel,
    tasks: Any,
    *,
    limit: int | None = None,
    draws: int = 128,
    seed: int = 0,
    batch: int = 64,
    job: ResumableJob | None = None,
) -> dict[str, TaskScore]:
    """Evaluate a model on tasks by lm-eval's own code.

    Args:
        lm: the model.
        tasks: of `load_tasks`.
        limit: most questions of a task, its first ones.
        draws: most noise levels of a question.
        seed: of the noise.
        batch: sequences per network call.
        job: does the questions; None does them here and keeps nothing.

    Returns:
        the score of each task, and of each group.
    """
    from lm_eval.evaluator import evaluate

    from sddlm.eval.harness import SDDLM

    own = SDDLM(lm, draws=draws, seed=seed, batch=batch, job=job or ResumableJob())
    with _quiet():
        result = evaluate(own, tasks, limit=limit, log_samples=False)
    return {
        name: TaskScore(
            **_metrics(values),
            version=result["versions"].get(name),
            documents=result["n-samples"].get(name, {}).get("effective"),
            **own.figures.get(name, {}),
        )
        for name, values in result["results"].items()
    }


def _metrics(values: dict[str, Any]) -> dict[str, Any]:
    """lm-eval's figures of a task, such as ``acc,none`` and ``acc_stderr,none``."""
    found: dict[str, dict[str, float]] = {"metrics": {}, "stderr": {}}
    for key, value in values.items():
        metric, _, chain = key.partition(",")
        if not chain or isinstance(value, str):  # an alias, or N/A
            continue
        kind = "stderr" if metric.endswith("_stderr") else "metrics"
        name = metric.removesuffix("_stderr") + (f",{chain}" if chain != "none" else "")
        found[kind][name] = float(value)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """What lm-eval prints goes to stderr, and it makes no processes."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        os.environ.update({} if before is None else {"DISABLE_MULTIPROC": before})
