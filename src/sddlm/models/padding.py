"""A model wrapper that hides padding and shows prompts clean, so that callers ignore both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sddlm.models.dit import DiT
from sddlm.models.vocab_head import VocabHead
from sddlm.types import SoftTokens, before_padding


@dataclass(frozen=True, eq=False)
class PaddingMasked:
    """A model wrapper with a fixed attention mask: padding is not attended to, prompts are clean.

    Objectives and bounds use it in place of the network. They also need a ``loss_mask``: to them
    padding and prompts are noised and scored like other positions.

    Attributes:
        model: the network.
        attention_mask: True for tokens, False for padding at the end of a row ``[B, L]`` bool; or
            ``[1, L]``, shared by all sequences. Samplers need the latter, because they call the
            network with the sequences that still change. None if there is no padding.
        prompts: positions whose tokens are given ``[B, L]`` bool; None is none.
        tokens: rows with these tokens ``[B, L]`` int64.
    """

    model: DiT
    attention_mask: Tensor | None
    prompts: Tensor | None = None
    tokens: Tensor | None = None

    def __call__(
        self, x_t: Tensor | SoftTokens, sigma: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        """Hidden states; see `DiT.forward`.

        Args:
            x_t: noisy tokens or mixtures ``[B, l]``, the first l positions of the rows.
            sigma: noise level ``[B]``.
            rows: flat indices of the positions to compute ``[N]`` int64; None is all.

        Raises:
            ValueError: the numbers of sequences or positions do not match ``attention_mask``.
        """
        B, length = x_t.shape
        if self.prompts is not None and self.tokens is not None:
            x_t = _given(x_t, self.prompts[:, :length], self.tokens[:, :length])
        mask = self.attention_mask
        if mask is not None:
            mask = mask[:, :length].expand(B if len(mask) == 1 else -1, -1)  # [B, l]
        out: Tensor = self.model(x_t, sigma, rows=rows, attention_mask=mask)
        return out

    @property
    def head(self) -> VocabHead:
        """The vocabulary head of the network."""
        return self.model.head

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.model.vocab_size

    @property
    def length(self) -> int:
        """The sequence length that the network was built for."""
        return self.model.length

    @property
    def causal(self) -> bool:
        """Whether each position sees only itself and earlier ones."""
        return self.model.causal

    @property
    def time_free(self) -> bool:
        """Whether the network ignores the noise level."""
        return self.model.time_free

    @property
    def hollow(self) -> bool:
        """Whether the output at a position does not depend on the token there."""
        return self.model.hollow

    def modules(self) -> Iterator[nn.Module]:
        """Iterate over the network\'s modules."""
        return self.model.modules()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the network\'s parameters."""
        return self.model.parameters()

    def buffers(self) -> Iterator[Tensor]:
        """Iterate over the network\'s buffers."""
        return self.model.buffers()


def _given(x_t: Tensor | SoftTokens, at: Tensor, tokens: Tensor) -> Tensor | SoftTokens:
    """The network's input with given tokens at some positions ``[B, L]``."""
    if not isinstance(x_t, SoftTokens):
        return torch.where(at, tokens, x_t)
    at, tokens = at[:, :, None], tokens[:, :, None]
    places = torch.arange(x_t.weights.shape[2], device=tokens.device)
    if x_t.ids is None:
        return SoftTokens(torch.where(at, (places == tokens).to(x_t.weights), x_t.weights))
    one = (places == 0).to(x_t.weights)
    return SoftTokens(torch.where(at, one, x_t.weights), torch.where(at, tokens, x_t.ids))


def hide_padding(
    model: Any, lengths: Tensor | None, x0: Tensor, prompts: Tensor | None = None
) -> tuple[Any, Tensor | None]:
    """Mask padding and prompts of a batch: the network to call, and the loss mask.

    Args:
        model: the network.
        lengths: tokens before the padding of each row ``[B]``; None where there is no padding.
        x0: the rows ``[B, L]``.
        prompts: tokens of the prompt that each row begins with ``[B]``; None where there is none.
            Rows have either padding or prompts.

    Returns:
        the network to call and the positions to score ``[B, L]`` bool; the network itself and None
        (all) without padding and prompts.
    """
    scored = scored_positions(lengths, prompts, x0)
    if scored is None:
        return model, None
    if prompts is not None:
        return PaddingMasked(model, None, ~scored, x0), scored
    return PaddingMasked(model, scored), scored


def scored_positions(lengths: Tensor | None, prompts: Tensor | None, x0: Tensor) -> Tensor | None:
    """Positions that are neither padding nor prompt ``[n, L]`` bool; None is all.

    Args:
        lengths: tokens before the padding of each row ``[n]``; None where there is no padding.
        prompts: tokens of the prompt of each row ``[n]``; None where there is none.
        x0: rows of the same length ``[B, L]``, on the device of the result.
    """
    if prompts is not None:
        return ~before_padding(prompts.to(x0.device), x0.shape[1])
    return None if lengths is None else before_padding(lengths.to(x0.device), x0.shape[1])
