"""Key-value cache of a causal network."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Key-value cache: keys and values of every block, and the state of the input convolution.

    For inference only: no gradient flows through it. `DiT.new_cache` makes it, `DiT.forward`
    extends it.

    Args:
        length: capacity in positions.

    Attributes:
        length: capacity in positions.
        seen: number of cached positions.
        before: the last inputs of the input convolution ``[B, D, kernel - 1]``.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen = 0
        self.before: Tensor | None = None
        self._store: dict[int, Tensor] = {}

    def check(self, batch: int, new: int) -> None:
        """Check that new positions fit.

        Raises:
            ValueError: they exceed the capacity, or the number of sequences has changed.
        """
        if self.seen + new > self.length:
            raise ValueError(
                f"the cache has room for {self.length} positions and holds {self.seen}; "
                f"{new} more do not fit"
            )
        held = next(iter(self._store.values()), None)
        if held is not None and held.shape[1] != batch:
            raise ValueError(f"the cache holds {held.shape[1]} sequences, got {batch}")

    def extend(self, block: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append new keys and values of a block; return those of all positions.

        Args:
            block: number of the block.
            keys: keys of the new positions ``[B, heads, n, dim]``.
            values: their values, in the same shape.

        Returns:
            keys and values ``[B, heads, seen + n, dim]``: views.
        """
        B, heads, n, dim = keys.shape
        if block not in self._store:  # only now are dtype and device known, also under autocast
            self._store[block] = keys.new_empty(2, B, heads, self.length, dim)
        store, end = self._store[block], self.seen + n
        store[:, :, :, self.seen : end] = torch.stack((keys, values)).detach()
        return store[0, :, :, :end], store[1, :, :, :end]
