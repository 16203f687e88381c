"""Next-token prediction: the autoregressive baseline and the built-in judge of samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sddlm.models.row_losses import CrossEntropy
from sddlm.objectives.base import Model, Objective
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Loss


@dataclass
class Autoregressive(Objective):
    """Cross-entropy of each token given those before it; the first token of a row is context."""

    estimate: ClassVar[Estimate] = Estimate.NEXT_TOKEN
    causal: ClassVar[bool] = True
    # no field: nothing is corrupted, but every saved model names a process
    process = UniformProcess()

    def loss_positions(self, x0: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """All positions but the first, which has no prediction ``[B, L]`` bool."""
        counted = super().loss_positions(x0, loss_mask).clone()
        counted[:, 0] = False
        return counted

    def _score(self, model: Model, x0: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
        sigma = torch.zeros(len(x0), device=x0.device)
        hidden = model(x0[:, :-1], sigma)  # [B, L-1, D]
        out = model.head(hidden[counted[:, 1:]], CrossEntropy(x0[counted]))
        return out.total, out.rows

    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """See `Objective.loss`; deterministic."""
        counted = self.loss_positions(x0, loss_mask)
        total, _ = self._score(model, x0, counted)
        return Loss(total, counted.sum())

    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Exact negative log-likelihood per position ``[B, L]`` nats, 0 at the first."""
        counted = self.loss_positions(x0)
        _, rows = self._score(model, x0, counted)
        return torch.zeros(x0.shape, dtype=rows.dtype, device=x0.device).masked_scatter(
            counted, rows
        )
