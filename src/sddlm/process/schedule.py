"""Schedules: alpha(t), the probability that a token is still the clean one at time t.

All are decreasing with alpha(0) = 1 and alpha(1) close to, but not, 0. Times and results are
float64 tensors of any shape, and every curve comes with its true derivative and exact inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor

from sddlm.errors import ConfigError


class Schedule:
    """How much of the data is left at time t. Leaves are dataclasses."""

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is kept at ``t`` in [0, 1] (any shape, float64)."""
        raise NotImplementedError

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt at ``t`` (any shape, float64), negative."""
        raise NotImplementedError

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """The time at which ``alpha`` (any shape) is left, float64: the inverse of `alpha`."""
        raise NotImplementedError

    def grid(self, steps: int, *, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Times of a sampling run and what is left at each.

        Args:
            steps: number of equal intervals.
            device: where the result lies.

        Returns:
            times ``linspace(1, 0)`` and alphas, ``[steps + 1]`` float64 each; the last alpha is 1
            exactly.
        """
        times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device)
        alphas = self.alpha(times)
        alphas[-1] = 1
        return times, alphas


def _check_eps(eps: float) -> None:
    if not 0 < eps < 1:
        raise ConfigError(
            f"schedule.eps is {eps}, allowed is more than 0 and less than 1: "
            "try --objective.process.schedule.eps 0.001"
        )


@dataclass
class LogLinear(Schedule):
    """``alpha(t) = 1 - (1 - eps) t``, the schedule of UDLM and Duo (arXiv:2412.10193, 2506.10892).

    Attributes:
        eps: what is left of the data at t = 1, in (0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - (1 - eps) t``, summed so that nothing cancels at t = 1."""
        t = t.double()
        return (1 - t) + self.eps * t

    def dalpha(self, t: Tensor) -> Tensor:
        """``-(1 - eps)`` everywhere."""
        return torch.full_like(t.double(), self.eps - 1)

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """``(1 - alpha) / (1 - eps)``."""
        return (1 - alpha.double()) / (1 - self.eps)


@dataclass
class Cosine(Schedule):
    """``alpha(t) = 1 - cos(theta)`` with ``theta = pi/2 (1 - (1 - eps) t)``: Duo's curve.

    The derivative is the true one; the one in Duo's code lacks the factor ``1 - eps``.

    Attributes:
        eps: how far from pure noise t = 1 is, in (0, 1): alpha(1) = 1 - cos(pi eps / 2).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        _check_eps(self.eps)

    def _theta(self, t: Tensor) -> Tensor:
        t = t.double()
        return pi / 2 * ((1 - t) + self.eps * t)

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - cos(theta)``, as ``2 sin(theta/2)^2``, which does not cancel at t = 1."""
        return (2 * torch.sin(self._theta(t) / 2) ** 2).clamp(max=1)

    def dalpha(self, t: Tensor) -> Tensor:
        """``-(1 - eps) pi/2 sin(theta)``."""
        return -(1 - self.eps) * pi / 2 * torch.sin(self._theta(t))

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """``(1 - 2 theta / pi) / (1 - eps)`` with ``theta = 2 asin(sqrt(alpha / 2))``."""
        theta = 2 * torch.asin(torch.sqrt(alpha.double() / 2))
        return (1 - 2 * theta / pi) / (1 - self.eps)
