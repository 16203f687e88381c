"""Training objectives; the ``estimate`` of each states what its optimum is."""

from sddlm.objectives.autoregressive import Autoregressive
from sddlm.objectives.base import Objective
from sddlm.objectives.contrastive import SDDLMV1, SDDLMV2
from sddlm.objectives.curriculum import DuoCurriculum
from sddlm.objectives.denoising import SDDLM, CalibratedDenoising, NaiveDenoising
from sddlm.objectives.discrete import D3PM
from sddlm.objectives.distillation import DCD
from sddlm.objectives.nelbo import MDLM, NELBO
from sddlm.objectives.score_entropy import SEDD

__all__ = [
    "D3PM",
    "DCD",
    "MDLM",
    "NELBO",
    "SDDLM",
    "SDDLMV1",
    "SDDLMV2",
    "SEDD",
    "Autoregressive",
    "CalibratedDenoising",
    "DuoCurriculum",
    "NaiveDenoising",
    "Objective",
]
