"""The vocabulary head: the only code that holds logits ``[rows, V]``, a chunk of rows at a time.

A *term* is a loss of one row. It turns a chunk of logits into one value a row and, in the same
pass, into the gradient of that value with respect to the logits (written by hand, in place). The
head multiplies that gradient on at once, so neither the logits nor anything of their size
outlives its chunk, and autograd keeps nothing of them. Whoever calls selects rows *before* the
matrix product: a loss on the noisy positions pays for those positions only.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any, Protocol

import torch
from torch import Tensor, nn

#: float32 bytes of logits that one chunk may hold. 16 to 64 MiB are equally fast on a CPU.
CHUNK_BYTES = 32 * 2**20


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


@dataclass(frozen=True)
class HeadOutput:
    """``total``: sum of weight times row, differentiable; ``rows``: values ``[N]``, detached."""

    total: Tensor
    rows: Tensor


def _add_at(logits: Tensor, token: Tensor, amount: Tensor) -> None:
    """``logits[n, token[n]] += amount[n]`` in place."""
    logits.scatter_add_(1, token[:, None], amount[:, None].to(logits.dtype))


@dataclass(frozen=True)
class CrossEntropy:
    """``-log softmax(logits + shift * onehot(own))[target]``.

    Attributes:
        target: ``[N]`` int64.
        own: token whose logit is shifted ``[N]`` int64, or None.
        shift: what is added to it ``[N]``, or None.
    """

    target: Tensor
    own: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `Term`."""
        target = self.target[at, None]  # [n, 1]
        if self.own is not None and self.shift is not None:
            _add_at(logits, self.own[at], self.shift[at])
        norm = logits.logsumexp(1, keepdim=True)  # [n, 1]
        values = (norm - logits.gather(1, target))[:, 0]
        if not grad:
            return values, None
        p = logits.sub_(norm).exp_()
        return values, p.scatter_add_(1, target, -torch.ones_like(norm))


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


class VocabHead(nn.Module):
    """Linear map to the vocabulary that answers with statistics instead of logits.

    Under FSDP2 the weight is gathered in ``forward``; call the head as a module, on every rank,
    also with zero rows.

    Args:
        width: D.
        vocab_size: V.
        bias: whether there is one.
    """

    def __init__(self, width: int, vocab_size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(vocab_size, width))  # [V, D]
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, hidden: Tensor, term: Term, weight: Tensor | None = None) -> HeadOutput:
        """Sum of a term over rows, with exact gradients.

        Args:
            hidden: selected rows ``[N, D]``; N may be 0.
            term: the loss of a row.
            weight: of each row ``[N]``, a constant; None is 1.

        Returns:
            the differentiable total and the value of each row ``[N]``.
        """
        total, rows = _FusedHead.apply(hidden, self.weight, self.bias, weight, term)
        return HeadOutput(total, rows)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of rows ``[..., D]``, float32 (float64 if the weights are)."""
        return _logits(hidden, self.weight, self.bias)


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The matrix product in the weights' precision, everything after it in float32 at least."""
    logits = hidden.to(weight.dtype) @ weight.T
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if bias is None else logits + bias.to(logits.dtype)


class _FusedHead(torch.autograd.Function):
    """One pass per chunk: logits, values, d logits, and the products with them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row_weight: Tensor | None,
        term: Term,
    ) -> tuple[Tensor, Tensor]:
        wants = ctx.needs_input_grad[:3]
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            h, w = hidden.to(half), weight.to(half)
        else:
            h, w = hidden.to(weight.dtype), weight
        with torch.autocast(device, enabled=False):
            total, rows, grads = _run_chunks(h, w, bias, row_weight, term, wants)
        ctx.grads = tuple(
            None if g is None else g.to(like.dtype)
            for g, like in zip(
                grads, (hidden, weight, weight if bias is None else bias), strict=True
            )
        )
        ctx.mark_non_differentiable(rows)
        return total, rows

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # in place: nobody else holds these, and d_weight is as large as the vocabulary
        d_hidden, d_weight, d_bias = (
            None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in ctx.grads
        )
        ctx.grads = None
        return d_hidden, d_weight, d_bias, None, None


def _run_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | None,
    term: Term,
    wants: tuple[bool, ...],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Values of all rows and the summed gradients of hidden, weight and bias (None if unwanted)."""
    high = torch.float64 if weight.dtype == torch.float64 else torch.float32
    rows = hidden.new_zeros(len(hidden), dtype=high)
    total = rows.new_zeros(())
    d_hidden = torch.zeros_like(hidden) if wants[0] else None
    d_weight: Tensor | None = None
    d_bias = None if bias is None or not wants[2] else torch.zeros_like(bias, dtype=high)
    size = max(1, CHUNK_BYTES // (4 * len(weight)))
    for start in range(0, len(hidden), size):
        at = slice(start, start + size)
        values, d = term(_logits(hidden[at], weight, bias), at, any(wants))
        rows[at] = values
        scale = None if row_weight is None else row_weight[at].to(high)
        total = total + (values if scale is None else values * scale).sum()
        if d is None:
            continue
        if scale is not None:
            d.mul_(scale[:, None])
        if d_bias is not None:
            d_bias += d.sum(0)
        d = d.to(weight.dtype)
        if d_hidden is not None:
            torch.mm(d, weight, out=d_hidden[at])
        if not wants[1]:
            continue
        if d_weight is None:
            d_weight = (d.T @ hidden[at]).to(high)
        elif d.dtype == high:
            d_weight.addmm_(d.T, hidden[at])
        else:
            d_weight += d.T @ hidden[at]
    if wants[1] and d_weight is None:  # no rows
        d_weight = torch.zeros_like(weight, dtype=high)
    return total, rows, [d_hidden, d_weight, d_bias]
