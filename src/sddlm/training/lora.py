"""Low-rank adapters (LoRA, arXiv:2106.09685): few weights are trained, and merged at the end."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import nn

from sddlm.errors import ConfigError
from sddlm.models.dit import DiT


def check_adapters(rank: int | None, start: str | None) -> None:
    """Check that adapters can be trained.

    Args:
        rank: of the adapters; None if there are none.
        start: the model to start from.

    Raises:
        ConfigError: there is no model to adapt, or the package of the adapters is not installed.
    """
    if rank is None:
        return
    if start is None:
        raise ConfigError("`train.lora` adapts a trained model: name it with `start`")
    if find_spec("peft") is None:
        raise ConfigError("`train.lora` needs the package peft: pip install 'sddlm[lora]'")


def add_adapters(network: DiT, rank: int, seed: int) -> None:
    """Freeze a network and add adapters to all matrices of its blocks.

    They begin as zero, so the network's output stays. Embedding and head have none.

    Args:
        network: changed in place.
        rank: of each adapter, whose output is scaled by 2.
        seed: of their first factors.
    """
    from peft import LoraConfig, inject_adapter_in_model

    inside = set(network.blocks.modules())
    kinds = {name: type(m) for name, m in network.named_modules() if m in inside}
    # GPT-2 in transformers has matrices of another class, transposed
    transposed = [name for name, kind in kinds.items() if kind.__name__ == "Conv1D"]
    blocks = [name for name, kind in kinds.items() if issubclass(kind, nn.Linear)] + transposed
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=blocks, fan_in_fan_out=bool(transposed)
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, network)


def merge_adapters(network: DiT) -> None:
    """Add the adapters to their matrices and remove them; a network without any stays unchanged."""
    for name, module in [*network.named_modules()]:
        if hasattr(module, "lora_A"):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(network.get_submodule(parent), leaf, module.get_base_layer())
    network.requires_grad_(True)
