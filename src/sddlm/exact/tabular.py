"""Tabular model: a stand-in for a network with a table of predictions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from sddlm.exact.world import Predictions, state_id
from sddlm.models.layers import select_rows
from sddlm.models.vocab_head import VocabHead


class TabularModel(nn.Module):
    """Model with a table of predictions in place of a network; satisfies the model contract.

    Hidden vectors are the logits themselves (D = V, float64) and the head is the identity.

    Args:
        predictions: probabilities ``[S, L, V]`` as a function of alpha; or a trainable table of
            logits ``[S, L, V]`` used at every alpha.
        vocab_size: V.
        length: L.
        num_extra_tokens: noise-only tokens at the end of the vocabulary, never predicted.
    """

    def __init__(
        self,
        predictions: Predictions | Tensor,
        *,
        vocab_size: int,
        length: int,
        num_extra_tokens: int = 0,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.length = length
        self.causal = False
        self.head = VocabHead(vocab_size, vocab_size, bias=False, num_extra_tokens=num_extra_tokens)
        self.head.weight = nn.Parameter(
            torch.eye(vocab_size, dtype=torch.float64), requires_grad=False
        )
        self._predictions: Predictions | None = None
        self._tables: dict[float, Tensor] = {}
        if isinstance(predictions, Tensor):
            self.table = nn.Parameter(predictions.clone())
        else:
            self._predictions = predictions

    def _logits(self, sigma: float) -> Tensor:
        """Logits ``[S, L, V]`` at a noise level."""
        if sigma not in self._tables:
            assert self._predictions is not None
            p = self._predictions(float(np.exp(-sigma)))
            self._tables[sigma] = p.double().clamp(min=1e-300).log()
        return self._tables[sigma]

    def forward(self, x_t: Tensor, sigma: Tensor, *, rows: Tensor | None = None) -> Tensor:
        """Logits ``[B, L, V]`` of tokens ``[B, L]`` at noise levels ``[B]``, or of ``rows``."""
        at = state_id(x_t, self.vocab_size)  # [B]
        if self._predictions is None:
            return select_rows(self.table[at], rows)
        out = self.head.weight.new_empty(*x_t.shape, self.vocab_size)
        for level in sigma.unique():
            here = sigma == level
            out[here] = self._logits(level.item())[at[here]]
        return select_rows(out, rows)
