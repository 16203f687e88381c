"""SDDLM-V1 and V2: cross-entropy on noise positions plus a term against negative tokens."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.models.row_losses import Contrastive
from sddlm.objectives.base import DiffusionObjective, Objective
from sddlm.objectives.denoising import Positions, noise_positions
from sddlm.objectives.negatives import Negatives, NoisyToken, UniformNegatives
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy

#: float32 underflows below; above this share of weight / V, eps hides the cut of the tail
_SMALLEST_EPS, _LARGEST_SHARE = 1e-30, 0.1
#: above it, the loss of a batch overflows float32
_LARGEST_WEIGHT = 1e6


@dataclass
class SDDLMV1(DiffusionObjective):
    """``-log(p_x0 + eps) + weight * mean log(p_negative + eps)`` (Eq. 9 of arXiv:2510.22926v1).

    For eps -> 0 its optimum is the leave-one-out prediction pi with its tail cut off,
    ``max(pi_v - weight * n_v, 0)`` renormalised, where n is the distribution of the negatives (1/V
    for `UniformNegatives`). Samples are sharper and the bound is worse. An SDDLM model can be cut
    in the same way while sampling (``tail_cut``).

    Attributes:
        process: forward process.
        positions: resampled or changed, as in SDDLM.
        weight: weight of the negative term.
        eps: added inside both logarithms; keep it far below weight / V.
        negatives: distribution of the negatives, with options of its own: UniformNegatives,
            UnigramNegatives, SequenceNegatives, TopNegatives, NoisyToken or MixedNegatives.
    """

    process: UniformProcess = field(default_factory=UniformProcess)
    positions: Positions = "resampled"
    weight: float = 1.0
    eps: float = 1e-6
    negatives: Negatives = field(default_factory=UniformNegatives)

    def __post_init__(self) -> None:
        if not isinstance(self.negatives, Negatives):
            raise ConfigError(
                f"`negatives` is {self.negatives!r}, must be a law of negatives, such as "
                "`negatives=UniformNegatives()`"
            )
        check_choices(self)
        weight, eps = self.weight, self.eps
        if not 0 <= weight <= _LARGEST_WEIGHT:
            raise ConfigError(
                f"`weight` is {weight}; it must be 0 to {_LARGEST_WEIGHT:g}, e.g. 1.0"
            )
        if not _SMALLEST_EPS <= eps < 1:
            raise ConfigError(
                f"`eps` is {eps}; it must be between {_SMALLEST_EPS:g} and 1, e.g. 1e-6"
            )

    @property
    def estimate(self) -> Estimate:
        """Truncated leave-one-out; with `NoisyToken`, leave-one-out without x_t."""
        return self.negatives.estimate

    def components(self) -> dict[str, Objective]:
        """The cross-entropy alone, which is this objective at weight 0."""
        return {"attractive": replace(self, weight=0.0)}

    def setup(self, vocab_size: int, counts: Callable[[], Tensor]) -> None:
        """See `Objective.setup`; warns if eps hides the cut of the tail."""
        self.negatives.setup(counts)
        scale = self.weight / vocab_size
        if self.estimate is Estimate.TRUNCATED and 0 < _LARGEST_SHARE * scale < self.eps:
            warnings.warn(
                f"`objective.eps` {self.eps:g} is not far below weight / V = {scale:.2g}, so the "
                f"tail is not cut cleanly; use `objective.eps={scale / 100:.0e}`",
                stacklevel=2,
            )

    def select(self, noisy: Noisy) -> Tensor:
        """The noise-replaced positions."""
        return noise_positions(noisy, self.positions)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> Contrastive:
        """Contrastive row loss with sampled or exact negatives."""
        negatives = self.negatives.mixture(noisy, at, draw)
        return Contrastive(noisy.x0[at], negatives, self.weight, self.eps)


@dataclass
class SDDLMV2(SDDLMV1):
    """``-log(p_x0 + eps) + weight * log(p_x_t + eps)``: the noisy token is the negative.

    `SDDLMV1` with `NoisyToken`. Its optimum is leave-one-out with the entry of x_t set to zero,
    without a cut of the tail.

    Attributes:
        process: forward process.
        positions: resampled or changed, as in SDDLM.
        weight: weight of the negative term.
        eps: added inside both logarithms.
    """

    negatives: Negatives = field(default_factory=NoisyToken, init=False, repr=False)
