"""Base classes of objectives: a training loss, a validation bound, and an estimate.

Without ``from __future__ import annotations``: the command line resolves the annotations of a base
class in the subclass's module. A name missing there would disable the checks of all its options.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.objectives.bound import bound
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.types import Loss, Noisy, SoftTokens

#: a network with ``vocab_size``, a call ``(x_t, sigma, rows=) -> hidden`` and a ``head``
Model = Any


class Objective(ABC):
    """Base class of training objectives: clean tokens to a loss.

    Subclasses are dataclasses of their options. ``causal`` states which network is
    required.
    """

    causal: ClassVar[bool] = False
    process: Process

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    @abstractmethod
    def estimate(self) -> Estimate:
        """Parametrisation of the network at the exact optimum of the loss."""

    @property
    def needs_hollow(self) -> bool:
        """Whether the estimate is learnt only by a network that does not see its own token."""
        return False

    def check(self, *, length: int, tokenizer: str | None = None) -> None:  # noqa: B027
        """Check the options of a training before anything is written.

        Args:
            length: L of the rows.
            tokenizer: fingerprint of the tokenizer; None if not known yet.

        Raises:
            ConfigError: the objective cannot be trained with them.
        """

    def setup(self, vocab_size: int, counts: Callable[[], Tensor]) -> None:  # noqa: B027
        """Prepare for training; called once by every process, also when a run is resumed.

        Args:
            vocab_size: V of the network.
            counts: returns the count of each token in the training data ``[V]`` int64; costs a pass
                over the data.
        """

    def components(self) -> "dict[str, Objective]":
        """Components of the loss by name; empty if it has none.

        ``attractive`` pulls towards the clean token; the rest of the loss pushes away from other
        tokens. Used to measure their gradients (``train.diagnostics``), never for training.
        """
        return {}

    @abstractmethod
    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """Training loss of a batch.

        Args:
            model: the network.
            x0: clean tokens ``[B, L]`` int64.
            draw: source of all randomness.
            loss_mask: positions that are scored ``[B, L]`` bool; None is all.

        Returns:
            the sum over the scored positions, their number, and ``mean``, nats per token.
        """

    @abstractmethod
    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Estimate of a bound on -log p(x0), or its exact value, per position ``[B, L]`` nats.

        Args:
            model: the network.
            x0: clean tokens ``[B, L]`` int64.
            draw: source of all randomness.
        """

    def loss_positions(self, x0: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Positions over which ``loss`` and ``bound`` are averaged ``[B, L]`` bool."""
        return torch.ones_like(x0, dtype=torch.bool) if loss_mask is None else loss_mask


def check_architecture(objective: Objective, *, hollow: bool) -> None:
    """Check that a network can have the optimum of an objective.

    Args:
        objective: the training objective.
        hollow: whether the network's output at a position does not depend on the token there.

    Raises:
        ConfigError: the optimum depends on that token, or only such a network has it.
    """
    blind = objective.estimate in (Estimate.LEAVE_ONE_OUT, Estimate.TRUNCATED)
    if hollow and not blind:
        raise ConfigError(
            f"`architecture` is hollow, which cannot depend on the noisy token as the estimate "
            f"{objective.estimate.value} of the objective does; use `architecture='dit'`"
        )
    if objective.needs_hollow and not hollow:
        raise ConfigError(
            "`positions` all needs a network that does not see its own token: add "
            "`architecture='hollow'`, or use `positions='resampled'`"
        )


class DiffusionObjective(Objective):
    """Base class of diffusion objectives: corrupt, call the network, score positions.

    Subclasses define which positions are scored (``select``) and by which row loss (``term``).
    """

    def times(self, draw: Draw) -> Tensor:
        """Sample a time for each sequence ``[B]`` float64."""
        return draw.times()

    def select(self, noisy: Noisy) -> Tensor:
        """Positions that the loss uses ``[B, L]`` bool: by default all that are not certain."""
        return ~self.process.certain(noisy.x_t, vocab_size=noisy.vocab_size)

    @abstractmethod
    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> Any:
        """Row loss of the selected positions (see `models.row_losses`).

        Args:
            noisy: the corrupted batch.
            at: selected positions ``[B, L]`` bool, N of them.
            draw: randomness of the negatives.
        """

    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """See `Objective.loss`; ``count`` includes scored positions that are not selected."""
        noisy = self.process.corrupt(x0, self.times(draw), draw, vocab_size=model.vocab_size)
        return self.score(model, noisy, draw, loss_mask)

    def score(
        self,
        model: Model,
        noisy: Noisy,
        draw: Draw,
        loss_mask: Tensor | None = None,
        *,
        weight: Tensor | None = None,
        x: Tensor | SoftTokens | None = None,
    ) -> Loss:
        """Loss of a batch that is already corrupted.

        Args:
            model: the network.
            noisy: the batch.
            draw: randomness of the negatives.
            loss_mask: positions that are scored ``[B, L]`` bool; None is all.
            weight: weight of each sequence ``[B]``; None is 1.
            x: input of the network; None is ``noisy.x_t``.

        Raises:
            ConfigError: see `check_architecture`.
        """
        check_architecture(self, hollow=getattr(model, "hollow", False))
        counted = self.loss_positions(noisy.x0, loss_mask)
        # the synchronisation with a GPU (how many rows?) comes before the network, not after it
        at = self.select(noisy) & counted  # [B, L]
        noisy = noisy if loss_mask is None else replace(noisy, loss_mask=loss_mask)
        rows = at.flatten().nonzero()[:, 0]  # [N]
        term = self.term(noisy, at, draw)
        rows_weight = None if weight is None else weight[rows // at.shape[1]]
        # only rows that the loss uses pass the last MLP and the vocabulary head
        hidden = model(noisy.x_t if x is None else x, noisy.sigma, rows=rows)  # [N, D]
        out = model.head(hidden, term, rows_weight)
        return Loss(out.total, counted.sum(), {"loss_per_row": (out.rows.sum(), at.sum())})

    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Integrand of the NELBO at one time per sequence ``[B, L]``."""
        return bound(model, self.process, self.estimate, x0, draw)
