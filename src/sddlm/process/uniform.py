"""The uniform-state process: a token is kept or replaced by a uniform one.

    q(x_t | x0) = alpha_t [x_t = x0] + (1 - alpha_t) / V           (Eq. 3 of arXiv:2510.22926)

The step from s to t > s has the same form with alpha_t / alpha_s (D3PM, arXiv:2107.03006).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import log, log1p

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.process.base import Process
from sddlm.process.schedule import LogLinear, Schedule
from sddlm.types import Noisy


def _at_own(values: Tensor, x_t: Tensor) -> Tensor:
    """``values[..., x_t]`` with the last axis kept: ``[..., V]``, ``[...]`` -> ``[..., 1]``."""
    return values.gather(-1, x_t[..., None])


@dataclass
class UniformProcess(Process):
    """Uniform-state diffusion.

    Attributes:
        schedule: how much of the data is left at time t.
    """

    schedule: Schedule = field(default_factory=LogLinear)

    def corrupt(self, x0: Tensor, t: Tensor, draw: Draw, *, vocab_size: int) -> Noisy:
        """Replace each token with probability ``1 - alpha_t`` by a uniform one.

        Args:
            x0: clean tokens ``[B, L]`` int64; not written to.
            t: times ``[B]``.
            draw: randomness; the names used are "resample" and "noise".
            vocab_size: V.
        """
        length = x0.shape[1]
        alpha_t = self.schedule.alpha(t)[:, None]  # [B, 1]
        resampled = draw.uniform("resample", length) >= alpha_t  # [B, L]
        noise = draw.integers("noise", length, high=vocab_size)  # [B, L]
        return Noisy(
            x0=x0,
            x_t=torch.where(resampled, noise, x0),
            t=t.double(),
            alpha_t=alpha_t,
            dalpha_t=self.schedule.dalpha(t)[:, None],
            resampled=resampled,
            vocab_size=vocab_size,
        )

    def posterior(self, p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """p(x_s | x_t): Bayes' rule with the leave-one-out prediction as the prior of x0.

            K(v | z) = [a_ts [v = z] + (1 - a_ts)/V] [a_s p_v + (1 - a_s)/V]
                       / [a_t p_z + (1 - a_t)/V]

        with z = x_t and a_ts = a_t / a_s (Eq. 5 of arXiv:2510.22926; the plug-in step of UDLM,
        arXiv:2412.10193, and Duo, arXiv:2506.10892). Exact only if p has not seen z.

        Args:
            p: leave-one-out prediction ``[..., V]``.
            x_t: tokens ``[...]`` int64.
            alpha_t: broadcastable to the shape of ``x_t``.
            alpha_s: the same, ``alpha_s >= alpha_t``; 1 is the last step.

        Returns:
            ``[..., V]`` float64, normalised.
        """
        p = p.double()
        V = p.shape[-1]
        a_t, a_s = alpha_t.double()[..., None], alpha_s.double()[..., None]
        a_ts = a_t / a_s
        here = a_s * p + (1 - a_s) / V  # p(x_s)  [..., V]
        step = ((1 - a_ts) / V).expand(p.shape).clone()  # q(x_t | x_s)  [..., V]
        step.scatter_add_(-1, x_t[..., None], a_ts.expand_as(x_t[..., None]))
        return step * here / (a_t * _at_own(p, x_t) + (1 - a_t) / V)

    def marginal_posterior(
        self, p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor
    ) -> Tensor:
        """p(x_s | x_t) when ``p`` is the denoiser: ``sum_x0 p(x0) q(x_s | x_t, x0)``.

            K(v | z) = [a_ts [v = z] + (1 - a_ts)/V] { a_s p_v / (D if v = z else N)
                                                      + (1 - a_s)/V (p_z / D + (1 - p_z)/N) },
            D = a_t + (1 - a_t)/V,  N = (1 - a_t)/V

        It equals `posterior` of the denoiser converted to leave-one-out. For ``alpha_t < 1``.

        Args:
            p: denoiser prediction ``[..., V]``.
            x_t: tokens ``[...]`` int64.
            alpha_t: broadcastable to the shape of ``x_t``.
            alpha_s: the same.

        Returns:
            ``[..., V]`` float64, normalised.
        """
        p = p.double()
        V = p.shape[-1]
        a_t, a_s = alpha_t.double()[..., None], alpha_s.double()[..., None]
        a_ts = a_t / a_s
        same, other = a_t + (1 - a_t) / V, (1 - a_t) / V  # q(x_t | x0) at x0 = x_t, elsewhere
        is_own = torch.zeros_like(p).scatter_(-1, x_t[..., None], 1.0)  # [..., V]
        p_own = _at_own(p, x_t)  # [..., 1]
        from_x0 = a_s * p / torch.where(is_own > 0, same, other)
        from_noise = (1 - a_s) / V * (p_own / same + (1 - p_own) / other)
        return (a_ts * is_own + (1 - a_ts) / V) * (from_x0 + from_noise)

    def jump(
        self, p_own: Tensor, alpha_t: Tensor, alpha_s: Tensor, *, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        """The posterior as a mixture: a uniform token, a draw from p, or else x_t stays.

            redraw  = (1 - a_ts)(1 - a_s) / D,   predict = (a_s - a_t) / D,
            D = V a_t p_z + 1 - a_t

        Args:
            p_own: leave-one-out probability of x_t (any shape).
            alpha_t: broadcastable to it.
            alpha_s: broadcastable to it.
            vocab_size: V.

        Returns:
            ``redraw`` and ``predict``, float64.
        """
        a_t, a_s = alpha_t.double(), alpha_s.double()
        total = vocab_size * a_t * p_own.double() + (1 - a_t)
        return (1 - a_t / a_s) * (1 - a_s) / total, (a_s - a_t) / total

    def jump_bound(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Largest ``redraw + predict``, reached at p_z = 0: beyond it x_t stays in any case.

        Computed by `jump`, whose roundings are monotone in p_z, so that the bound also holds for
        the floating-point numbers.
        """
        redraw, predict = self.jump(torch.zeros_like(alpha_t), alpha_t, alpha_s, vocab_size=1)
        return redraw + predict

    def prior(self, draw: Draw, length: int, *, vocab_size: int) -> Tensor:
        """Uniform tokens ``[B, L]`` int64."""
        return draw.integers("prior", length, high=vocab_size)

    def prior_kl(self, vocab_size: int) -> float:
        """KL(q(x_1 | x0) || uniform), nats per token: what a continuous-time bound leaves out."""
        left = self.schedule.alpha(torch.ones((), dtype=torch.float64)).item()
        kept = left + (1 - left) / vocab_size
        lost = (vocab_size - 1) * (1 - left) / vocab_size
        return kept * log(vocab_size * kept) + lost * log1p(-left)
