"""Alarms with advice for the known failures of simple denoising (arXiv:2510.22926).

The network copies its input, noise included; the output stays uniform; the negatives dominate the
loss. Each shows in the metrics long before the end of a run. Alarms are functions of the metrics,
so a resumed run knows which were raised.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path

from sddlm.io import append
from sddlm.training.diagnostics import GRADIENT_COLUMNS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """A failure of the training.

    Attributes:
        name: ``copying`` and ``repetition`` (the two faces of collapse), ``uniform`` or
            ``negatives``.
        measured: the metrics that show it.
        advice: options to change.
    """

    name: str
    measured: str
    advice: str


#: a row of ``metrics.csv``
Row = Mapping[str, float]


@dataclass(frozen=True)
class _Rule:
    """Rule of an alarm: ``applies`` checks a row with ``columns``, given V."""

    name: str
    columns: tuple[str, ...]
    applies: Callable[[Row, int], bool]
    measured: str
    advice: str


# Thresholds separate the good from the failed runs of docs/evaluation.md.
_RULES = (
    _Rule(
        "copying",
        ("copy_prob_noise",),
        lambda row, V: row["copy_prob_noise"] > 0.1 + 1 / (V - 1),
        "the output gives noise tokens {copy_prob_noise:.2f}, where a network that does not look "
        "at its own token gives 1 / V",
        "samples will keep noise. What was trained at all positions is a denoiser and must say so "
        "in its estimate; or train with `objective=SDDLM()` or CalibratedDenoising",
    ),
    _Rule(
        "repetition",
        ("preview_entropy", "text_entropy"),
        lambda row, V: row["preview_entropy"] < 0.7 * row["text_entropy"],
        "entropy within previews is {preview_entropy:.2f} nats, within text {text_entropy:.2f}",
        "samples repeat themselves: a smaller `objective.weight` if there are negatives, else a "
        "smaller `train.lr` or a longer `train.warmup`",
    ),
    _Rule(
        "uniform",
        ("output_entropy",),
        lambda row, V: row["output_entropy"] > 0.97 * log(V),
        "entropy of the output is {output_entropy:.2f} nats, and {most:.2f} if it is uniform",
        "nothing has been learnt: a larger `train.lr`, a shorter `train.warmup`, "
        "`model.head_init=0.02` and `model.gate_init=1`",
    ),
    _Rule(
        "negatives",
        ("val_nelbo", "logit_range", *GRADIENT_COLUMNS),
        lambda row, V: row["val_nelbo"] > 1.75 * log(V) or row["logit_range"] > 40,
        "the bound is {val_nelbo:.1f} nats and {most:.1f} for a uniform guess; logits span "
        "{logit_range:.0f} nats; gradient norm {repulsive_norm:.2g} of the negatives, "
        "{attractive_norm:.2g} of the clean token",
        "the negatives dominate: a smaller `objective.weight`, a larger `objective.eps`, or their "
        "expectation, `objective.negatives=UniformNegatives()` with "
        "`objective.negatives.count='exact'`",
    ),
)
#: successive measurements in which a rule must apply
_LOOKS = 2
#: steps without alarms, whatever the warm-up
_EARLIEST = 100


def alarms(
    rows: Sequence[Row], *, vocab_size: int, warmup: int, looks: int = _LOOKS
) -> list[Alarm]:
    """List the alarms that are due.

    There are none in the first 100 steps and in twice the warm-up. After that an alarm is due if
    its rule applied in each of the last measurements.

    Args:
        rows: rows of ``metrics.csv``, in order.
        vocab_size: V.
        warmup: warm-up steps.
        looks: number of successive measurements; 1 lists the alarms that are near.
    """
    first = max(_EARLIEST, 2 * warmup)
    found = []
    for rule in _RULES:
        taken = [row for row in rows if row["step"] >= first and set(rule.columns) <= row.keys()]
        last = taken[-looks:]
        if len(last) == looks and all(rule.applies(row, vocab_size) for row in last):
            measured = rule.measured.format(**last[-1], most=log(vocab_size))
            found.append(Alarm(rule.name, measured, rule.advice))
    return found


class Alarms:
    """Logs an alarm when it first fires, and again only after it has cleared.

    Alarms are also written to ``alarms.jsonl``.

    Args:
        run: run directory.
        rows: rows of metrics, which grow; a resumed run has the earlier ones.
        vocab_size: V.
        warmup: warm-up steps.
    """

    def __init__(self, run: Path, rows: Sequence[Row], *, vocab_size: int, warmup: int) -> None:
        self.path, self.rows = run / "alarms.jsonl", rows
        self.vocab_size, self.warmup = vocab_size, warmup
        self.raised = {alarm.name for alarm in self._due(_LOOKS)}
        self.near: list[str] = []
        """alarms of the newest metrics, due or not; shown in the progress bar"""

    def _due(self, looks: int) -> list[Alarm]:
        return alarms(self.rows, vocab_size=self.vocab_size, warmup=self.warmup, looks=looks)

    def check(self) -> None:
        """Log new alarms; called after each measurement."""
        self.near = [f"{alarm.name}? {alarm.measured}" for alarm in self._due(1)]
        due = self._due(_LOOKS)
        for alarm in due:
            if alarm.name in self.raised:
                continue
            step = int(self.rows[-1]["step"])
            logger.warning("step %d: %s: %s; %s", step, alarm.name, alarm.measured, alarm.advice)
            append(self.path, json.dumps({"step": step, **asdict(alarm)}) + "\n")
        self.raised = {alarm.name for alarm in due}
