"""The adaptive sampler re-evaluates the network when accumulated change exceeds a budget."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.sampling.ancestral import Updates
from sddlm.sampling.cache import PredictionCache
from sddlm.sampling.context import SamplingContext
from sddlm.sampling.lazy import Lazy


@dataclass
class Adaptive(Lazy):
    """Sampler that reuses a prediction until the accumulated change exceeds a budget.

    The posterior at a position, with a fixed prediction p of its clean token, composes over steps:
    made step by step or in one, it is the same law. The error is that positions do not see each
    other's updates. What they would learn is counted in nats: of a position that redraws its
    token, KL(p || p(x0 | x_t)), because its clean token is now distributed as p; of one that draws
    it from the prediction, the entropy of p besides; and of one that stays, no more than

        -log P(stays | noise) = log(nu(t) / nu(s)),    nu the noise odds,

    which is counted once for all. The network is called at the first step that needs it after the
    sum since its last call has reached ``budget``. With masks these are the entropies of the tokens
    revealed, as in entropy-bounded unmasking (arXiv:2505.24857), whose order is that of certainty;
    here it is that of the process, so the law is `Lazy`'s but for what the budget allows.

    A sequence whose predictions are certain is thus finished without another call, and one call
    is enough where the budget is infinite. The steps and all random numbers are those of `Lazy`:
    a budget of 0 draws the same tokens with the same calls, and no logits are computed for a
    position that cannot change. Each sequence decides by itself.

    Attributes:
        budget: largest cost between two calls of a sequence, 0 or more; nats for ``entropy``.
        criterion: ``entropy`` as above. ``confidence`` counts probabilities in place of nats: of
            not having drawn the likeliest token (1 - max p), the total variation between p and
            p(x0 | x_t), and P(leaves | noise).
    """

    budget: float = 4.0
    criterion: Literal["entropy", "confidence"] = "entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget >= 0:
            raise ConfigError(
                f"`budget` is {self.budget}, must be at least 0: try `budget=4`, or 0 to call the "
                "network at every step"
            )

    def _cache(self, run: SamplingContext) -> PredictionCache:
        """See `Lazy._cache`."""
        return PredictionCache(run, self.budget, partial(self.drift_bound, run))

    def _cost(
        self, run: SamplingContext, p: Tensor, current: Tensor, new: Tensor, updates: Updates
    ) -> Tensor:
        """See `Ancestral._cost`."""
        V = p.shape[1]
        p_own = p.gather(1, current[:, None])[:, 0]
        alphas = (updates.alpha_t, updates.alpha_s)
        redraw, _ = run.process.jump(p_own, current, *alphas, vocab_size=V)
        nu = run.process.odds_at(current, updates.alpha_t, V)
        changed, cost = new != current, torch.zeros_like(p_own)
        at = changed.nonzero()[:, 0]
        cost[at] = self._divergence(p_own[at], nu[at])
        at = (changed & (updates.u >= redraw)).nonzero()[:, 0]
        cost[at] += self._uncertainty(p[at])
        return cost

    def _uncertainty(self, p: Tensor) -> Tensor:
        """Uncertainty of predictions ``[N, V]``: ``[N]``."""
        if self.criterion == "confidence":
            return 1 - p.amax(-1)
        # a sum in order, which does not depend on how many rows there are
        return torch.special.entr(p).cumsum(-1)[:, -1]

    def _divergence(self, p_own: Tensor, nu: Tensor) -> Tensor:
        """Divergence of p from p(x0 | x_t), which has the odds 1 + 1 / nu more at x_t: ``[N]``."""
        if self.criterion == "confidence":
            return p_own * (1 + nu) / (p_own + nu) - p_own
        rest = torch.log1p(p_own / nu)
        return (rest - p_own * torch.log1p(1 / nu)).clamp(min=0)

    def drift_bound(self, run: SamplingContext, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Largest cost of staying from ``alpha_t [A]`` to ``alpha_s [A]``: ``[A]``."""
        leaves = run.process.largest_jump_bound(alpha_t, alpha_s, vocab_size=run.vocab_size)
        return leaves if self.criterion == "confidence" else -torch.log1p(-leaves)
