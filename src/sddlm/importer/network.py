"""Networks of the DiT family of MDLM, Duo, UDLM, XDLM and GIDD: names, sizes, order of tokens.

All descend from the DiT of SEDD (arXiv:2310.16834) and name their parameters alike.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import mode
from typing import Any

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.importer.files import CheckpointFiles
from sddlm.models.config import DiTConfig, TimeInput
from sddlm.models.dit import DiT
from sddlm.models.weights import misfits

logger = logging.getLogger(__name__)

_PREFIX = "backbone."
_INV_FREQ = "rotary_emb.inv_freq"
_WHOLE = {  # our name: theirs; first components of a name ...
    "embedding.weight": "vocab_embed.embedding",
    "sigma.labels.weight": "cond_map.embedding_table.weight",
    "sigma.mlp": "sigma_map.mlp",
    "norm.weight": "output_layer.norm_final.weight",
    "modulation": "output_layer.adaLN_modulation",
    "head": "output_layer.linear",
}
_IN_BLOCK = {"qkv": "attn_qkv", "out": "attn_out", "modulation": "adaLN_modulation"}  # ... or third
_OF_TOKENS = ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias")
GIDD_EMBEDDING = "model.embed_tokens.weight"
#: names of a size in ``config.json``
_BLOCKS = ("n_blocks", "num_hidden_layers", "found")
_LENGTH = ("model_length", "max_seq_len")
_HEADS = ("n_heads", "num_attention_heads")


def public_name(name: str) -> str:
    """Translate a parameter's name to that of public checkpoints, without ``backbone.``."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return ".".join([*parts[:2], _IN_BLOCK.get(parts[2], parts[2]), *parts[3:]])
    for ours, theirs in _WHOLE.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def parameters(files: CheckpointFiles, *, averaged: bool) -> dict[str, Tensor]:
    """Tensors of the network by name, without the prefix.

    Args:
        files: the checkpoint.
        averaged: take the averaged weights of a Lightning checkpoint, if it has some.

    Raises:
        ConfigError: the averaged weights are not those of the network.
    """
    state = dict(files.tensors)
    if any(name.startswith(_PREFIX) for name in state):
        beside = [name for name in state if not name.startswith(_PREFIX)]
        if beside:
            logger.info("not of the network, left out: %s", ", ".join(beside))
        state = {
            name[len(_PREFIX) :]: value for name, value in state.items() if name.startswith(_PREFIX)
        }
    if averaged and files.averaged is not None:
        # in the order of the parameters, which is the order of the names without the buffer; those
        # of the noise schedule follow
        names = [name for name in state if name != _INV_FREQ]
        shapes = [value.shape for value in files.averaged[: len(names)]]
        if shapes != [state[name].shape for name in names]:
            raise ConfigError(
                f"`averaged`: the {len(files.averaged)} tensors of ema.shadow_params do not have "
                f"the shapes of the network's {len(names)}; use `averaged=False`"
            )
        state.update(zip(names, files.averaged, strict=False))
    return state


def vocabulary_of(state: Mapping[str, Tensor]) -> int:
    """Rows of the token embedding.

    Raises:
        ConfigError: there is none, so this is no DiT.
    """
    if is_gidd(state):
        return len(state[GIDD_EMBEDDING])
    if "vocab_embed.embedding" in state:
        return len(state["vocab_embed.embedding"])
    names = ", ".join(sorted(state)[:4])
    raise ConfigError(
        f"`source` is no DiT: it has no vocab_embed.embedding, but {names or 'no tensors'}"
    )


def is_gidd(state: Mapping[str, Tensor]) -> bool:
    """Whether parameters are those of a large GIDD model (`importer.gidd`), by their names."""
    return GIDD_EMBEDDING in state and any("attn_layernorm" in name for name in state)


def is_conditioned(state: Mapping[str, Tensor]) -> bool:
    """Whether the network has a conditioning; without one it is autoregressive."""
    return any("adaLN_modulation" in name or "sigma_map" in name for name in state)


def build(
    state: Mapping[str, Tensor],
    config: Mapping[str, Any],
    *,
    time_input: TimeInput,
    time_uniform: float = 0.0,
    ids: Sequence[int],
    extra: int,
    label: int | None = None,
    length: int | None = None,
    heads: int | None = None,
) -> DiT:
    """Build a network from the parameters of a public one.

    Args:
        state: `parameters`.
        config: ``config.json``; its sizes are used where the weights do not determine them.
        time_input: conditioning (`sddlm.ModelArgs`).
        time_uniform: share of uniform noise of GIDD's time.
        ids: the checkpoint's ids in the order that they get.
        extra: number of ids at the end of ``ids`` that are noise only.
        label: row of the label embedding; None is the last, which stands for no label.
        length: training length.
        heads: number of attention heads.

    Returns:
        The network in evaluation mode; autoregressive if it has no conditioning at all.

    Raises:
        ConfigError: a size is not known, or parameters are missing, unexpected or of another shape;
            all of them are named.
    """
    state = dict(state)
    inv_freq = state.pop(_INV_FREQ, None)
    V, D = len(state["vocab_embed.embedding"]), state["vocab_embed.embedding"].shape[-1]
    if heads is None and inv_freq is not None:
        heads = D // (2 * len(inv_freq))
    widths = [state[name].shape[-1] for name in state if name.endswith("adaLN_modulation.weight")]
    labels = len(state.get("cond_map.embedding_table.weight", ()))
    found = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    sizes = DiTConfig(
        vocab_size=V,
        length=size_of("length", length, config, _LENGTH),
        width=D,
        blocks=size_of("blocks", None, {"found": found, **config}, _BLOCKS),
        heads=size_of("heads", heads, config, _HEADS),
        causal=not is_conditioned(state),
        cond_dim=mode(widths) if widths else DiTConfig.cond_dim,
        num_extra_tokens=extra,
        time_input=time_input,
        time_uniform=time_uniform,
        labels=labels,
        label=max(labels - 1, 0) if label is None else label,
    )
    with torch.device("meta"):
        wanted = DiT(sizes).state_dict()
    names = {public_name(name): name for name in wanted}
    check_fit(state, {name: wanted[ours].shape for name, ours in names.items()})
    state = reorder(state, _OF_TOKENS, ids)
    if len({tensor.dtype for tensor in state.values()}) > 1:
        state = {name: tensor.float() for name, tensor in state.items()}
    ours = {names[name]: tensor for name, tensor in state.items()}
    return DiT.from_state(replace(sizes, vocab_size=len(ids)), ours)


def reorder(
    state: Mapping[str, Tensor], names: Sequence[str], ids: Sequence[int]
) -> dict[str, Tensor]:
    """Parameters of which those of tokens, by their names, have the rows of the given ids."""
    if list(ids) == list(range(len(state[names[0]]))):
        return dict(state)
    chosen = torch.tensor(ids)
    return {**state, **{name: state[name].index_select(0, chosen) for name in names}}


def size_of(name: str, value: int | None, config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    """A size that was given, or that ``config.json`` has under one of the keys."""
    value = next((config[key] for key in keys if key in config), None) if value is None else value
    if type(value) is not int:
        raise ConfigError(f"`{name}` cannot be read off the checkpoint: give it")
    return value


def check_fit(state: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]) -> None:
    """Check that each parameter of the network is there, and nothing else, in its shape."""
    if problems := misfits(state, shapes):
        raise ConfigError(f"the weights do not fit the network: {'; '.join(problems)}")
