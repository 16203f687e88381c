"""Diagnostics of a training: statistics of the output and norms of gradient components.

Measured on a few held-out rows with the same noise each time. ``train.alarms`` evaluates them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sddlm.objectives import Objective
from sddlm.process.estimate import to_leave_one_out
from sddlm.process.schedule import below_one
from sddlm.rng import Draw
from sddlm.sampling.base import chunks, evaluating
from sddlm.types import Loss

#: columns of ``metrics.csv`` computed here
OUTPUT_COLUMNS = ("copy_prob", "copy_prob_noise", "clean_prob", "output_entropy", "logit_range")
GRADIENT_COLUMNS = ("attractive_norm", "repulsive_norm")

#: number of tokens, and the smallest and largest number of sequences
_TOKENS, _FEWEST, _MOST = 2048, 4, 16


def rows_for(length: int) -> int:
    """Number of held-out rows: few, because each costs a share of a training step."""
    return max(_FEWEST, min(_MOST, _TOKENS // length))


def diagnostics(
    model: Any, objective: Objective, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None
) -> dict[str, float]:
    """Compute all diagnostics of a network, without changing it or ``.grad``.

    Args:
        model: the network, not wrapped: no call here is collective.
        objective: its training objective.
        x0: clean tokens ``[B, L]`` int64.
        draw: randomness of times and noise, the same each time.
        loss_mask: positions that are scored ``[B, L]`` bool; None is all.

    Returns:
        `output_figures` and `gradient_norms`.
    """
    return {
        **output_figures(model, objective, x0, draw, loss_mask),
        **gradient_norms(model, objective, x0, draw, loss_mask),
    }


def output_figures(
    model: Any, objective: Objective, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None
) -> dict[str, float]:
    """Statistics of the leave-one-out predictions on noisy text.

    With p the prediction converted by the objective's estimate, means over positions:

    - ``copy_prob``: p of x_t where x_t = x0;
    - ``copy_prob_noise``: p of x_t where x_t != x0. A network that ignores the position's own token
      gives at most 1 / (V - 1) under uniform noise, because a noise token is independent of the
      rest;
    - ``clean_prob``: p of x0 where x_t != x0: what the network knows without copying. In a network
      that ignores the position's own token it equals ``copy_prob`` up to chance.

    Unweighted means over all scored positions:

    - ``output_entropy``: entropy of p, nats; ln V is uniform;
    - ``logit_range``: largest minus smallest logit of the network itself, nats.

    An autoregressive network has only the last two, for its next-token prediction. Positions whose
    clean token is certain (not masked, under masks) are not scored.

    Args:
        model: the network.
        objective: defines process and estimate.
        x0: clean tokens ``[B, L]`` int64.
        draw: randomness of times and noise.
        loss_mask: positions that are scored ``[B, L]`` bool; None is all.

    Returns:
        values by name, without those that have no position.
    """
    with evaluating(model):
        if not objective.estimate.diffusion:
            at = objective.loss_positions(x0, loss_mask)[:, 1:]  # [B, L-1]
            hidden = model(x0[:, :-1], torch.zeros(len(x0), device=x0.device))[at]
            table = _rows(model, hidden, lambda logits, _: logits, hidden.new_zeros(len(hidden), 0))
            return _overall(table)
        process, V = objective.process, model.vocab_size
        noisy = process.corrupt(x0, draw.times(), draw, vocab_size=V)
        counted = objective.loss_positions(x0, loss_mask)
        at = ~process.certain(noisy.x_t, vocab_size=V) & counted  # [B, L]
        own, clean = noisy.x_t[at], x0[at]  # [N]
        alpha_t = below_one(noisy.alpha_t).expand_as(x0)[at]
        hidden = model(noisy.x_t, noisy.sigma, rows=at.flatten().nonzero()[:, 0])  # [N, D]

        def read(logits: Tensor, rows: slice) -> Tensor:
            return to_leave_one_out(logits, objective.estimate, process, own[rows], alpha_t[rows])

        table = _rows(model, hidden, read, torch.stack([own, clean], 1))  # [N, 4]
        noise = own != clean
        late, early = 1 - alpha_t, alpha_t + (1 - alpha_t) / V
        groups = {
            "copy_prob": (table[:, 2], late * ~noise),
            "copy_prob_noise": (table[:, 2], early * noise),
            "clean_prob": (table[:, 3], early * noise),
        }
        return {
            name: ((values * weight).sum() / weight.sum()).item()
            for name, (values, weight) in groups.items()
            if weight.sum() > 0
        } | _overall(table)


def _rows(
    model: Any, hidden: Tensor, read: Callable[[Tensor, slice], Tensor], tokens: Tensor
) -> Tensor:
    """Entropy, logit range and the probabilities of K tokens of each row ``[N, 2 + K]`` float64.

    Args:
        model: whose head gives the logits, a chunk of rows at a time.
        hidden: ``[N, D]``.
        read: converts the logits of a chunk, which it may overwrite, to leave-one-out.
        tokens: ``[N, K]`` int64.
    """
    K = tokens.shape[1]
    found = torch.empty(len(hidden), 2 + K, dtype=torch.float64, device=hidden.device)
    for rows in chunks(len(hidden), model.vocab_size):
        logits = model.head.logits(hidden[rows])  # [n, V]
        # a token that is never predicted (a mask) has no logit
        least = logits.masked_fill(logits == -torch.inf, torch.inf).amin(1)
        found[rows, 1] = (logits.amax(1) - least).double()
        p = read(logits, rows).softmax(1)
        found[rows, 0] = torch.special.entr(p).sum(1).double()
        found[rows, 2:] = p.gather(1, tokens[rows]).double() if K else 0.0
    return found


def _overall(table: Tensor) -> dict[str, float]:
    if not len(table):
        return {}
    return {"output_entropy": table[:, 0].mean().item(), "logit_range": table[:, 1].mean().item()}


def gradient_norms(
    model: Any, objective: Objective, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None
) -> dict[str, float]:
    """Gradient norms of the attractive and the repulsive component, over all parameters.

    The loss of V1 is a sum (Eq. 9 of arXiv:2510.22926): towards x0, and away from the negatives.
    The second is the loss minus the first on the same draw, so it needs no loss of its own, and
    only one set of gradients exists at a time. ``torch.autograd.grad`` does not touch ``.grad``,
    and runs no hook of a wrapper (DDP).

    Args:
        model: the network.
        objective: an objective with an attractive component (`Objective.components`).
        x0: clean tokens ``[B, L]`` int64.
        draw: randomness.
        loss_mask: positions that are scored ``[B, L]`` bool; None is all.

    Returns:
        ``attractive_norm`` and ``repulsive_norm``, nats per position; empty for an objective
        without components.
    """
    attractive = objective.components().get("attractive")
    if attractive is None:
        return {}
    with evaluating(model), torch.inference_mode(False), torch.enable_grad():
        near: Loss = attractive.loss(model, x0, draw, loss_mask)
        towards = _norm(near.mean, model)
        near = attractive.loss(model, x0, draw, loss_mask)
        away = objective.loss(model, x0, draw, loss_mask).mean - near.mean
        return {"attractive_norm": towards, "repulsive_norm": _norm(away, model)}


def _norm(value: Tensor, model: Any) -> float:
    """Norm of the gradient of a value with respect to all parameters."""
    learnt = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, learnt, allow_unused=True)
    squares = [g.double().square().sum() for g in gradients if g is not None]
    return torch.stack(squares).sum().sqrt().item() if squares else 0.0
