"""Optimisers to choose from, and the update of a step: clipping, learning rates, freed gradients.

Options are those of the dataclasses `AdamW` and `Muon`; what they build are optimisers of torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sddlm.errors import ConfigError, check_choices
from sddlm.models.dit import DiT

if TYPE_CHECKING:
    from sddlm.training.args import TrainArgs

#: largest learning rate: a step moves each weight by about as much
LARGEST_LR = 10.0


class Optimizer(ABC):
    """Choice of an optimiser; subclasses are dataclasses whose fields are its options."""

    @abstractmethod
    def build(self, network: DiT, args: TrainArgs) -> list[torch.optim.Optimizer]:
        """Optimisers that together have every parameter of the network once.

        Args:
            network: the network, on its device.
            args: learning rate, betas and weight decay of AdamW.
        """


@dataclass
class AdamW(Optimizer):
    """Fused AdamW for all parameters, with ``lr``, ``beta2`` and ``weight_decay`` of the run."""

    def build(self, network: DiT, args: TrainArgs) -> list[torch.optim.Optimizer]:
        """See `Optimizer.build`."""
        return [_adamw(network.parameters(), args)]


@dataclass
class Muon(Optimizer):
    """Muon for the matrices of the blocks, AdamW for all other parameters.

    Embedding, head, convolution, noise level, norms and biases are AdamW's, with its options. An
    update has the size of AdamW's: 0.2 sqrt(max(rows, columns)) times an orthogonal matrix
    (arXiv:2502.16982), with Nesterov momentum.

    Attributes:
        lr: largest learning rate of the matrices.
        momentum: momentum of their gradients.
        weight_decay: weight decay of the matrices.
    """

    lr: float = 5e-3
    momentum: float = 0.95
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        check_choices(self)
        wrong = wrong_rates(self.lr, self.weight_decay)
        if not 0 <= self.momentum < 1:
            wrong.append(f"`momentum` is {self.momentum}, must be at least 0 and below 1")
        if wrong:
            raise ConfigError("; ".join(wrong))

    def build(self, network: DiT, args: TrainArgs) -> list[torch.optim.Optimizer]:
        """See `Optimizer.build`."""
        named = network.blocks.named_parameters()
        matrices = [p for name, p in named if p.ndim == 2 and "modulation" not in name]
        taken = set(map(id, matrices))
        kind = torch.optim.Muon if matrices[0].is_cuda else Float32Muon
        muon = kind(
            matrices,
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        return [_adamw((p for p in network.parameters() if id(p) not in taken), args), muon]


def wrong_rates(lr: float, weight_decay: float) -> list[str]:
    """Messages for a learning rate and a weight decay that cannot be used."""
    if not 0 < lr <= LARGEST_LR:
        return [f"`lr` is {lr}, must be above 0, at most {LARGEST_LR:g}"]
    if not 0 <= weight_decay <= 1 / lr:  # a step takes lr * weight_decay away
        return [
            f"`weight_decay` is {weight_decay}, must be at least 0, at most 1 / lr = {1 / lr:g}"
        ]
    return []


def _adamw(parameters: Iterable[nn.Parameter], args: TrainArgs) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameters,
        lr=args.lr,
        betas=(0.9, float(args.beta2)),  # torch takes no whole 0
        weight_decay=args.weight_decay,
        fused=True,
    )


class Float32Muon(torch.optim.Muon):
    """Muon of torch in float32: its bfloat16 products are four times slower on a CPU."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the matrices; a closure is not supported."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight.grad)
                average = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(average, group["momentum"])  # Nesterov
                update = orthogonal(update, group["ns_coefficients"], group["ns_steps"])
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.sub_(update, alpha=group["lr"] * 0.2 * max(weight.shape) ** 0.5)


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Nearest orthogonal matrix, about, by a Newton-Schulz iteration.

    Args:
        matrix: ``[m, n]``.
        coefficients: of its first, third and fifth power.
        steps: number of iterations.
    """
    a, b, c = coefficients
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T  # the smaller square
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.T  # [min(m, n), min(m, n)]
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide is matrix else x.T


class Update:
    """Update of the weights in an optimiser step.

    Args:
        network: the network, on its device.
        args: optimiser, schedule and clipping.
    """

    def __init__(self, network: DiT, args: TrainArgs) -> None:
        self.args = args
        self.parameters = list(network.parameters())
        self.optimizers = args.optimizer.build(network, args)
        for group in self._groups():
            group["initial_lr"] = group["lr"]

    def _groups(self) -> list[dict[str, Any]]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

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
        for group in self._groups():
            group["lr"] = group["initial_lr"] * factor
        for optimizer in self.optimizers:
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
