"""Body of a hollow transformer: the output at a position does not depend on the token there.

Two causal towers read a row, one from its beginning and one from its end. Position i of a stream of
queries attends to the states of the towers that have seen tokens before i and behind i
(arXiv:2211.16750). So the output is a leave-one-out prediction by construction, and every position
of a row can train it, not only the noisy ones.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sddlm.models.block import Block, run_block
from sddlm.models.cache import Cache
from sddlm.models.config import Checkpointing, DiTConfig
from sddlm.models.layers import InputConv, Linear, Rotary, rotate


class Tower(nn.Module):
    """Causal transformer whose state at a position has seen the tokens before it.

    Args:
        config: sizes and options.
        cond_dim: width of the conditioning; 0 for none.
        blocks: number of blocks.
    """

    def __init__(self, config: DiTConfig, cond_dim: int, blocks: int) -> None:
        super().__init__()
        width, kernel = config.width, config.input_conv
        # three dimensions, so that no optimiser takes it for a matrix
        self.first = nn.Parameter(torch.zeros(1, 1, width))
        self.conv = InputConv(width, kernel, causal=True) if kernel else None
        self.blocks = nn.ModuleList(
            Block(width, config.heads, cond_dim, config.dropout, causal=True) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(
        self, x: Tensor, cond: Tensor | None, cos: Tensor, sin: Tensor, how: Checkpointing
    ) -> Tensor:
        """States ``[B, L, D]`` of embeddings ``[B, L, D]``."""
        x = torch.cat((self.first.expand(len(x), 1, -1), x[:, :-1]), dim=1)  # [B, L, D]
        if self.conv is not None:
            x = self.conv(x)
        for block in self.blocks:
            x = run_block(block, how, x, cond, cos, sin)
        out: Tensor = self.norm(x)
        return out


class QueryBlock(Block):
    """Transformer block whose keys and values come from the towers."""

    def __init__(self, width: int, heads: int, cond_dim: int, dropout: float) -> None:
        super().__init__(width, heads, cond_dim, dropout, causal=False)
        self.qkv = Linear(width, width, bias=False)  # queries alone
        self.kv = Linear(width, 2 * width, bias=False)

    def attention(
        self,
        qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: tuple[Cache, int] | None = None,
        attention_mask: Tensor | None = None,
        states: Tensor | None = None,
    ) -> Tensor:
        """Attention of queries ``[B, L, D]`` to ``states [B, 2 L, D]``, forward ones first."""
        assert states is not None
        B, L, _ = qkv.shape
        q = qkv.view(B, L, self.heads, -1).transpose(1, 2)  # [B, heads, L, dim]
        kv = self.kv(states).view(B, 2 * L, 2, self.heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # each [B, heads, 2 L, dim]
        k = rotate(k, torch.cat((cos, cos)), torch.cat((sin, sin)))
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin), k, v.contiguous(), attn_mask=attention_mask
        )
        return y.transpose(1, 2).flatten(2)  # [B, L, D]


class Hollow(nn.Module):
    """Two towers and a stream of queries; half of the blocks are the depth of the towers.

    Args:
        config: sizes and options.
        cond_dim: width of the conditioning on the noise level; 0 for none.
    """

    def __init__(self, config: DiTConfig, cond_dim: int) -> None:
        super().__init__()
        width, depth = config.width, config.blocks // 2
        self.towers = nn.ModuleList(Tower(config, cond_dim, depth) for _ in range(2))
        self.merge = Linear(2 * width, width, bias=False)
        self.queries = nn.ModuleList(
            QueryBlock(width, config.heads, cond_dim, config.dropout)
            for _ in range(config.blocks - depth)
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
        """Apply the body; see `block.Stack.forward`. There is no cache."""
        L = x.shape[1]
        cos, sin = rotary(L, x.device, x.dtype)
        forward, backward = self.towers
        ahead = forward(x, cond, cos, sin, how)  # [B, L, D]
        behind = _reversed(backward(_reversed(x, seeing), cond, cos, sin, how), seeing)
        states = torch.cat((ahead, behind), dim=1)  # [B, 2 L, D]
        place = torch.arange(L, device=x.device)
        before = place[:, None] >= place  # [L, L]
        mask = torch.cat((before, before.T), dim=1)  # [L, 2 L]
        if seeing is not None:
            mask = mask & torch.cat((torch.ones_like(seeing), seeing), dim=1)[:, None, None]
        x = self.merge(torch.cat((ahead, behind), dim=2))
        for number, block in enumerate(self.queries, start=1):
            last = rows if number == len(self.queries) else None
            x = run_block(block, how, x, cond, cos, sin, None, last, mask, states)
        return x


def _reversed(x: Tensor, seeing: Tensor | None) -> Tensor:
    """Reverse each row ``[B, L, D]`` before its padding; twice gives the row again."""
    if seeing is None:
        return x.flip(1)
    place, count = torch.arange(x.shape[1], device=x.device), seeing.sum(1, keepdim=True)  # [B, 1]
    order = torch.where(place < count, count - 1 - place, place)  # [B, L]
    return x.gather(1, order[:, :, None].expand(x.shape))
