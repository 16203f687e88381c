"""What a sampler is given: the network that it needs, and the arguments of one call."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.sampling.condition import Condition
from sddlm.types import OnStep


class Head(Protocol):
    """From hidden vectors to the vocabulary."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of rows ``[N, D]``."""


class Model(Protocol):
    """The members of a network (a ``nn.Module``) that sampling uses."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def head(self) -> Any:
        """A `Head`."""

    def __call__(self, x_t: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        """Hidden vectors ``[B, L, D]`` of tokens ``[B, L]`` at noise levels ``[B]``.

        ``more`` is ``rows=`` if only the positions ``b L + l`` ``[N]`` are wanted, ``[N, D]``,
        ``attention_mask=`` ``[B, L]`` bool where there is padding, and ``cache=`` for a causal
        network that has a ``new_cache``. A network with a true attribute ``time_free`` ignores the
        noise level.
        """

    def modules(self) -> Iterator[nn.Module]:
        """See ``nn.Module``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """See ``nn.Module``."""

    def buffers(self) -> Iterator[Tensor]:
        """See ``nn.Module``."""


class Trained(Protocol):
    """A `sddlm.LanguageModel`: a network that comes with its process and estimate."""

    @property
    def network(self) -> Any:
        """A `Model`."""

    @property
    def process(self) -> Process:
        """The corruption that it was trained to undo."""

    @property
    def estimate(self) -> Estimate:
        """What its output means."""


@dataclass(frozen=True)
class SamplingContext:
    """The arguments of one `Sampler.sample`.

    Attributes:
        model: the network.
        process: of the noise.
        estimate: what the network's output means.
        seed: of all randomness.
        index: of each sequence ``[B]`` int64.
        length: L.
        on_step: called after each step, or None.
        condition: what is known of the sequences, or None.
    """

    model: Model
    process: Process
    estimate: Estimate
    seed: int
    index: Tensor
    length: int
    on_step: OnStep | None
    condition: Condition | None = None

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.model.vocab_size

    @property
    def t(self) -> float:
        """The noise level that the run begins at."""
        return 1.0 if self.condition is None else self.condition.t

    @cached_property
    def free(self) -> Tensor:
        """Positions that are sampled ``[B, L]`` bool, or ``[1, 1]`` if all are."""
        everywhere = torch.ones(1, 1, dtype=torch.bool, device=self.index.device)
        return everywhere if self.condition is None else self.condition.free

    def hidden(self, x: Tensor, sigma: Tensor, which: Tensor, **more: Any) -> Tensor:
        """The network's output for the sequences ``which [A]`` int64: ``x[which]``, each at its
        ``sigma [A]``; ``rows`` count among them."""
        padding = {} if self.condition is None else self.condition.attention_mask(which)
        return self.model(x[which], sigma, **padding, **more)

    def noise(self) -> Tensor:
        """The noise of t = 1 ``[B, L]``."""
        draw = Draw(self.seed, 0, self.index, len(self.index))
        return self.process.prior(draw, self.length, vocab_size=self.vocab_size)

    def start(self, x: Tensor | None = None) -> Tensor:
        """The tokens ``[B, L]`` that the run begins with: the given ones, and ``x`` elsewhere.

        ``x`` is fresh noise unless given. At t < 1 all are those of the condition.
        """
        x = self.noise() if x is None else x
        return x if self.condition is None else self.condition.begin(x)
