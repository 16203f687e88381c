"""Conversion of Duo's public checkpoints (arXiv:2506.10892), to and from.

MDLM's (arXiv:2406.07524) have the same network with the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT

_PREFIX = "backbone."
_INV_FREQ = "rotary_emb.inv_freq"
_WHOLE = {  # our name: Duo's; first components of a name ...
    "embedding.weight": "vocab_embed.embedding",
    "sigma.mlp": "sigma_map.mlp",
    "norm.weight": "output_layer.norm_final.weight",
    "modulation": "output_layer.adaLN_modulation",
    "head": "output_layer.linear",
}
_IN_BLOCK = {"qkv": "attn_qkv", "out": "attn_out", "modulation": "adaLN_modulation"}  # ... or third


def duo_name(name: str) -> str:
    """Translate a parameter's name to Duo's, without ``backbone.``."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return ".".join([*parts[:2], _IN_BLOCK.get(parts[2], parts[2]), *parts[3:]])
    for ours, theirs in _WHOLE.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def from_duo(checkpoint: Mapping[str, Any], *, length: int = 1024, heads: int | None = None) -> DiT:
    """Build a network with the weights of one of Duo's checkpoints.

    Args:
        checkpoint: parameters by name (tensors or arrays; with or without ``backbone.``), or a
            whole Lightning checkpoint, of which the ``ema`` weights are used if present.
        length: training length, which the weights do not determine.
        heads: number of attention heads; required only if ``rotary_emb.inv_freq`` is missing.

    Returns:
        A network in evaluation mode; autoregressive if the checkpoint has no noise-level embedding.
        All other sizes are inferred from the shapes.

    Raises:
        ConfigError: parameters are missing, unexpected or of the wrong shape.
    """
    state = _state(checkpoint)
    inv_freq = state.pop(_INV_FREQ, None)
    config = _config(state, length, heads, inv_freq)
    with torch.device("meta"):
        names = {duo_name(name): name for name in DiT(config).state_dict()}
    missing = [name for name in names if name not in state]
    unexpected = [name for name in state if name not in names]
    if missing or unexpected:
        raise ConfigError(
            f"not a checkpoint of Duo's DiT: missing {_some(missing)}; "
            f"unexpected {_some(unexpected)}"
        )
    return DiT.from_state(config, {names[name]: tensor for name, tensor in state.items()})


def to_duo(model: DiT) -> dict[str, Tensor]:
    """Weights of a network under Duo's names, as read by `from_duo`.

    Raises:
        ConfigError: Duo has no such network: a llama, a time-free diffusion network or one with an
            input convolution.
    """
    if model.config.architecture != "dit":
        raise ConfigError("Duo's network is no llama (`architecture`)")
    if model.time_free and not model.causal:
        raise ConfigError("Duo's network is told the noise level (`time_free`)")
    if model.config.input_conv:
        raise ConfigError("Duo's network has no input convolution (`input_conv`)")
    state = {
        _PREFIX + duo_name(name): tensor.detach().clone()
        for name, tensor in model.state_dict().items()
    }
    return state | {_PREFIX + _INV_FREQ: model.rotary.inv_freq()}


def _state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors of the network by Duo's name without the prefix."""
    values = checkpoint.get("state_dict", checkpoint)
    arrays = {
        name: torch.as_tensor(np.array(value) if isinstance(value, np.ndarray) else value)
        for name, value in values.items()
        if isinstance(value, (Tensor, np.ndarray))
    }
    if any(name.startswith(_PREFIX) for name in arrays):
        arrays = {
            name[len(_PREFIX) :]: value
            for name, value in arrays.items()
            if name.startswith(_PREFIX)
        }
    if checkpoint.get("ema") is not None and "state_dict" in checkpoint:
        # a list in the order of the parameters, which is the order of the names without the buffer
        shadow = checkpoint["ema"]["shadow_params"]
        names = [name for name in arrays if name != _INV_FREQ]
        if len(shadow) < len(names):
            raise ConfigError(
                f"the checkpoint has {len(names)} parameters but {len(shadow)} in ema"
            )
        arrays.update(zip(names, shadow, strict=False))
    return {name: value.detach() for name, value in arrays.items()}


def _config(
    state: Mapping[str, Tensor], length: int, heads: int | None, inv_freq: Tensor | None
) -> DiTConfig:
    """Infer the configuration from the shapes."""
    embedding = state.get("vocab_embed.embedding")
    blocks = {name.split(".")[1] for name in state if name.startswith("blocks.")}
    if embedding is None or not blocks:
        raise ConfigError(
            f"not a checkpoint of Duo's DiT: no vocab_embed.embedding or no blocks among "
            f"{_some(state)}"
        )
    V, D = embedding.shape
    if heads is None:
        if inv_freq is None:
            raise ConfigError("the checkpoint has no rotary_emb.inv_freq: give the number of heads")
        heads = D // (2 * len(inv_freq))
    cond = state.get("sigma_map.mlp.2.weight")  # [cond_dim, cond_dim]
    return DiTConfig(
        vocab_size=V,
        length=length,
        width=D,
        blocks=len(blocks),
        heads=heads,
        causal=cond is None,
        cond_dim=DiTConfig.cond_dim if cond is None else len(cond),
    )


def _some(names: Iterable[str]) -> str:
    """Format at most four names for a message."""
    names = list(names)
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return (", ".join(names[:4]) or "none") + more
