"""What every objective is: a loss for training, a bound for validation, and what it estimates.

Without ``from __future__ import annotations``: the command line reads the annotations of a base in
the leaf's module, and names that module lacks would silence the checks of all the leaf's options.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.errors import check_choices
from sddlm.objectives.bound import bound
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.types import Loss, Noisy, SoftTokens

#: a network with ``vocab_size``, a call ``(x_t, sigma, rows=) -> hidden`` and a ``head``
Model = Any


class Objective(ABC):
    """Turns clean tokens into a loss.

    Leaves are dataclasses whose fields are their knobs. ``causal`` says which network is needed.
    """

    causal: ClassVar[bool] = False
    process: Process

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    @abstractmethod
    def estimate(self) -> Estimate:
        """What the exact optimum of the loss is."""

    def check(self, *, length: int, tokenizer: str | None = None) -> None:  # noqa: B027
        """Refuse what it cannot be trained with, before anything is written.

        Args:
            length: L of the rows.
            tokenizer: fingerprint of what makes the tokens; None where that is not known yet.

        Raises:
            ConfigError: what does not fit, and what to type.
        """

    def begin(self, vocab_size: int, counts: Callable[[], Tensor]) -> None:  # noqa: B027
        """Called once before training, by every process and also when a run is resumed.

        Args:
            vocab_size: V of the network.
            counts: gives how often each token occurs in the training data ``[V]`` int64; costs a
                pass over it.
        """

    def parts(self) -> "dict[str, Objective]":
        """Objectives whose losses are parts of this one's, by name; none if it has no parts.

        ``attractive`` pulls towards the clean token; what it leaves of the loss pushes away from
        others. For a look at their gradients (``train.health``); it is never trained with.
        """
        return {}

    @abstractmethod
    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """The training loss of a batch.

        Args:
            model: the network.
            x0: clean tokens ``[B, L]`` int64.
            draw: all randomness.
            loss_mask: positions that count ``[B, L]`` bool; None is all.
        """

    @abstractmethod
    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Estimate of the bound on -log p(x0), or the exact value, per position ``[B, L]`` nats."""

    def counted(self, x0: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """Positions over which ``loss`` and ``bound`` are averaged ``[B, L]`` bool."""
        return torch.ones_like(x0, dtype=torch.bool) if loss_mask is None else loss_mask


class DiffusionObjective(Objective):
    """Base of the objectives of diffusion: corrupt, call the network, score positions.

    Its leaves say which positions are scored (``select``) and by which row loss (``term``).
    """

    def times(self, draw: Draw) -> Tensor:
        """A time for each sequence ``[B]`` float64."""
        return draw.times()

    def select(self, noisy: Noisy) -> Tensor:
        """Positions that the loss looks at ``[B, L]`` bool; all whose clean token is not known."""
        return ~self.process.certain(noisy.x_t, vocab_size=noisy.vocab_size)

    @abstractmethod
    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> Any:
        """The row loss of the selected positions (see `models.row_losses`).

        Args:
            noisy: the corrupted batch.
            at: selected positions ``[B, L]`` bool, N of them.
            draw: for negatives.
        """

    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """See `Objective.loss`; divided by all counted positions, not only the selected ones."""
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
        """The loss of a batch that is already corrupted.

        Args:
            model: the network.
            noisy: the batch.
            draw: for negatives.
            loss_mask: positions that count ``[B, L]`` bool; None is all.
            weight: of each sequence ``[B]``; None is 1.
            x: what the network sees; None is ``noisy.x_t``.
        """
        counted = self.counted(noisy.x0, loss_mask)
        # whatever makes a GPU wait (how many rows?) comes before the network, not behind it
        at = self.select(noisy) & counted  # [B, L]
        noisy = noisy if loss_mask is None else replace(noisy, loss_mask=loss_mask)
        rows = at.flatten().nonzero()[:, 0]  # [N]
        term = self.term(noisy, at, draw)
        rows_weight = None if weight is None else weight[rows // at.shape[1]]
        # only the rows that the loss looks at meet the last MLP and the vocabulary
        hidden = model(noisy.x_t if x is None else x, noisy.sigma, rows=rows)  # [N, D]
        out = model.head(hidden, term, rows_weight)
        return Loss(out.total, counted.sum(), {"loss_per_row": (out.rows.sum(), at.sum())})

    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Integrand of the NELBO at one time a sequence, the estimate read rightly ``[B, L]``."""
        return bound(model, self.process, self.estimate, x0, draw)
