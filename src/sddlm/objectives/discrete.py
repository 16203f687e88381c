"""The discrete-time bound (D3PM)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.models.row_losses import AutogradRowLoss, RowLoss
from sddlm.objectives.base import DiffusionObjective
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy

#: with more steps the noise of one is lost in rounding; `NELBO` is the limit
_MOST_STEPS = 1_000_000


@dataclass
class D3PM(DiffusionObjective):
    """Discrete-time bound of a chain of ``steps`` steps (D3PM, arXiv:2107.03006).

    The loss is one term of the bound, times ``steps``.

    With t = k / steps, k drawn from 1 .. steps, s = t - 1 / steps and alpha(0) = 1,

        steps * KL( q(x_s | x_t, x0) || p(x_s | x_t) ),

    both by Bayes' rule (`Process.posterior`); at k = 1 that is -log p(x0 | x_1). For steps ->
    infinity it is `NELBO`. Its optimum is the leave-one-out prediction. ``bound``, for validation,
    is the continuous-time NELBO, which makes models comparable.

    Attributes:
        process: forward process.
        steps: number of steps of the chain.
    """

    estimate: ClassVar[Estimate] = Estimate.LEAVE_ONE_OUT
    process: Process = field(default_factory=UniformProcess)
    steps: int = 1000

    def __post_init__(self) -> None:
        check_choices(self)
        if not 1 <= self.steps <= _MOST_STEPS:
            raise ConfigError(f"`steps` is {self.steps}, must be 1 to {_MOST_STEPS:,}, e.g. 1000")

    def times(self, draw: Draw) -> Tensor:
        """k / steps, stratified over the batch ``[B]``."""
        return (torch.floor(draw.times(0) * self.steps) + 1).clamp(max=self.steps) / self.steps

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> RowLoss:
        """Row loss of one step."""
        process, steps = self.process, self.steps
        x0, x_t = noisy.x0[at], noisy.x_t[at]  # [N]
        before = torch.round(noisy.t * steps) - 1  # k - 1
        earlier = process.schedule.alpha(before / steps)
        alpha_s = torch.where(before > 0, earlier, 1.0)[:, None].expand_as(noisy.x0)[at]
        alpha_t = noisy.alpha_t.expand_as(noisy.x0)[at]

        def divergence(logits: Tensor, rows: slice) -> Tensor:
            log_p = logits.double().log_softmax(1)  # [n, V]
            V, z = log_p.shape[1], x_t[rows, None]
            clean = torch.zeros_like(log_p).scatter_(1, x0[rows, None], 1.0)
            true = process.posterior(clean, x_t[rows], alpha_t[rows], alpha_s[rows])
            # both are ([v = z] + leave) (p_v + nu_v(s)) / (p_z + nu_z(t)), p the clean token or
            # the prediction: the first factor cancels, and logarithms do not underflow
            nu_s, nu_t = process.odds(alpha_s[rows], V), process.odds(alpha_t[rows], V)
            gap = _log_sum(clean.log(), nu_s) - _log_sum(log_p, nu_s)
            own_true, own = (
                _log_sum(x.gather(1, z), nu_t.gather(1, z))[:, 0] for x in (clean.log(), log_p)
            )
            there = true > 0
            return steps * ((true * gap.where(there, 0.0)).sum(1) + own - own_true)

        return AutogradRowLoss(divergence)


def _log_sum(log_p: Tensor, nu: Tensor) -> Tensor:
    """``log(p + nu)`` (any shape), also where p has underflown; 0 where both are 0."""
    something = (log_p > -torch.inf) | (nu > 0)
    # a logarithm of 0 on both sides has no gradient
    return torch.logaddexp(log_p.where(something, 0.0), nu.log().where(something, -torch.inf))
