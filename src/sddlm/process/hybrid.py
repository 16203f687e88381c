"""The hybrid process of GIDD: masks and uniform tokens together."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.process.base import Process
from sddlm.process.schedule import LogLinear, Schedule
from sddlm.rng import Draw


@dataclass
class HybridProcess(Process):
    """Masking with some uniform noise in between (GIDD, arXiv:2503.04482, with gamma = 1).

    In GIDD's own time a token is kept : masked : uniform as ``1 - r : r : 2 k sqrt(r (1 - r))``
    with k = uniform / (1 - uniform): all masks at the end, and half-way at most a share ``uniform``
    of uniform tokens. A bound does not depend on the parametrisation of time, so the noise
    distribution is written as a function of alpha, for any schedule. The mask is the last token,
    V - 1; uniform tokens are drawn from the others.

    Attributes:
        schedule: alpha as a function of time.
        uniform: largest probability of a uniform token, in (0, 1).
    """

    extra_tokens: ClassVar[int] = 1

    schedule: Schedule = field(default_factory=LogLinear)
    uniform: float = 0.2

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.uniform < 1:
            raise ConfigError(
                f"`uniform` is {self.uniform}, allowed is more than 0 and less than 1: "
                "try 0.2, or MaskedProcess for masks alone"
            )

    @property
    def _k(self) -> float:
        return self.uniform / (1 - self.uniform)

    def _root(self, alpha: Tensor) -> Tensor:
        """``y = sqrt((1 - r) / r)`` at ``alpha = y^2 / (1 + y^2 + 2 k y)``; infinite at 1."""
        alpha = alpha.double()
        k = self._k
        return (k * alpha + torch.sqrt((k * alpha) ** 2 + alpha * (1 - alpha))) / (1 - alpha)

    def odds(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``1 / y^2`` for the mask and ``2 k / (y (V - 1))`` for every other token ``[..., V]``."""
        return spread(*self._both_odds(alpha, vocab_size), vocab_size)

    def odds_at(self, token: Tensor, alpha: Tensor, vocab_size: int) -> Tensor:
        """See `Process.odds_at`; computed without the whole vocabulary."""
        clean, mask = self._both_odds(alpha, vocab_size)
        return torch.where(token == vocab_size - 1, mask, clean)

    def _both_odds(self, alpha: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
        """Odds of a clean token and of the mask, each ``[...]``."""
        y = self._root(alpha)
        return 2 * self._k / y / (vocab_size - 1), y**-2

    def odds_slope(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """Derivatives of the odds through ``d y / d alpha`` ``[..., V]``."""
        y, k = self._root(alpha), self._k
        dy = (1 + y**2 + 2 * k * y) ** 2 / (2 * y + 2 * k * y**2)  # d y / d alpha
        return spread(2 * k / y**2 * dy / (vocab_size - 1), 2 * y**-3 * dy, vocab_size)

    def noise(
        self, draw: Draw, name: str, length: int, *, alpha: Tensor, vocab_size: int
    ) -> Tensor:
        """Sample masks and uniform tokens ``[B, L]`` in the proportion of ``alpha``."""
        mask = 1 / (1 + 2 * self._k * self._root(alpha))  # share of masks in the noise
        token = draw.integers(name, length, high=vocab_size - 1)
        masked = draw.uniform(f"{name} mask", length) < mask
        return token.masked_fill(masked, vocab_size - 1)


def spread(clean: Tensor, mask: Tensor, vocab_size: int) -> Tensor:
    """Vector ``[..., V]`` with ``clean`` at all entries but the last, which is ``mask``."""
    values = clean[..., None].repeat(*[1] * clean.ndim, vocab_size)
    values[..., -1] = mask
    return values
