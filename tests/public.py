"""The DiT of public checkpoints, written from its description alone: no module of `sddlm`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

WIDTH, BLOCKS, HEADS, COND = 16, 2, 2, 8


def state(
    vocabulary: int, *, causal: bool = False, classes: int = 0, prefix: str = "backbone."
) -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of the public code, heads' buffer included.

    Args:
        vocabulary: rows of the embedding.
        causal: the autoregressive one, without conditioning.
        classes: of a label embedding with one row more; 0 for none.
        prefix: of all names.
    """
    D, C = WIDTH, COND
    shapes: dict[str, tuple[int, ...]] = {"vocab_embed.embedding": (vocabulary, D)}
    if not causal:
        shapes |= {"sigma_map.mlp.0.weight": (C, 256), "sigma_map.mlp.0.bias": (C,)}
        shapes |= {"sigma_map.mlp.2.weight": (C, C), "sigma_map.mlp.2.bias": (C,)}
    if classes:
        shapes["cond_map.embedding_table.weight"] = (classes + 1, C)
    shapes["rotary_emb.inv_freq"] = (D // HEADS // 2,)
    for i in range(BLOCKS):
        block: dict[str, tuple[int, ...]] = {
            "norm1.weight": (D,), "attn_qkv.weight": (3 * D, D), "attn_out.weight": (D, D),
            "norm2.weight": (D,), "mlp.0.weight": (4 * D, D), "mlp.0.bias": (4 * D,),
            "mlp.2.weight": (D, 4 * D), "mlp.2.bias": (D,),
        }  # fmt: skip
        if not causal:
            block |= {"adaLN_modulation.weight": (6 * D, C), "adaLN_modulation.bias": (6 * D,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    shapes |= {"output_layer.norm_final.weight": (D,)}
    shapes |= {"output_layer.linear.weight": (vocabulary, D)}
    shapes |= {"output_layer.linear.bias": (vocabulary,)}
    if not causal:
        shapes |= {"output_layer.adaLN_modulation.weight": (2 * D, C)}
        shapes |= {"output_layer.adaLN_modulation.bias": (2 * D,)}
    generator = torch.Generator().manual_seed(7)
    made = {
        prefix + name: 0.4 * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }
    angles = 10000.0 ** -(torch.arange(0, D // HEADS, 2) / (D // HEADS))
    return made | {f"{prefix}rotary_emb.inv_freq": angles}


def logits(
    state: dict[str, Tensor], x: Tensor, noise: Tensor | None = None, label: int | None = None
) -> Tensor:
    """Logits ``[B, L, V]`` of tokens ``[B, L]``.

    Args:
        state: the weights, with or without prefix.
        x: tokens in the checkpoint's own ids.
        noise: what the network is fed as noise level ``[B]``; None in the autoregressive one.
        label: row of the label embedding; None adds nothing.
    """
    w = {name.removeprefix("backbone."): value for name, value in state.items()}
    c = None
    if noise is not None:
        angle = noise[:, None] * torch.exp(-math.log(10000.0) * torch.arange(128) / 128)
        features = torch.cat([angle.cos(), angle.sin()], -1)
        hidden = F.silu(features @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"])
        c = F.silu(hidden @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])
        if label is not None:
            c = c + F.silu(w["cond_map.embedding_table.weight"][label])
    h = w["vocab_embed.embedding"][x]
    for i in range(BLOCKS):
        block = {k.split(".", 2)[2]: v for k, v in w.items() if k.startswith(f"blocks.{i}.")}
        h = _block(block, h, c, w["rotary_emb.inv_freq"])
    h = F.layer_norm(h, (WIDTH,), w["output_layer.norm_final.weight"])
    if c is not None:
        shift, scale = _modulation(w, "output_layer.adaLN_modulation", c, 2)
        h = h * (1 + scale) + shift
    return h @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


def _modulation(w: dict[str, Tensor], name: str, c: Tensor, parts: int) -> list[Tensor]:
    return [*(c @ w[f"{name}.weight"].T + w[f"{name}.bias"])[:, None].chunk(parts, -1)]


def _block(w: dict[str, Tensor], h: Tensor, c: Tensor | None, inv_freq: Tensor) -> Tensor:
    B, L, D = h.shape
    zero, one = torch.zeros(1), torch.ones(1)
    shift1, scale1, gate1, shift2, scale2, gate2 = (
        [zero, zero, one] * 2 if c is None else _modulation(w, "adaLN_modulation", c, 6)
    )
    y = F.layer_norm(h, (D,), w["norm1.weight"]) * (1 + scale1) + shift1
    q, k, v = (y @ w["attn_qkv.weight"].T).view(B, L, 3, HEADS, D // HEADS).unbind(2)
    angle = torch.arange(L)[:, None] * inv_freq
    angle = torch.cat([angle, angle], -1)[:, None]  # [L, 1, D / heads]
    q, k = (
        u * angle.cos() + torch.cat([-u.chunk(2, -1)[1], u.chunk(2, -1)[0]], -1) * angle.sin()
        for u in (q, k)
    )
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / (D // HEADS) ** 0.5
    if c is None:
        scores = scores.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf)
    y = torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v).reshape(B, L, D)
    h = h + gate1 * (y @ w["attn_out.weight"].T)
    y = F.layer_norm(h, (D,), w["norm2.weight"]) * (1 + scale2) + shift2
    y = F.gelu(y @ w["mlp.0.weight"].T + w["mlp.0.bias"], approximate="tanh")
    return h + gate2 * (y @ w["mlp.2.weight"].T + w["mlp.2.bias"])


def write(folder: Path, weights: dict[str, Tensor], **config: Any) -> Path:
    """Write a folder as on the hub: ``model.safetensors`` and, if there is any, ``config.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    if config:
        (folder / "config.json").write_text(json.dumps(config))
    return folder
