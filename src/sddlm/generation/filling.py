"""Parts of texts of unequal lengths as the rows of one batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

#: rows of unequal lengths are filled up to a multiple of this, so that they share batches
WIDTH = 32


def filled_width(wide: int, most: int) -> int:
    """What a row is filled up to; a function of the row alone, so that other rows do not matter.

    Args:
        wide: its tokens.
        most: tokens that the model sees.
    """
    return min(most, -(-wide // WIDTH) * WIDTH)


def fill(
    parts: Sequence[tuple[Tensor, Tensor]], wide: int, *, front: Sequence[int], pad: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Parts of texts as the rows of a batch.

    Args:
        parts: tokens and which of them are known, ``[n]`` each.
        wide: of the batch.
        front: tokens that stand before each part, known.
        pad: fills up a row, known.

    Returns:
        tokens ``[B, wide]`` int64, known ``[B, wide]`` bool, and tokens before the padding ``[B]``.
    """
    tokens = torch.full((len(parts), wide), pad)
    known = torch.ones(len(parts), wide, dtype=torch.bool)
    tokens[:, : len(front)] = torch.tensor(front, dtype=torch.int64)
    for row, (own, given) in enumerate(parts):
        here = slice(len(front), len(front) + len(own))
        tokens[row, here], known[row, here] = own, given
    return tokens, known, torch.tensor([len(front) + len(own) for own, _ in parts])
