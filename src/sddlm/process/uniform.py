"""The uniform-state process: a token is kept or replaced by a uniformly random one."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sddlm.process.base import Process
from sddlm.process.schedule import LogLinear, Schedule
from sddlm.rng import Draw


@dataclass
class UniformProcess(Process):
    """Uniform-state diffusion: ``q(x_t | x0) = alpha_t [x_t = x0] + (1 - alpha_t) / V``.

    Eq. 3 of arXiv:2510.22926; D3PM, arXiv:2107.03006. The replacement may equal the token itself.

    Attributes:
        schedule: alpha as a function of time.
    """

    schedule: Schedule = field(default_factory=LogLinear)

    def odds(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``(1 - alpha) / (V alpha)`` for every token: a view ``[..., V]``."""
        alpha = alpha.double()
        return ((1 - alpha) / (vocab_size * alpha))[..., None].expand(*alpha.shape, vocab_size)

    def odds_slope(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``1 / (V alpha^2)`` for every token: a view ``[..., V]``."""
        alpha = alpha.double()
        return (1 / (vocab_size * alpha**2))[..., None].expand(*alpha.shape, vocab_size)

    def noise(
        self, draw: Draw, name: str, length: int, *, alpha: Tensor, vocab_size: int
    ) -> Tensor:
        """Uniform tokens ``[B, L]``."""
        return draw.integers(name, length, high=vocab_size)
