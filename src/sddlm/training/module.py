"""Loss of a micro-batch and sums of a validation, without a case for any objective."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sddlm.models.dit import DiT
from sddlm.models.padding import hide_padding, scored_positions
from sddlm.objectives.base import Objective
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs


class TrainModule(nn.Module):
    """Network and objective as one module, whose call is the loss of a micro-batch.

    Args:
        model: the network.
        objective: the loss and the bound.
        args: batch size and curriculum.
        seed: seed of all training noise.
    """

    def __init__(self, model: DiT, objective: Objective, args: TrainArgs, *, seed: int) -> None:
        super().__init__()
        self.model = model
        model.checkpointing = args.activation_checkpointing
        self.objective = objective
        self.args = args
        self.seed = seed
        self.figures: dict[str, Tensor] = {}
        """metrics of the newest step, each as sum and count ``[2]`` float64"""
        self._recorded = -1

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Loss of a micro-batch; its noise depends on (seed, step, slot) alone.

        The loop averages over processes and micro-batches. If all rows have the same number of
        scored positions, that is the mean over the global batch. Rows with padding or prompts have
        not, so their loss is divided by the count of the global batch and scaled by the batch's
        share.
        """
        step = int(batch["step"][0])
        draw = Draw(self.seed, step, batch["slot"], self.args.batch, t_max=self.args.t_max(step))
        if self.model.config.dropout:  # uses torch's own generator, which is not resumed
            torch.manual_seed(int(draw.integers("dropout", high=2**53)[0]))
        model, loss_mask = self._hidden(batch)
        loss = self.objective.loss(model, batch["x0"], draw, loss_mask)
        self._record(step, {"loss": (loss.total, loss.count), **loss.metrics})
        whole = scored_positions(
            batch.get("step_lengths"), batch.get("step_prompts"), batch["x0"]
        )  # [batch, L]
        if whole is None or loss_mask is None:
            return loss.mean
        count = self.objective.loss_positions(whole.long(), whole).sum().clamp(min=1)
        return loss.total / count * (len(whole) / len(loss_mask))

    def _hidden(self, batch: dict[str, Tensor]) -> tuple[Any, Tensor | None]:
        return hide_padding(self.model, batch.get("lengths"), batch["x0"], batch.get("prompts"))

    def _record(self, step: int, figures: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add metrics of a micro-batch to those of its step."""
        if step != self._recorded:
            self._recorded, self.figures = step, {}
        for name, parts in figures.items():
            sums = torch.stack([part.detach().double() for part in parts])  # [2]
            self.figures[name] = self.figures[name] + sums if name in self.figures else sums

    def validation_sums(self, batch: dict[str, Tensor]) -> Tensor:
        """Sum and count of the bound, sum and count of the loss on held-out rows ``[4]`` float64.

        The noise is the same at every validation.
        """
        rows = int(batch["rows"][0])
        draw = Draw(self.seed, -1, batch["slot"], rows)
        model, loss_mask = self._hidden(batch)
        counted = self.objective.loss_positions(batch["x0"], loss_mask)
        bound = self.objective.bound(model, batch["x0"], draw)
        loss = self.objective.loss(model, batch["x0"], draw, loss_mask)
        return torch.stack(
            [bound.double()[counted].sum(), counted.sum(), loss.total.double(), loss.count]
        )
