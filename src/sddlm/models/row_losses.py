"""Losses of single rows of logits with their gradients, for the vocabulary head.

The common ones have hand-written gradients, in place; `AutogradRowLoss` uses autograd.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor


class RowLoss(Protocol):
    """Loss of one row of logits."""

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """Values and gradients of a chunk of rows.

        Args:
            logits: ``[n, V]`` float32 or float64; may be overwritten.
            at: indices of these rows in the batch.
            grad: whether to compute the gradient.

        Returns:
            values ``[n]`` in nats, and d value / d logits ``[n, V]`` or None.
        """


def _add_at(logits: Tensor, token: Tensor, amount: Tensor) -> None:
    """``logits[n, token[n]] += amount[n]`` in place."""
    logits.scatter_add_(1, token[:, None], amount[:, None].to(logits.dtype))


def _log_softmax_(logits: Tensor) -> Tensor:
    """``log softmax(logits)`` in place: one pass and no second ``[n, V]``."""
    return torch.log_softmax(logits, 1, out=logits)


@dataclass(frozen=True)
class CrossEntropy:
    """``-weight * log softmax(logits + shift * onehot(own))[target]``.

    Attributes:
        target: ``[N]`` int64.
        own: token whose logit is shifted ``[N]`` int64, or None.
        shift: added to that logit ``[N]``, or None.
        weight: weight of each row ``[N]``; None is 1.
    """

    target: Tensor
    own: Tensor | None = None
    shift: Tensor | None = None
    weight: Tensor | None = None

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `RowLoss`."""
        target = self.target[at, None]  # [n, 1]
        if self.own is not None and self.shift is not None:
            _add_at(logits, self.own[at], self.shift[at])
        log_p = _log_softmax_(logits)  # [n, V]
        values = -log_p.gather(1, target)[:, 0]
        weight = None if self.weight is None else self.weight[at].to(logits.dtype)
        if weight is not None:
            values = values * weight
        if not grad:
            return values, None
        d = log_p.exp_().scatter_add_(1, target, logits.new_full((), -1.0).expand_as(target))
        return values, d if weight is None else d.mul_(weight[:, None])


@dataclass(frozen=True)
class SampledNegatives:
    """Component of the negatives: the mean over given tokens.

    Attributes:
        tokens: ``[N, K]`` int64.
        share: weight in the mixture of negatives.
    """

    tokens: Tensor
    share: float = 1.0

    def choose(self, log_p: Tensor, target: Tensor, at: slice) -> Tensor:
        """Tokens of a chunk of rows ``[n, K]``."""
        return self.tokens[at]


@dataclass(frozen=True)
class Top:
    """Component of the negatives: the mean over the most likely tokens except the target.

    The choice is constant in the gradient.

    Attributes:
        count: number of tokens, at most the V - 1 others.
        share: weight in the mixture of negatives.
    """

    count: int
    share: float = 1.0

    def choose(self, log_p: Tensor, target: Tensor, at: slice) -> Tensor:
        """Tokens of a chunk of rows ``[n, count]``."""
        own = log_p.gather(1, target)
        log_p.scatter_(1, target, -torch.inf)  # temporarily: a copy would be as large as log_p
        top = log_p.topk(min(self.count, log_p.shape[1] - 1), dim=1).indices
        log_p.scatter_(1, target, own)
        return top


@dataclass(frozen=True)
class DenseNegatives:
    """Component of the negatives: the exact expectation over the vocabulary.

    Attributes:
        probabilities: ``[V]``, the same for every row; None is uniform.
        share: weight in the mixture of negatives.
    """

    probabilities: Tensor | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Contrastive:
    """``-log(p_target + eps) + weight * sum_v n_v log(p_v + eps)``, n the negatives.

    Eq. 9 of arXiv:2510.22926 (there n is one uniform token).

    Attributes:
        target: ``[N]`` int64.
        negatives: components of the distribution n; their shares sum to 1.
        weight: weight of the negative term.
        eps: added inside both logarithms, > 0.
    """

    target: Tensor
    negatives: Sequence[SampledNegatives | Top | DenseNegatives]
    weight: float
    eps: float

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `RowLoss`."""
        log_eps = logits.new_full(
            (), log(self.eps)
        )  # filled on the device: a copy from the host would synchronise
        log_p = _log_softmax_(logits)  # [n, V]
        target = self.target[at, None]  # [n, 1]
        log_p_target = log_p.gather(1, target)
        values = -torch.logaddexp(log_p_target, log_eps)[:, 0]
        # d log(p_k + eps) / d logit_j = p_k / (p_k + eps) * ([j = k] - p_j), summed over all k:
        # ``total`` is the factor of p_j; ``at_tokens`` and ``dense`` are the terms at j = k
        total = torch.sigmoid(log_p_target - log_eps)  # [n, 1]
        at_tokens = [(target, -total)]
        for part in self.negatives:
            if isinstance(part, DenseNegatives):
                continue
            tokens = part.choose(log_p, target, at)  # [n, K]
            share = self.weight * part.share / tokens.shape[1]
            log_p_token = log_p.gather(1, tokens)
            values = values + share * torch.logaddexp(log_p_token, log_eps).sum(1)
            push = share * torch.sigmoid(log_p_token - log_eps)
            total = total - push.sum(1, keepdim=True)
            at_tokens.append((tokens, push))
        law, dense = self.law(log_p, log_p.shape[1]), None
        if law is None and not grad:
            return values, None
        p = log_p.exp_()
        if law is not None:
            dense = p + self.eps  # [n, V]
            logs = dense.log()
            values = values + (logs @ law if law.ndim else law * logs.sum(1))
            dense = torch.div(p, dense, out=dense).mul_(law)
        if not grad:
            return values, None
        d = p.mul_(total) if dense is None else p.mul_(total - dense.sum(1, keepdim=True))
        d = d if dense is None else d.add_(dense)
        for tokens, push in at_tokens:
            d.scatter_add_(1, tokens, push)
        return values, d

    def law(self, like: Tensor, vocab_size: int) -> Tensor | None:
        """Weighted sum of the dense components: ``[V]``, a scalar if uniform, None if none.

        Args:
            like: tensor with the wanted dtype and device.
            vocab_size: V.
        """
        parts = [part for part in self.negatives if isinstance(part, DenseNegatives)]
        if not parts:
            return None
        uniform = sum(p.share for p in parts if p.probabilities is None) / vocab_size
        law = like.new_full((), uniform)
        for part in parts:
            if part.probabilities is not None:
                law = law + part.share * part.probabilities.to(like)
        return self.weight * law


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
        shift: added to the logit of x_t first, to convert a denoiser ``[N]``, or None.
    """

    x0: Tensor
    x_t: Tensor
    alpha_t: Tensor
    dalpha_t: Tensor
    shift: Tensor | None = None

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `RowLoss`."""
        x0, x_t = self.x0[at], self.x_t[at]
        a = self.alpha_t[at].double()
        c = logits.shape[1] * a / (1 - a)  # [n]
        kept = x0 == x_t
        scale = -self.dalpha_t[at].double() / (1 - a) / torch.where(kept, 1 + c, 1.0)
        if self.shift is not None:
            _add_at(logits, x_t, self.shift[at])
        p = _log_softmax_(logits).exp_()  # [n, V]
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
        return values, dense.addcmul_(p, dense.sum(1, keepdim=True), value=-1)


@dataclass(frozen=True)
class AutogradRowLoss:
    """Row loss from a plain function, differentiated by autograd chunk by chunk.

    For losses that do not merit a hand-written gradient. No tensor outlives its chunk.

    Attributes:
        function: ``(logits [n, V], at) -> values [n]``, with the indices ``at`` of these rows.
    """

    function: Callable[[Tensor, slice], Tensor]

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `RowLoss`."""
        if not grad:
            return self.function(logits, at), None
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            values = self.function(logits, at)
            (d,) = torch.autograd.grad(values.sum(), logits)
        return values.detach(), d
