"""Duo's Gaussian diffusion, whose argmax is uniform-state diffusion.

With ``w = A onehot(x0) + B eps``, ``A^2 = sigmoid(-gamma)``, ``B^2 = sigmoid(gamma)`` and
``mu = A / B = exp(-gamma / 2)``, the token x0 is the largest of V with probability

    P(gamma) = Int phi(u - mu) Phi(u)^(V - 1) du,      alpha = (V P - 1) / (V - 1),

and else the largest is uniform over the others (arXiv:2506.10892): the uniform process at alpha.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache
from math import exp, log, pi

import numpy as np
import torch
from numpy.polynomial import chebyshev
from torch import Tensor

NODES = 400
"""Nodes of the quadrature: 14 digits up to V = 200,000, where the integrand is narrowest."""
HALF_WINDOW = 9.0
"""Standard deviations around mu beyond which the integrand is below 1e-18."""
DEGREE = 48
"""Degree of the interpolant: 11 digits of P in the usual range of alpha, 8 in the widest."""
ALPHA_RANGE = (1e-4, 0.9999)
"""Range of alpha that a `GaussianMap` supports."""


@cache
def _rule() -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and logarithms of their weights on the window, float64."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(NODES))
    return HALF_WINDOW * nodes, torch.log(HALF_WINDOW * weights)


def log_win(gamma: Tensor, vocab_size: int) -> Tensor:
    """``log P(gamma)`` by quadrature (any shape, float64, on the CPU).

    Args:
        gamma: log of the ratio of the variances of noise and data.
        vocab_size: V, at least 2.
    """
    nodes, log_weights = _rule()
    u = torch.exp(-gamma.double() / 2)[..., None] + nodes  # [..., NODES]
    log_phi = -(nodes**2) / 2 - log(2 * pi) / 2
    log_rest = (vocab_size - 1) * torch.special.log_ndtr(u)
    return (log_weights + log_phi + log_rest).logsumexp(-1)


def _alpha(log_p: float, vocab_size: int) -> float:
    return (vocab_size * exp(log_p) - 1) / (vocab_size - 1)


@dataclass(frozen=True)
class GaussianMap:
    """Time to alpha through ``gamma(t) = gamma_min + t (gamma_max - gamma_min)``.

    Not a `Schedule`: alpha(0) is not 1. `gaussian_map` builds it.

    Attributes:
        vocab_size: V.
        gamma_min: gamma at t = 0.
        gamma_max: gamma at t = 1.
        log_p: Chebyshev coefficients of log P over that range. The logarithm is interpolated
            because P falls to 1 / V, where its relative error matters.
    """

    vocab_size: int
    gamma_min: float
    gamma_max: float
    log_p: tuple[float, ...]

    def gamma(self, t: Tensor) -> Tensor:
        """``gamma(t)`` (any shape, float64)."""
        return self.gamma_min + t.double() * (self.gamma_max - self.gamma_min)

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is kept at ``t`` in [0, 1] (any shape, float64)."""
        V = self.vocab_size
        return (V * self._series(t, self.log_p).exp() - 1) / (V - 1)

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt (any shape, float64), negative."""
        V = self.vocab_size
        slope = 2 * chebyshev.chebder(self.log_p)  # the interpolant lives on [-1, 1]
        p = self._series(t, self.log_p).exp()
        return V / (V - 1) * p * self._series(t, slope.tolist())

    @staticmethod
    def _series(t: Tensor, coefficients: tuple[float, ...] | list[float]) -> Tensor:
        """``sum_n c_n T_n(2 t - 1)``."""
        angle = torch.acos((2 * t.double() - 1).clamp(-1, 1))
        c = torch.tensor(coefficients, dtype=torch.float64, device=t.device)
        return torch.cos(angle[..., None] * torch.arange(len(c), device=t.device)) @ c


@lru_cache
def gaussian_map(vocab_size: int, alpha_min: float, alpha_max: float) -> GaussianMap:
    """Build the map from ``alpha_max`` at t = 0 to ``alpha_min`` at t = 1.

    Parametrised by alpha, because a published range of gamma belongs to one V (with 11 tokens Duo's
    -3.55 .. -1.85 is alpha 0.9998 .. 0.78).

    Args:
        vocab_size: V, at least 2.
        alpha_min: below ``alpha_max``, within ``ALPHA_RANGE``.
        alpha_max: within ``ALPHA_RANGE``.
    """
    low, high = (_gamma_of(alpha, vocab_size) for alpha in (alpha_max, alpha_min))

    x = chebyshev.chebpts1(DEGREE + 1)  # as many as coefficients, so that the fit interpolates
    log_p = log_win(torch.from_numpy(low + (x + 1) / 2 * (high - low)), vocab_size)
    coefficients = chebyshev.chebfit(x, log_p.numpy(), DEGREE)
    return GaussianMap(vocab_size, low, high, tuple(coefficients.tolist()))


def _gamma_of(alpha: float, vocab_size: int) -> float:
    """Find the gamma of an alpha by bisection: alpha falls as gamma grows."""
    low, high = -10.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        log_p = log_win(torch.tensor(middle, dtype=torch.float64), vocab_size).item()
        low, high = (middle, high) if _alpha(log_p, vocab_size) > alpha else (low, middle)
    return (low + high) / 2
