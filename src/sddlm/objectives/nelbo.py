"""The bound itself as an objective (UDLM, Duo)."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sddlm.draw import Draw
from sddlm.models.vocab_head import UniformBound
from sddlm.objectives.base import UniformObjective, bound_term
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.types import Noisy


@dataclass
class UniformNELBO(UniformObjective):
    """Continuous-time NELBO of the uniform process (arXiv:2412.10193, arXiv:2506.10892).

    The stable form of `models.vocab_head.UniformBound`, with the same alpha in the loss as in the
    noise. Its optimum is the leave-one-out prediction. Every position counts, a kept one by
    1 / (1 + c).
    """

    process: UniformProcess = field(default_factory=UniformProcess)
    """How text is corrupted."""

    @property
    def estimate(self) -> Estimate:
        """Leave-one-out."""
        return Estimate.LEAVE_ONE_OUT

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> UniformBound:
        """The NELBO's integrand."""
        return bound_term(noisy, at, self.estimate)
