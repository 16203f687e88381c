"""How sure is a figure of a set of texts? The bootstrap, with the figures of the whole set first.

Every figure is an array ``[1 + R]``: number 0 is of the original texts, the others of R sets
drawn from them with replacement (Efron 1979). What is computed from such arrays, element by
element, has its interval for nothing, and what shares its resamples is compared in pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

RESAMPLES = 1000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure and its percentile interval.

    Attributes:
        value: of the original texts; None if there is none.
        low: `LEVEL` of the resamples lie between this
        high: and this; None where they are undefined.
    """

    value: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, figures: Array, *, exponential: bool = False) -> Interval:
        """The interval of ``[1 + R]`` figures, in which NaN stands for none.

        There are no bounds if more than ``1 - LEVEL`` of the resamples are NaN: those that are left
        would not be the ones to ask.

        Args:
            figures: see the module.
            exponential: of their exponentials, as for a perplexity from nats.
        """
        known = figures[1:][np.isfinite(figures[1:])]
        if not np.isfinite(figures[0]):
            return cls(None, None, None)
        figures = np.array([figures[0], np.nan, np.nan])
        if len(known) >= LEVEL * RESAMPLES:
            figures[1:] = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        if exponential:
            with np.errstate(over="ignore"):  # a perplexity beyond float64 is infinite
                figures = np.exp(figures)
        value, low, high = (None if np.isnan(x) else float(x) for x in figures)
        return cls(value, low, high)

    def exp(self) -> Interval:
        """The interval of the exponential."""
        values = (self.value, self.low, self.high)
        return Interval(*(None if x is None else float(np.exp(x)) for x in values))

    def __str__(self) -> str:
        """``12.3 [11.9, 12.8]``, or a dash."""
        if self.value is None:
            return "-"
        bounded = self.low is not None and self.high is not None
        return f"{self.value:.4g}" + (f" [{self.low:.4g}, {self.high:.4g}]" if bounded else "")


@lru_cache(maxsize=2)
def resamples(count: int, *, stream: int) -> Array:
    """How often each of ``count`` texts is in each resample ``[1 + R, count]``; always the same.

    Not to be written to.

    Args:
        count: number of texts.
        stream: sets with the same stream and count are resampled alike, others independently.
    """
    random = np.random.default_rng([0, stream])
    drawn = random.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)  # [R, count]
    return np.concatenate([np.ones((1, count)), drawn])


def mean(times: Array, values: Array) -> Array:
    """Mean over texts ``[1 + R]``.

    Args:
        times: `resamples`.
        values: one per text ``[count]``.
    """
    return times @ values / times.sum(1)


def ratio(times: Array, over: Array, under: Array) -> Array:
    """Sum over texts over sum over texts ``[1 + R]``; NaN where the lower one is 0.

    Nats over tokens at corpus level are such a ratio: texts with more tokens weigh more.

    Args:
        times: `resamples`.
        over: one per text ``[count]``.
        under: one per text ``[count]``.
    """
    total = times @ under
    return np.divide(times @ over, total, out=np.full(len(total), np.nan), where=total > 0)


def lowest_at(target: Array, entropy: Array, nll: Array) -> Array:
    """Lowest ``nll`` at which a broken line crosses an entropy ``[1 + R]``; NaN where it does not.

    The line joins the points in the order given (that of the knob). A share w of samples from one
    end of a segment and 1 - w from the other, of equal lengths, has exactly the entropy and the
    nats per token at that place of the segment, so straight segments are no guess. Noise may make
    the line turn back and cross several times; then the lowest crossing counts.

    Args:
        target: entropies ``[1 + R]``.
        entropy: of the points ``[P, 1 + R]``.
        nll: of the points ``[P, 1 + R]``.
    """
    step = np.diff(entropy, axis=0)  # [P - 1, 1 + R]
    flat = step == 0
    w = (target - entropy[:-1]) / np.where(flat, 1.0, step)
    # at a flat segment the whole of it lies at one entropy: its lower end counts
    on = np.where(flat, target == entropy[:-1], (w >= 0) & (w <= 1))
    height = np.where(
        flat, np.minimum(nll[:-1], nll[1:]), nll[:-1] + w * (nll[1:] - nll[:-1])
    )  # [P - 1, 1 + R]
    lowest = np.where(on, height, np.inf).min(0, initial=np.inf)
    return np.where(np.isinf(lowest), np.nan, lowest)
