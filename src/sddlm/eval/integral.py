"""The integral of the bound over all noise levels, a few draws of it at a time.

Noise levels are those of `sddlm.eval.nll.importance_times`, u stratified over the draws of a round.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from sddlm.eval.nll import importance_times
from sddlm.eval.windows import Window
from sddlm.models.conditioned import Conditioned
from sddlm.objectives.bound import bound
from sddlm.rng import Draw
from sddlm.sampling.base import device_of, finite
from sddlm.sampling.context import Trained


@dataclass(frozen=True)
class Integral:
    """Draws of the bound's integral."""

    lm: Trained
    seed: int
    question: int
    per_round: int
    batch: int

    def nats(self, windows: list[Window], count: int, number: int) -> Tensor:
        """Round ``number`` ``[count, S]``, a choice's windows summed, without the prior term."""
        S = self.per_round
        total = torch.zeros(count, S, dtype=torch.float64)
        for _, group in groupby(sorted(windows, key=lambda w: w.shape), key=lambda w: w.shape):
            alike = list(group)
            for at in torch.arange(len(alike) * S).split(self.batch):
                some = [alike[i] for i in (at // S).tolist()]
                stratum = at % S
                choice = torch.tensor([window.choice for window in some])
                nats = self._some(some, number, stratum).cpu()
                total.index_put_((choice, stratum), nats, accumulate=True)
        return total

    def _some(self, windows: list[Window], number: int, stratum: Tensor) -> Tensor:
        """One draw of each of some windows of one shape ``[b]``, in the given strata."""
        K, M = windows[0].shape
        device = device_of(self.lm.network)
        tokens = torch.tensor([w.context + w.scored for w in windows], device=device)
        window = torch.tensor([w.number for w in windows])
        index = (window << 32) + number * self.per_round + stratum
        draw = Draw(self.seed, self.question, index.to(device), 1)
        u = (stratum.to(device) + draw.uniform("level")) / self.per_round  # [b]
        t, weight = importance_times(self.lm.process, u)
        known = torch.arange(K + M, device=device) < K
        view = Conditioned(self.lm.network, tokens, known)
        nats = bound(view, self.lm.process, self.lm.estimate, tokens[:, K:], draw, t)  # [b, M]
        return finite(nats.double().sum(1)) * weight


def stderr(nats: Tensor) -> Tensor:
    """Standard error of the mean of stratified draws ``[C, rounds, S]``: ``[C]``.

    The rounds are independent draws of every stratum, so it counts what stratification gains.
    """
    _, rounds, S = nats.shape
    return (nats.var(1).sum(1) / rounds).sqrt() / S
