"""Noising processes and schedules. The command line offers by name what is imported here."""

from sddlm.process.base import Process
from sddlm.process.hybrid import HybridProcess
from sddlm.process.masked import MaskedProcess
from sddlm.process.mixture import MixtureProcess
from sddlm.process.schedule import (
    Cosine,
    CosinePower,
    Geometric,
    LogLinear,
    Polynomial,
    Schedule,
)
from sddlm.process.uniform import UniformProcess

__all__ = [
    "Cosine",
    "CosinePower",
    "Geometric",
    "HybridProcess",
    "LogLinear",
    "MaskedProcess",
    "MixtureProcess",
    "Polynomial",
    "Process",
    "Schedule",
    "UniformProcess",
]
