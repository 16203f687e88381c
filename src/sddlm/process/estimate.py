"""Parametrisation of a network's output, and exact conversion to leave-one-out predictions.

The *leave-one-out* prediction is p(x0 at l | all noisy tokens but the one at l); the *denoiser*
is p(x0 at l | all noisy tokens). By Bayes' rule they differ by one logit:

    denoiser_v  proportional to  leave_one_out_v * (1 + [v = x_t] / nu_v)

so ``logits_denoiser = logits_leave_one_out + log(1 + 1 / nu) * onehot(x_t)``, where nu are the
noise odds of the process; for the uniform one 1 / nu = V alpha / (1 - alpha). The reverse step and
the bound are written for the leave-one-out prediction.
"""

from __future__ import annotations

import warnings
from enum import Enum

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.process.base import Process


class Estimate(str, Enum):
    """Parametrisation of the network: what the exact optimum of its objective is.

    Attributes:
        LEAVE_ONE_OUT: p(x0 | all other noisy tokens): read by samplers and bounds without
            conversion.
        WITHOUT_X_T: leave-one-out with the entry of x_t set to zero (training on changed positions
            only, V2). Read as leave-one-out: harmless at tens of thousands of tokens, biased at
            tens.
        TRUNCATED: max(leave-one-out - weight * distribution of the negatives, 0), renormalised
            (V1). Read as leave-one-out.
        DENOISER: p(x0 | all noisy tokens): converted by one logit before sampling or scoring.
        SCORE: log q(y, others) / q(x_t, others), minus its value for a uniform guess (SEDD).
        NEXT_TOKEN: p(next token | tokens before it): an autoregressive model.
    """

    LEAVE_ONE_OUT = "leave_one_out"
    WITHOUT_X_T = "leave_one_out_without_x_t"
    TRUNCATED = "truncated_leave_one_out"
    DENOISER = "denoiser"
    SCORE = "score"
    NEXT_TOKEN = "next_token"

    @property
    def diffusion(self) -> bool:
        """Whether a diffusion sampler and bound can read it."""
        return self is not Estimate.NEXT_TOKEN


#: vocabulary size below which excluding x_t causes a warning. For independent Zipf tokens the bias
#: is .074, .034 and .020 in total variation at V = 8, 64 and 512. It is larger the more a token
#: depends on its context (.70 in the random world of docs/objectives.md)
SMALL_VOCABULARY = 1000


def warn_of_bias(estimate: Estimate, vocab_size: int) -> None:
    """Warn if a prediction that excludes x_t is about to be read as leave-one-out.

    It cannot be converted, because it lacks the probability of x_t.
    """
    if estimate is Estimate.WITHOUT_X_T and vocab_size < SMALL_VOCABULARY:
        warnings.warn(
            f"this model predicts the clean token without x_t, which is read as leave-one-out: "
            f"with {vocab_size} tokens samples and bound are biased. Train with "
            "`objective=SDDLM()` and `objective.positions='resampled'`, or with more tokens",
            stacklevel=3,
        )


def to_leave_one_out(
    logits: Tensor, estimate: Estimate, process: Process, x_t: Tensor, alpha_t: Tensor
) -> Tensor:
    """Convert a network's logits to leave-one-out logits.

    Args:
        logits: ``[N, V]``; may be overwritten.
        estimate: their parametrisation.
        process: the process that made x_t.
        x_t: tokens ``[N]``.
        alpha_t: broadcastable to ``[N]``.

    Returns:
        ``[N, V]``, up to a constant in each row; -inf for impossible tokens.

    Raises:
        ConfigError: for a next-token model, which no diffusion sampler or bound can read.
    """
    V = logits.shape[-1]
    if estimate is Estimate.NEXT_TOKEN:
        raise ConfigError(
            "a next-token model has no leave-one-out prediction; sample it with Autoregressive"
        )
    if estimate is Estimate.DENOISER:
        shift = process.own_token_logit(x_t, alpha_t, V)  # [N]
        return logits.scatter_add_(-1, x_t[..., None], -shift.to(logits.dtype)[..., None])
    if estimate is Estimate.SCORE:
        nu = process.odds(alpha_t.double(), V)  # [..., V]
        log_marginal = log_score(logits, process, x_t, alpha_t).log_softmax(-1)
        # q(x_t = v | others) = alpha (p_v + nu_v); a score that is no ratio of laws has p_v < 0
        p = log_marginal.exp() / alpha_t.double()[..., None] - nu
        return no_extra(p.clamp(min=1e-300).log(), process)
    return logits


def log_score(logits: Tensor, process: Process, x_t: Tensor, alpha_t: Tensor) -> Tensor:
    """``log q(y, others) / q(x_t, others)`` of a network's logits ``[N, V]`` float64, 0 at x_t.

    A zero output means the ratio of a uniform guess of x0, which for a mask is the scaling of SEDD
    (arXiv:2310.16834), ``-log(1 / alpha - 1) - log(V - 1)``.

    Args:
        logits: ``[N, V]``.
        process: the process that made x_t.
        x_t: tokens ``[N]``.
        alpha_t: broadcastable to ``[N]``.
    """
    V = logits.shape[-1]
    clean = V - process.extra_tokens
    guess = process.odds(alpha_t.double(), V).expand(logits.shape).clone()
    guess[..., :clean] += 1 / clean
    log_guess = guess.log()
    own = x_t[..., None]
    at_own = log_guess.gather(-1, own)
    return (logits.double() + log_guess - at_own).scatter(-1, own, torch.zeros_like(at_own))


def no_extra(logits: Tensor, process: Process) -> Tensor:
    """Set the logits of noise-only tokens to -inf, in place ``[..., V]``."""
    if process.extra_tokens:
        logits[..., -process.extra_tokens :] = -torch.inf
    return logits
