"""Noise schedules: alpha(t), the probability that a token is kept at time t.

All decrease from alpha(0) = 1 (`Geometric`: nearly 1) to an alpha(1) close to 0, but not 0. Times
and results are float64 tensors of any shape. Every schedule has its exact derivative and inverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices

#: smallest alpha: its fourth power is still a float64 above 0
_LEAST = 1e-30


class Schedule:
    """Base class of noise schedules alpha(t). Subclasses are dataclasses."""

    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is kept at ``t`` in [0, 1] (any shape, float64)."""
        raise NotImplementedError

    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative d alpha / dt at ``t`` (any shape, float64), negative; may be 0 at an end."""
        raise NotImplementedError

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """Inverse of `alpha`: the time of ``alpha`` (any shape), float64."""
        raise NotImplementedError

    def grid(
        self, steps: int, *, device: torch.device | str = "cpu", t: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Time grid of a sampling run and alpha at each time.

        Args:
            steps: number of equal intervals.
            device: device of the result.
            t: first time.

        Returns:
            times ``linspace(t, 0)`` and alphas, ``[steps + 1]`` float64 each; the last alpha is
            exactly 1.
        """
        times = torch.linspace(t, 0, steps + 1, dtype=torch.float64, device=device)
        alphas = self.alpha(times)
        alphas[-1] = 1
        return times, alphas


def below_one(alpha: Tensor) -> Tensor:
    """Clamp alpha to the largest float64 below 1, ``1 - 2**-53`` (any shape).

    For expressions that divide by 1 - alpha. At t = 0 they then take the limit t -> 0 to the last
    digit where it is finite, and a finite number where it is not (a token that changed at once).
    """
    return alpha.double().clamp(max=1 - 2**-53)


def _check_eps(eps: float) -> None:
    if not _LEAST <= eps < 1:
        raise ConfigError(
            f"`eps` is {eps}, allowed is {_LEAST} and more, less than 1: try `eps=0.001`"
        )


def _check_power(power: float) -> None:
    if not 1 <= power <= 100:  # below 1 the curve is infinitely steep at one end
        raise ConfigError(f"`power` is {power}, allowed is 1 to 100: try `power=2`")


@dataclass
class LogLinear(Schedule):
    """``alpha(t) = 1 - (1 - eps) t``, the schedule of UDLM and Duo (arXiv:2412.10193, 2506.10892).

    Attributes:
        eps: alpha at t = 1, in (0, 1).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_choices(self)
        _check_eps(self.eps)

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - (1 - eps) t``, without cancellation at t = 1."""
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

    The derivative is exact; the one in Duo's code lacks the factor ``1 - eps``.

    Attributes:
        eps: distance of t = 1 from pure noise, in (0, 1): alpha(1) = 1 - cos(pi eps / 2).
    """

    eps: float = 1e-3

    def __post_init__(self) -> None:
        check_choices(self)
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


@dataclass
class CosinePower(Schedule):
    """``alpha(t) = eps + (1 - eps) cos(pi t / 2)^power`` (MDLM, arXiv:2406.07524).

    Power 1 is MDLM's cosine, another curve than `Cosine`; power 2 its squared cosine.

    Attributes:
        eps: alpha at t = 1, in (0, 1).
        power: exponent of the cosine, 1 to 100.
    """

    eps: float = 1e-3
    power: float = 2.0

    def __post_init__(self) -> None:
        check_choices(self)
        _check_eps(self.eps)
        _check_power(self.power)

    def _cos(self, t: Tensor) -> Tensor:
        return torch.cos(pi / 2 * t.double()).clamp(min=0)  # t = 1 may be rounded up

    def alpha(self, t: Tensor) -> Tensor:
        """``eps + (1 - eps) cos(pi t / 2)^power``, exactly 1 at t = 0."""
        curve = self._cos(t) ** self.power
        return curve + self.eps * (1 - curve)

    def dalpha(self, t: Tensor) -> Tensor:
        """``-(1 - eps) power pi/2 cos^(power - 1) sin``."""
        slope = self._cos(t) ** (self.power - 1) * torch.sin(pi / 2 * t.double())
        return -(1 - self.eps) * self.power * pi / 2 * slope

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """``4 / pi asin(sqrt((1 - cos) / 2))``, which does not cancel at t = 0 as acos does."""
        gone = ((1 - alpha.double()) / (1 - self.eps)).clamp(0, 1)  # 1 - cos^power
        one_less_cos = -torch.expm1(torch.log1p(-gone) / self.power)
        return 4 / pi * torch.asin(torch.sqrt(one_less_cos / 2))


@dataclass
class Polynomial(Schedule):
    """``alpha(t) = 1 - (1 - eps) t^power``; power 1 is `LogLinear`.

    Attributes:
        eps: alpha at t = 1, in (0, 1).
        power: exponent of the time, 1 to 100.
    """

    eps: float = 1e-3
    power: float = 2.0

    def __post_init__(self) -> None:
        check_choices(self)
        _check_eps(self.eps)
        _check_power(self.power)

    def alpha(self, t: Tensor) -> Tensor:
        """``1 - (1 - eps) t^power``, without cancellation at t = 1."""
        gone = t.double() ** self.power
        return (1 - gone) + self.eps * gone

    def dalpha(self, t: Tensor) -> Tensor:
        """``-(1 - eps) power t^(power - 1)``."""
        return (self.eps - 1) * self.power * t.double() ** (self.power - 1)

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """``((1 - alpha) / (1 - eps))^(1 / power)``."""
        return ((1 - alpha.double()) / (1 - self.eps)) ** (1 / self.power)


@dataclass
class Geometric(Schedule):
    """``alpha(t) = exp(-sigma_min^(1 - t) sigma_max^t)`` (SEDD, arXiv:2310.16834; MDLM).

    alpha(0) is exp(-sigma_min), not exactly 1, so the bound omits the reconstruction term of the
    noise at t = 0.

    Attributes:
        sigma_min: ``-log alpha`` at t = 0, more than 0.
        sigma_max: ``-log alpha`` at t = 1, more than ``sigma_min`` and at most 100.
    """

    sigma_min: float = 1e-4
    sigma_max: float = 20.0

    def __post_init__(self) -> None:
        check_choices(self)
        if not _LEAST <= self.sigma_min < self.sigma_max <= 100:
            raise ConfigError(
                f"`sigma_min` is {self.sigma_min} and `sigma_max` {self.sigma_max}, "
                f"allowed is {_LEAST} <= sigma_min < sigma_max <= 100: "
                "try `sigma_min=0.0001`"
            )

    @property
    def _log_ratio(self) -> float:
        return log(self.sigma_max) - log(self.sigma_min)

    def _sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t.double() * self._log_ratio)

    def alpha(self, t: Tensor) -> Tensor:
        """``exp(-sigma)``."""
        return torch.exp(-self._sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        """``-sigma log(sigma_max / sigma_min) alpha``."""
        sigma = self._sigma(t)
        return -sigma * self._log_ratio * torch.exp(-sigma)

    def t_of_alpha(self, alpha: Tensor) -> Tensor:
        """``log(sigma / sigma_min) / log(sigma_max / sigma_min)``, 0 above alpha(0)."""
        sigma = -torch.log(alpha.double())
        return (torch.log(sigma / self.sigma_min) / self._log_ratio).clamp(min=0)
