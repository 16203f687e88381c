"""What a network's output means, and the exact conversion between the two meanings.

The *leave-one-out* prediction is p(x0 at l | all noisy tokens but the one at l); the *denoiser*
is p(x0 at l | all noisy tokens). By Bayes' rule they differ by one logit:

    denoiser_v  proportional to  leave_one_out_v * (1 + c * [v == x_t]),   c = V alpha / (1 - alpha)

so ``logits_denoiser = logits_leave_one_out + log(1 + c) * onehot(x_t)``. The reverse step and the
bound of the uniform process are written for the leave-one-out prediction.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor


class Estimate(str, Enum):
    """What the exact optimum of an objective is."""

    LEAVE_ONE_OUT = "leave_one_out"
    """p(x0 | all other noisy tokens): sampler and bound take it as it is."""
    WITHOUT_X_T = "leave_one_out_without_x_t"
    """The same with the entry of x_t set to zero (training on changed positions only, V2);
    read as leave-one-out, harmless at tens of thousands of tokens, biased at tens."""
    TRUNCATED = "truncated_leave_one_out"
    """max(leave-one-out - weight/V, 0), renormalised (V1); read as leave-one-out."""
    DENOISER = "denoiser"
    """p(x0 | all noisy tokens): converted by one logit before sampling or scoring."""
    NEXT_TOKEN = "next_token"
    """p(next token | tokens before it): an autoregressive model."""

    @property
    def diffusion(self) -> bool:
        """Whether a diffusion sampler and bound can read it."""
        return self is not Estimate.NEXT_TOKEN


def own_token_logit(alpha_t: Tensor, vocab_size: int) -> Tensor:
    """``log(1 + c)``, c = V alpha / (1 - alpha): what seeing x_t adds to its logit (any shape).

    Infinite at alpha = 1, where x_t *is* x0.
    """
    alpha_t = alpha_t.double()
    return torch.log1p(vocab_size * alpha_t / (1 - alpha_t))


def to_leave_one_out(estimate: Estimate, alpha_t: Tensor, vocab_size: int) -> Tensor | None:
    """What to add to the logit of x_t so that the prediction is leave-one-out.

    Args:
        estimate: what the network's output means.
        alpha_t: any shape.
        vocab_size: V.

    Returns:
        ``-log(1 + c)`` shaped like ``alpha_t`` for a denoiser; None where nothing is to be added.

    Raises:
        ValueError: for a next-token model, which no diffusion sampler or bound can read.
    """
    if not estimate.diffusion:
        raise ValueError(
            "a next-token model has no leave-one-out prediction; sample it with Autoregressive"
        )
    return -own_token_logit(alpha_t, vocab_size) if estimate is Estimate.DENOISER else None
