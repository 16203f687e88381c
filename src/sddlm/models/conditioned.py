"""A model wrapper that fixes known tokens: a network over the unknown positions alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Conditioned:
    """Model of the M unknown positions of a sequence, given its known tokens.

    Bounds and samplers use it in place of the network and so solve the conditional problem. Known
    tokens are clean at every noise level. They are not part of ``x_t``, so nothing can change them.
    The network receives the noise level of the unknown positions; if it was trained on whole noisy
    sequences, it has no input that marks the clean ones.

    Attributes:
        model: the network.
        tokens: the known tokens at their positions, arbitrary elsewhere ``[B, L]`` int64; or
            ``[1, L]``, shared by all sequences. Samplers need the latter, because they call the
            network with the sequences that still change.
        known: known positions, shared by all sequences ``[L]`` bool.
    """

    model: Any
    tokens: Tensor
    known: Tensor

    def __post_init__(self) -> None:
        if self.known.dtype != torch.bool or self.tokens.shape[1:] != self.known.shape:
            raise ValueError(
                f"tokens must be [B, L] and known [L] bool, got {list(self.tokens.shape)} "
                f"and {list(self.known.shape)} {self.known.dtype}"
            )
        if self.known.all():
            raise ValueError("no position is unknown")

    @cached_property
    def _places(self) -> Tensor:
        """Indices of the unknown positions ``[M]`` int64."""
        return (~self.known).nonzero()[:, 0]

    def __call__(self, x_t: Tensor, sigma: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """Hidden states of unknown positions.

        Args:
            x_t: their tokens ``[B, M]``; in a causal network also the first m of them, ``[B, m]``:
                the sequence then ends with the last of these.
            sigma: noise level ``[B]``.
            rows: flat indices ``b M + m`` of the positions to compute ``[N]`` int64; None is all.

        Returns:
            ``[B, M, D]``, or ``[N, D]`` with ``rows``.

        Raises:
            ValueError: the numbers of sequences or positions do not match ``tokens``.
        """
        B, M = x_t.shape
        if len(self.tokens) not in (1, B) or not 0 < M <= self.length:
            raise ValueError(
                f"x_t must be [{len(self.tokens)}, {self.length}] (or any number of sequences "
                f"where the known tokens are those of one), got {list(x_t.shape)}"
            )
        if self.length > M and not self.causal:
            raise ValueError(f"x_t must be [B, {self.length}], got {list(x_t.shape)}")
        places = self._places[:M]
        L = self.tokens.shape[1] if self.length == M else int(places[-1]) + 1
        whole = self.tokens[:, :L].repeat(B // len(self.tokens), 1)  # [B, L]
        whole[:, places] = x_t
        if rows is not None:
            out: Tensor = self.model(whole, sigma, rows=rows // M * L + places[rows % M])
            return out
        wanted = torch.arange(B, device=whole.device)[:, None] * L + places  # [B, M]
        return self.model(whole, sigma, rows=wanted.flatten()).unflatten(0, (B, M))

    @property
    def head(self) -> Any:
        """The vocabulary head of the network."""
        return self.model.head

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.model.vocab_size)

    @property
    def length(self) -> int:
        """M, the number of unknown positions."""
        return len(self._places)

    @property
    def causal(self) -> bool:
        """Whether each position sees only itself and earlier ones."""
        return bool(self.model.causal)

    @property
    def time_free(self) -> bool:
        """Whether the network ignores the noise level."""
        return bool(getattr(self.model, "time_free", False))

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over the network\'s modules."""
        return iter(self.model.modules())

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the network\'s parameters."""
        return iter(self.model.parameters())

    def buffers(self) -> Iterator[Tensor]:
        """Iterate over the network\'s buffers."""
        return iter(self.model.buffers())
