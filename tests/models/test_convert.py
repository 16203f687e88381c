"""Duo's checkpoints in and out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sddlm.errors import ConfigError
from sddlm.models.config import DiTConfig
from sddlm.models.convert import from_duo, to_duo
from sddlm.models.dit import DiT

GOLDEN = Path(__file__).parents[1] / "golden" / "duo_dit_A.npz"
INV_FREQ = "backbone.rotary_emb.inv_freq"


def _golden() -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    file = np.load(GOLDEN)
    state = {k.removeprefix("param/"): file[k] for k in file.files if k.startswith("param/")}
    return state, {name: torch.from_numpy(file[name]) for name in ("x_t", "sigma", "logits")}


def _network(**changes: Any) -> DiT:
    values = {"vocab_size": 7, "length": 5, "width": 16, "blocks": 2, "heads": 2, "head_init": 0.1}
    return DiT(DiTConfig(**{**values, **changes}))


def test_golden_logits() -> None:
    state, golden = _golden()
    model = from_duo(state, length=32)
    assert model.config == DiTConfig(vocab_size=35, length=32, width=64, blocks=3, heads=4)
    with torch.no_grad():
        logits = model.head.logits(model(golden["x_t"], golden["sigma"]))
    assert (logits - golden["logits"]).abs().max() < 1e-5


def test_and_back() -> None:
    state, _ = _golden()
    back = to_duo(from_duo(state))
    assert back.keys() == state.keys()
    for name, tensor in back.items():
        atol = 1e-7 if name == INV_FREQ else 0  # computed, not carried over
        assert torch.allclose(tensor, torch.from_numpy(state[name]), atol=atol, rtol=0), name


@pytest.mark.parametrize("changes", [{"causal": True}, {"tie_embeddings": True}, {"cond_dim": 24}])
def test_other_networks(changes: dict[str, Any]) -> None:
    model = _network(**{"head_init": 0.0, **changes})
    other = from_duo(to_duo(model), length=5)
    assert other.config.causal == model.causal
    x_t, sigma = torch.arange(5)[None], torch.ones(1)
    assert torch.equal(other(x_t, sigma), model(x_t, sigma))
    assert torch.equal(other.head.weight, model.head.weight)


def test_averaged_weights_of_a_whole_checkpoint() -> None:
    state = to_duo(_network())
    shadow = [tensor + 1 for name, tensor in state.items() if name != INV_FREQ]
    checkpoint = {"state_dict": state | {"noise.x": torch.ones(1)}, "epoch": 3}
    plain = from_duo(checkpoint)
    averaged = from_duo(checkpoint | {"ema": {"decay": 0.9999, "shadow_params": shadow}})
    for (name, a), b in zip(averaged.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b + 1), name
    with pytest.raises(ConfigError, match="in ema"):
        from_duo(checkpoint | {"ema": {"shadow_params": shadow[1:]}})


def test_what_does_not_fit_is_named() -> None:
    state = to_duo(_network())
    state["backbone.odd"] = state.pop("backbone.blocks.0.attn_out.weight")
    with pytest.raises(ConfigError, match=r"missing blocks.0.attn_out.weight; unexpected odd"):
        from_duo(state)
    with pytest.raises(ConfigError, match=r"no vocab_embed.embedding .* among a"):
        from_duo({"a": torch.ones(1)})
    for changes, message in (
        ({"input_conv": 3}, "has no input convolution"),
        ({"architecture": "llama"}, "is no llama"),
        ({"time_free": True}, "is told the noise level"),
    ):
        with pytest.raises(ConfigError, match=message):
            to_duo(_network(**changes))


def test_heads_without_the_buffer() -> None:
    model = _network()
    state = {k.removeprefix("backbone."): v for k, v in to_duo(model).items() if k != INV_FREQ}
    with pytest.raises(ConfigError, match="give the number of heads"):
        from_duo(state)
    assert from_duo(state, heads=2).config.heads == 2
