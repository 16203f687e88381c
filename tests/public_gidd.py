"""The network of the large GIDD models, written from its description: no module of `sddlm`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

V, WIDTH, BLOCKS, HEADS, LENGTH = 20, 16, 2, 2, 8
MASK = 3
CONFIG: dict[str, Any] = {
    "model_type": "gidd", "vocab_size": V, "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH,
    "num_hidden_layers": BLOCKS, "num_attention_heads": HEADS, "head_dim": WIDTH // HEADS,
    "max_position_embeddings": LENGTH, "attn_soft_cap": 30.0, "resid_scale": 4.0,
    "rms_norm_eps": 1e-6, "use_qk_norm": True, "weight_scaling": 1.0, "head_scaling": 0.5,
    "bos_token_id": 0, "eos_token_id": 1, "rope_theta": 10000.0, "rope_scaling": None,
    "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": False, "noise_type": 1000.0,
    "min_log_snr": -9.0, "max_log_snr": 9.0,
}  # fmt: skip


def state() -> dict[str, Tensor]:
    """Random weights under the names and in the shapes of the public code."""
    D, H = WIDTH, HEADS
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for i in range(BLOCKS):
        layer: dict[str, tuple[int, ...]] = {
            "attn_layernorm.weight": (D,), "self_attn.q_proj.weight": (D, D),
            "self_attn.k_proj.weight": (D, D), "self_attn.v_proj.weight": (D, D),
            "self_attn.o_proj.weight": (D, D), "self_attn.q_norm.weight": (D,),
            "self_attn.k_norm.weight": (D,), "self_attn.k_bias": (H, D // H),
            "self_attn.v_bias": (H, D // H), "mlp_layernorm.weight": (D,),
            "mlp.up_proj.weight": (4 * D, D), "mlp.up_proj.bias": (4 * D,),
            "mlp.down_proj.weight": (D, 4 * D), "mlp.down_proj.bias": (D,),
        }  # fmt: skip
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes |= {"model.norm.weight": (D,), "lm_head.weight": (V, D)}
    generator = torch.Generator().manual_seed(7)
    # large norms of queries and keys, so that the cap of the scores is felt; small embeddings, so
    # that the epsilon of the first norm is
    scale = {"q_norm.weight": 2.0, "k_norm.weight": 2.0, "down_proj.weight": 0.05}
    scale["model.embed_tokens.weight"] = 1e-3
    return {
        name: scale.get(name.split(".", 4)[-1], scale.get(name, 0.4))
        * torch.randn(shape, generator=generator)
        for name, shape in shapes.items()
    }


def logits(state: dict[str, Tensor], x: Tensor, config: dict[str, Any] = CONFIG) -> Tensor:
    """Logits ``[B, L, V]`` float64 of tokens ``[B, L]`` in the checkpoint's own ids."""
    w = {name: value.double() for name, value in state.items()}

    def linear(y: Tensor, name: str, key: str = "weight_scaling") -> Tensor:
        out, inner = w[f"{name}.weight"].shape
        scale = {"fan_in": inner**-0.5, "fan_out": out**-0.5}.get(config[key], config[key])
        return scale * (y @ w[f"{name}.weight"].T) + w.get(f"{name}.bias", 0)

    def norm(y: Tensor, name: str) -> Tensor:
        return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + w[f"{name}.weight"])

    h = w["model.embed_tokens.weight"][x]
    branch = config["resid_scale"] / BLOCKS
    for i in range(BLOCKS):
        layer, attn = f"model.layers.{i}", f"model.layers.{i}.self_attn"
        y = norm(h, f"{layer}.attn_layernorm")
        q = norm(linear(y, f"{attn}.q_proj"), f"{attn}.q_norm")
        k = norm(linear(y, f"{attn}.k_proj"), f"{attn}.k_norm")
        v = linear(y, f"{attn}.v_proj")
        heads = []
        for n in range(HEADS):
            part = slice(n * WIDTH // HEADS, (n + 1) * WIDTH // HEADS)
            bias_k, bias_v = w[f"{attn}.k_bias"][n], w[f"{attn}.v_bias"][n]
            heads.append(_head(q[..., part], k[..., part], v[..., part], bias_k, bias_v))
        h = h + branch * linear(torch.cat(heads, -1), f"{attn}.o_proj")
        y = linear(norm(h, f"{layer}.mlp_layernorm"), f"{layer}.mlp.up_proj")
        h = h + branch * linear(y.clamp(min=0) ** 2, f"{layer}.mlp.down_proj")
    return linear(norm(h, "model.norm"), "lm_head", "head_scaling")


def _head(q: Tensor, k: Tensor, v: Tensor, bias_k: Tensor, bias_v: Tensor) -> Tensor:
    """One head ``[B, L, dim]``; the bias is a key and a value before the first position."""
    L, dim = q.shape[1:]
    angle = torch.arange(L)[:, None] * 10000.0 ** -(torch.arange(0, dim, 2) / dim)
    turn = torch.polar(torch.ones_like(angle).double(), angle.double())  # [L, dim / 2]

    def rotated(y: Tensor) -> Tensor:
        y = torch.complex(y[..., : dim // 2], y[..., dim // 2 :]) * turn
        return torch.cat([y.real, y.imag], -1)

    keys = torch.cat([bias_k.expand(len(k), 1, dim), rotated(k)], 1)  # [B, 1 + L, dim]
    scores = rotated(q) @ keys.transpose(1, 2) / dim**0.5
    p = (30 * (scores / 30).tanh()).softmax(-1)
    return p[..., :1] * bias_v + p[..., 1:] @ v
