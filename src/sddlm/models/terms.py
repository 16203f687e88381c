"""Losses of one row of logits, each with its gradient, for the vocabulary head.

The usual ones have gradients written by hand, in place; `Differentiated` leaves it to autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor


class Term(Protocol):
    """A loss of one row of logits."""

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """Value and gradient of a chunk of rows.

        Args:
            logits: ``[n, V]`` float32 or float64; the term may overwrite them.
            at: which rows of the whole batch these are.
            grad: whether the gradient is wanted.

        Returns:
            values ``[n]`` in nats, and d value / d logits ``[n, V]`` or None.
        """


def _add_at(logits: Tensor, token: Tensor, amount: Tensor) -> None:
    """``logits[n, token[n]] += amount[n]`` in place."""
    logits.scatter_add_(1, token[:, None], amount[:, None].to(logits.dtype))


@dataclass(frozen=True)
class CrossEntropy:
    """``-weight * log softmax(logits + shift * onehot(own))[target]``.

    Attributes:
        target: ``[N]`` int64.
        own: token whose logit is shifted ``[N]`` int64, or None.
        shift: what is added to it ``[N]``, or None.
        weight: of each row ``[N]``; None is 1.
    """

    target: Tensor
    own: Tensor | None = None
    shift: Tensor | None = None
    weight: Tensor | None = None

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `Term`."""
        target = self.target[at, None]  # [n, 1]
        if self.own is not None and self.shift is not None:
            _add_at(logits, self.own[at], self.shift[at])
        norm = logits.logsumexp(1, keepdim=True)  # [n, 1]
        values = (norm - logits.gather(1, target))[:, 0]
        weight = None if self.weight is None else self.weight[at].to(logits.dtype)
        if weight is not None:
            values = values * weight
        if not grad:
            return values, None
        p = logits.sub_(norm).exp_()
        d = p.scatter_add_(1, target, -torch.ones_like(norm))
        return values, d if weight is None else d.mul_(weight[:, None])


@dataclass(frozen=True)
class Contrastive:
    """``-log(p_target + eps) + weight * mean over negatives of log(p + eps)``.

    Eq. 9 of arXiv:2510.22926. The mean runs over K sampled tokens or, with ``negatives=None``,
    over the whole vocabulary (the expectation of a uniform negative).

    Attributes:
        target: ``[N]`` int64.
        negatives: ``[N, K]`` int64, or None for the exact expectation.
        weight: of the negative term.
        eps: inside both logarithms, > 0.
    """

    target: Tensor
    negatives: Tensor | None
    weight: float
    eps: float

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `Term`."""
        log_eps = logits.new_tensor(log(self.eps))
        log_p = logits.sub_(logits.logsumexp(1, keepdim=True))  # [n, V]
        target = self.target[at, None]  # [n, 1]
        log_p_target = log_p.gather(1, target)
        attract = torch.logaddexp(log_p_target, log_eps)  # [n, 1]
        pull = torch.sigmoid(log_p_target - log_eps)  # p / (p + eps) [n, 1]
        if self.negatives is None:
            return self._expected(log_p, target, attract, pull, grad)
        negatives = self.negatives[at]  # [n, K]
        log_p_negative = log_p.gather(1, negatives)
        repel = torch.logaddexp(log_p_negative, log_eps).mean(1)
        values = self.weight * repel - attract[:, 0]
        if not grad:
            return values, None
        push = torch.sigmoid(log_p_negative - log_eps) * (self.weight / negatives.shape[1])
        # d log(p_k + eps) / d logit_j = p_k / (p_k + eps) * ([j = k] - p_j)
        d = log_p.exp_().mul_(pull - push.sum(1, keepdim=True))
        return values, d.scatter_add_(1, target, -pull).scatter_add_(1, negatives, push)

    def _expected(
        self, log_p: Tensor, target: Tensor, attract: Tensor, pull: Tensor, grad: bool
    ) -> tuple[Tensor, Tensor | None]:
        share = self.weight / log_p.shape[1]
        p = log_p.exp_()
        smoothed = p + self.eps  # [n, V]
        values = share * smoothed.log().sum(1) - attract[:, 0]
        if not grad:
            return values, None
        push = torch.div(p, smoothed, out=smoothed).mul_(share)  # [n, V]
        d = p.mul_(pull - push.sum(1, keepdim=True)).add_(push)
        return values, d.scatter_add_(1, target, -pull)


@dataclass(frozen=True)
class UniformBound:
    """Integrand of the continuous-time NELBO of the uniform process, per position.

    The compact form of Duo's and UDLM's bound (arXiv:2506.10892, arXiv:2412.10193), equal to both
    pointwise. With c = V alpha / (1 - alpha), p the leave-one-out prediction and
    S = sum_j log(1 + c p_j):

        common = (1 + 1/c) log(1 + c) - log(1 + c p_x0) - S / c
        x_t != x0:  w * (common + (log(1 + c p_z) + 1 / (1 + c p_z) - 1) / alpha)
        x_t == x0:  w / (1 + c) * (common + (R - 1 - log R) / alpha),  R = (1 + c) / (1 + c p_x0)

    with w = -alpha' / (1 - alpha) and z = x_t. Two reductions over V touch the logits: the
    softmax and S. Scalars of a row are float64.

    Attributes:
        x0: ``[N]`` int64.
        x_t: ``[N]`` int64.
        alpha_t: ``[N]`` float64.
        dalpha_t: ``[N]`` float64.
        shift: added to the logit of x_t first (a denoiser's conversion) ``[N]``, or None.
    """

    x0: Tensor
    x_t: Tensor
    alpha_t: Tensor
    dalpha_t: Tensor
    shift: Tensor | None = None

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `Term`."""
        x0, x_t = self.x0[at], self.x_t[at]
        a = self.alpha_t[at].double()
        c = logits.shape[1] * a / (1 - a)  # [n]
        kept = x0 == x_t
        scale = -self.dalpha_t[at].double() / (1 - a) / torch.where(kept, 1 + c, 1.0)
        if self.shift is not None:
            _add_at(logits, x_t, self.shift[at])
        p = logits.sub_(logits.logsumexp(1, keepdim=True)).exp_()  # [n, V]
        p_x0 = p.gather(1, x0[:, None])[:, 0].double()
        p_own = p.gather(1, x_t[:, None])[:, 0].double()
        cp = p * c[:, None].to(p.dtype)  # [n, V]
        total = torch.log1p(cp).sum(1).double()  # S
        common = (1 + 1 / c) * torch.log1p(c) - torch.log1p(c * p_x0) - total / c
        ratio = (1 + c) / (1 + c * p_x0)
        own = torch.log1p(c * p_own) + 1 / (1 + c * p_own) - 1
        rest = torch.where(kept, ratio - 1 - ratio.log(), own) / a
        values = (scale * (common + rest)).to(p.dtype)
        if not grad:
            return values, None
        # p_j * d value / d p_j, first the dense part (-S/c), then the two gathered tokens
        dense = torch.div(p, cp.add_(1), out=cp).mul_(-scale[:, None].to(p.dtype))  # [n, V]
        at_x0 = -(1 + torch.where(kept, (ratio - 1) / a, 0.0)) * c * p_x0 / (1 + c * p_x0)
        at_own = torch.where(kept, 0.0, (c * p_own / (1 + c * p_own)) ** 2 / a)
        dense.scatter_add_(1, x0[:, None], (scale * at_x0).to(p.dtype)[:, None])
        dense.scatter_add_(1, x_t[:, None], (scale * at_own).to(p.dtype)[:, None])
        # the softmax's Jacobian: g_j p_j - p_j sum_i g_i p_i
        return values, dense.sub_(p.mul_(dense.sum(1, keepdim=True)))


@dataclass(frozen=True)
class Differentiated:
    """A loss of one row written as a plain function; autograd finds its gradient, by chunks.

    For losses that are not worth a hand-written gradient. Nothing outlives its chunk either.

    Attributes:
        function: ``(logits [n, V], at) -> values [n]``, where ``at`` says which rows these are.
    """

    function: Callable[[Tensor, slice], Tensor]

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `Term`."""
        if not grad:
            return self.function(logits, at), None
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            values = self.function(logits, at)
            (d,) = torch.autograd.grad(values.sum(), logits)
        return values.detach(), d
