"""Transformer blocks: of DiT, of LLaMA with RMSNorm and SwiGLU, of the large GIDD models.

Sources: DiT (arXiv:2212.09748) for the adaptive norms; LLaMA (arXiv:2302.13971), which takes
RMSNorm from arXiv:1910.07467 and SwiGLU from arXiv:2002.05202; scaled-up GIDD (arXiv:2512.10858).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sddlm.models.cache import Cache
from sddlm.models.config import Architecture, Checkpointing, DiTConfig
from sddlm.models.layers import Linear, Rotary, modulate, of_rows, rotate, select_rows

RMS_EPS = {"llama": 1e-5, "gidd": 1e-6}
"""Epsilon of RMSNorm: as in Llama 2, TinyLlama and SMDM (the first LLaMA had 1e-6); as in GIDD."""
SOFT_CAP = 30.0
"""Largest absolute attention score of `GIDDBlock`."""


def norm_of(architecture: Architecture, width: int) -> nn.Module:
    """Norm with weights and without bias."""
    if architecture in RMS_EPS:
        return nn.RMSNorm(width, eps=RMS_EPS[architecture])
    return nn.LayerNorm(width, bias=False)


class SwiGLU(nn.Module):
    """``silu(gate) * up`` of the two halves of the last dimension, ``[..., 2 n] -> [..., n]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Gate first: both come out of one matrix product."""
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up


class SquaredReLU(nn.Module):
    """``relu(x)^2``, any shape."""

    def forward(self, x: Tensor) -> Tensor:
        """Squared positive part."""
        return F.relu(x).square()


def mlp_of(architecture: Architecture, width: int) -> nn.Sequential:
    """MLP with hidden width ``4 * width`` in every architecture."""
    if architecture == "llama":
        return nn.Sequential(
            Linear(width, 8 * width, bias=False), SwiGLU(), Linear(4 * width, width, bias=False)
        )
    inner = SquaredReLU() if architecture == "gidd" else nn.GELU(approximate="tanh")
    return nn.Sequential(Linear(width, 4 * width), inner, Linear(4 * width, width))


class Block(nn.Module):
    """Pre-norm transformer block: attention and MLP, each on a residual branch.

    With a conditioning it shifts and scales the norms and gates the branches (adaLN-zero, DiT);
    without one (``cond_dim`` 0) the block is plain.
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
        attention_mask: Tensor | None = None,
        states: Tensor | None = None,
    ) -> Tensor:
        """Multi-head attention, ``[B, L, 3 D] -> [B, L, D]``; causal in a causal network.

        ``attention_mask [B, 1, 1, L]`` bool is True where a position is attended to; None in a
        causal network. ``states`` is for `hollow.QueryBlock`.
        """
        B, L, _ = qkv.shape
        # unbind, not index: the gradient of each index would be a tensor of zeros of all three
        q, k, v = qkv.view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)  # each [B, heads, L, dim]
        # a view of v would keep the unrotated q and k in memory until the backward pass
        v = v.contiguous()
        if cache is None or cache[0].seen == 0:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=attention_mask, is_causal=self.causal
            )
            if cache is not None:
                cache[0].extend(cache[1], k, v)
        else:
            k, v = cache[0].extend(cache[1], k, v)
            S = k.shape[2]
            # a single position sees all; the i-th of several sees all but the last L - 1 - i
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
        attention_mask: Tensor | None = None,
        states: Tensor | None = None,
        selective: bool = False,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: residual stream ``[B, L, D]``.
            cond: conditioning ``[B, cond_dim]``; None in a plain block.
            cos: cosines of the rotary positions ``[L, D / heads / 2]``.
            sin: sines of the rotary positions.
            cache: cache of a causal network, and the number of this block.
            rows: flat indices ``b L + l`` of the positions to compute ``[N]`` int64; the others are
                only attended to. None is all.
            attention_mask: positions that are attended to ``[B, 1, 1, L]`` bool; None is all.
            states: what a `hollow.QueryBlock` attends to.
            selective: recompute norms and activations in the backward pass.

        Returns:
            ``[B, L, D]``, or ``[N, D]`` with ``rows``.
        """
        again = _again if selective and torch.is_grad_enabled() else _once
        length = x.shape[1]
        if self.modulation is None:
            shift1 = scale1 = gate1 = shift2 = scale2 = gate2 = None
        else:
            parts = self.modulation(cond)[:, None].chunk(6, dim=-1)  # each [B, 1, D]
            shift1, scale1 = parts[:2]
            gate1, shift2, scale2, gate2 = (of_rows(part, rows, length) for part in parts[2:])
        qkv = again(self._qkv, x, shift1, scale1)
        y = self.attention(qkv, cos, sin, cache, attention_mask, states)
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


class GIDDBlock(Block):
    """Plain block of the large GIDD models: normed queries and keys, capped scores, a sink.

    Queries and keys are normed over all heads together, before the rotary positions. Scores are
    capped to ``SOFT_CAP tanh(score / SOFT_CAP)``, which no fused attention kernel does, so they are
    all held. The sink is a key and a value of no position, which every position attends to.
    """

    def __init__(self, width: int, heads: int, *options: Any) -> None:
        super().__init__(width, heads, *options)
        self.q_norm, self.k_norm = norm_of("gidd", width), norm_of("gidd", width)
        self.sink = nn.Parameter(torch.zeros(2, heads, width // heads))

    def attention(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Cache, int] | None = None,
        attention_mask: Tensor | None = None,
        states: Tensor | None = None,
    ) -> Tensor:
        """Multi-head attention, ``[B, L, 3 D] -> [B, L, D]``; see `Block.attention`."""
        B, L, _ = qkv.shape
        q, k, v = qkv.chunk(3, dim=-1)  # each [B, L, D]
        high = self.sink.dtype  # autocast leaves the norms to the precision of the weights
        q, k, v = (
            part.view(B, L, self.heads, -1).transpose(1, 2)  # [B, heads, L, dim]
            for part in (self.q_norm(q.to(high)), self.k_norm(k.to(high)), v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        sink_k, sink_v = self.sink[:, None, :, None].expand(-1, B, -1, -1, -1)
        k = torch.cat((sink_k, k), dim=2)  # [B, heads, 1 + L, dim]
        v = torch.cat((sink_v, v), dim=2)
        scores = q @ k.mT * q.shape[-1] ** -0.5  # [B, heads, L, 1 + L]
        scores = SOFT_CAP * torch.tanh(scores / SOFT_CAP)
        if attention_mask is not None:
            scores = scores.masked_fill(~F.pad(attention_mask, (1, 0), value=True), -torch.inf)
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)  # [B, L, D]


class Stack(nn.ModuleList):
    """Blocks one after the other: the body of a network.

    Args:
        config: sizes and options.
        cond_dim: width of the conditioning on the noise level; 0 for none.
    """

    def __init__(self, config: DiTConfig, cond_dim: int) -> None:
        kind = GIDDBlock if config.architecture == "gidd" else Block
        sizes = (config.width, config.heads, cond_dim, config.dropout)
        super().__init__(
            kind(*sizes, config.causal, config.architecture) for _ in range(config.blocks)
        )

    def forward(
        self,
        x: Tensor,
        cond: Tensor | None,
        rotary: Rotary,
        how: Checkpointing,
        rows: Tensor | None = None,
        seeing: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Apply all blocks.

        Args:
            x: embeddings ``[B, L, D]``.
            cond: conditioning ``[B, cond_dim]``; None in plain blocks.
            rotary: rotary positions.
            how: what the backward pass recomputes.
            rows: flat indices ``b L + l`` of the positions to compute ``[N]``; None is all.
            seeing: positions that are attended to ``[B, L]`` bool; None is all.
            cache: cache of a causal network.

        Returns:
            ``[B, L, D]``, or ``[N, D]`` with ``rows``.
        """
        L = x.shape[1]
        mask = None if seeing is None else seeing[:, None, None]  # [B, 1, 1, L]
        seen = cache.seen if cache else 0
        cos, sin = (part[seen:] for part in rotary(seen + L, x.device, x.dtype))
        for number, block in enumerate(self, start=1):
            place = (cache, number) if cache else None
            last = rows if number == len(self) else None
            x = run_block(block, how, x, cond, cos, sin, place, last, mask)
        if cache:
            cache.seen += L
        return x


def run_block(block: nn.Module, how: Checkpointing, *inputs: Any) -> Tensor:
    """Apply a block (see `Block.forward`); the backward pass recomputes what is chosen."""
    if how == "full" and torch.is_grad_enabled():
        out: Tensor = checkpoint(block, *inputs, use_reentrant=False)
        return out
    return block(*inputs, selective=how == "selective")  # type: ignore[no-any-return]


def _once(part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    return part(*inputs)


def _again(part: Callable[..., Tensor], *inputs: Tensor | None) -> Tensor:
    """Run a part that ends in a matrix product, without keeping what precedes the product.

    The backward pass recomputes the product's input, but not the product: torch stops when it has
    all saved tensors.
    """
    out: Tensor = checkpoint(part, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out
