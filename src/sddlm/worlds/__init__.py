"""Worlds small enough to enumerate: exact predictions, laws of samplers, bounds and optima.

A world is a law over all V^L sequences. What a network can at best learn of it, what a sampler
makes of a prediction, and what a bound says of one are computed here without training, so that
objectives and samplers can be judged by what they are. ``python -m sddlm.worlds`` prints a table.
"""

from sddlm.worlds.exact import elbo, law, nelbo
from sddlm.worlds.optimum import minimise, noisy_batch
from sddlm.worlds.tabular import TabularModel
from sddlm.worlds.world import Predictions, World, entropy, state_id, states, total_variation

__all__ = [
    "Predictions",
    "TabularModel",
    "World",
    "elbo",
    "entropy",
    "law",
    "minimise",
    "nelbo",
    "noisy_batch",
    "state_id",
    "states",
    "total_variation",
]
