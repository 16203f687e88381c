"""Predictions of a network that samplers use more than once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.sampling.context import SamplingContext


@dataclass(frozen=True)
class Prediction:
    """Network outputs at some positions, and the input that they belong to.

    Attributes:
        hidden: hidden vectors ``[N, D]``.
        x_t: tokens there when the network was called ``[N]`` int64.
        alpha_t: noise schedule at which the outputs are read ``[N]`` float64.
    """

    hidden: Tensor
    x_t: Tensor
    alpha_t: Tensor

    def __getitem__(self, at: slice) -> Prediction:
        return Prediction(self.hidden[at], self.x_t[at], self.alpha_t[at])


class PredictionCache:
    """Network outputs of each sequence's last call, and the decision when it is called again.

    Outputs are exact while the input stays the same: no token of the sequence has changed, nor has
    the noise level, unless the network does not see it (``time_free``). Above a budget of 0 they
    also serve while the cost of what happened since (`add_cost`), and the drift that time alone
    brings, stay below the budget.

    Args:
        run: the arguments of the sampler.
        budget: largest cost of outputs that are used again.
        drift_bound: from alpha ``[A]`` of the call and the present one to the cost of the time
            between: ``[A]``; not asked at a budget of 0.

    Attributes:
        nfe: network calls of each sequence ``[B]``.
    """

    def __init__(
        self,
        run: SamplingContext,
        budget: float = 0.0,
        drift_bound: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        self.run, self.budget, self.drift_bound = run, budget, drift_bound
        self.time_free = bool(getattr(run.model, "time_free", False))
        # else no output is ever used again, and the network computes single positions
        self.keeps = self.time_free or budget > 0
        self.nfe = torch.zeros_like(run.index)
        self._x = run.index[:, None].repeat(1, run.length)  # [B, L]: input of the last call
        self._alpha = torch.zeros_like(run.index, dtype=torch.float64)  # [B]: its time
        self._cost = torch.full_like(self._alpha, torch.inf)  # [B]: since then
        self._changed = torch.ones_like(run.index, dtype=torch.bool)  # [B]: since then
        self._hidden: Tensor | None = None  # [B, L, D]

    def valid(self, rows: Tensor, alpha: Tensor) -> Tensor:
        """Which of the sequences ``[A]`` need no call at ``alpha [A]``: ``[A]`` bool."""
        if not self.keeps:
            return torch.zeros_like(rows, dtype=torch.bool)
        drift = torch.zeros_like(alpha)
        called = self.nfe[rows] > 0
        if not self.time_free and self.drift_bound is not None:
            drift[called] = self.drift_bound(self._alpha[rows[called]], alpha[called])
        unchanged = ~self._changed[rows] & (drift == 0)
        return called & (unchanged | (self._cost[rows] + drift < self.budget))

    def predict(self, x: Tensor, row: Tensor, position: Tensor, alpha_t: Tensor) -> Prediction:
        """Outputs at some positions; sequences whose last ones are not valid are called first.

        Args:
            x: tokens ``[B, L]``.
            row: sequence of each position ``[N]``, ascending.
            position: in its sequence ``[N]``.
            alpha_t: of its sequence, which is at one time ``[N]`` float64.
        """
        rows, count = row.unique_consecutive(return_counts=True)  # [A]
        alpha = alpha_t[count.cumsum(0) - 1]  # [A]
        if not self.keeps:
            self.nfe[rows] += 1
            among = torch.arange(len(rows), device=row.device).repeat_interleave(count)
            sigma = -torch.log(alpha).float()
            hidden = self.run.hidden(x, sigma, rows, rows=among * self.run.length + position)
            return Prediction(hidden, x[row, position], alpha_t)
        stale = ~self.valid(rows, alpha)
        if stale.any():
            self.refresh(x, rows[stale], alpha[stale])
        assert self._hidden is not None
        # a network that does not see the time predicts alike at all times
        alpha_t = alpha_t if self.time_free else self._alpha[row]
        return Prediction(self._hidden[row, position], self._x[row, position], alpha_t)

    def refresh(self, x: Tensor, rows: Tensor, alpha: Tensor) -> None:
        """Call the network for the sequences ``rows [A]`` at ``alpha [A]``."""
        hidden = self.run.hidden(x, -torch.log(alpha).float(), rows)  # [A, L, D]
        if self._hidden is None:
            self._hidden = hidden.new_empty(*x.shape, hidden.shape[-1])
        self._hidden[rows] = hidden
        self._x[rows], self._alpha[rows] = x[rows], alpha
        self._cost[rows], self._changed[rows] = 0.0, False
        self.nfe[rows] += 1

    def add_cost(self, row: Tensor, position: Tensor, changed: Tensor, cost: Tensor | None) -> None:
        """Count what updates of positions ``[N]`` reveal to the others of their sequences.

        Args:
            row: sequence of each.
            position: in its sequence.
            changed: whether its token changed.
            cost: in the units of the budget; None at a budget of 0.
        """
        self._changed[row[changed]] = True
        if cost is not None:
            each = torch.zeros_like(self._x, dtype=torch.float64)
            each[row, position] = cost
            # a sum in the order of positions, which does not depend on the batch
            self._cost += each.cumsum(1)[:, -1]
