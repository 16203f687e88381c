"""The large GIDD models (arXiv:2512.10858): their process, their network, its scales.

Their network multiplies each matrix by ``weight_scaling``, the head by ``head_scaling``, each
residual branch by ``resid_scale`` over the number of blocks, and has norms of ``1 + weight``. These
are constants, so they are multiplied into the weights, in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.importer.network import GIDD_EMBEDDING, check_fit, reorder, size_of
from sddlm.models.block import RMS_EPS, SOFT_CAP
from sddlm.models.config import DiTConfig, TimeInput
from sddlm.models.dit import DiT
from sddlm.process.base import Process
from sddlm.process.masked import MaskedProcess
from sddlm.process.schedule import LogLinear
from sddlm.process.uniform import UniformProcess

_HEAD = "lm_head.weight"
#: values in ``config.json`` of the only network that is built here
_OPTIONS = {
    "attention_bias": True,
    "mlp_bias": True,
    "use_qk_norm": True,
    "is_causal": False,
    "tie_word_embeddings": False,
    "attn_soft_cap": SOFT_CAP,
    "rms_norm_eps": RMS_EPS["gidd"],
    "rope_theta": 10000.0,
    "rope_scaling": None,
}
#: a shift of the log-odds of uniform noise against masks that leaves one of them alone
_ALONE = 100.0


def process_of(config: Mapping[str, Any]) -> Process | None:
    """Process that a ``config.json`` describes; None if it has no ``noise_type``.

    There a replaced token is uniform with probability ``sigmoid(log_snr + noise_type)``, else a
    mask; alpha is ``sigmoid(log_snr)``, linear in time down to ``min_log_snr``. The published
    models have a ``noise_type`` of 1000 and of -1000.

    Raises:
        ConfigError: the noise is a mixture, or a value is no number.
    """
    if "noise_type" not in config:
        return None
    shift = _number(config, "noise_type")
    least = torch.tensor(_number({"min_log_snr": -9.0, **config}, "min_log_snr")).double()
    if abs(shift) < _ALONE:
        raise ConfigError(
            f"`source`: config.json has noise_type {shift}, a mixture of masks and uniform noise; "
            f"only one of them alone can be imported, {-_ALONE:g} and less or {_ALONE:g} and more; "
            "to choose another noise give `process`"
        )
    schedule = LogLinear(least.sigmoid().item())
    return UniformProcess(schedule) if shift > 0 else MaskedProcess(schedule)


def build_gidd(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    time_input: TimeInput,
    ids: Sequence[int],
    extra: int,
    label: int | None = None,
    length: int | None = None,
    heads: int | None = None,
) -> DiT:
    """Build a network; see `network.build`, whose arguments these are.

    Raises:
        ConfigError: as there, or ``config.json`` describes a variant of the network.
    """
    if time_input != "none":
        raise ConfigError(
            f"`time_input` is {time_input}, but this network has no noise-level input; leave "
            "`time_input` and `like` out"
        )
    V, width = len(state[GIDD_EMBEDDING]), state[GIDD_EMBEDDING].shape[-1]
    found = len({name.split(".")[2] for name in state if name.startswith("model.layers.")})
    sizes = DiTConfig(
        vocab_size=len(ids),
        length=size_of("length", length, config, ("max_position_embeddings",)),
        width=width,
        blocks=size_of("blocks", None, {"found": found, **config}, ("num_hidden_layers", "found")),
        heads=size_of("heads", heads, config, ("num_attention_heads",)),
        architecture="gidd",
        num_extra_tokens=extra,
        label=label or 0,
    )
    _check_options({**_OPTIONS, "head_dim": width // sizes.heads}, config)
    check_fit(state, _shapes(sizes, V))
    return DiT.from_state(
        sizes, _folded(reorder(state, (GIDD_EMBEDDING, _HEAD), ids), config, sizes)
    )


def _check_options(wanted: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Check that ``config.json`` describes the one network that is built here."""
    wrong = [
        f"{key} {config[key]} (must be {value})"
        for key, value in wanted.items()
        if config.get(key, value) != value
    ]
    if wrong:
        raise ConfigError(f"`source`: config.json has options not known here: {', '.join(wrong)}")


def _shapes(sizes: DiTConfig, vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Public names and shapes of all parameters."""
    D, heads = sizes.width, sizes.heads
    shapes: dict[str, tuple[int, ...]] = {GIDD_EMBEDDING: (vocab_size, D)}
    for i in range(sizes.blocks):
        at = f"model.layers.{i}."
        shapes |= {f"{at}self_attn.{name}_proj.weight": (D, D) for name in "qkvo"}
        shapes |= {f"{at}self_attn.{name}_norm.weight": (D,) for name in "qk"}
        shapes |= {f"{at}self_attn.{name}_bias": (heads, D // heads) for name in "kv"}
        shapes |= {f"{at}{name}_layernorm.weight": (D,) for name in ("attn", "mlp")}
        shapes |= {f"{at}mlp.up_proj.weight": (4 * D, D), f"{at}mlp.up_proj.bias": (4 * D,)}
        shapes |= {f"{at}mlp.down_proj.weight": (D, 4 * D), f"{at}mlp.down_proj.bias": (D,)}
    return shapes | {"model.norm.weight": (D,), _HEAD: (vocab_size, D)}


def _folded(
    state: Mapping[str, Tensor], config: Mapping[str, Any], sizes: DiTConfig
) -> dict[str, Tensor]:
    """Our parameters: the public ones with all constant factors multiplied in."""
    branch = _number(config, "resid_scale") / sizes.blocks

    def own(name: str) -> Tensor:
        return state[name].float()  # one by one: all of them would be a second network

    def scaled(name: str, key: str = "weight_scaling") -> Tensor:
        fan_out, fan_in = state[name].shape
        known = {"fan_in": fan_in**-0.5, "fan_out": fan_out**-0.5}
        factor = known.get(str(config.get(key))) or _number(config, key)
        return own(name) * factor

    ours = {
        "embedding.weight": own(GIDD_EMBEDDING),
        "norm.weight": 1 + own("model.norm.weight"),
        "head.weight": scaled(_HEAD, "head_scaling"),
    }
    for i in range(sizes.blocks):
        at, to = f"model.layers.{i}.", f"blocks.{i}."
        attn, mlp = f"{at}self_attn.", f"{at}mlp."
        ours |= {
            f"{to}norm1.weight": 1 + own(f"{at}attn_layernorm.weight"),
            f"{to}qkv.weight": torch.cat([scaled(f"{attn}{name}_proj.weight") for name in "qkv"]),
            f"{to}q_norm.weight": 1 + own(f"{attn}q_norm.weight"),
            f"{to}k_norm.weight": 1 + own(f"{attn}k_norm.weight"),
            f"{to}sink": torch.stack([own(f"{attn}k_bias"), own(f"{attn}v_bias")]),
            f"{to}out.weight": branch * scaled(f"{attn}o_proj.weight"),
            f"{to}norm2.weight": 1 + own(f"{at}mlp_layernorm.weight"),
            f"{to}mlp.0.weight": scaled(f"{mlp}up_proj.weight"),
            f"{to}mlp.0.bias": own(f"{mlp}up_proj.bias"),
            f"{to}mlp.2.weight": branch * scaled(f"{mlp}down_proj.weight"),
            f"{to}mlp.2.bias": branch * own(f"{mlp}down_proj.bias"),
        }
    return ours


def _number(config: Mapping[str, Any], key: str) -> float:
    """A number in ``config.json``."""
    value: Any = config.get(key)
    if type(value) not in (int, float):
        raise ConfigError(f"`source`: {key} in config.json is {value!r}, must be a number")
    return float(value)
