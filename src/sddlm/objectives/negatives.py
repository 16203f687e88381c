"""Distributions of negative tokens for SDDLM-V1.

With n the distribution of the negatives at a position, pi the leave-one-out prediction and w the
weight, the expected loss of V1 is -sum_v (pi_v - w n_v) log(p_v + eps). Its optimum for eps -> 0 is

    p_v  proportional to  max(pi_v - w n_v, 0).

K sampled tokens estimate it without bias, with less variance the larger K is. Random numbers depend
on the sequence's index in the global batch, hence not on ranks or micro-batches.

Without ``from __future__ import annotations``, for the reason given in ``objectives/base.py``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.models.row_losses import DenseNegatives, SampledNegatives, Top
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.types import Noisy

#: a component of the mixture in the row loss (`models.row_losses`)
MixturePart = SampledNegatives | Top | DenseNegatives


#: largest number of negatives sampled for a position
_MOST = 100_000


class Negatives:
    """Base class of distributions of negative tokens. Subclasses are dataclasses."""

    @property
    def estimate(self) -> Estimate:
        """Estimate of V1 with these negatives."""
        return Estimate.TRUNCATED

    def setup(self, counts: Callable[[], Tensor]) -> None:
        """Collect statistics of the training data, if any are needed.

        Args:
            counts: returns the count of each token ``[V]`` int64; costs a pass over the data.
        """

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """Negatives of the selected positions, as components of a mixture.

        Args:
            noisy: the corrupted batch.
            at: selected positions ``[B, L]`` bool, N of them.
            draw: randomness.
            name: purpose of the random numbers.
        """
        raise NotImplementedError


@dataclass
class UniformNegatives(Negatives):
    """Uniform distribution over all tokens, n_v = 1/V (Eq. 9 of arXiv:2510.22926).

    Attributes:
        count: tokens sampled for each position, or ``exact`` for their expectation, which costs one
            more sum over the chunk of logits.
    """

    count: int | Literal["exact"] = 1

    def __post_init__(self) -> None:
        _check_count(self)

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """Sampled tokens, or the uniform distribution."""
        if self.count == "exact":
            return (DenseNegatives(),)
        shape = (noisy.x0.shape[1], self.count)
        return (SampledNegatives(draw.integers(name, *shape, high=noisy.vocab_size)[at]),)


@dataclass
class UnigramNegatives(Negatives):
    """Unigram distribution of the training data: penalises tokens that are merely frequent.

    Training counts the tokens itself. In your own loop call ``UnigramNegatives().learn(counts)``.

    Attributes:
        count: tokens sampled for each position, or ``exact`` for their expectation.
    """

    count: int | Literal["exact"] = 1

    def __post_init__(self) -> None:
        _check_count(self)
        self._counts: Tensor | None = None

    def learn(self, counts: Tensor) -> "UnigramNegatives":
        """Set the frequencies from counts ``[V]`` int64; returns itself.

        Raises:
            ConfigError: negative counts, or all zero.
        """
        if counts.ndim != 1 or (counts < 0).any() or counts.sum() < 1:
            raise ConfigError("UnigramNegatives.learn takes counts [V], none below 0, not all 0")
        self._counts = counts.to(torch.int64)
        return self

    def setup(self, counts: Callable[[], Tensor]) -> None:
        """Set the frequencies from the training data."""
        self.learn(counts())

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """Sampled tokens, or the distribution.

        Raises:
            ConfigError: `learn` was not called, or with another vocabulary.
        """
        if self._counts is None:
            raise ConfigError(
                "UnigramNegatives has no frequencies yet; before training call "
                ".learn(counts) with how often each token occurs [V]"
            )
        if len(self._counts) != noisy.vocab_size:
            raise ConfigError(
                f"UnigramNegatives learned {len(self._counts)} frequencies, but the network has "
                f"{noisy.vocab_size} tokens; call .learn(counts) with as many"
            )
        counts = self._counts = self._counts.to(noisy.x0.device)
        if self.count == "exact":
            return (DenseNegatives(counts.double() / counts.sum()),)
        # an occurrence is sampled, so a token that does not occur never is
        below = counts.cumsum(0)  # [V]
        shape = (noisy.x0.shape[1], self.count)
        place = draw.integers(name, *shape, high=int(below[-1]))[at]  # [N, K]
        return (SampledNegatives(torch.searchsorted(below, place, right=True)),)


@dataclass
class SequenceNegatives(Negatives):
    """In-batch negatives: clean tokens of other positions of the same sequence.

    Taken from the sequence, not the micro-batch, because the randomness of training must not depend
    on ranks and micro-batches. n is the frequency of a token in the rest of the sequence, given the
    network's input, so V1 with these negatives unlearns to repeat the topic. Positions that are not
    scored (padding) are no negatives. In a sequence with a single scored position the negative is
    the token itself, and the two terms of the loss cancel.

    Attributes:
        count: positions sampled for each position, with replacement, never itself.
    """

    count: int = 1

    def __post_init__(self) -> None:
        _check_count(self)

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """Sampled tokens.

        Raises:
            ConfigError: a sequence has one position only.
        """
        B, L = noisy.x0.shape
        if L < 2:
            raise ConfigError(
                "SequenceNegatives needs other positions: `data.length` is 1, must be at least 2"
            )
        here = torch.arange(L, device=noisy.x0.device)[:, None]
        if noisy.loss_mask is None:
            other = (here + 1 + draw.integers(name, L, self.count, high=L - 1)) % L  # [B, L, K]
        else:
            other = self._counting(noisy.loss_mask, draw.uniform(name, L, self.count))
        tokens = noisy.x0.gather(1, other.view(B, -1)).view(B, L, self.count)
        return (SampledNegatives(tokens[at]),)

    def _counting(self, loss_mask: Tensor, u: Tensor) -> Tensor:
        """Sample other scored positions from uniform numbers ``[B, L, K]``."""
        n = loss_mask.sum(1)[:, None, None]  # [B, 1, 1]
        rank = loss_mask.cumsum(1)[:, :, None] - 1  # among scored positions  [B, L, 1]
        step = 1 + (u * (n - 1)).long().clamp(max=(n - 2).clamp(min=0))
        wanted = (rank + step) % n.clamp(min=1)  # [B, L, K]
        first = loss_mask.long().argsort(dim=1, descending=True, stable=True)  # [B, L]
        return first.gather(1, wanted.flatten(1)).view_as(wanted)


@dataclass
class TopNegatives(Negatives):
    """Hard negatives: the most likely tokens under the model other than x0.

    n depends on the model, so the optimum has no closed form. No gradient flows through the choice.

    Attributes:
        top: number of tokens.
    """

    top: int = 8  # not `count`: jsonargparse passes a `count` on to the negatives chosen afterwards

    def __post_init__(self) -> None:
        check_choices(self)
        if self.top < 1:
            raise ConfigError(f"`top` is {self.top}, must be 1 or more tokens, e.g. 8")

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """Tokens chosen by the head, which holds the logits."""
        return (Top(self.top),)


@dataclass
class NoisyToken(Negatives):
    """The noisy token x_t itself; makes V1 equal to V2. Cuts no tail.

    Attributes:
        low: smallest noise level 1 - alpha_t at which x_t is the negative; below it a uniform token
            is.
        high: largest noise level likewise.
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.low < self.high <= 1:
            raise ConfigError(
                f"`low` is {self.low} and `high` is {self.high}; they must be noise levels from 0 "
                "to 1, the smaller one first"
            )

    @property
    def estimate(self) -> Estimate:
        """Leave-one-out without x_t (at weight 1) at all noise levels, else truncated."""
        everywhere = (self.low, self.high) == (0, 1)
        return Estimate.WITHOUT_X_T if everywhere else Estimate.TRUNCATED

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """The noisy token of each position."""
        tokens = noisy.x_t
        if (self.low, self.high) != (0, 1):
            level = 1 - noisy.alpha_t  # [B, 1]
            uniform = draw.integers(name, tokens.shape[1], high=noisy.vocab_size)  # [B, L]
            tokens = torch.where((level >= self.low) & (level <= self.high), tokens, uniform)
        return (SampledNegatives(tokens[at][:, None]),)


@dataclass
class MixedNegatives(Negatives):
    """Weighted mixture of other negatives: n = sum of share times n of the component.

    Attributes:
        parts: components of the mixture, each by name and options.
        shares: weight of each component, 0 or more; normalised to sum 1.
    """

    parts: list[Negatives] = field(default_factory=lambda: [UniformNegatives(), NoisyToken()])
    shares: list[float] = field(default_factory=lambda: [1.0, 1.0])

    def __post_init__(self) -> None:
        check_choices(self)
        if not self.parts or not all(isinstance(part, Negatives) for part in self.parts):
            raise ConfigError(
                f"`parts` is {self.parts!r}, must be a list of 1 or more negatives, such as "
                "[UniformNegatives, NoisyToken]"
            )
        if len(self.shares) != len(self.parts):
            raise ConfigError(
                f"`shares` has {len(self.shares)} numbers for {len(self.parts)} parts; "
                "give one number for each part"
            )
        shares = self.shares
        if not all(share >= 0 for share in shares) or not 0 < sum(shares) < float("inf"):
            raise ConfigError(
                f"`shares` is {shares}, must be numbers of 0 or more, not all 0, such "
                f"as {[1.0] * len(self.parts)}"
            )

    @property
    def estimate(self) -> Estimate:
        """Estimate of the components if they agree, otherwise truncated leave-one-out."""
        kinds = {part.estimate for part in self.parts}
        return kinds.pop() if len(kinds) == 1 else Estimate.TRUNCATED

    def setup(self, counts: Callable[[], Tensor]) -> None:
        """Set up every component."""
        for part in self.parts:
            part.setup(counts)

    def mixture(
        self, noisy: Noisy, at: Tensor, draw: Draw, name: str = "negatives"
    ) -> tuple[MixturePart, ...]:
        """Components of all parts, weighted; each part has random numbers of its own."""
        total = sum(self.shares)
        return tuple(
            replace(found, share=found.share * share / total)
            for i, (part, share) in enumerate(zip(self.parts, self.shares, strict=True))
            for found in part.mixture(noisy, at, draw, f"{name} {i}")
        )


def _check_count(negatives: Any) -> None:
    check_choices(negatives)
    count, exact = negatives.count, isinstance(negatives, (UniformNegatives, UnigramNegatives))
    if (count == "exact" and exact) or (isinstance(count, int) and 1 <= count <= _MOST):
        return
    raise ConfigError(
        f"`count` is {count}, must be 1 to {_MOST:,} tokens{', or exact' if exact else ''}"
    )
