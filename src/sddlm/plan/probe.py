"""What an objective asks of its network: how many positions, of which the vocabulary how many.

Nothing is known here of any objective: each really draws its noise and really calls, but what it
calls is a `Probe` in place of the network, which notes what it is asked and answers zeros.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.models.vocab_head import HeadOutput
from sddlm.objectives import Objective
from sddlm.train.args import TrainArgs
from sddlm.types import SoftTokens

#: steps of the run at which the objective is asked: curricula change with the step
_STEPS = 16
#: sequences and positions asked at each: 33 thousand tokens in all, a share of half +-0.3 percent
_SEQUENCES, _POSITIONS = 64, 32


@dataclass(frozen=True)
class Call:
    """One call of the network and of its head, to be made again on another network.

    Attributes:
        x: what the network sees: tokens ``[B, L]`` or mixtures of them.
        sigma: noise levels ``[B]``.
        rows: positions wanted ``[N]``, or None for all.
        term: the row loss.
        count: rows that met the vocabulary.
        weight: of each row, or None.
    """

    x: Tensor | SoftTokens
    sigma: Tensor
    rows: Tensor | None
    term: Any
    count: int
    weight: Tensor | None


class Probe:
    """Stands where a network does, and notes the call."""

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
        """Losses of zero."""
        assert self.call is not None
        self.call = replace(self.call, term=term, count=len(hidden), weight=weight)
        return HeadOutput(hidden.sum(), hidden[:, 0])


@dataclass(frozen=True)
class Asked:
    """The mean over a run.

    Attributes:
        head: positions that meet the vocabulary, as a share of those in the data.
        soft: share of the steps in which the network sees mixtures of tokens.
        mixture: tokens in a mixture, 0 if there are none.
        whole: the mixture is of the whole vocabulary, a matrix product.
    """

    head: float
    soft: float
    mixture: int
    whole: bool


def begun(objective: Objective, vocab_size: int) -> Objective:
    """A copy of the objective that has been told of a text in which each token occurs once."""
    objective = copy.deepcopy(objective)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # training itself will say it
        objective.begin(vocab_size, lambda: torch.ones(vocab_size, dtype=torch.int64))
    return objective


def call(objective: Objective, vocab_size: int, length: int, draw: Draw) -> Call:
    """The call that an objective makes for random tokens, one sequence for each of the draw's."""
    probe = Probe(vocab_size)
    clean = vocab_size - objective.process.extra_tokens
    x0 = draw.integers("plan", length, high=clean)
    objective.loss(probe, x0, draw)
    assert probe.call is not None
    return probe.call


def asked(objective: Objective, vocab_size: int, length: int, args: TrainArgs) -> Asked:
    """The mean of what is asked, over the steps of a run and the noise of each."""
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
    """Of many calls for ``batch`` sequences, that whose rows are nearest to the mean share."""
    calls = (
        call(objective, vocab_size, length, Draw(seed, -1, torch.arange(batch), batch))
        for seed in range(max(1, 64 // batch))
    )
    return min(calls, key=lambda found: abs(found.count - head * batch * length))


def largest(objective: Objective, vocab_size: int, length: int, batch: int, whole: int) -> Call:
    """The call for the last ``batch`` of ``whole`` sequences of a step, which have most noise."""
    index = torch.arange(whole - batch, whole)
    return call(objective, vocab_size, length, Draw(0, -1, index, whole))
