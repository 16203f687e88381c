"""Data types shared by the packages, and the legend of shapes.

Shapes: **B** sequences, **L** positions, **V** vocabulary, **D** width, **N** flat rows,
**K** negatives. Time ``t`` is in (0, 1] and 1 is pure noise. Probabilities of the process
(``t``, ``alpha_t``, ``dalpha_t``) are float64; they are small and cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Noisy:
    """A corrupted batch.

    Attributes:
        x0: clean tokens ``[B, L]`` int64.
        x_t: tokens at time t ``[B, L]`` int64.
        t: diffusion time ``[B]`` float64.
        alpha_t: probability that a token is kept ``[B, 1]`` float64.
        dalpha_t: its time derivative (negative) ``[B, 1]`` float64.
        resampled: whether the process replaced the token, possibly by itself ``[B, L]`` bool. It
            cannot be recovered from ``x0`` and ``x_t``.
        vocab_size: V.
        loss_mask: positions that are scored ``[B, L]`` bool, the others being padding or given;
            None is all.
    """

    x0: Tensor
    x_t: Tensor
    t: Tensor
    alpha_t: Tensor
    dalpha_t: Tensor
    resampled: Tensor
    vocab_size: int
    loss_mask: Tensor | None = None

    @property
    def changed(self) -> Tensor:
        """Positions with ``x_t != x0`` ``[B, L]`` bool."""
        return self.x_t != self.x0

    @property
    def sigma(self) -> Tensor:
        """Noise level, the network's conditioning: ``-log alpha_t`` ``[B]`` float32."""
        return -torch.log(self.alpha_t[:, 0]).float()


@dataclass(frozen=True)
class SoftTokens:
    """Mixtures of tokens at each position, as network input in place of ``x_t``.

    Attributes:
        weights: weights of the tokens ``[B, L, K]``.
        ids: the tokens ``[B, L, K]`` int64; None is the whole vocabulary in order, K = V.
    """

    weights: Tensor
    ids: Tensor | None = None

    @property
    def shape(self) -> torch.Size:
        """(B, L), the shape of the tokens that it replaces."""
        return self.weights.shape[:-1]


@dataclass(frozen=True)
class Loss:
    """Loss of a batch.

    Attributes:
        total: *sum* over the scored positions, nats, differentiable scalar. Training divides it by
            the number of scored positions of the **global** batch, so the result does not depend
            on the number of processes or on accumulation.
        count: number of scored positions in this batch (``loss_mask.sum()``), scalar tensor.
        metrics: metrics to log (detached), each as a sum and a count, because means of parts of a
            batch cannot be combined.
    """

    total: Tensor
    count: Tensor
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def mean(self) -> Tensor:
        """Mean loss, ``total / count``."""
        return self.total / self.count.clamp(min=1)


@dataclass(frozen=True)
class Samples:
    """Samples and their cost.

    Attributes:
        tokens: ``[B, L]`` int64.
        nfe: number of network calls for each sequence ``[B]`` int64.
        steps: number of grid intervals.
        seconds: wall-clock time of the whole call.
        rows: positions of each sequence that passed the vocabulary head, over all steps ``[B]``
            int64.
        lengths: number of tokens of each sequence before its padding ``[B]`` int64; None without
            padding.
    """

    tokens: Tensor
    nfe: Tensor
    steps: int
    seconds: float
    rows: Tensor
    lengths: Tensor | None = None

    def sequences(self) -> list[Tensor]:
        """The tokens of each sequence without padding, ``[l]`` int64 each."""
        return unpadded(self.tokens, self.lengths)


def before_padding(lengths: Tensor, length: int) -> Tensor:
    """Mask of the positions before the padding ``[B, L]`` bool, from lengths ``[B]``."""
    return torch.arange(length, device=lengths.device) < lengths[:, None]


def unpadded(tokens: Tensor, lengths: Tensor | None) -> list[Tensor]:
    """Cut rows ``[B, L]`` to their lengths ``[B]``; None leaves them whole."""
    stops = [tokens.shape[1]] * len(tokens) if lengths is None else lengths.tolist()
    return [row[:stop] for row, stop in zip(tokens, stops, strict=True)]


#: ``on_step(step, t, x)``: called after each step with the 1-based number of the step, the time
#: just reached (0 at the end) and the tokens ``[B, L]``, which it must not modify.
OnStep = Callable[[int, float, Tensor], None]


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of a text.

    Attributes:
        nats: an upper bound on -log p(text), Monte Carlo; exact for an autoregressive model.
        stderr: standard error of ``nats`` over noise levels; 0 where it is exact.
        tokens: length of the text.
    """

    nats: float
    stderr: float
    tokens: int
