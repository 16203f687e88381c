"""Alarms with advice for the ways in which simple denoising fails (arXiv:2510.22926).

A network that copies its input, noise included; an output that stays uniform; negatives that
outweigh what they should only correct: each shows in the table of figures long before the end of a
run. Alarms are functions of that table, so a resumed run knows which have been said.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path

from sddlm.files import append
from sddlm.train.health import GRADIENT_COLUMNS

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Alarm:
    """What is going wrong.

    Attributes:
        name: ``copying`` and ``repetition`` (the two faces of collapse), ``uniform`` or
            ``negatives``.
        measured: the figures that say so.
        advice: what to type.
    """

    name: str
    measured: str
    advice: str


#: a row of ``metrics.csv``
Row = Mapping[str, float]


@dataclass(frozen=True)
class _Sign:
    """When an alarm is due: ``shows`` looks at a row that has ``columns``, and at V."""

    name: str
    columns: tuple[str, ...]
    shows: Callable[[Row, int], bool]
    measured: str
    advice: str


# Thresholds lie between the runs of docs/evaluation.md that were well and those that were spoilt.
_SIGNS = (
    _Sign(
        "copying",
        ("own_share_noise",),
        lambda row, V: row["own_share_noise"] > 0.1 + 1 / (V - 1),
        "the output gives noise tokens {own_share_noise:.2f}, where a network that does not look "
        "at its own token gives 1 / V",
        "samples will keep noise. What was trained at all positions is a denoiser and must say so "
        "in its estimate; or train with `objective=SDDLM()` or CalibratedDenoising",
    ),
    _Sign(
        "repetition",
        ("preview_entropy", "text_entropy"),
        lambda row, V: row["preview_entropy"] < 0.7 * row["text_entropy"],
        "entropy within previews is {preview_entropy:.2f} nats, within text {text_entropy:.2f}",
        "samples repeat themselves: a smaller `objective.weight` if there are negatives, else a "
        "smaller `train.lr` or a longer `train.warmup`",
    ),
    _Sign(
        "uniform",
        ("output_entropy",),
        lambda row, V: row["output_entropy"] > 0.97 * log(V),
        "entropy of the output is {output_entropy:.2f} nats, and {most:.2f} if it is uniform",
        "nothing has been learnt: a larger `train.lr`, a shorter `train.warmup`, "
        "`model.head_init=0.02` and `model.gate_init=1`",
    ),
    _Sign(
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
#: looks in succession that must show a sign
_LOOKS = 2
#: steps before which nothing is said, whatever the warm-up
_EARLIEST = 100


def alarms(
    rows: Sequence[Row], *, vocab_size: int, warmup: int, looks: int = _LOOKS
) -> list[Alarm]:
    """The alarms that are due.

    Nothing is said in the first 100 steps and in twice the warm-up; then an alarm is due when its
    sign was there each of the last times that its figures were taken.

    Args:
        rows: of ``metrics.csv``, in order.
        vocab_size: V.
        warmup: steps of it.
        looks: how often in succession; 1 tells which alarms are near.
    """
    first = max(_EARLIEST, 2 * warmup)
    found = []
    for sign in _SIGNS:
        taken = [row for row in rows if row["step"] >= first and set(sign.columns) <= row.keys()]
        last = taken[-looks:]
        if len(last) == looks and all(sign.shows(row, vocab_size) for row in last):
            measured = sign.measured.format(**last[-1], most=log(vocab_size))
            found.append(Alarm(sign.name, measured, sign.advice))
    return found


class Alarms:
    """Says each alarm once, and again only if it had gone; writes it to ``alarms.jsonl``.

    Args:
        run: the run directory.
        rows: the table of figures, which grows; in a resumed run those of before.
        vocab_size: V.
        warmup: steps of it.
    """

    def __init__(self, run: Path, rows: Sequence[Row], *, vocab_size: int, warmup: int) -> None:
        self.path, self.rows = run / "alarms.jsonl", rows
        self.vocab_size, self.warmup = vocab_size, warmup
        self.said = {alarm.name for alarm in self._due(_LOOKS)}
        self.near: list[str] = []
        """what the newest figures show, whether or not it is due; for the bar"""

    def _due(self, looks: int) -> list[Alarm]:
        return alarms(self.rows, vocab_size=self.vocab_size, warmup=self.warmup, looks=looks)

    def sound(self) -> None:
        """Say what is new; to be called when figures were taken."""
        self.near = [f"{alarm.name}? {alarm.measured}" for alarm in self._due(1)]
        due = self._due(_LOOKS)
        for alarm in due:
            if alarm.name in self.said:
                continue
            step = int(self.rows[-1]["step"])
            logger.warning("step %d: %s: %s; %s", step, alarm.name, alarm.measured, alarm.advice)
            append(self.path, json.dumps({"step": step, **asdict(alarm)}) + "\n")
        self.said = {alarm.name for alarm in due}
