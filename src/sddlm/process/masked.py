"""The masked process: a token is kept or replaced by the mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sddlm.process.base import Process
from sddlm.process.schedule import LogLinear, Schedule
from sddlm.rng import Draw


@dataclass
class MaskedProcess(Process):
    """Masked (absorbing) diffusion (D3PM, arXiv:2107.03006; MDLM, arXiv:2406.07524).

    The mask M is the last token, V - 1. A token other than M is certainly clean and stays (exact
    carry-over). M carries no evidence of the token that it replaced, so leave-one-out prediction
    and denoiser coincide.

    Attributes:
        schedule: alpha as a function of time.
    """

    extra_tokens: ClassVar[int] = 1

    schedule: Schedule = field(default_factory=LogLinear)

    def odds(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``(1 - alpha) / alpha`` for the mask, 0 for every other token ``[..., V]``."""
        return _only_mask((1 - alpha.double()) / alpha.double(), vocab_size)

    def odds_at(self, token: Tensor, alpha: Tensor, vocab_size: int) -> Tensor:
        """See `Process.odds_at`; computed without the whole vocabulary."""
        alpha = alpha.double()
        return torch.where(token == vocab_size - 1, (1 - alpha) / alpha, 0.0)

    def odds_slope(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``1 / alpha^2`` for the mask ``[..., V]``."""
        return _only_mask(alpha.double() ** -2, vocab_size)

    def noise(
        self, draw: Draw, name: str, length: int, *, alpha: Tensor, vocab_size: int
    ) -> Tensor:
        """Masks ``[B, L]``."""
        index = draw.index
        return torch.full((len(index), length), vocab_size - 1, device=index.device)

    def jump(
        self, p_own: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor, *, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        """See `Process.jump`; ``redraw`` is 0, because a mask redrawn as a mask is no change."""
        redraw, predict = super().jump(p_own, x_t, alpha_t, alpha_s, vocab_size=vocab_size)
        return torch.zeros_like(redraw), predict


def _only_mask(value: Tensor, vocab_size: int) -> Tensor:
    """Vector ``[..., V]`` with ``value`` ``[...]`` at the last entry and 0 elsewhere."""
    return torch.nn.functional.pad(value[..., None], (vocab_size - 1, 0))
