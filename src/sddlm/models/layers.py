"""Layers of a DiT: rotary positions, noise-level embedding, input convolution.

Sources: DiT (arXiv:2212.09748) for the adaptive norms, RoFormer (arXiv:2104.09864) for the rotary
positions, MDLM (arXiv:2406.07524) and Duo (arXiv:2506.10892) for the network as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sddlm.models.cache import Cache
from sddlm.models.config import DiTConfig
from sddlm.types import SoftTokens

SIGMA_FEATURES = 256
"""Size of the noise-level features: 128 cosines, then 128 sines."""
ROWS = 16
"""Multiple of rows in `by_row`; no CPU kernel that was tried has larger blocks of rows."""


class _Unfilled:
    """Mixin that leaves parameters uninitialised: `DiT.init` fills all of them.

    Building a network therefore neither touches nor depends on the global random state.
    """

    def reset_parameters(self) -> None:
        """Do nothing."""


def by_row(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a matrix product whose rows are independent of their number, to the last bit.

    Libraries use a different kernel for a few left-over rows, which rounds differently. So without
    gradients the rows are padded to a multiple of `ROWS`, and a sequence has the same results in
    every batch (on a CPU; ``tests/models/test_dit.py``).

    Args:
        product: ``[N, D] -> [N, E]``.
        x: ``[..., D]``.
    """
    lack = -x.shape[:-1].numel() % ROWS
    if not lack or torch.is_grad_enabled():
        return product(x)
    flat = F.pad(x.reshape(-1, x.shape[-1]), (0, 0, 0, lack))
    return product(flat)[:-lack].reshape(*x.shape[:-1], -1)


class Linear(_Unfilled, nn.Linear):
    """``nn.Linear`` initialised by `DiT.init`; see `by_row`."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., D] -> [..., E]``."""
        return by_row(super().forward, input)


class Embedding(_Unfilled, nn.Embedding):
    """``nn.Embedding`` of tokens or mixtures of tokens, initialised by `DiT.init`."""

    def forward(self, input: Tensor | SoftTokens) -> Tensor:
        """``[B, L, D]`` in the dtype of the weights; a mixture is summed in float32 at least."""
        if not isinstance(input, SoftTokens):
            return super().forward(input)
        high = torch.promote_types(self.weight.dtype, torch.float32)
        table, weights = self.weight.to(high), input.weights.to(high)
        if input.ids is None:
            with torch.autocast(table.device.type, enabled=False):
                return (weights @ table).to(self.weight.dtype)
        mixed = F.embedding_bag(
            input.ids.flatten(0, -2), table, mode="sum", per_sample_weights=weights.flatten(0, -2)
        )  # [B L, D]
        return mixed.view(*input.shape, -1).to(self.weight.dtype)


class Conv1d(_Unfilled, nn.Conv1d):
    """``nn.Conv1d`` initialised by `DiT.init`."""


class Rotary(nn.Module):
    """Cosines and sines of the rotary positions (RoFormer), computed once per length and device.

    Args:
        dim: width of an attention head, even.
        base: ratio of the slowest to the fastest wavelength.
    """

    def __init__(self, dim: int, base: float = 10000.0) -> None:
        super().__init__()
        self.dim = dim
        self.base = base
        self._cached: tuple[Tensor, Tensor] | None = None  # no buffer: never saved

    def inv_freq(self, device: torch.device | None = None) -> Tensor:
        """Angles per position ``[dim / 2]`` float32."""
        exponent = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32) / self.dim
        return 1.0 / self.base**exponent

    def forward(
        self, length: int, device: torch.device, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines, two of ``[length, dim / 2]``, at least float32."""
        dtype = torch.promote_types(dtype, torch.float32)
        cached = self._cached
        if (
            cached is None
            or cached[0].shape[0] < length
            or cached[0].device != device
            or cached[0].dtype != dtype
        ):
            with torch.inference_mode(False):  # otherwise a later training step could not use them
                place = torch.arange(length, device=device, dtype=dtype)
                angle = torch.outer(place, self.inv_freq(device).to(dtype))  # [L, dim / 2]
                cached = self._cached = (angle.cos(), angle.sin())
        return cached[0][:length], cached[1][:length]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + dim / 2) of ``x [..., L, dim]`` by the angle of its position."""
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    a, b = x.chunk(2, dim=-1)  # [..., L, dim / 2]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)  # [..., L, dim]


def sigma_features(sigma: Tensor, size: int = SIGMA_FEATURES) -> Tensor:
    """Cosines, then sines of the noise level at ``size / 2`` frequencies ``[B, size]``."""
    half = size // 2
    i = torch.arange(half, device=sigma.device, dtype=torch.float32)
    angle = sigma[:, None] * torch.exp(-math.log(10000.0) / half * i).to(sigma.dtype)
    return torch.cat((angle.cos(), angle.sin()), dim=-1)  # [B, size]


def gidd_time(sigma: Tensor, uniform: float = 0.0) -> Tensor:
    """GIDD's time t (arXiv:2503.04482) at the noise level ``sigma [B]``; float64.

    There a token is kept : masked : uniform as ``1 - t : t : 2 k sqrt(t (1 - t))`` with
    ``k = uniform / (1 - uniform)``. Without uniform noise t is 1 - alpha.
    """
    sigma, k = sigma.double().clamp(min=1e-12), uniform / (1 - uniform)  # 0 / 0 at sigma = 0
    alpha, gone = torch.exp(-sigma), -torch.expm1(-sigma)
    y = (k * alpha + torch.sqrt((k * alpha) ** 2 + alpha * gone)) / gone  # sqrt((1 - t) / t)
    return 1 / (1 + y**2)


class SigmaEmbedder(nn.Module):
    """Noise level ``[B]`` to conditioning ``[B, cond_dim]``, with a label if there are labels."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config, cond_dim = config, config.cond_dim
        self.mlp = nn.Sequential(
            Linear(SIGMA_FEATURES, cond_dim), nn.SiLU(), Linear(cond_dim, cond_dim)
        )
        self.labels = Embedding(config.labels, cond_dim) if config.labels else None

    def forward(self, sigma: Tensor) -> Tensor:
        """Conditioning ``[B, cond_dim]`` of ``sigma [B]``."""
        if self.config.time_input == "zero":
            sigma = torch.zeros_like(sigma)
        elif self.config.time_input == "t":
            sigma = gidd_time(sigma, self.config.time_uniform)
        dtype = next(self.mlp.parameters()).dtype
        features = sigma_features(sigma.to(torch.promote_types(dtype, torch.float32)))
        cond = F.silu(self.mlp(features.to(dtype)))  # [B, cond_dim]
        return cond if self.labels is None else cond + F.silu(self.labels.weight[self.config.label])


def modulate(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    """``x * (1 + scale) + shift``: ``[B, L, D]`` by two of ``[B, 1, D]``; ``x`` if None."""
    return x if shift is None or scale is None else x * (1 + scale) + shift


def select_rows(x: Tensor, rows: Tensor | None) -> Tensor:
    """Positions ``rows [N]`` of ``x [B, L, D]``: ``[N, D]``; all of ``x`` if None."""
    return x if rows is None else x.flatten(0, 1).index_select(0, rows)


def not_blind(attention_mask: Tensor) -> Tensor:
    """The mask, with all-False rows set to True: some attention kernels give 0 / 0 there."""
    return attention_mask | ~attention_mask.any(1, keepdim=True)


def shifted_rows(rows: Tensor, length: int) -> Tensor:
    """The position before each of the rows ``[N]``; the first one of a sequence stays."""
    return rows - (rows % length > 0).long()


def shifted(x: Tensor) -> Tensor:
    """States ``[B, L, D]`` of the position before each; the first one stays."""
    return torch.cat((x[:, :1], x[:, :-1]), dim=1)


def of_rows(part: Tensor, rows: Tensor | None, length: int) -> Tensor:
    """Gather a value of each sequence ``[B, 1, D]`` for each of the rows ``[N, D]``."""
    return part if rows is None else part[:, 0].index_select(0, rows // length)


class InputConv(nn.Module):
    """Residual convolution over the embeddings, so that each token sees its neighbours.

    Not in the published network. It saves a short run the time to learn attention to neighbours.
    """

    def __init__(self, width: int, kernel: int, causal: bool) -> None:
        super().__init__()
        self.conv = Conv1d(width, width, kernel, bias=False)
        before = kernel - 1 if causal else kernel // 2
        self.padding = (before, kernel - 1 - before)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """``[B, L, D]`` to the same shape; with a cache, the L positions after the cached ones."""
        padded = F.pad(x.transpose(1, 2), self.padding)  # [B, D, L + kernel - 1]
        before = self.padding[0]
        if cache is not None and before:
            if cache.before is not None:
                padded[:, :, :before] = cache.before
            cache.before = padded[:, :, -before:].detach()
        if len(x) == 1 and not torch.is_grad_enabled():
            # a single sequence is rounded differently than one in a batch (see `by_row`)
            return x + self.conv(padded.expand(2, -1, -1))[:1].transpose(1, 2)
        return x + self.conv(padded).transpose(1, 2)  # [B, L, D]
