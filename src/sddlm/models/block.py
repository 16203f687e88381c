"""A transformer block of either architecture: DiT's, or LLaMA's with its RMSNorm and SwiGLU.

Sources: DiT (arXiv:2212.09748) for the adaptive norms; LLaMA (arXiv:2302.13971), which takes
RMSNorm from arXiv:1910.07467 and SwiGLU from arXiv:2002.05202.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sddlm.models.cache import Cache
from sddlm.models.config import Architecture
from sddlm.models.layers import Linear, modulate, of_rows, rotate, select_rows

RMS_EPS = 1e-5
"""Added to the mean square: that of Llama 2, TinyLlama and SMDM; the first LLaMA had 1e-6."""


def norm_of(architecture: Architecture, width: int) -> nn.Module:
    """A norm with weights and no bias."""
    if architecture == "llama":
        return nn.RMSNorm(width, eps=RMS_EPS)
    return nn.LayerNorm(width, bias=False)


class SwiGLU(nn.Module):
    """``silu(gate) * up`` of the two halves of the last dimension, ``[..., 2 n] -> [..., n]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Gate first: both come out of one matrix product."""
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up


def mlp_of(architecture: Architecture, width: int) -> nn.Sequential:
    """Two products with what is not linear between them; hidden width ``4 * width`` in both."""
    if architecture == "llama":
        return nn.Sequential(
            Linear(width, 8 * width, bias=False), SwiGLU(), Linear(4 * width, width, bias=False)
        )
    return nn.Sequential(
        Linear(width, 4 * width), nn.GELU(approximate="tanh"), Linear(4 * width, width)
    )


class Block(nn.Module):
    """Attention and MLP, each a residual branch behind a norm.

    With a conditioning the norms are shifted and scaled and the branches gated by it (adaLN-zero,
    DiT); without one (``cond_dim`` 0) it is a plain pre-norm transformer block.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        cond_dim: int,
        dropout: float,
        causal: bool,
        architecture: Architecture = "dit",
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.causal = causal
        self.norm1 = norm_of(architecture, width)
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.norm2 = norm_of(architecture, width)
        self.mlp = mlp_of(architecture, width)
        self.modulation = Linear(cond_dim, 6 * width) if cond_dim else None

    def attention(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Cache, int] | None = None,
        attend: Tensor | None = None,
    ) -> Tensor:
        """What all (causal: all earlier) positions say to each: ``[B, L, 3 D] -> [B, L, D]``.

        ``attend [B, 1, 1, L]`` bool leaves some of them out; a causal network has none.
        """
        B, L, _ = qkv.shape
        # unbound, not indexed: each index would fill a gradient of the size of all three with zeros
        q, k, v = qkv.view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # each [B, heads, L, dim]
        # a view of v would keep the unrotated q and k in memory until the backward pass
        v = v.contiguous()
        if cache is None or cache[0].seen == 0:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, is_causal=self.causal)
            if cache is not None:
                cache[0].extend(cache[1], k, v)
        else:
            k, v = cache[0].extend(cache[1], k, v)
            S = k.shape[2]
            # a single position sees all; of several, the i-th sees all but the last L - 1 - i
            mask = None if L == 1 else qkv.new_ones(L, S, dtype=torch.bool).tril(S - L)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return y.transpose(1, 2).flatten(2)  # [B, L, D]

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Cache, int] | None = None,
        rows: Tensor | None = None,
        attend: Tensor | None = None,
        light: bool = False,
    ) -> Tensor:
        """One block.

        Args:
            x: residual stream ``[B, L, D]``.
            cond: conditioning ``[B, cond_dim]``; None in a plain block.
            cos: of the rotary positions ``[L, D / heads / 2]``.
            sin: the same.
            cache: of a causal network, and the number of this block.
            rows: positions whose result is wanted, ``b L + l`` of each ``[N]`` int64; the rest is
                attended to and else left out. None is all.
            attend: positions that may be looked at ``[B, 1, 1, L]`` bool; None is all.
            light: compute norms and the MLP's middle again in the backward pass instead of keeping
                them.

        Returns:
            ``[B, L, D]``, or ``[N, D]`` of the given rows.
        """
        again = _again if light and torch.is_grad_enabled() else _once
        length = x.shape[1]
        if self.modulation is None:
            shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = None
        else:
            parts = self.modulation(cond)[:, None].chunk(6, dim=-1)  # each [B, 1, D]
            shift1, scale1 = parts[:2]
            gate1, shift2, scale2, gate2 = (of_rows(part, rows, length) for part in parts[2:])
        y = self.attention(again(self._qkv, x, shift1, scale1), cos, sin, cache, attend)
        x, y = select_rows(x, rows), select_rows(y, rows)
        x = self._add(x, self.out(y), gate1)
        y = again(self._widen, x, shift2, scale2)
        return self._add(x, again(self._narrow, y), gate2)

    def _qkv(self, x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        out: Tensor = self.qkv(modulate(self.norm1(x), shift, scale))
        return out

    def _widen(self, x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
        out: Tensor = self.mlp[0](modulate(self.norm2(x), shift, scale))
        return out

    def _narrow(self, y: Tensor) -> Tensor:
        out: Tensor = self.mlp[2](self.mlp[1](y))
        return out

    def _add(self, x: Tensor, y: Tensor, gate: Tensor | None) -> Tensor:
        y = F.dropout(y, self.dropout, self.training)
        return x + y if gate is None else x + gate * y


def _once(part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    return part(*inputs)


def _again(part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """A part that ends in a matrix product, without keeping what comes before the product.

    The backward pass needs the product's input; that is computed again, the product is not (torch
    stops when it has all that had been saved).
    """
    out: Tensor = checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out
