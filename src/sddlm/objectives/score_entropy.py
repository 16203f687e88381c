"""Score entropy (SEDD): the network estimates ratios of noisy marginals."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.models.row_losses import RowLoss
from sddlm.objectives.base import DiffusionObjective
from sddlm.objectives.bound import bound_term
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.hybrid import HybridProcess
from sddlm.process.mixture import MixtureProcess
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy


@dataclass
class SEDD(DiffusionObjective):
    """Score entropy (arXiv:2310.16834) with the network scaled as there, for either prior.

    The network predicts log q(y, others) / q(x_t, others) for every y but x_t, without constraint:
    its scores need not belong to a distribution. The loss is a bound for every score. Samplers
    convert a score to the prediction p whose score it would be, with negative entries cut
    (`Estimate.SCORE`).

    Attributes:
        process: forward process: UniformProcess or MaskedProcess.
    """

    estimate: ClassVar[Estimate] = Estimate.SCORE
    process: Process = field(default_factory=UniformProcess)

    def __post_init__(self) -> None:
        check_choices(self)
        if isinstance(self.process, (HybridProcess, MixtureProcess)):
            raise ConfigError(
                f"`process` is {type(self.process).__name__}, whose masks have a score that the "
                "network never gives; SEDD takes UniformProcess or MaskedProcess, NELBO takes all"
            )

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> RowLoss:
        """Score entropy weighted by the rate of the noise."""
        return bound_term(self.process, noisy, at, self.estimate)
