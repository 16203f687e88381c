"""Models compared at equal entropy: the figures of a frontier, from its points.

A point is a set of texts; the points along one knob, joined in its order, are a curve of nats per
token of the judge over entropy. Where a curve crosses an entropy lies the figure that is compared:
that of real text, or that of another model's samples as they are. Curves are never prolonged: a
curve that does not reach an entropy has no figure there, and the file says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sddlm.eval.resampling import LEVEL, RESAMPLES, Array, Interval, lowest_at

#: what is done to every prediction when nothing is done
NEUTRAL = {"temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": 0.0, "tail_cut": 0.0}
#: what turns sharpness; steps and the like are work: they are drawn, not compared
SHARPNESS = tuple(NEUTRAL)

BEST = "best"


@dataclass(frozen=True)
class Point:
    """A set of texts on the plane.

    Attributes:
        setting: of the knobs that it was drawn with; empty for real text.
        entropy: unigram entropy within a text, nats, mean over texts ``[1 + R]`` (`resampling`).
        nll: log of the generative perplexity, nats per token of the judge
            ``[1 + R]``.
        nfe: network calls a sample, mean; 0 for real text.
        count: texts.
        length: tokens of the sampler in a text, mean.
    """

    setting: Mapping[str, Any]
    entropy: Array
    nll: Array
    nfe: float
    count: int
    length: float

    def as_dict(self) -> dict[str, Any]:
        """For the file: the setting, and the figures with their intervals."""
        return dict(self.setting) | {
            "entropy": asdict(Interval.of(self.entropy)),
            "gen_ppl": asdict(Interval.of(self.nll, exponential=True)),
            "nfe": self.nfe,
            "count": self.count,
            "length": round(self.length, 2),
        }


@dataclass(frozen=True)
class Curves:
    """The points of one model.

    Attributes:
        neutral: its samples as they are.
        along: knob to the points along it, the neutral one among them.
    """

    neutral: Point
    along: Mapping[str, list[Point]]

    def nll_at(self, target: Array) -> dict[str, Array]:
        """Nats per token at entropies ``[1 + R]``, NaN where out of reach.

        By each knob of sharpness, and (`BEST`) by the best of them, which each resample chooses
        anew, so that its interval includes the choice.
        """
        found = {}
        for knob in SHARPNESS:
            if knob in self.along:
                points = self.along[knob]
                entropy, nll = ([getattr(p, name) for p in points] for name in ("entropy", "nll"))
                found[knob] = lowest_at(target, np.stack(entropy), np.stack(nll))
        if found:
            found[BEST] = np.fmin.reduce(list(found.values()))
        return found

    def reach(self, knob: str) -> tuple[float, float]:
        """Lowest and highest entropy along a knob, or along any (`BEST`)."""
        knobs = [k for k in SHARPNESS if k in self.along] if knob == BEST else [knob]
        entropy = [float(p.entropy[0]) for k in knobs for p in self.along[k]]
        return min(entropy), max(entropy)

    def as_dict(self, target: Array) -> dict[str, Any]:
        """For the file: points, and perplexities at the entropy ``[1 + R]`` of real text."""
        at = self.nll_at(target)
        known = [k for k in at if k != BEST and np.isfinite(at[k][0])]
        return {
            "neutral": self.neutral.as_dict(),
            "curves": {knob: [p.as_dict() for p in points] for knob, points in self.along.items()},
            "ppl_at_real_entropy": {
                knob: {"ppl": asdict(Interval.of(nll, exponential=True))}
                | _reached(nll, self.reach(knob), float(target[0]))
                for knob, nll in at.items()
            },
            "best_knob": min(known, key=lambda knob: at[knob][0], default=None),
        }


def report(truth: Point, models: Mapping[str, Curves]) -> dict[str, Any]:
    """What a frontier found, for the file.

    Args:
        truth: real text.
        models: name to points; the first one is compared with each of the others.

    Returns:
        ``real``, ``models`` and ``differences``. A difference is of nats per token of the judge,
        first model less the other: below 0 the first one is better. ``at`` is the entropy at which:
        that of real text, or that of the samples of one of the two as they are, against which the
        other one is sharpened.
    """
    first, *others = models
    return {
        "resamples": RESAMPLES,
        "level": LEVEL,
        "real": truth.as_dict(),
        "models": {name: curves.as_dict(truth.entropy) for name, curves in models.items()},
        "differences": [
            one for other in others for one in _differences(truth, models, first, other)
        ],
    }


def _differences(
    truth: Point, models: Mapping[str, Curves], first: str, other: str
) -> list[dict[str, Any]]:
    """The first model against another one, at three entropies and by each knob."""
    a, b = models[first], models[other]
    by_a, by_b = a.nll_at(truth.entropy), b.nll_at(truth.entropy)
    found = []

    def add(at: str, knob: str, nats: Array, curves: Curves, target: Array) -> None:
        interval = asdict(Interval.of(nats))
        reached = _reached(nats, curves.reach(knob), float(target[0]))
        found.append(
            {"model": first, "against": other, "at": at, "knob": knob, "nats": interval} | reached
        )

    for knob in by_a:
        if knob in by_b:
            short = b if np.isfinite(by_a[knob][0]) else a
            add("real text", knob, by_a[knob] - by_b[knob], short, truth.entropy)
    for knob, nll in a.nll_at(b.neutral.entropy).items():
        add(f"{other} as it is", knob, nll - b.neutral.nll, a, b.neutral.entropy)
    for knob, nll in b.nll_at(a.neutral.entropy).items():
        add(f"{first} as it is", knob, a.neutral.nll - nll, b, a.neutral.entropy)
    return found


def _reached(figures: Array, reach: tuple[float, float], target: float) -> dict[str, Any]:
    """The share of resamples with a figure, and why there is no figure or no interval."""
    share = float(np.isfinite(figures[1:]).mean())
    reason = None
    if not np.isfinite(figures[0]):
        low, high = reach
        reason = (
            f"entropy {target:.4g} is not reached: the settings give {low:.4g} to {high:.4g}; "
            "widen the sweep"
        )
    elif share < LEVEL:
        reason = (
            f"no interval: {1 - share:.0%} of the resamples do not reach the entropy; widen the "
            "sweep, or draw more samples"
        )
    return {"reached": share, "reason": reason}


def frontier_rows(result: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Rows of the table: figure, value with its interval, what to read it with.

    Args:
        result: what `report` gave, and the judge.
    """
    real = result["real"]
    beside = f"real {_shown(real['gen_ppl'])}, entropy {real['entropy']['value']:.3f}"
    rows = []
    for name, model in result["models"].items():
        best = model["ppl_at_real_entropy"].get(BEST)
        if best is None:
            continue
        by = f"by {model['best_knob']}; {beside}" if model["best_knob"] else best["reason"]
        rows.append((f"{name}: perplexity at real entropy", _shown(best["ppl"]), by))
    for one in result["differences"]:
        if one["knob"] == BEST:
            times = {k: v if v is None else float(np.exp(v)) for k, v in one["nats"].items()}
            why = f"times its perplexity, at the entropy of {one['at']}"
            name = f"{one['model']} against {one['against']}"
            rows.append((name, _shown(times), one["reason"] or why))
    return rows


def _shown(interval: Mapping[str, float | None]) -> str:
    """``12.3 [11.9, 12.8]``, or a dash."""
    value, low, high = (interval[key] for key in ("value", "low", "high"))
    if value is None:
        return "-"
    bounds = "" if low is None or high is None else f" [{low:.4g}, {high:.4g}]"
    return f"{value:.4g}{bounds}"
