"""How well a model corrects: real text with a known share of tokens replaced at random.

Restored tokens alone can be had at will, by changing much. So every figure has its price beside it:
good tokens that were damaged, at each noise level that the text is taken for, and at the level
that the model chooses for each row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from sddlm.errors import ConfigError
from sddlm.eval.correction_score import CorrectionScore, score_correction
from sddlm.eval.evaluation import Subject, TextConfig, run
from sddlm.eval.pictures import draw_correction
from sddlm.eval.result import Plotted
from sddlm.generation.corrector import check_can_correct
from sddlm.lm import LanguageModel


@dataclass(frozen=True)
class CorrectionConfig(TextConfig):
    """Options of the score of correction."""

    shares: str | list[float] = "0.05,0.1,0.2"
    """shares of tokens that are replaced at random, comma-separated"""

    def __post_init__(self) -> None:
        super().__post_init__()
        shares_of(self.shares)


def shares_of(given: str | list[float]) -> list[float]:
    """The shares of a list such as ``0.05,0.1,0.2``, ascending.

    Raises:
        ConfigError: if one is no number from 0 to 1, or is there twice.
    """
    try:
        shares = sorted(map(float, given.split(",") if isinstance(given, str) else given))
    except ValueError:
        shares = [math.nan]
    right = all(0 <= share <= 1 for share in shares) and len(set(shares)) == len(shares) > 0
    if not right:
        raise ConfigError(
            f"`shares` is {given!r}, must be different shares of tokens from 0 to 1: try "
            "`shares='0.05,0.1,0.2'`"
        )
    return shares


@dataclass(frozen=True, kw_only=True)
class CorrectionResult(Plotted):
    """What a model restores and damages of held-out text."""

    correction: CorrectionScore

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        for share in self.correction.shares:
            wrong = f"{share.wrong / share.tokens:.2%} are wrong"
            table.add_row(f"{share.share:.3g} replaced", "restored", wrong)
            table.add_row(*share.auto.row(f"  t auto, mean {share.auto.t:.3f}"))
            for point in share.points:
                table.add_row(*point.row(f"  t {point.t:g}"))
            bits = f"{share.base_bits:.3f} by their share alone"
            table.add_row("  bits to identify them", f"{share.confidence_bits:.3f}", bits)
        how, rows = self.correction.sampler, self.correction.rows
        return [f"{rows} rows; steps {how.steps}, tail {how.tail}; t is the noise level"]

    def plot(self, path: Path) -> None:
        """Draw `draw_correction`'s picture, a PNG."""
        draw_correction(self.correction, path)


def evaluate_correction(
    model: str | LanguageModel,
    *,
    device: str = "auto",
    out: str | None = None,
    **options: Annotated[Any, CorrectionConfig],
) -> CorrectionResult:
    """Replace tokens of held-out rows at random, and measure what the model restores and damages.

    Args:
        model: run or model directory, or a loaded model (which needs a text: ``data``).
        device: cpu, cuda, or auto.
        out: the JSON file to write, with a picture beside it; on the command line correction.json
            in the model's directory.
        options: text and shares.

    Returns:
        restored and damaged tokens for each share; ``print`` shows a table, ``as_dict()`` is the
            JSON file.

    Raises:
        ConfigError: a wrong choice, or a model that cannot correct.
    """
    config = CorrectionConfig(**options)
    return run("correction", _measure, config, model, device, out, picture=True)


def _measure(config: CorrectionConfig, subject: Subject) -> CorrectionResult:
    check_can_correct(subject.lm)
    text, _ = config.held_out(subject)
    shares = shares_of(config.shares)
    score = score_correction(
        subject.lm, text, shares, seed=config.seed, batch=config.batch, job=subject.job
    )
    return CorrectionResult(text=text.source, correction=score)
