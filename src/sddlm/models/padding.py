"""A model wrapper that applies a fixed attention mask, so that callers ignore padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sddlm.models.dit import DiT
from sddlm.models.vocab_head import VocabHead
from sddlm.types import SoftTokens, before_padding


@dataclass(frozen=True, eq=False)
class PaddingMasked:
    """A model wrapper with a fixed attention mask: padding is not attended to.

    Objectives and bounds use it in place of the network. They also need a ``loss_mask``: padding is
    hidden from other positions, but noised and scored like them.

    Attributes:
        model: the network.
        attention_mask: True for tokens, False for padding at the end of a row ``[B, L]`` bool; or
            ``[1, L]``, shared by all sequences. Samplers need the latter, because they call the
            network with the sequences that still change.
    """

    model: DiT
    attention_mask: Tensor

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
        attention_mask = self.attention_mask[:, :length]
        if len(attention_mask) == 1:
            attention_mask = attention_mask.expand(B, -1)
        out: Tensor = self.model(x_t, sigma, rows=rows, attention_mask=attention_mask)
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


def hide_padding(model: Any, lengths: Tensor | None, x0: Tensor) -> tuple[Any, Tensor | None]:
    """Mask the padding of a batch: the network to call, and the loss mask.

    Args:
        model: the network.
        lengths: tokens before the padding of each row ``[B]``; None where there is no padding.
        x0: the rows ``[B, L]``.

    Returns:
        the network to call and the positions to score ``[B, L]`` bool; the network itself and None
        (all) without padding.
    """
    if lengths is None:
        return model, None
    real = before_padding(lengths.to(x0.device), x0.shape[1])
    return PaddingMasked(model, real), real
