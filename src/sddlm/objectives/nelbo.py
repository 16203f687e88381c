"""NELBO objectives: any process, and masked diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from sddlm.errors import check_choices
from sddlm.models.row_losses import CrossEntropy, RowLoss
from sddlm.objectives.base import DiffusionObjective
from sddlm.objectives.bound import bound_term
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy


@dataclass
class NELBO(DiffusionObjective):
    """Continuous-time NELBO of a process, with the same alpha in the loss as in the noise.

    With `UniformProcess` it is the objective of UDLM (arXiv:2412.10193) and of Duo
    (arXiv:2506.10892) after its curriculum; with `HybridProcess` that of GIDD (arXiv:2503.04482),
    unweighted. Its optimum is the leave-one-out prediction. All positions that are not certain are
    scored; under uniform noise a kept one has 1 / (1 + c) of the weight of a changed one.

    Attributes:
        process: forward process.
    """

    estimate: ClassVar[Estimate] = Estimate.LEAVE_ONE_OUT
    process: Process = field(default_factory=UniformProcess)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> RowLoss:
        """Integrand of the NELBO."""
        return bound_term(self.process, noisy, at, self.estimate)


@dataclass
class MDLM(DiffusionObjective):
    """Masked diffusion: cross-entropy on the masks (arXiv:2406.07524).

    A token that is not masked is carried over exactly. Weighting ``bound`` is -alpha' / (1 -
    alpha), 1/t for the log-linear schedule, and gives the NELBO of `MaskedProcess`.

    Attributes:
        process: forward process.
        weighting: bound: the NELBO; constant: 1 for every mask, with less gradient noise but no
            bound.
    """

    estimate: ClassVar[Estimate] = Estimate.LEAVE_ONE_OUT
    process: MaskedProcess = field(default_factory=MaskedProcess)
    weighting: Literal["bound", "constant"] = "bound"

    def __post_init__(self) -> None:
        check_choices(self)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> RowLoss:
        """Cross-entropy, weighted or not."""
        if self.weighting == "constant":
            return CrossEntropy(noisy.x0[at])
        return bound_term(self.process, noisy, at, self.estimate)
