"""Models compared at equal entropy: the figures of a frontier, from its points.

A point is a set of texts; the points along one knob, joined in its order, are a curve of nats per
token of the judge over entropy. Where a curve crosses an entropy lies the figure that is compared:
that of real text, or that of another model's neutral samples. Curves are never prolonged: a
curve that does not reach an entropy has no figure there, and the file gives the reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sddlm.eval.resampling import LEVEL, Array, Interval, lowest_at

#: knobs of sharpness; steps and the like are work: they are drawn, not compared
SHARPNESS = ("temperature", "top_p", "top_k", "min_p", "tail_cut")

BEST = "best"


@dataclass(frozen=True)
class PointFigures:
    """A set of texts on the plane.

    Attributes:
        setting: of the knobs that it was drawn with; empty for real text.
        entropy: unigram entropy within a text, nats, mean over texts.
        gen_ppl: generative perplexity.
        nfe: network calls per sample, mean; 0 for real text.
        count: texts.
        length: tokens of the sampler in a text, mean.
    """

    setting: Mapping[str, Any]
    entropy: Interval
    gen_ppl: Interval
    nfe: float
    count: int
    length: float

    def as_dict(self) -> dict[str, Any]:
        """The setting and the figures, flat."""
        own = {name: value for name, value in vars(self).items() if name != "setting"}
        return {**self.setting, **own}


@dataclass(frozen=True)
class Crossing:
    """Perplexity where a curve crosses the entropy of real text.

    Attributes:
        ppl: the perplexity.
        reached: share of resamples that cross it.
        reason: why there is no figure, or no interval.
    """

    ppl: Interval
    reached: float
    reason: str | None


@dataclass(frozen=True)
class ModelFigures:
    """The frontier of one model.

    Attributes:
        neutral: its samples at the neutral setting.
        curves: knob to the points along it, the neutral one among them.
        ppl_at_real_entropy: by knob, and by the best one (`BEST`).
        best_knob: the one with the lowest perplexity there; None if no knob reaches it.
    """

    neutral: PointFigures
    curves: Mapping[str, list[PointFigures]]
    ppl_at_real_entropy: Mapping[str, Crossing]
    best_knob: str | None


@dataclass(frozen=True)
class Difference:
    """Two models at equal entropy.

    Attributes:
        model: the first one.
        against: the other one.
        at: whose entropy: that of real text, or of one model's neutral samples, to which the other
            model is sharpened.
        knob: of sharpness, or `BEST`.
        nats: per token of the judge, first model less the other: below 0 the first one is better.
        reached: share of resamples in which both have a figure.
        reason: why there is no figure, or no interval.
    """

    model: str
    against: str
    at: str
    knob: str
    nats: Interval
    reached: float
    reason: str | None


@dataclass(frozen=True)
class Point:
    """A set of texts with its resamples; the rest is that of `PointFigures`.

    Attributes:
        entropy: mean over texts ``[1 + R]`` (`resampling`).
        nll: log of the generative perplexity, for a corpus mean nats per token of the judge
            ``[1 + R]``.
    """

    setting: Mapping[str, Any]
    entropy: Array
    nll: Array
    nfe: float
    count: int
    length: float

    def figures(self) -> PointFigures:
        """The figures with their intervals."""
        return PointFigures(
            self.setting,
            Interval.of(self.entropy),
            Interval.of(self.nll, exponential=True),
            self.nfe,
            self.count,
            round(self.length, 2),
        )


@dataclass(frozen=True)
class Curves:
    """The points of one model.

    Attributes:
        neutral: its samples at the neutral setting.
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

    def figures(self, target: Array) -> ModelFigures:
        """Points, and perplexities at the entropy ``[1 + R]`` of real text."""
        at = self.nll_at(target)
        known = [k for k in at if k != BEST and np.isfinite(at[k][0])]
        return ModelFigures(
            neutral=self.neutral.figures(),
            curves={knob: [p.figures() for p in points] for knob, points in self.along.items()},
            ppl_at_real_entropy={
                knob: Crossing(
                    Interval.of(nll, exponential=True),
                    *_reached(nll, self.reach(knob), float(target[0])),
                )
                for knob, nll in at.items()
            },
            best_knob=min(known, key=lambda knob: at[knob][0], default=None),
        )


def differences(truth: Point, models: Mapping[str, Curves]) -> list[Difference]:
    """The first model against each of the others.

    Args:
        truth: real text.
        models: name to points.
    """
    first, *others = models
    return [one for other in others for one in _against(truth, models, first, other)]


def _against(
    truth: Point, models: Mapping[str, Curves], first: str, other: str
) -> Iterator[Difference]:
    """At three entropies and by each knob."""
    a, b = models[first], models[other]
    by_a, by_b = a.nll_at(truth.entropy), b.nll_at(truth.entropy)

    def one(at: str, knob: str, nats: Array, curves: Curves, target: Array) -> Difference:
        reached = _reached(nats, curves.reach(knob), float(target[0]))
        return Difference(first, other, at, knob, Interval.of(nats), *reached)

    for knob in by_a:
        if knob in by_b:
            short = b if np.isfinite(by_a[knob][0]) else a
            yield one("real text", knob, by_a[knob] - by_b[knob], short, truth.entropy)
    for knob, nll in a.nll_at(b.neutral.entropy).items():
        yield one(f"{other}, neutral", knob, nll - b.neutral.nll, a, b.neutral.entropy)
    for knob, nll in b.nll_at(a.neutral.entropy).items():
        yield one(f"{first}, neutral", knob, a.neutral.nll - nll, b, a.neutral.entropy)


def _reached(figures: Array, reach: tuple[float, float], target: float) -> tuple[float, str | None]:
    """The share of resamples with a figure, and why there is no figure or no interval."""
    share = float(np.isfinite(figures[1:]).mean())
    if not np.isfinite(figures[0]):
        low, high = reach
        return share, (
            f"entropy {target:.4g} is not reached: the settings give {low:.4g} to {high:.4g}; "
            "widen the sweep"
        )
    if share < LEVEL:
        return share, (
            f"no interval: {1 - share:.0%} of the resamples do not reach the entropy; widen the "
            "sweep, or draw more samples"
        )
    return share, None
