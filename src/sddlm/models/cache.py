"""What a causal network keeps of the positions it has seen, so that each is computed once."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """Keys and values of every block, and the end of what the input convolution reads.

    For inference: no gradient flows through it. Made by `DiT.new_cache`, grown by `DiT.forward`.

    Args:
        length: positions that there is room for.

    Attributes:
        length: the same.
        seen: positions so far.
        before: the last positions that entered the input convolution ``[B, D, kernel - 1]``.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen = 0
        self.before: Tensor | None = None
        self._store: dict[int, Tensor] = {}

    def check(self, batch: int, new: int) -> None:
        """Refuse positions that do not fit.

        Raises:
            ValueError: if there is no room, or the number of sequences has changed.
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
        """Keys and values of all positions, with the new ones at the end.

        Args:
            block: number of the block.
            keys: of the new positions ``[B, heads, n, dim]``.
            values: the same.

        Returns:
            two of ``[B, heads, seen + n, dim]``: views.
        """
        B, heads, n, dim = keys.shape
        if block not in self._store:  # only now are dtype and device known, also under autocast
            self._store[block] = keys.new_empty(2, B, heads, self.length, dim)
        store, end = self._store[block], self.seen + n
        store[:, :, :, self.seen : end] = torch.stack((keys, values)).detach()
        return store[0, :, :, :end], store[1, :, :, :end]
