"""Cross-entropy objectives of the uniform process: naive denoising, SDDLM, calibrated denoising.

All three are plain cross-entropy. They differ in the positions that they score, which determines
what the network learns to estimate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from sddlm.errors import check_choices
from sddlm.models.row_losses import CrossEntropy
from sddlm.objectives.base import DiffusionObjective
from sddlm.process.estimate import Estimate
from sddlm.process.schedule import below_one
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy

Positions = Literal["resampled", "changed"]


def noise_positions(noisy: Noisy, positions: Positions) -> Tensor:
    """Positions replaced by the process (``resampled``) or with x_t != x0 (``changed``)."""
    return noisy.resampled if positions == "resampled" else noisy.changed


@dataclass
class NaiveDenoising(DiffusionObjective):
    """Cross-entropy at every position; its optimum is the denoiser p(x0 | x_t).

    Public code samples and scores it as if it were leave-one-out, and so keeps noise tokens. This
    library converts it.

    Attributes:
        process: forward process.
    """

    estimate: ClassVar[Estimate] = Estimate.DENOISER
    process: UniformProcess = field(default_factory=UniformProcess)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> CrossEntropy:
        """Plain cross-entropy."""
        return CrossEntropy(noisy.x0[at])


@dataclass
class CalibratedDenoising(DiffusionObjective):
    """Cross-entropy at every position of leave-one-out logits plus the known ``log(1 + c)`` at x_t.

    The shift converts the network's leave-one-out prediction to the denoiser, whose cross-entropy
    is minimised. So the optimum of the *network* is leave-one-out, and every position trains it.

    Attributes:
        process: forward process.
    """

    estimate: ClassVar[Estimate] = Estimate.LEAVE_ONE_OUT
    process: UniformProcess = field(default_factory=UniformProcess)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> CrossEntropy:
        """Cross-entropy with the shifted logit of x_t."""
        alpha_t = below_one(noisy.alpha_t)  # at 1 the shift would be infinite
        shift = self.process.own_token_logit(noisy.x_t, alpha_t, noisy.vocab_size)  # [B, L]
        return CrossEntropy(noisy.x0[at], noisy.x_t[at], shift[at])


@dataclass
class SDDLM(DiffusionObjective):
    """Cross-entropy on noise-replaced positions only (Eq. 7 of arXiv:2510.22926v1); the default.

        SDDLM().loss(network, x0, Draw.simple(0, step, len(x0))).mean.backward()

    Its optimum is the leave-one-out prediction, which samplers and bounds read without conversion.

    Attributes:
        process: forward process.
        positions: resampled: replaced by the process, possibly by itself (optimum: leave-one-out,
            exactly); changed: x_t != x0, as written in the paper (optimum: leave-one-out without
            x_t; harmless with tens of thousands of tokens, biased with tens); all: also the kept
            ones, for a hollow network, which cannot copy its own token (optimum: leave-one-out,
            exactly; learns several times faster).
    """

    process: UniformProcess = field(default_factory=UniformProcess)
    positions: Literal["resampled", "changed", "all"] = "resampled"

    def __post_init__(self) -> None:
        check_choices(self)

    @property
    def estimate(self) -> Estimate:
        """Leave-one-out, without x_t for ``changed``."""
        changed = self.positions == "changed"
        return Estimate.WITHOUT_X_T if changed else Estimate.LEAVE_ONE_OUT

    @property
    def needs_hollow(self) -> bool:
        """With all positions, another network would learn the denoiser."""
        return self.positions == "all"

    def select(self, noisy: Noisy) -> Tensor:
        """The noise-replaced positions, or all."""
        if self.positions == "all":
            return super().select(noisy)
        return noise_positions(noisy, self.positions)

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> CrossEntropy:
        """Plain cross-entropy."""
        return CrossEntropy(noisy.x0[at])
