"""Networks of tests."""

import torch

from sddlm.models.dit import DiT


def randomised(model: DiT, scale: float = 0.3, seed: int = 1) -> DiT:
    """Every parameter normal with a standard deviation: a new network predicts uniformly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, scale, generator=generator)
    return model
