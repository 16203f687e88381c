"""The lazy sampler: the ancestral one, without the work whose outcome is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.sampling.ancestral import Ancestral, Transition


@dataclass
class Lazy(Ancestral):
    """Asks the network only where its answer can matter; same numbers, same law as `Ancestral`.

    Whatever the network says, a position changes with probability at most

        b = [a_s - a_t + (1 - a_ts)(1 - a_s)] / (1 - a_t)

    So with u drawn first, only positions with u < b meet the vocabulary, and only sequences that
    have one meet the network: about 2 ln(steps) rows a position over a whole run instead of
    ``steps``. Truncation keeps the bound; a greedy last step needs every position once.
    """

    def candidates(
        self, x: Tensor, u: Tensor, guessed: Tensor, step: Transition, vocab_size: int
    ) -> Tensor:
        """Positions that can change ``[B, L]`` bool."""
        if step.greedy:
            return torch.ones_like(x, dtype=torch.bool)
        return u < step.bound(x, guessed, vocab_size)
