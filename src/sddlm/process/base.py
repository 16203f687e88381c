"""Base class of noising processes: forward corruption, reverse posterior and prior.

All processes here share one form. A token is kept with probability alpha. Otherwise it is drawn
from a noise distribution that may depend on alpha, but not on the token:

    q(x_t = v | x0) = alpha * ([v = x0] + nu_v(alpha)),        nu_v >= 0

``nu`` are the *noise odds*: the probability of token v as noise relative to that of a kept token.
They determine the whole process. With z = x_t, nu' = -d nu / d alpha and s < t:

    q(x_t = z | x_s = v) = alpha_t / alpha_s * ([v = z] + alpha_s * (nu_z(t) - nu_z(s)))
    arrival rate of z     = -alpha' * alpha * nu'_z

A subclass therefore gives its odds, their slope and a way to sample from them. Bayes' rule is
written once, below; the closed forms of D3PM, UDLM, MDLM and GIDD are instances of it.

Without ``from __future__ import annotations``, for the reason given in ``objectives/base.py``.
"""

from math import log
from typing import ClassVar

import torch
from torch import Tensor

from sddlm.errors import check_choices
from sddlm.process.schedule import Schedule
from sddlm.rng import Draw
from sddlm.types import Noisy


class Process:
    """Base class of processes: corruption and its posterior. Subclasses are dataclasses."""

    schedule: Schedule
    extra_tokens: ClassVar[int] = 0
    """Tokens at the end of the vocabulary that are noise only (a mask): never data, never
    predicted. V includes them."""

    def __post_init__(self) -> None:
        check_choices(self)

    def odds(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """Noise odds nu of every token at ``alpha`` ``[...]``: ``[..., V]`` float64."""
        raise NotImplementedError

    def odds_slope(self, alpha: Tensor, vocab_size: int) -> Tensor:
        """``-d nu / d alpha`` ``[..., V]`` float64, not negative."""
        raise NotImplementedError

    def noise(
        self, draw: Draw, name: str, length: int, *, alpha: Tensor, vocab_size: int
    ) -> Tensor:
        """Sample from the noise distribution nu / sum nu ``[B, L]`` int64.

        Args:
            draw: randomness.
            name: purpose of the random numbers; another name gives independent ones.
            length: L.
            alpha: probability that a token is kept, broadcastable to ``[B, L]``.
            vocab_size: V.
        """
        raise NotImplementedError

    def odds_at(self, token: Tensor, alpha: Tensor, vocab_size: int) -> Tensor:
        """Noise odds of the given tokens: ``[...]`` int64 -> ``[...]`` float64."""
        return _pick(self.odds(alpha, vocab_size), token)

    def certain(self, x_t: Tensor, *, vocab_size: int) -> Tensor:
        """Positions whose token cannot be noise and is therefore the clean one (bool)."""
        half = torch.full((), 0.5, dtype=torch.float64, device=x_t.device)
        return self.odds_at(x_t, half, vocab_size) == 0

    def corrupt(self, x0: Tensor, t: Tensor, draw: Draw, *, vocab_size: int) -> Noisy:
        """Replace each token with probability ``1 - alpha_t`` by noise.

        Args:
            x0: clean tokens ``[B, L]`` int64; not written to.
            t: times ``[B]``.
            draw: randomness; the names used are "resample" and "noise".
            vocab_size: V.
        """
        length = x0.shape[1]
        alpha_t = self.schedule.alpha(t)[:, None]  # [B, 1]
        resampled = draw.uniform("resample", length) >= alpha_t  # [B, L]
        noise = self.noise(draw, "noise", length, alpha=alpha_t, vocab_size=vocab_size)  # [B, L]
        return Noisy(
            x0=x0,
            x_t=torch.where(resampled, noise, x0),
            t=t.double(),
            alpha_t=alpha_t,
            dalpha_t=self.schedule.dalpha(t)[:, None],
            resampled=resampled,
            vocab_size=vocab_size,
        )

    def own_token_logit(self, x_t: Tensor, alpha_t: Tensor, vocab_size: int) -> Tensor:
        """Evidence of z = x_t for itself, ``log(1 + 1/nu_z)``: added to its logit ``[...]``.

        float64, infinite where x_t is certainly the clean token.
        """
        return torch.log1p(1 / self.odds_at(x_t, alpha_t, vocab_size))

    def posterior(self, p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """p(x_s | x_t): Bayes' rule with the leave-one-out prediction as the prior of x0.

            K(v | z) = ([v = z] + alpha_s (nu_z(t) - nu_z(s))) (p_v + nu_v(s)) / (p_z + nu_z(t))

        (Eq. 5 of arXiv:2510.22926; the plug-in step of UDLM, arXiv:2412.10193, of Duo,
        arXiv:2506.10892, and, with nu_z = 0 for all but the mask, of MDLM, arXiv:2406.07524).
        Exact only if p does not depend on z. A token that cannot be noise stays.

        Args:
            p: leave-one-out prediction ``[..., V]``.
            x_t: tokens ``[...]`` int64.
            alpha_t: broadcastable to the shape of ``x_t``.
            alpha_s: broadcastable likewise, at least ``alpha_t``; 1 at the last step.

        Returns:
            ``[..., V]`` float64, normalised.
        """
        p = p.double()
        nu_t, _, leave = self._own_odds(x_t, alpha_t, alpha_s, p.shape[-1])
        here = p + self.odds(alpha_s.double(), p.shape[-1])  # p(x_s) / alpha_s  [..., V]
        kernel = here * leave[..., None]
        kernel.scatter_add_(-1, x_t[..., None], _at(here, x_t)[..., None])
        return self._or_stay(kernel / (_at(p, x_t) + nu_t)[..., None], x_t, nu_t)

    def marginal_posterior(
        self, p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor
    ) -> Tensor:
        """p(x_s | x_t) for a denoiser ``p``: ``sum_x0 p(x0) q(x_s | x_t, x0)``.

            K(v | z) = ([v = z] + alpha_s (nu_z(t) - nu_z(s)))
                       { p_v / ([v = z] + nu_z(t))
                         + nu_v(s) (p_z / (1 + nu_z(t)) + (1 - p_z) / nu_z(t)) }

        It equals `posterior` of the denoiser converted to leave-one-out.

        Args:
            p: denoiser prediction ``[..., V]``.
            x_t: tokens ``[...]`` int64.
            alpha_t: broadcastable to the shape of ``x_t``, below 1.
            alpha_s: broadcastable likewise, at least ``alpha_t``.

        Returns:
            ``[..., V]`` float64, normalised.
        """
        p = p.double()
        nu_t, nu_s, leave = self._own_odds(x_t, alpha_t, alpha_s, p.shape[-1])
        p_own = _at(p, x_t)  # [...]
        odds = self.odds(alpha_s.double(), p.shape[-1])  # [..., V]
        from_noise = p_own / (1 + nu_t) + (1 - p_own) / nu_t  # [...]
        kernel = (p / nu_t[..., None] + odds * from_noise[..., None]) * leave[..., None]
        own = (1 + leave) * (p_own / (1 + nu_t) + nu_s * from_noise)
        return self._or_stay(kernel.scatter(-1, x_t[..., None], own[..., None]), x_t, nu_t)

    def _own_odds(
        self, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor, vocab_size: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """nu_z(t), nu_z(s) and alpha_s (nu_z(t) - nu_z(s)), each ``[...]`` float64."""
        alpha_t, alpha_s = alpha_t.double(), alpha_s.double()
        nu_t = self.odds_at(x_t, alpha_t, vocab_size)
        nu_s = self.odds_at(x_t, alpha_s, vocab_size)
        return nu_t, nu_s, alpha_s * (nu_t - nu_s)

    def _or_stay(self, kernel: Tensor, x_t: Tensor, nu_t: Tensor) -> Tensor:
        """The kernel, replaced by the identity where x_t is certain."""
        stay = torch.zeros_like(kernel).scatter_(-1, x_t[..., None], 1.0)
        return torch.where(nu_t[..., None] > 0, kernel, stay)

    def jump(
        self, p_own: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor, *, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        """Posterior as a mixture: fresh noise of time s, a sample from p, or x_t unchanged.

            predict = alpha_s (nu_z(t) - nu_z(s)) / (p_z + nu_z(t)),
            redraw  = predict * (1 - alpha_s) / alpha_s

        Args:
            p_own: leave-one-out probability of x_t (any shape).
            x_t: tokens, the same shape.
            alpha_t: broadcastable to it.
            alpha_s: broadcastable to it.
            vocab_size: V.

        Returns:
            probabilities ``redraw`` of noise and ``predict`` of a sample from p, float64.
        """
        nu_t, _, leave = self._own_odds(x_t, alpha_t, alpha_s, vocab_size)
        predict = leave / torch.where(nu_t > 0, p_own.double() + nu_t, 1.0)
        return predict * (1 - alpha_s.double()) / alpha_s.double(), predict

    def jump_bound(
        self, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor, *, vocab_size: int
    ) -> Tensor:
        """Upper bound of ``redraw + predict``, reached at p_z = 0.


        A uniform number above it leaves x_t unchanged whatever the network predicts. Computed by
        `jump`, whose rounding is monotone in p_z, so the bound also holds in floating point.
        """
        nowhere = torch.zeros((), dtype=torch.float64, device=x_t.device)
        redraw, predict = self.jump(nowhere, x_t, alpha_t, alpha_s, vocab_size=vocab_size)
        return redraw + predict

    def largest_jump_bound(self, alpha_t: Tensor, alpha_s: Tensor, *, vocab_size: int) -> Tensor:
        """Largest `jump_bound` of any token ``[...]``."""
        # all clean tokens have the same odds; extra tokens are at the end of the vocabulary
        tokens = torch.tensor([0, vocab_size - 1], device=alpha_t.device)
        alpha_t, alpha_s = alpha_t[..., None], alpha_s[..., None]
        return self.jump_bound(tokens, alpha_t, alpha_s, vocab_size=vocab_size).amax(-1)

    def prior(self, draw: Draw, length: int, *, vocab_size: int) -> Tensor:
        """Sample of pure noise, the distribution at t = 1 ``[B, L]``."""
        return self.noise(draw, "prior", length, alpha=self._last(), vocab_size=vocab_size)

    def prior_kl(self, vocab_size: int) -> float:
        """Prior term KL(q(x_1 | x0) || p(x_1)) of a bound, nats per token.

        A continuous-time bound leaves it out. p(x_1) is the distribution of x_1 if all clean tokens
        are equally likely. For the uniform process it is uniform. For the masked process all but
        alpha(1) lies on the mask, and a token that is still clean at t = 1 costs log(V - 1).
        """
        last = self._last()
        alpha, nu = last.item(), self.odds(last, vocab_size)[0].item()  # clean tokens are alike
        clean = vocab_size - self.extra_tokens
        mixed = 1 / clean + nu
        rest = nu * log(nu / mixed) if nu > 0 else 0.0
        return alpha * ((1 + nu) * log((1 + nu) / mixed) + (clean - 1) * rest)

    def _last(self) -> Tensor:
        return self.schedule.alpha(torch.ones((), dtype=torch.float64))


def _pick(values: Tensor, token: Tensor) -> Tensor:
    """Index ``values[..., token]`` with broadcast shapes: ``[..., V]``, ``[...]`` -> ``[...]``."""
    values, at = torch.broadcast_tensors(values, token[..., None])
    return values.gather(-1, at[..., :1])[..., 0]


def _at(p: Tensor, x_t: Tensor) -> Tensor:
    """Index ``p[..., x_t]``: ``[..., V]``, ``[...]`` -> ``[...]``."""
    return p.gather(-1, x_t[..., None])[..., 0]
