"""A distribution over all sequences, and the exact predictions of an ideal network.

The S = V^L sequences are numbered with the last position running fastest (`states`, `state_id`).
Noisy sequences may contain one more token, the mask of a process. They are numbered likewise, with
the V of the process (``extra_tokens`` more than the world's).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

#: predictions ``[S, L, V]`` for every noisy sequence at an ``alpha``
Predictions = Callable[[float], Tensor]


def states(vocab_size: int, length: int) -> Tensor:
    """Enumerate all sequences in the order of their numbers ``[S, L]`` int64."""
    number = torch.arange(vocab_size**length)[:, None]
    return number // vocab_size ** torch.arange(length - 1, -1, -1) % vocab_size


def state_id(tokens: Tensor, vocab_size: int) -> Tensor:
    """Numbers ``[...]`` int64 of sequences ``[..., L]``."""
    length = tokens.shape[-1]
    place = vocab_size ** torch.arange(length - 1, -1, -1, device=tokens.device)
    return (tokens * place).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Total variation distance of two distributions ``[S]``."""
    return 0.5 * (p - q).abs().sum().item()


def entropy(p: Tensor) -> float:
    """Entropy of a distribution ``[S]``, nats."""
    return -torch.special.xlogy(p, p).sum().item()


@dataclass(frozen=True)
class World:
    """Enumerable world: a distribution over all S = V^L sequences, with its exact predictions.

        world = World.random(vocab_size=8, length=3)
        world.leave_one_out(alpha=0.5)  # [S, L, V]

    Attributes:
        probabilities: probability of each sequence ``[S]`` float64.
        vocab_size: V.
        length: L.
    """

    probabilities: Tensor
    vocab_size: int
    length: int

    def __post_init__(self) -> None:
        if self.probabilities.shape != (self.vocab_size**self.length,):
            raise ValueError(
                f"{self.vocab_size}^{self.length} probabilities are needed, "
                f"not {tuple(self.probabilities.shape)}"
            )

    @classmethod
    def random(
        cls, vocab_size: int, length: int, *, seed: int = 0, concentration: float = 0.15
    ) -> World:
        """Sample a world from a Dirichlet; a smaller concentration is more uneven."""
        gamma = np.random.default_rng(seed).gamma(concentration, size=vocab_size**length)
        weights = torch.from_numpy(gamma) + 1e-12
        return cls(weights / weights.sum(), vocab_size, length)

    @classmethod
    def zipf(cls, vocab_size: int, length: int, *, exponent: float = 1.0) -> World:
        """Independent Zipf tokens: token v has probability proportional to (v + 1)^-exponent."""
        one = torch.arange(1, vocab_size + 1, dtype=torch.float64) ** -exponent
        one = one / one.sum()
        return cls(one[states(vocab_size, length)].prod(1), vocab_size, length)

    @classmethod
    def correlated(cls, vocab_size: int, length: int, *, follow: float = 0.8) -> World:
        """Markov chain: after v comes v + 1 (mod V) with ``follow``, else a uniform token."""
        x = states(vocab_size, length)
        follows = x[:, 1:] == (x[:, :-1] + 1) % vocab_size  # [S, L-1]
        step = (1 - follow) / vocab_size + follow * follows.double()
        return cls(step.prod(1) / vocab_size, vocab_size, length)

    @property
    def entropy(self) -> float:
        """Entropy of the distribution, nats per sequence."""
        return entropy(self.probabilities)

    @property
    def nll(self) -> Tensor:
        """Exact -log p(x0) of every sequence ``[S]``, nats."""
        return -self.probabilities.log()

    def noisy(self, alpha: float, process: Process = UniformProcess()) -> Tensor:
        """Distribution of x_t at ``alpha`` > 0 ``[S]``."""
        return self._noise(self._table(), alpha, process, range(self.length)).flatten()

    def leave_one_out(self, alpha: float, process: Process = UniformProcess()) -> Tensor:
        """p(x0 at l | all noisy tokens but the one at l), for every noisy sequence ``[S, L, V]``.

        Zero for noise-only tokens, and for impossible noisy sequences.
        """
        L, V = self.length, self.vocab_size + process.extra_tokens
        predictions = []
        for own in range(L):
            others = [axis for axis in range(L) if axis != own]
            joint = self._noise(self._table(), alpha, process, others)  # x0 at `own`, x_t elsewhere
            joint = joint.movedim(own, -1)  # [V] * (L - 1) + [V of x0]
            p = joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)
            p = nn.functional.pad(p, (0, process.extra_tokens))
            predictions.append(p.unsqueeze(own).expand([V] * (L + 1)).reshape(-1, V))
        return torch.stack(predictions, 1)

    def denoiser(self, alpha: float, process: Process = UniformProcess()) -> Tensor:
        """p(x0 at l | all noisy tokens), for every noisy sequence ``[S, L, V]``."""
        own = self._own(process)
        seen = alpha * (own + process.odds(_scalar(alpha), own.shape[-1])[_at_own(own)][..., None])
        joint = self.leave_one_out(alpha, process) * seen
        return joint / joint.sum(-1, keepdim=True).clamp(min=1e-300)

    def without_x_t(self, alpha: float, process: Process = UniformProcess()) -> Tensor:
        """`leave_one_out` with the entry of x_t set to zero, renormalised ``[S, L, V]``.

        The optimum of training on changed positions only (Eq. 7 of arXiv:2510.22926).
        """
        p = self.leave_one_out(alpha, process) * (1 - self._own(process))
        return p / p.sum(-1, keepdim=True).clamp(min=1e-300)

    def truncated(
        self, alpha: float, process: Process = UniformProcess(), *, weight: float = 1.0
    ) -> Tensor:
        """``max(leave-one-out - weight / V, 0)``, renormalised: the optimum of V1 ``[S, L, V]``."""
        p = self.leave_one_out(alpha, process)
        p = (p - weight / p.shape[-1]).clamp(min=0)
        return p / p.sum(-1, keepdim=True)

    def log_score(self, alpha: float, process: Process = UniformProcess()) -> Tensor:
        """log q(y, others) / q(x_t, others), for every noisy sequence ``[S, L, V]``."""
        own = self._own(process)
        marginal = self.leave_one_out(alpha, process) + process.odds(_scalar(alpha), own.shape[-1])
        return (marginal / marginal.gather(-1, _at_own(own)[..., None])).log()

    def optimum(self, estimate: Estimate, process: Process = UniformProcess()) -> Predictions:
        """Exact prediction of an estimate, as a function of alpha.

        Raises:
            ValueError: the estimate is no distribution over x0 (score) or has no noise
                (next token).
        """
        known = {
            Estimate.LEAVE_ONE_OUT: self.leave_one_out,
            Estimate.WITHOUT_X_T: self.without_x_t,
            Estimate.TRUNCATED: self.truncated,
            Estimate.DENOISER: self.denoiser,
        }
        if estimate not in known:
            raise ValueError(f"{estimate.value} is no law over x0 given x_t")
        method = known[estimate]
        return lambda alpha: method(alpha, process)

    def _table(self) -> Tensor:
        return self.probabilities.reshape([self.vocab_size] * self.length)

    def _noise(
        self, table: Tensor, alpha: float, process: Process, axes: range | list[int]
    ) -> Tensor:
        """Add noise on some axes of a table, which grow to the V of the process."""
        V = self.vocab_size + process.extra_tokens
        odds = process.odds(_scalar(alpha), V)
        for axis in axes:
            total = table.sum(axis, keepdim=True).movedim(axis, -1)
            kept = nn.functional.pad(table.movedim(axis, -1), (0, process.extra_tokens))
            table = (alpha * (kept + total * odds)).movedim(-1, axis)
        return table

    def _own(self, process: Process) -> Tensor:
        """One-hot of every noisy sequence's tokens ``[S, L, V]`` float64."""
        V = self.vocab_size + process.extra_tokens
        return nn.functional.one_hot(states(V, self.length), V).double()

    def tokens(self, count: int, *, seed: int = 0) -> Tensor:
        """Sample independent sequences ``[count, L]`` int64."""
        u = torch.from_numpy(np.random.default_rng(seed).random(count))
        at = torch.searchsorted(self.probabilities.cumsum(0), u, right=True)
        return states(self.vocab_size, self.length)[at.clamp(max=len(self.probabilities) - 1)]


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _at_own(own: Tensor) -> Tensor:
    """The tokens ``[S, L]`` of one-hots ``[S, L, V]``."""
    return own.argmax(-1)
