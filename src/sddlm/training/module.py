"""Lightning module: network, objective and optimiser, without a case for any objective."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from sddlm.models.dit import DiT
from sddlm.models.padding import hide_padding
from sddlm.objectives.base import Objective
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.types import before_padding


class TrainModule(LightningModule):
    """Lightning module of a training.

    Args:
        model: the network.
        objective: the loss and the bound.
        args: optimiser and curriculum.
        seed: seed of all training noise.
    """

    def __init__(self, model: DiT, objective: Objective, args: TrainArgs, *, seed: int) -> None:
        super().__init__()
        self.model = model
        model.checkpointing = args.activation_checkpointing
        self.objective = objective
        self.args = args
        self.seed = seed
        self.metrics: dict[str, float] = {}
        """newest values of the columns of ``metrics.csv``"""
        self._figures: dict[str, Tensor] = {}
        """metrics of the newest step, each as sum and count ``[2]`` float64"""
        self._recorded = -1
        self._sums = torch.zeros(4, dtype=torch.float64)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Loss of a micro-batch; its noise depends on (seed, step, slot) alone.

        Lightning averages over processes and micro-batches. If all rows have the same number of
        scored positions, that is the mean over the global batch. Rows with padding have not, so
        their loss is divided by the count of the global batch and scaled by the batch's share.
        """
        step = int(batch["step"][0])
        draw = Draw(self.seed, step, batch["slot"], self.args.batch, t_max=self.args.t_max(step))
        if self.model.config.dropout:  # uses torch's own generator, which is not resumed
            torch.manual_seed(int(draw.integers("dropout", high=2**53)[0]))
        model, loss_mask = hide_padding(self.model, batch.get("lengths"), batch["x0"])
        loss = self.objective.loss(model, batch["x0"], draw, loss_mask)
        self._record(step, {"loss": (loss.total, loss.count), **loss.metrics})
        if loss_mask is None:
            return loss.mean
        whole = before_padding(batch["step_lengths"], loss_mask.shape[1])  # [batch, L]
        count = self.objective.loss_positions(whole.long(), whole).sum().clamp(min=1)
        return loss.total / count * (len(whole) / len(loss_mask))

    def _record(self, step: int, figures: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Add metrics of a micro-batch to those of its step."""
        if step != self._recorded:
            self._recorded, self._figures = step, {}
        for name, parts in figures.items():
            sums = torch.stack([part.detach().double() for part in parts])  # [2]
            self._figures[name] = self._figures[name] + sums if name in self._figures else sums

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip by norm; a non-finite gradient ends the run before it damages the weights.

        All micro-batches of the step are complete here, so metrics are summed over processes.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters(), self.args.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {self.global_step + 1} is {norm.item()}: the weights are "
                "those of the step before; try a smaller `train.lr` or a longer `train.warmup`"
            )
        sums = torch.stack(list(self._figures.values()))  # [figures, 2]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            # not the strategy's reduce, whose barrier would synchronise the GPU at every step
            torch.distributed.all_reduce(sums)
        self._figures = dict(zip(self._figures, sums, strict=True))
        self._figures["gradient_norm"] = torch.stack((norm, torch.ones_like(norm))).double()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and free the gradients at once instead of after the next forward pass."""
        super().optimizer_step(*args, **kwargs)
        self.optimizers(use_pl_optimizer=False).zero_grad()

    def read_metrics(self) -> dict[str, float]:
        """Training metrics of the last step, means over its global batch; synchronises the device.

        Metrics without a counted position are omitted.
        """
        for name, sums in self._figures.items():
            self._set_mean(name, *sums.tolist())
        return self.metrics

    def _set_mean(self, name: str, total: float, count: float) -> None:
        """Set the newest mean of a metric, or remove it if the count is 0."""
        self.metrics.pop(name, None)
        if count:
            self.metrics[name] = total / count

    def on_validation_epoch_start(self) -> None:
        """Reset the sums."""
        self._sums = torch.zeros(4, dtype=torch.float64)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accumulate bound and loss on held-out rows, with the same noise at every validation."""
        rows = int(batch["rows"][0])
        draw = Draw(self.seed, -1, batch["slot"], rows)
        model, loss_mask = hide_padding(self.model, batch.get("lengths"), batch["x0"])
        counted = self.objective.loss_positions(batch["x0"], loss_mask)
        bound = self.objective.bound(model, batch["x0"], draw)
        loss = self.objective.loss(model, batch["x0"], draw, loss_mask)
        self._sums += torch.stack(
            [bound.double()[counted].sum(), counted.sum(), loss.total.double(), loss.count]
        ).cpu()

    def on_validation_epoch_end(self) -> None:
        """Set the means over all processes."""
        sums = self.trainer.strategy.reduce(self._sums.to(self.device), reduce_op="sum")
        nelbo, counted, loss, count = sums.tolist()
        self._set_mean("val_nelbo", nelbo, counted)
        self._set_mean("val_loss", loss, count)

    def configure_optimizers(self) -> Any:
        """Fused AdamW; the learning rate is a function of the step."""
        args = self.args
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=args.lr,
            betas=(0.9, float(args.beta2)),  # torch takes no whole 0
            weight_decay=args.weight_decay,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, args.lr_factor)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
