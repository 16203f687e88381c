"""Enumerable worlds: exact predictions, sampling distributions, bounds and optima.

A world is a distribution over all V^L sequences. The best predictions of any network, the output
distribution of a sampler and the value of a bound are computed exactly, without training, to verify
objectives and samplers. ``python -m sddlm.exact`` prints a table.
"""

from sddlm.exact.exact import elbo, law, nelbo
from sddlm.exact.optimum import minimise, noisy_batch
from sddlm.exact.tabular import TabularModel
from sddlm.exact.world import Predictions, World, entropy, state_id, states, total_variation

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
