"""Noise level of a text, estimated by the model that is to correct it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.lm import LanguageModel
from sddlm.sampling.base import chunks, device_of, evaluating, finite, hidden_at, leave_one_out
from sddlm.types import before_padding

#: noise levels t that are compared; the smallest means that there is nothing to correct
LEVELS = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


@dataclass(frozen=True)
class TokenScores:
    """Scores of the tokens of texts that are taken for noise of level t.

    Attributes:
        fit: log q(x_t at l | all other tokens), nats ``[B, L]`` float64.
        right: probability that the token is the clean one ``[B, L]`` float64.
    """

    fit: Tensor
    right: Tensor


def score_tokens(
    lm: LanguageModel, x_t: Tensor, t: float, lengths: Tensor | None = None
) -> TokenScores:
    """Score the tokens of texts as noise of one level; one network call a text.

    With p the leave-one-out prediction and z = x_t, by Bayes' rule (`process.base`):

        q(x_t = z | others)       proportional to  p_z + nu_z
        p(x0 = z | x_t)           =                p_z (1 + nu_z) / (p_z + nu_z)

    The first is normalised over the tokens of text; for the uniform process the sum is 1 / alpha.
    Summed over the positions of a text, its logarithm is the logarithm of Besag's
    pseudo-likelihood (1975) of the level t. It is largest, on average, at the true level, where
    each term is a proper score of the exact law of one token.

    Args:
        lm: the model.
        x_t: tokens ``[B, L]``.
        t: noise level in (0, 1].
        lengths: tokens before the padding ``[B]``; None where there is none.

    Raises:
        FloatingPointError: if the network's output is not finite.
    """
    model, process, V = lm.network, lm.process, lm.network.vocab_size
    device = device_of(model)
    x_t = x_t.to(device)
    p_own = torch.empty(x_t.numel(), dtype=torch.float64, device=device)
    with evaluating(model):
        more = {} if lengths is None else {
            "attention_mask": before_padding(lengths.to(device), x_t.shape[1])
        }  # fmt: skip
        hidden, alpha = hidden_at(lm, x_t, t, **more)  # [N, D], [1]
        own = x_t.flatten()
        for at in chunks(len(own), V):
            logits = leave_one_out(model, hidden[at], lm.estimate, process, own[at], alpha)
            p_own[at] = finite(logits.log_softmax(-1).gather(1, own[at, None])[:, 0].exp())
    odds = process.odds(alpha, V)[0]  # [V]
    total = 1 + odds[: V - process.extra_tokens].sum()
    p, nu = p_own.view(x_t.shape), odds[x_t]
    return TokenScores(fit=((p + nu) / total).log().cpu(), right=(p * (1 + nu) / (p + nu)).cpu())


def most_likely(scores: Tensor) -> Tensor:
    """Index of the best level of each text, the first of equal ones ``[B]`` int64.

    Args:
        scores: sums of `TokenScores.fit` ``[levels, B]``.
    """
    best = scores == scores.amax(0)
    return best.int().argmax(0)
