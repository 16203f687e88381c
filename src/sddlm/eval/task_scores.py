"""Scores of lm-eval's tasks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from rich.table import Table

from sddlm.eval.conditional import check_draws
from sddlm.eval.evaluation import EvalConfig, Subject, names_in, run
from sddlm.eval.result import Result, plus_minus
from sddlm.eval.tasks import check_tasks
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
    from sddlm.eval.harness import load_tasks, run_tasks  # which needs lm-eval

    found = run_tasks(
        subject.lm,
        load_tasks(names_in(config.tasks), limit=config.limit),
        limit=config.limit,
        draws=config.draws,
        seed=config.seed,
        batch=config.batch,
        job=subject.job,
    )
    return TaskScores(tasks={name: TaskScore(**own) for name, own in found.items()})
