"""Estimators of the negative log-likelihood: the bound of a diffusion model, or the exact value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sddlm.lm import LanguageModel
from sddlm.objectives.autoregressive import Autoregressive
from sddlm.objectives.bound import T_MIN, bound
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, warn_of_bias
from sddlm.rng import Draw

#: of u in the noise level n_max u^_POWER
_POWER = 3


def importance_times(process: Process, u: Tensor) -> tuple[Tensor, Tensor]:
    """Times for uniform numbers in (0, 1), with their importance weights.

    With n = 1 - alpha_t, the integrand is about 1 / n with probability n and else nearly 0. Of
    times drawn uniformly its mean square grows like log 1/n and its kurtosis like 1 / n^2: the few
    smallest times rule the error, and most estimates of the error are too small. Here n = n_max
    u^3, weighted with dn / du: moment m is finite for powers above m - 1. The result does not
    depend on how the schedule runs through the levels.

    Args:
        process: of the noise.
        u: ``[B]`` float64.

    Returns:
        t and dt / du, each ``[B]`` float64.
    """
    u = u.clamp(min=1e-4)  # below, 1 - alpha is lost in rounding, and all but nothing is there
    least, most = _ends(process, u)
    t = process.schedule.t_of_alpha(1 - noise_levels(process, u)).clamp(0, 1)
    return t, (most - least) * _POWER * u ** (_POWER - 1) / -process.schedule.dalpha(t)


def noise_levels(process: Process, u: Tensor) -> Tensor:
    """Noise levels 1 - alpha_t of `importance_times` (any shape, float64)."""
    least, most = _ends(process, u)
    return least + (most - least) * u**_POWER


def _ends(process: Process, u: Tensor) -> Tensor:
    """Least and largest noise level ``[2]``, on the device of ``u``."""
    return 1 - process.schedule.alpha(torch.tensor([0.0, 1.0], dtype=torch.float64)).to(u)


class NLLEstimate(NamedTuple):
    """Estimates of -log p of each position at one time a sequence ``[B, L]``, nats.

    Attributes:
        published: as papers average it: over times in [1e-3, 1], with weight 1.
        complete: over all times in (0, 1), so that with the prior term it is a bound. Below 1e-3
            the network is read as if it were that time (`sddlm.objectives.bound`).
    """

    published: Tensor
    complete: Tensor


class NLLEstimator(Protocol):
    """Estimates -log p of each token, whatever loss trained the model."""

    def nats(self, model: Any, x0: Tensor, draw: Draw) -> NLLEstimate:
        """Nats of each position; the mean over draws is the bound, or the exact value."""
        ...

    def loss_positions(self, x0: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """The given positions that count ``[B, L]`` bool."""
        ...

    def prior_kl(self, model: Any) -> float:
        """Prior term of the complete bound, nats per token."""
        ...


@dataclass(frozen=True)
class DiffusionNLL:
    """The bound of any diffusion model: it needs the process and the estimate, no objective.

    Times are drawn by `importance_times`, so that small ones come often and weigh little.

    Attributes:
        process: that the model undoes.
        estimate: what its output means.
    """

    process: Process
    estimate: Estimate

    def nats(self, model: Any, x0: Tensor, draw: Draw) -> NLLEstimate:
        """Integrand of the NELBO at one time a sequence, weighted (see the class)."""
        warn_of_bias(self.estimate, model.vocab_size)
        t, weight = importance_times(self.process, draw.times(0.0))  # [B]
        found = bound(model, self.process, self.estimate, x0, draw, t).double()
        weighted = found * weight[:, None]
        published = weighted * (t >= T_MIN)[:, None] / (1 - T_MIN)
        return NLLEstimate(published, weighted)

    def loss_positions(self, x0: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """All of the given ones ``[B, L]`` bool."""
        return torch.ones_like(x0, dtype=torch.bool) if loss_mask is None else loss_mask

    def prior_kl(self, model: Any) -> float:
        """KL of the fully noised token from the prior, nats."""
        return self.process.prior_kl(model.vocab_size)


@dataclass(frozen=True)
class AutoregressiveNLL:
    """The exact value of an autoregressive model."""

    objective: Autoregressive = field(default_factory=Autoregressive)

    def nats(self, model: Any, x0: Tensor, draw: Draw) -> NLLEstimate:
        """-log p of each token given those before it; nothing is drawn."""
        exact = self.objective.bound(model, x0, draw).double()
        return NLLEstimate(exact, exact)

    def loss_positions(self, x0: Tensor, loss_mask: Tensor | None = None) -> Tensor:
        """All but the first of a row ``[B, L]`` bool."""
        return self.objective.loss_positions(x0, loss_mask)

    def prior_kl(self, model: Any) -> float:
        """None: nothing is noised."""
        return 0.0


def nll_estimator(lm: LanguageModel) -> NLLEstimator:
    """The estimator of a model, whatever loss trained it."""
    return DiffusionNLL(lm.process, lm.estimate) if lm.estimate.diffusion else AutoregressiveNLL()
