"""Losses: what each estimates is stated by its ``estimate``."""

from sddlm.objectives.autoregressive import Autoregressive
from sddlm.objectives.base import Objective
from sddlm.objectives.contrastive import SDDLMV1, SDDLMV2
from sddlm.objectives.denoising import SDDLM, CalibratedDenoising, NaiveDenoising
from sddlm.objectives.nelbo import MDLM, NELBO

__all__ = [
    "MDLM",
    "NELBO",
    "SDDLM",
    "SDDLMV1",
    "SDDLMV2",
    "Autoregressive",
    "CalibratedDenoising",
    "NaiveDenoising",
    "Objective",
]
