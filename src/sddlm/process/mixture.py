"""The stationary mixture of XDLM: masks and uniform tokens in a fixed proportion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.process.base import Process
from sddlm.process.hybrid import spread
from sddlm.process.schedule import LogLinear, Schedule
from sddlm.rng import Draw


@dataclass
class MixtureProcess(Process):
    """Noise is a mask or a uniform token, in the same proportion at all times.

    The stationary noise kernel of XDLM (arXiv:2602.01362): a replaced token becomes the mask with
    probability ``1 - uniform``, else one of all V tokens, the mask among them. `MaskedProcess` and
    `UniformProcess` are its ends. The mask is the last token, V - 1.

    Attributes:
        schedule: alpha as a function of time.
        uniform: share of uniform noise, in (0, 1).
    """

    extra_tokens: ClassVar[int] = 1

    schedule: Schedule = field(default_factory=LogLinear)
    uniform: float = 0.1

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.uniform < 1:
            raise ConfigError(
                f"`uniform` is {self.uniform}, allowed is more than 0 and less than 1: "
                "try 0.1, or MaskedProcess for masks alone"
            )

    def _shares(self, vocab_size: int) -> tuple[float, float]:
        """Probability of a clean token and of the mask as noise."""
        return self.uniform / vocab_size, 1 - self.uniform + self.uniform / vocab_size

    def odds(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``(1 - alpha) / alpha`` times the probability as noise ``[..., V]``."""
        alpha = alpha.double()
        ratio = (1 - alpha) / alpha
        clean, mask = self._shares(vocab_size)
        return spread(clean * ratio, mask * ratio, vocab_size)

    def odds_at(self, token: Tensor, alpha: Tensor, vocab_size: int) -> Tensor:
        """See `Process.odds_at`; computed without the whole vocabulary."""
        alpha = alpha.double()
        ratio = (1 - alpha) / alpha  # float64; two numbers alone would be chosen in float32
        clean, mask = self._shares(vocab_size)
        return torch.where(token == vocab_size - 1, mask * ratio, clean * ratio)

    def odds_slope(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``1 / alpha^2`` times the probability as noise ``[..., V]``."""
        slope = alpha.double() ** -2
        clean, mask = self._shares(vocab_size)
        return spread(clean * slope, mask * slope, vocab_size)

    def noise(
        self, draw: Draw, name: str, length: int, *, alpha: Tensor, vocab_size: int
    ) -> Tensor:
        """Sample masks and uniform tokens ``[B, L]``."""
        token = draw.integers(name, length, high=vocab_size)
        masked = draw.uniform(f"{name} mask", length) < 1 - self.uniform
        return token.masked_fill(masked, vocab_size - 1)
