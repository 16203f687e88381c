"""Optimisers, and the update of an optimiser step: clipping, learning rates, freed gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sddlm.models.dit import DiT
from sddlm.training.args import TrainArgs


class Update:
    """Update of the weights in an optimiser step.

    Args:
        network: the network, on its device.
        args: optimiser, schedule and clipping.
    """

    def __init__(self, network: DiT, args: TrainArgs) -> None:
        self.args = args
        self.parameters = list(network.parameters())
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(
                self.parameters,
                lr=args.lr,
                betas=(0.9, float(args.beta2)),  # torch takes no whole 0
                weight_decay=args.weight_decay,
                fused=True,
            )
        ]
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["initial_lr"] = group["lr"]

    def step(self, step: int) -> Tensor:
        """Clip the gradient, update the weights, and free the gradient.

        Args:
            step: number of the step (0-based), which the learning rates depend on.

        Returns:
            norm of the gradient before clipping, a scalar.

        Raises:
            FloatingPointError: the gradient is not finite; the weights are unchanged.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.args.clip)
        if not torch.isfinite(norm):
            raise FloatingPointError(
                f"the gradient of step {step + 1} is {norm.item()}: the weights are "
                "those of the step before; try a smaller `train.lr` or a longer `train.warmup`"
            )
        factor = self.args.lr_factor(step)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            optimizer.step()
            optimizer.zero_grad()
        return norm

    def state_dict(self) -> list[dict[str, Any]]:
        """State of each optimiser for the checkpoint."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        """Continue from a checkpoint."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
