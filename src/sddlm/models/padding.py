"""Padding, told to the network once, so that who calls it need not know of it."""

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
    """A network that does not look at padding, for who calls ``model(x_t, sigma, rows=)``.

    Objectives and bounds take it in place of the network. They need ``loss_mask`` beside it:
    padding is hidden from the other positions, but noised and scored as they are.

    Attributes:
        model: the network.
        attend: positions that may be looked at ``[B, L]`` bool, the others being padding at the
            end of a row; or ``[1, L]``, the same for all sequences, which samplers need, for they
            call the network with those sequences that still change.
    """

    model: DiT
    attend: Tensor

    def __call__(
        self, x_t: Tensor | SoftTokens, sigma: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        """Hidden states as of `DiT.forward`.

        Args:
            x_t: noisy tokens or mixtures ``[B, l]``, the first l positions of the rows.
            sigma: noise level ``[B]``.
            rows: positions wanted ``[N]`` int64; None is all.

        Raises:
            ValueError: for other sequences, or more positions, than there is ``attend`` of.
        """
        B, length = x_t.shape
        attend = self.attend[:, :length]
        if len(attend) == 1:
            attend = attend.expand(B, -1)
        out: Tensor = self.model(x_t, sigma, rows=rows, attend=attend)
        return out

    @property
    def head(self) -> VocabHead:
        """Hidden states to the vocabulary."""
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
        """A position sees only itself and earlier ones."""
        return self.model.causal

    @property
    def time_free(self) -> bool:
        """The noise level is not used."""
        return self.model.time_free

    def modules(self) -> Iterator[nn.Module]:
        """Those of the network."""
        return self.model.modules()

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the network."""
        return self.model.parameters()

    def buffers(self) -> Iterator[Tensor]:
        """Those of the network."""
        return self.model.buffers()


def hide_padding(model: Any, lengths: Tensor | None, x0: Tensor) -> tuple[Any, Tensor | None]:
    """A network that does not look at padding, and the positions that are none.

    Args:
        model: the network.
        lengths: tokens before the padding of each row ``[B]``; None where there is no padding.
        x0: the rows ``[B, L]``.

    Returns:
        what to call, and which positions count ``[B, L]`` bool; the network and None (all) where
        there is no padding.
    """
    if lengths is None:
        return model, None
    real = before_padding(lengths.to(x0.device), x0.shape[1])
    return PaddingMasked(model, real), real
