"""Network calls of an objective: number of positions, and of rows in the vocabulary head.

This works for any objective: it samples its noise and calls a `Probe` in place of the network,
which records the call and returns zeros.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sddlm.models.vocab_head import HeadOutput
from sddlm.objectives import Objective
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.types import SoftTokens

#: steps of the run at which the objective is probed: curricula change with the step
_STEPS = 16
#: sequences and positions probed at each: 33 thousand tokens in all, a share of half +-0.3 percent
_SEQUENCES, _POSITIONS = 64, 32


@dataclass(frozen=True)
class Call:
    """A recorded call of the network and of its head.

    Attributes:
        x: input: tokens ``[B, L]`` or mixtures of them.
        sigma: noise levels ``[B]``.
        rows: flat indices of the computed positions ``[N]``, or None for all.
        term: the row loss.
        count: number of rows in the vocabulary head.
        weight: weight of each row, or None.
    """

    x: Tensor | SoftTokens
    sigma: Tensor
    rows: Tensor | None
    term: Any
    count: int
    weight: Tensor | None


class Probe:
    """Stand-in for a network that records its call."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.call: Call | None = None

    def __call__(
        self, x_t: Tensor | SoftTokens, sigma: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        """Hidden states of width 1, ``[B, L, 1]`` or ``[N, 1]``."""
        self.call = Call(x_t, sigma, rows, None, 0, None)
        return torch.zeros(*(x_t.shape if rows is None else rows.shape), 1)

    def head(self, hidden: Tensor, term: Any, weight: Tensor | None = None) -> HeadOutput:
        """Record the row loss; return zero losses."""
        assert self.call is not None
        self.call = replace(self.call, term=term, count=len(hidden), weight=weight)
        return HeadOutput(hidden.sum(), hidden[:, 0])


@dataclass(frozen=True)
class Asked:
    """Mean network calls of a run.

    Attributes:
        head: share of the positions that pass the vocabulary head.
        soft: share of the steps with mixtures of tokens as input.
        mixture: number of tokens in a mixture, 0 without mixtures.
        whole: whether mixtures are of the whole vocabulary, a matrix product.
    """

    head: float
    soft: float
    mixture: int
    whole: bool


def set_up(objective: Objective, vocab_size: int) -> Objective:
    """Set up a copy of an objective with a text in which each token occurs once."""
    objective = copy.deepcopy(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training itself will warn
        objective.setup(vocab_size, lambda: torch.ones(vocab_size, dtype=torch.int64))
    return objective


def call(objective: Objective, vocab_size: int, length: int, draw: Draw) -> Call:
    """Record the call of an objective for random tokens, one sequence per index of the draw."""
    probe = Probe(vocab_size)
    clean = vocab_size - objective.process.extra_tokens
    x0 = draw.integers("plan", length, high=clean)
    objective.loss(probe, x0, draw)
    assert probe.call is not None
    return probe.call


def asked(objective: Objective, vocab_size: int, length: int, args: TrainArgs) -> Asked:
    """Mean network calls over the steps of a run and the noise of each."""
    head, soft, mixture, whole = [], 0, 0, False
    tiny = min(length, 4)  # a mixture of the whole vocabulary has B L V numbers
    size = min(length, _POSITIONS) if not objective.causal else length
    for k in range(_STEPS):
        step = int((k + 0.5) / _STEPS * args.steps)
        t_max = args.t_max(step)
        first = call(objective, vocab_size, tiny, Draw(k, step, torch.arange(2), 2, t_max))
        if isinstance(first.x, SoftTokens):
            soft, mixture = soft + 1, first.x.weights.shape[-1]
            whole = first.x.ids is None
            step = -1  # as in validation: the rows are the same, without the mixtures
        B = max(1, _SEQUENCES * _POSITIONS // size)
        found = call(objective, vocab_size, size, Draw(k, step, torch.arange(B), B, t_max))
        head.append(found.count / (B * size))
    return Asked(sum(head) / _STEPS, soft / _STEPS, mixture, whole)


def typical(objective: Objective, vocab_size: int, length: int, batch: int, head: float) -> Call:
    """Call for ``batch`` sequences with a number of rows nearest to the mean, of several calls."""
    calls = (
        call(objective, vocab_size, length, Draw(seed, -1, torch.arange(batch), batch))
        for seed in range(max(1, 64 // batch))
    )
    return min(calls, key=lambda found: abs(found.count - head * batch * length))


def largest(objective: Objective, vocab_size: int, length: int, batch: int, whole: int) -> Call:
    """Call for the last ``batch`` of ``whole`` sequences of a step, which have most noise."""
    index = torch.arange(whole - batch, whole)
    return call(objective, vocab_size, length, Draw(0, -1, index, whole))
