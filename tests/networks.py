"""Networks of tests."""

from dataclasses import dataclass, field
from typing import Any

import torch

from sddlm.models.dit import DiT
from sddlm.process import Process, UniformProcess
from sddlm.process.estimate import Estimate


def randomised(model: DiT, scale: float = 0.3, seed: int = 1) -> DiT:
    """Every parameter normal with a standard deviation: a new network predicts uniformly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale, generator=generator)
    return model


@dataclass(frozen=True)
class Trained:
    """A network with its process and estimate, as a `sddlm.LanguageModel` has them."""

    network: Any
    process: Process = field(default_factory=UniformProcess)
    estimate: Estimate = Estimate.LEAVE_ONE_OUT
