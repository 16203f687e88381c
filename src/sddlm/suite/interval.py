"""Means over seeds with 95% intervals of Student's t distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import atan, cos, floor, log10, pi, sin, sqrt
from statistics import fmean, stdev

LEVEL = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over seeds.

    Attributes:
        value: the mean.
        half: half the width of its interval; None with one seed.
        count: number of seeds.
    """

    value: float
    half: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """Mean of independent values, one a seed; None without any."""
        if not values:
            return None
        n = len(values)
        half = t_quantile(n - 1) * stdev(values) / sqrt(n) if n > 1 else None
        return cls(fmean(values), half, n)

    @property
    def is_not_zero(self) -> bool:
        """Whether the interval does not contain 0."""
        return self.half is not None and abs(self.value) > self.half

    def __str__(self) -> str:
        """``1.379 ± 0.012``: two digits of the half width decide how many are shown."""
        if not self.half:
            return f"{self.value:.4g}"
        digits = min(9, max(0, 1 - floor(log10(self.half))))
        return f"{self.value:.{digits}f} ± {self.half:.{digits}f}"


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Mean | None:
    """Mean of the differences to the baseline by seed, over the seeds that both have."""
    return Mean.of([values[seed] - baseline[seed] for seed in values if seed in baseline])


@cache
def t_quantile(freedom: int, level: float = LEVEL) -> float:
    """The t with ``P(|T| < t) = level``.

    Args:
        freedom: degrees of freedom, 1 or more.
        level: probability, in (0, 1).
    """
    low, high = 0.0, 1.0
    while _inside(high, freedom) < level:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, freedom) < level else (low, middle)
    return high


def _inside(t: float, freedom: int) -> float:
    """P(|T| < t), by the finite sums for whole degrees of freedom (Abramowitz, Stegun 26.7.3)."""
    angle = atan(t / sqrt(freedom))
    odd = freedom % 2
    term = total = 0.0 if freedom == 1 else cos(angle) if odd else 1.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
