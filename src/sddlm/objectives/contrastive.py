"""SDDLM-V1 and V2: cross-entropy on noise positions and a term that pushes away from negatives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from sddlm.draw import Draw
from sddlm.errors import ConfigError, check_choices
from sddlm.models.terms import Contrastive
from sddlm.objectives.base import DiffusionObjective
from sddlm.objectives.denoising import Positions, noise_positions
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.types import Noisy


def _check(weight: float, eps: float) -> None:
    if not weight >= 0:
        raise ConfigError(f"--objective.weight is {weight}; it must be 0 or more, e.g. 1.0")
    if not 0 < eps < 1:
        raise ConfigError(f"--objective.eps is {eps}; it must be between 0 and 1, e.g. 1e-6")


@dataclass
class SDDLMV1(DiffusionObjective):
    """``-log(p_x0 + eps) + weight * mean log(p_negative + eps)`` (Eq. 9 of arXiv:2510.22926v1).

    For eps -> 0 its optimum is the leave-one-out prediction pi with the tail cut off,
    ``max(pi_v - weight / V, 0)`` renormalised: sharper samples, a worse bound. The same cut can be
    made on an SDDLM model while sampling (``tail_cut``).
    """

    process: UniformProcess = field(default_factory=UniformProcess)
    """How text is corrupted."""
    positions: Positions = "resampled"
    """resampled or changed, as in SDDLM."""
    weight: float = 1.0
    """Weight of the negative term."""
    eps: float = 1e-6
    """Inside both logarithms; keep it far below weight / V."""
    negatives: int | Literal["exact"] = 1
    """Uniform tokens drawn for each position, or ``exact`` for their expectation."""

    def __post_init__(self) -> None:
        check_choices(self, "--objective.")
        _check(self.weight, self.eps)
        if self.negatives != "exact" and self.negatives < 1:
            raise ConfigError(
                f"--objective.negatives is {self.negatives}; give 1 or more tokens, or exact"
            )

    @property
    def estimate(self) -> Estimate:
        """Truncated leave-one-out."""
        return Estimate.TRUNCATED

    def select(self, noisy: Noisy) -> Tensor:
        """The noise-replaced positions."""
        return noise_positions(noisy, self.positions)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> Contrastive:
        """The contrastive row loss, its negatives drawn or exact."""
        negatives = None
        if self.negatives != "exact":
            shape = (noisy.x0.shape[1], self.negatives)
            negatives = draw.integers("negatives", *shape, high=noisy.vocab_size)[at]  # [N, K]
        return Contrastive(noisy.x0[at], negatives, self.weight, self.eps)


@dataclass
class SDDLMV2(DiffusionObjective):
    """``-log(p_x0 + eps) + weight * log(p_x_t + eps)``: the noisy token is the negative.

    Its optimum is leave-one-out with the entry of x_t set to zero; no tail is cut.
    """

    process: UniformProcess = field(default_factory=UniformProcess)
    """How text is corrupted."""
    positions: Positions = "resampled"
    """resampled or changed, as in SDDLM."""
    weight: float = 1.0
    """Weight of the negative term."""
    eps: float = 1e-6
    """Inside both logarithms."""

    def __post_init__(self) -> None:
        check_choices(self, "--objective.")
        _check(self.weight, self.eps)

    @property
    def estimate(self) -> Estimate:
        """Leave-one-out without x_t."""
        return Estimate.WITHOUT_X_T

    def select(self, noisy: Noisy) -> Tensor:
        """The noise-replaced positions."""
        return noise_positions(noisy, self.positions)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> Contrastive:
        """The contrastive row loss with x_t as the negative."""
        return Contrastive(noisy.x0[at], noisy.x_t[at, None], self.weight, self.eps)
