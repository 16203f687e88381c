"""Continuous-time NELBO of any process and estimate, reported by validation and scoring.

Let A = alpha (onehot(x0) + nu) and B = alpha (p + nu) be the distributions of x_t given x0 and
under the leave-one-out prediction p, z = x_t, and rho = -alpha' alpha nu'_z the rate of noise
arriving at z. The integrand of a position is

    rho / A_z * ( KL(A || B) + A_z/B_z - 1 - log(A_z/B_z) )
    = rho * sum over v != z of ( s_v - w_v log s_v + w_v (log w_v - 1) ),

where w_v = A_v / A_z and s_v = B_v / B_z. The first form is the bound of UDLM and Duo (uniform
noise, arXiv:2412.10193, 2506.10892), of MDLM (a mask, arXiv:2406.07524, where it is a weighted
cross-entropy) and of GIDD (both, arXiv:2503.04482); the second, with s free, is the score entropy
of SEDD (arXiv:2310.16834). They are equal pointwise.

**Small times.** Any function p of x_t and t defines a reverse process, whose -log p(x0) the
integral bounds: p enters through B alone, while alpha, alpha' and nu belong to the noise. So p may
be chosen freely. Below `T_MIN`, where no network was trained, the network is evaluated *and
converted* as if t were `T_MIN`. Otherwise the bound of a denoiser would be infinite. At a kept
token its conversion divides by 1 + 1/nu_z, about V / t. An error of the network that does not
vanish with t then leaves p_z of the order of t, and an integrand of the order of 1/t.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sddlm.models.row_losses import AutogradRowLoss, CrossEntropy, RowLoss, UniformBound
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, log_score, to_leave_one_out
from sddlm.process.masked import MaskedProcess
from sddlm.process.schedule import below_one
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy

#: smallest time by convention of the field, in training and in published figures
T_MIN = 1e-3


def bound(
    model: Any,
    process: Process,
    estimate: Estimate,
    x0: Tensor,
    draw: Draw,
    t: Tensor | None = None,
) -> Tensor:
    """Integrand of the continuous-time NELBO.

    Its mean over t ~ U(0, 1) plus the prior term (`Process.prior_kl`) bounds -log p(x0). Times are
    drawn from U(1e-3, 1), as in MDLM, UDLM and Duo. The interval below 1e-3, where the integrand is
    defined but its variance is largest, is replaced by the average of the rest.

    Args:
        model: the network.
        process: the forward process.
        estimate: parametrisation of the network; converted to leave-one-out.
        x0: clean tokens ``[B, L]``.
        draw: randomness.
        t: time of each sequence ``[B]`` float64 instead; below `T_MIN` the network is evaluated at
            `T_MIN`.

    Returns:
        nats per position ``[B, L]``, detached.
    """
    t = draw.times() if t is None else t
    noisy = process.corrupt(x0, t, draw, vocab_size=model.vocab_size)
    read = replace(noisy, alpha_t=process.schedule.alpha(t.clamp(min=T_MIN))[:, None])
    hidden = model(noisy.x_t, read.sigma)  # [B, L, D]
    at = ~process.certain(noisy.x_t, vocab_size=noisy.vocab_size)  # [B, L]
    rows = model.head(hidden[at], bound_term(process, noisy, at, estimate, read.alpha_t)).rows
    return torch.zeros(x0.shape, dtype=rows.dtype, device=x0.device).masked_scatter(at, rows)


def bound_term(
    process: Process, noisy: Noisy, at: Tensor, estimate: Estimate, alpha_read: Tensor | None = None
) -> RowLoss:
    """Row loss of the integrand.

    The common pairs of process and estimate have a specialised form, which needs less memory and
    loses fewer digits than `plain_bound`.

    Args:
        process: the forward process.
        noisy: the corrupted batch.
        at: scored positions ``[B, L]`` bool, N of them, none of them certain.
        estimate: parametrisation of the network.
        alpha_read: alpha at which a denoiser is converted ``[B, 1]``; None is that of the noise.
            A score is not converted.
    """
    x0, x_t = noisy.x0[at], noisy.x_t[at]  # [N]
    alpha = below_one(noisy.alpha_t).expand_as(noisy.x0)[at]
    read = alpha if alpha_read is None else below_one(alpha_read).expand_as(noisy.x0)[at]
    dalpha = noisy.dalpha_t.expand_as(noisy.x0)[at]
    if estimate is Estimate.SCORE:
        return score_entropy(process, x0, x_t, alpha, dalpha)
    if type(process) is UniformProcess:
        denoiser = estimate is Estimate.DENOISER
        shift = -process.own_token_logit(x_t, read, noisy.vocab_size) if denoiser else None
        return UniformBound(x0, x_t, alpha, dalpha, shift)
    if type(process) is MaskedProcess:
        return CrossEntropy(x0, weight=-dalpha / (1 - alpha))
    return plain_bound(process, estimate, x0, x_t, alpha, dalpha, read)


def plain_bound(
    process: Process,
    estimate: Estimate,
    x0: Tensor,
    x_t: Tensor,
    alpha_t: Tensor,
    dalpha_t: Tensor,
    alpha_read: Tensor | None = None,
) -> AutogradRowLoss:
    """Row loss of the first form, for any process (arguments ``[N]``, see `bound_term`)."""
    read = alpha_t if alpha_read is None else alpha_read

    def function(logits: Tensor, at: slice) -> Tensor:
        V, z, alpha = logits.shape[1], x_t[at], alpha_t[at]
        logits = to_leave_one_out(logits.clone(), estimate, process, z, read[at])
        nu = process.odds(alpha, V)  # [n, V]
        true = nu.clone().scatter_add_(1, x0[at, None], torch.ones_like(nu[:, :1]))  # A / alpha
        model = logits.double().softmax(1) + nu  # B / alpha
        there = true > 0
        gap = torch.where(there, true.where(there, 1.0) / model.where(there, 1.0), 1.0).log()
        a_z, b_z = (x.gather(1, z[:, None])[:, 0] for x in (true, model))
        ratio = a_z / b_z
        rate = _rate(process, z, alpha, dalpha_t[at], V)
        return rate / a_z * (alpha * (true * gap).sum(1) + ratio - 1 - ratio.log())

    return AutogradRowLoss(function)


def score_entropy(
    process: Process, x0: Tensor, x_t: Tensor, alpha_t: Tensor, dalpha_t: Tensor
) -> AutogradRowLoss:
    """Row loss of the second form, for a network that predicts scores (arguments ``[N]``)."""

    def function(logits: Tensor, at: slice) -> Tensor:
        V, z, alpha = logits.shape[1], x_t[at], alpha_t[at]
        log_s = log_score(logits, process, z, alpha)  # [n, V]
        nu = process.odds(alpha, V)
        true = nu.clone().scatter_add_(1, x0[at, None], torch.ones_like(nu[:, :1]))
        w = true / true.gather(1, z[:, None])
        there = w > 0
        attract = torch.where(there, w * (w.where(there, 1.0).log() - 1 - log_s), 0.0)
        # at v = z the sum is s - w log s + w (log w - 1) = 0
        entropy = (log_s.exp() + attract.where(there, 0.0)).sum(1)
        return _rate(process, z, alpha, dalpha_t[at], V) * alpha * entropy

    return AutogradRowLoss(function)


def _rate(process: Process, x_t: Tensor, alpha_t: Tensor, dalpha_t: Tensor, V: int) -> Tensor:
    """Rate of noise arriving at x_t, rho / alpha ``[n]``."""
    slope = process.odds_slope(alpha_t, V).expand(*x_t.shape, V)
    return -dalpha_t * slope.gather(1, x_t[:, None])[:, 0]
