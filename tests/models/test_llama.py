"""The other architecture: RMSNorm, SwiGLU, no biases, no noise level; causal, it is LLaMA."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from networks import randomised
from sddlm.errors import ConfigError
from sddlm.models.block import Block
from sddlm.models.config import DiTConfig, ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import SDDLM
from sddlm.process.masked import MaskedProcess
from sddlm.rng import Draw

V, L, D, HEADS = 11, 8, 12, 3
B = 3
X_T = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.01, 0.7, 4.2])


def network(**changes: Any) -> DiT:
    """Every parameter random, float64."""
    values = {"vocab_size": V, "length": L, "width": D, "blocks": 2, "heads": HEADS}
    config = DiTConfig(**{**values, "architecture": "llama", **changes})
    return randomised(DiT(config).double(), 0.5)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5) * weight


def turn(x: Tensor) -> Tensor:
    """Rotary positions as multiplication of complex numbers, ``[L, dim]``."""
    half = x.shape[1] // 2
    angle = torch.arange(len(x))[:, None] * 10000.0 ** (-torch.arange(half) / half)
    turned = torch.complex(x[:, :half], x[:, half:]) * torch.polar(
        torch.ones_like(angle).double(), angle.double()
    )
    return torch.cat((turned.real, turned.imag), 1)


def reference(x: Tensor, w: dict[str, Tensor], causal: bool) -> Tensor:
    """One block of one sequence ``[L, D]``, each line from the definition."""
    q, k, v = (rms_norm(x, w["norm1.weight"]) @ w["qkv.weight"].T).split(D, dim=1)
    dim, said = D // HEADS, []
    for h in range(HEADS):
        part = slice(h * dim, (h + 1) * dim)
        scores = turn(q[:, part]) @ turn(k[:, part]).T / dim**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(L, L).triu(1).bool(), -torch.inf)
        said.append(scores.softmax(1) @ v[:, part])
    x = x + torch.cat(said, 1) @ w["out.weight"].T
    gate, up = (rms_norm(x, w["norm2.weight"]) @ w["mlp.0.weight"].T).split(4 * D, dim=1)
    return x + (gate / (1 + torch.exp(-gate)) * up) @ w["mlp.2.weight"].T


@pytest.mark.parametrize("causal", [False, True])
def test_it_is_what_the_definition_says(causal: bool) -> None:
    model = network(causal=causal)
    state = model.state_dict()
    hidden = model(X_T, SIGMA)
    for row, got in zip(X_T, hidden, strict=True):
        x = state["embedding.weight"][row]
        for block in model.blocks:
            x = reference(x, block.state_dict(), causal)
        x = rms_norm(x, state["norm.weight"])
        # angles are made in float32, as published
        torch.testing.assert_close(got, x, rtol=0, atol=1e-5)
        logits = model.head.logits(got)
        torch.testing.assert_close(logits, x @ state["head.weight"].T, rtol=0, atol=1e-4)


def test_the_norm_of_small_numbers_is_that_of_llama() -> None:
    norm = network().norm
    x = torch.tensor([3e-3, -1e-3] * (D // 2), dtype=torch.float64)  # mean square 5e-6
    expected = x / (5e-6 + 1e-5) ** 0.5 * norm.weight
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=0)


@pytest.mark.slow
def test_gradient_of_a_block() -> None:
    block = Block(4, 1, 0, 0.0, False, "llama").double()
    generator = torch.Generator().manual_seed(2)
    names, values = zip(*block.named_parameters(), strict=True)
    with torch.no_grad():
        for value in values:
            value.normal_(0, 0.7, generator=generator)
    x = torch.randn(1, 3, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    angle = torch.rand(3, 2, dtype=torch.float64, generator=generator)
    cos, sin = angle.cos(), angle.sin()

    def call(x: Tensor, *values: Tensor) -> Any:
        given = dict(zip(names, values, strict=True))
        return torch.func.functional_call(block, given, (x, None, cos, sin))

    assert torch.autograd.gradcheck(call, (x, *values))


@pytest.mark.parametrize("selective", [False, True])
def test_nothing_has_a_bias_and_all_is_reached(selective: bool) -> None:
    model = network().train()
    model.checkpointing = "selective" if selective else "none"
    names = dict(model.named_parameters())
    assert model.head.bias is None
    assert all(name.endswith("weight") for name in names)
    assert not any("modulation" in name or "sigma" in name for name in names)
    noisy = SDDLM().process.corrupt(X_T, torch.full((B,), 0.7), Draw.simple(0, 0, B), vocab_size=V)
    SDDLM().score(model, noisy, Draw.simple(0, 0, B)).total.backward()
    for name, parameter in names.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize(
    ("preset", "width", "blocks", "millions", "in_all"),
    [("1.1b", 1792, 20, 1027.7, 1142), ("10b", 4096, 36, 9664.0, 9926)],
)
@pytest.mark.parametrize("causal", [False, True])
def test_number_of_parameters(
    preset: Any, width: int, blocks: int, millions: float, in_all: int, causal: bool
) -> None:
    config = ModelArgs(preset=preset).build(vocab_size=32000, length=2048, causal=causal)
    with torch.device("meta"):
        model = DiT(config)
    size = {name: p.numel() for name, p in model.named_parameters()}
    beside = sum(n for name, n in size.items() if not name.startswith(("embedding", "head")))
    # qkv 3, out 1, gate, up and down 4 each; two norms a block and one behind them
    assert beside == blocks * (16 * width**2 + 2 * width) + width
    assert round(beside / 1e6, 1) == pytest.approx(millions, abs=0.35)
    assert sum(size.values()) == beside + 2 * 32000 * width
    assert round(sum(size.values()) / 1e6) == in_all


def test_the_one_of_smdm() -> None:
    config = DiTConfig.preset("1.1b", vocab_size=32000, length=2048)
    assert (config.width, config.blocks, config.heads) == (1792, 20, 14)
    with torch.device("meta"):
        model = DiT(config)
    mlp = model.blocks[0].mlp
    assert mlp[2].weight.shape == (1792, 7168)
    assert mlp[0].weight.shape == (2 * 7168, 1792)


@pytest.mark.slow
def test_training_lowers_the_loss() -> None:
    values = {"vocab_size": V, "length": L, "width": 32, "blocks": 2, "heads": 2}
    model = DiT(DiTConfig(**values, architecture="llama"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step in range(100):
        draw = Draw.simple(0, step, 32)
        x0 = draw.integers("token", high=V)[:, None].expand(-1, L)  # a row of one token
        loss = SDDLM().loss(model, x0, draw).mean
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # about half of the positions are replaced: at first ln V of each
    assert losses[0] == pytest.approx(0.5 * math.log(V), rel=0.2)
    assert sum(losses[-20:]) / 20 < 0.75 * losses[0]


def test_knobs() -> None:
    sizes = {"vocab_size": 30, "length": 5}
    llama = ModelArgs(preset="mini", architecture="llama").build(**sizes)
    assert llama.architecture == "llama"
    assert llama.time_input == "none"
    assert DiT(llama).time_free
    assert ModelArgs(preset="1.1b", blocks=1, width=28).build(**sizes).architecture == "llama"
    other = ModelArgs(preset="1.1b", architecture="dit").build(**sizes)
    assert (other.architecture, other.time_input) == ("dit", "sigma")
    assert ModelArgs().build(**sizes).architecture == "dit"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gate_init": 1.0}, r"`gate_init` has no meaning in a llama"),
        ({"cond_dim": 8}, r"`cond_dim` has no meaning in a llama"),
        ({"architecture": "gpt"}, r"`architecture` is 'gpt', must be one of dit, llama, hollow"),
    ],
)
def test_what_has_no_meaning_is_refused(
    changes: dict[str, Any], message: str, causal: bool
) -> None:
    with pytest.raises(ConfigError, match=message):
        network(causal=causal, **changes)


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"causal": True, "input_conv": 3}]
)
def test_saved_and_loaded(changes: dict[str, Any], tmp_path: Path) -> None:
    model = network(**changes).float().eval()
    model.save_pretrained(tmp_path)
    loaded = DiT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(X_T, SIGMA), model(X_T, SIGMA))
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "llama"


def test_a_configuration_from_before_there_was_a_choice() -> None:
    values = {"vocab_size": V, "length": L, "width": D, "blocks": 2, "heads": HEADS}
    assert DiTConfig.from_dict({**values, "cond_dim": 8}).architecture == "dit"


def test_a_mask_is_never_predicted() -> None:
    extra = MaskedProcess().extra_tokens
    model = network(vocab_size=V + extra, num_extra_tokens=extra)
    logits = model.head.logits(model(X_T, SIGMA))
    assert (logits[..., -extra:] == -torch.inf).all()
    assert logits[..., :-extra].isfinite().all()
