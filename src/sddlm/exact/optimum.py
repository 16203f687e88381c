"""Exact minimisers of objectives, by Newton's method on the expected loss."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor, nn

from sddlm.exact.tabular import TabularModel
from sddlm.exact.world import World, state_id, states
from sddlm.objectives.base import DiffusionObjective
from sddlm.process.base import Process
from sddlm.rng import Draw
from sddlm.types import Noisy

#: step in logits for curvatures by finite differences
_NUDGE = 1e-6
#: smallest curvature that is used
_FLAT = 1e-6


def noisy_batch(world: World, process: Process, t: float) -> tuple[Noisy, Tensor]:
    """Enumerate all corruptions of all sequences at a time, with their probabilities.

    Args:
        world: distribution of x0.
        process: the forward process.
        t: time, where alpha is below 1.

    Returns:
        a batch of R rows and their probabilities ``[R]`` (summing to 1). Each position of each
        sequence is either kept or resampled to one of the V tokens; impossible ones are left out.
    """
    V, L = world.vocab_size + process.extra_tokens, world.length
    time = torch.full((1,), t, dtype=torch.float64)
    alpha, slope = process.schedule.alpha(time), process.schedule.dalpha(time)  # [1]
    # outcome 0 keeps the token, 1 + v resamples it to v
    chance = alpha * torch.cat([torch.ones(1).double(), process.odds(alpha, V)[0]])  # [1 + V]
    outcome = torch.tensor(list(product(range(1 + V), repeat=L)))  # [O, L]
    outcome = outcome[chance[outcome].prod(1) > 0]
    x0 = states(world.vocab_size, L)[:, None].expand(-1, len(outcome), -1)  # [S, O, L]
    x_t = torch.where(outcome > 0, outcome - 1, x0)
    weight = world.probabilities[:, None] * chance[outcome].prod(1)  # [S, O]
    rows = weight.numel()
    noisy = Noisy(
        x0=x0.reshape(rows, L),
        x_t=x_t.reshape(rows, L),
        t=time.expand(rows),
        alpha_t=alpha.expand(rows, 1),
        dalpha_t=slope.expand(rows, 1),
        resampled=(outcome > 0).expand(*x0.shape[:2], L).reshape(rows, L),
        vocab_size=V,
    )
    return noisy, weight.flatten()


def minimise(
    objective: DiffusionObjective, world: World, t: float, *, iterations: int = 30
) -> Tensor:
    """Minimise the expected loss of an objective at one time over a table of logits.

    Newton's method on every cell at once: a cell's loss depends on its own V logits alone. The
    absolute values of the curvatures lead away from saddles. A step changes a cell by at most 1 in
    norm, because a contrastive loss has plateaus that longer steps would reach.

    Args:
        objective: its loss must not be random given the corrupted batch (exact negatives).
        world: distribution of x0.
        t: time.
        iterations: largest number of steps.

    Returns:
        logits ``[S, L, V]`` for every noisy sequence; zeros where the loss does not depend on them.
    """
    noisy, weight = noisy_batch(world, objective.process, t)
    V, L, extra = noisy.vocab_size, world.length, objective.process.extra_tokens
    logits = torch.zeros(V**L, L, V, dtype=torch.float64)
    model = TabularModel(logits, vocab_size=V, length=L, num_extra_tokens=extra)
    draw = Draw.simple(0, 0, len(weight))
    # each cell is a problem of its own; dividing by its weight makes them equally curved
    size = torch.zeros(V**L, dtype=torch.float64)
    at = state_id(noisy.x_t, V)
    size.index_add_(0, at, weight)
    weight = weight / size[at]

    def slope(z: Tensor) -> Tensor:
        model.table.data = z
        loss = objective.score(model, noisy, draw, weight=weight).total
        (gradient,) = torch.autograd.grad(loss, model.table)
        return gradient

    nudges = _NUDGE * torch.eye(V, dtype=torch.float64)[: V - extra]
    for _ in range(iterations):
        gradient = slope(logits)
        columns = [(slope(logits + nudge) - gradient) / _NUDGE for nudge in nudges]
        curvature = nn.functional.pad(torch.stack(columns, -1), (0, extra))  # [S, L, V, V]
        values, axes = torch.linalg.eigh((curvature + curvature.mT) / 2)
        along = (axes.mT @ gradient[..., None]) / values.abs().clamp(min=_FLAT)[..., None]
        step = (axes @ along)[..., 0]
        logits = logits - step / step.norm(dim=-1, keepdim=True).clamp(min=1)
    return logits
