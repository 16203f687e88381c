"""What ``sddlm eval`` is asked for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from sddlm.data.args import DataArgs
from sddlm.errors import ConfigError, check_choices, did_you_mean
from sddlm.eval.conventions import convention_of
from sddlm.eval.drawing import Drawing
from sddlm.eval.frontier import Sweep
from sddlm.eval.texts import HeldOut, TrainingText, held_out
from sddlm.eval.unseen import RealText, real_text
from sddlm.lm import LanguageModel
from sddlm.work import ProcessGroup

logger = logging.getLogger(__name__)

METRICS = ("likelihood", "baselines", "samples", "copying", "generative", "mauve")
JUDGED = ("generative", "mauve")


@dataclass(frozen=True)
class EvalConfig:
    """What the user wants: the options of `sddlm.eval.run.evaluate`, checked.

    Raises:
        ConfigError: options that cannot be, or cannot be together.
    """

    model_dir: str
    data: DataArgs | None
    metrics: str | list[str] | None
    judge: str | None
    convention: str
    zero_shot: str | None
    tasks: str | None
    task_files: str | None
    limit: int | None
    frontier: bool
    against: str | None
    sweep: Sweep | None
    correction: str | None
    samples: str | None
    drawing: Drawing
    rows: int
    draws: int | None
    context: int | None

    def __post_init__(self) -> None:
        check_choices(self)
        for name, low in (("rows", 0), ("draws", 1), ("context", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"--{name} is {value}, must be at least {low}")
        convention_of(self.convention)
        if len(self.questions) > 1:
            both = " and ".join(f"--{name}" for name in self.questions)
            raise ConfigError(f"{both} are different questions: ask for one at a time")
        for name, of in (
            ("task_files", "tasks"), ("limit", "tasks"), ("against", "frontier"),
            ("sweep", "frontier"),
        ):  # fmt: skip
            if getattr(self, name) is not None and self.question != of:
                raise ConfigError(f"--{name} belongs to --{of}, which is not asked for")

    @property
    def questions(self) -> list[str]:
        """Those that were asked for by name."""
        names = ("metrics", "zero_shot", "tasks", "frontier", "correction")
        return [name for name in names if getattr(self, name) not in (None, False)]

    @property
    def question(self) -> str:
        """The question, which is also the name of the file."""
        asked = self.questions or ["metrics"]
        return "evaluation" if asked == ["metrics"] else asked[0]

    @property
    def most_rows(self) -> int | None:
        """None for all."""
        return self.rows or None

    def text(self, loaded: LanguageModel) -> tuple[HeldOut, TrainingText | None]:
        """The rows to score, and the training text where it can be had."""
        return held_out(Path(self.model_dir), loaded, self.data, self.most_rows)

    def text_for_judge(self, loaded: LanguageModel, text: HeldOut, team: ProcessGroup) -> RealText:
        """Rows that the judge was not trained on either; a warning where that is not so."""
        place, judge = Path(self.model_dir), self.judge or ""
        found = real_text(text, place, loaded, self.data, judge, self.most_rows)
        if team.first and found.seen in ("yes", "maybe"):
            logger.warning(
                "%s: its perplexity of real text is too low to compare with; train a judge with "
                "the --data.validation of the model, or give another text: --data.path FILE",
                found.reason,
            )
        return found


def wanted(asked: EvalConfig) -> list[str]:
    """The metrics asked for, in the order of `METRICS`; without a choice all but the costly one."""
    if asked.metrics is None:
        free = [name for name in METRICS if name not in JUDGED]
        return [*free, "generative"] if asked.judge is not None else free
    given = asked.metrics.split(",") if isinstance(asked.metrics, str) else asked.metrics
    names = {name.strip() for name in given}
    for name in sorted(names - set(METRICS)):
        raise ConfigError(
            f"--metrics {name or '(empty)'} is unknown; allowed: {', '.join(METRICS)}"
            f"{did_you_mean(name, METRICS)}"
        )
    return [name for name in METRICS if name in names]
