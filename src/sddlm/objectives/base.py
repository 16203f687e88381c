"""What every objective is: a loss for training, a bound for validation, and what it estimates.

Without ``from __future__ import annotations``: the command line reads the annotations of a base in
the leaf's module, and names that module lacks would silence the checks of all the leaf's options.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.models.vocab_head import UniformBound
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.process.uniform import UniformProcess
from sddlm.types import Loss, Noisy

#: a network with ``vocab_size``, a call ``(x_t, sigma) -> hidden`` and a ``head``
Model = Any


class Objective(ABC):
    """Turns clean tokens into a loss.

    Leaves are dataclasses whose fields are their knobs. ``causal`` says which network is needed.
    """

    causal: ClassVar[bool] = False
    process: UniformProcess

    @property
    @abstractmethod
    def estimate(self) -> Estimate:
        """What the exact optimum of the loss is."""

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


class UniformObjective(Objective):
    """Base of the objectives of the uniform process: corrupt, call the network, score positions.

    Its leaves say which positions are scored (``select``) and by which row loss (``term``).
    """

    def select(self, noisy: Noisy) -> Tensor:
        """Positions that the loss looks at ``[B, L]`` bool; every one unless a leaf chooses."""
        return torch.ones_like(noisy.resampled)

    @abstractmethod
    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> Any:
        """The row loss of the selected positions (see ``models.vocab_head``).

        Args:
            noisy: the corrupted batch.
            at: selected positions ``[B, L]`` bool, N of them.
            draw: for negatives.
        """

    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """See `Objective.loss`; divided by all counted positions, not only the selected ones."""
        counted = self.counted(x0, loss_mask)
        # 1. a time for each sequence, 2. noise
        noisy = self.process.corrupt(x0, draw.times(), draw, vocab_size=model.vocab_size)
        # 3. the network on the noisy tokens
        hidden = model(noisy.x_t, noisy.sigma)  # [B, L, D]
        # 4. only the rows that the loss looks at meet the vocabulary
        at = self.select(noisy) & counted  # [B, L]
        out = model.head(hidden[at], self.term(noisy, at, draw))
        per_row = out.rows.sum() / out.rows.numel() if out.rows.numel() else out.rows.sum()
        return Loss(out.total, counted.sum(), {"loss_per_row": per_row})

    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Integrand of the NELBO at one time a sequence, the estimate read rightly ``[B, L]``."""
        return uniform_bound(model, self.process, self.estimate, x0, draw)


def uniform_bound(
    model: Model, process: UniformProcess, estimate: Estimate, x0: Tensor, draw: Draw
) -> Tensor:
    """Integrand of the continuous-time NELBO of the uniform process.

    Its mean over t ~ U(0, 1) bounds -log p(x0) but for the prior term
    (`UniformProcess.prior_kl`). Times are drawn from U(1e-3, 1), as in MDLM, UDLM and Duo: the
    piece below 1e-3, where the integrand is defined but its variance is largest, is replaced by
    the average of the rest.

    Args:
        model: the network.
        process: of the corruption.
        estimate: what the network's output means; converted to leave-one-out.
        x0: clean tokens ``[B, L]``.
        draw: randomness.

    Returns:
        nats per position ``[B, L]``, differentiable only through the network's training term.
    """
    noisy = process.corrupt(x0, draw.times(), draw, vocab_size=model.vocab_size)
    hidden = model(noisy.x_t, noisy.sigma)  # [B, L, D]
    everywhere = torch.ones_like(x0, dtype=torch.bool)
    term = bound_term(noisy, everywhere, estimate)
    rows = model.head(hidden.flatten(0, 1), term).rows
    return rows.view_as(x0)


def bound_term(noisy: Noisy, at: Tensor, estimate: Estimate) -> UniformBound:
    """The NELBO's row loss at the selected positions.

    Args:
        noisy: the corrupted batch.
        at: ``[B, L]`` bool, N of them.
        estimate: what the network's output means.
    """
    alpha = noisy.alpha_t.expand_as(noisy.x0)[at]  # [N]
    return UniformBound(
        noisy.x0[at],
        noisy.x_t[at],
        alpha,
        noisy.dalpha_t.expand_as(noisy.x0)[at],
        to_leave_one_out(estimate, alpha, noisy.vocab_size),
    )
