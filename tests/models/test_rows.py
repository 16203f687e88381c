"""What need not be computed: rows nobody asks for, activations that can be had again, the time."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from networks import randomised
from sddlm.errors import ConfigError
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import NELBO, SDDLM
from sddlm.rng import Draw

V, B, L = 11, 3, 8
LLAMA = {"architecture": "llama", "cond_dim": 128}
GIDD = {"architecture": "gidd", "cond_dim": 128}
KINDS: list[dict[str, Any]] = [
    {}, {"causal": True}, {"time_input": "none"}, {"input_conv": 3}, LLAMA,
    {**LLAMA, "causal": True}, GIDD,
]  # fmt: skip


def network(**changes: Any) -> DiT:
    """Every parameter random, float64."""
    values = {"vocab_size": V, "length": L, "width": 16, "blocks": 3, "heads": 2, "cond_dim": 8}
    return randomised(DiT(DiTConfig(**{**values, **changes})).double())


X_T = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.01, 0.7, 4.2])


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("rows", [[], [5], [0, 3, 9, 10, 23], list(range(B * L))], ids=len)
def test_rows_are_rows_of_the_whole(changes: dict[str, Any], rows: list[int]) -> None:
    model = network(**changes)
    chosen = torch.tensor(rows, dtype=torch.int64)
    weights = torch.randn(len(rows), 16, generator=torch.Generator().manual_seed(2)).double()
    part, whole = model(X_T, SIGMA, rows=chosen), model(X_T, SIGMA).flatten(0, 1)[chosen]
    torch.testing.assert_close(part, whole, rtol=1e-9, atol=1e-12)
    grads = [
        torch.autograd.grad(
            (hidden * weights).sum(),
            list(model.parameters()),
            materialize_grads=True,
            allow_unused=True,
        )
        for hidden in (part, whole)
    ]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_last_mlp_sees_the_rows_alone() -> None:
    model = network()
    seen = []
    for block in model.blocks:
        block.mlp[2].register_forward_hook(lambda m, x, out: seen.append(x[0].shape[:-1].numel()))
    noisy = SDDLM().process.corrupt(X_T, torch.full((B,), 0.5), Draw.simple(0, 0, B), vocab_size=V)
    SDDLM().score(model, noisy, Draw.simple(0, 0, B))
    assert seen == [B * L, B * L, int(noisy.resampled.sum())]


@pytest.mark.parametrize("objective", [SDDLM(), NELBO()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.3}, {"time_input": "none"}, LLAMA, GIDD], ids=str
)
def test_checkpointing_changes_no_bit(objective: Any, changes: dict[str, Any]) -> None:
    model = network(**changes).train()
    calls: dict[str, int] = {}

    def count(name: str) -> Any:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    first = model.blocks[0]
    for name in ("", "norm1", "qkv", "mlp.1", "out"):
        first.get_submodule(name).register_forward_pre_hook(count(name))
    grads, counts = [], []
    for model.checkpointing in ("none", "selective", "full"):
        calls.clear()
        torch.manual_seed(7)
        loss = objective.loss(model, X_T, Draw.simple(0, 0, B)).mean
        grads.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
        counts.append(tuple(calls.values()))
    # block, norm, qkv, out, gelu or swiglu; a product that ends a part is begun again and left
    # at once
    assert counts == [(1, 1, 1, 1, 1), (1, 2, 2, 1, 2), (2, 2, 2, 2, 2)]
    for again in grads[1:]:
        for a, b in zip(grads[0], again, strict=True):
            assert torch.equal(a, b)
    with torch.no_grad():
        calls.clear()
        model(X_T, SIGMA)
    assert set(calls.values()) == {1}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "mode", "most"),
    [
        ({}, "none", 23), ({}, "selective", 14), ({}, "full", 2.5),
        (LLAMA, "none", 29), (LLAMA, "selective", 16), (LLAMA, "full", 2.5),
    ],
)  # fmt: skip
def test_what_a_block_keeps(changes: dict[str, Any], mode: Any, most: float) -> None:
    model = network(width=64, blocks=12, length=32, **changes)
    model.checkpointing = mode
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    x_t = torch.randint(V, (8, 32))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        _hidden = model(x_t, torch.ones(8))
    for parameter in model.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    # numbers of the width of the residual stream, for each token and block
    assert sum(kept.values()) / (8 * 8 * 32 * 64 * 12) < most


def test_a_time_free_network_sees_all_positions_and_no_time() -> None:
    model = network(time_input="none")
    assert model.time_free
    assert not network().time_free
    assert not any("modulation" in name or "sigma" in name for name, _ in model.named_parameters())
    out = model(X_T, SIGMA)
    assert torch.equal(model(X_T, SIGMA.flip(0)), out)
    changed = X_T.clone()
    changed[:, -1] = (changed[:, -1] + 1) % V
    assert ((model(changed, SIGMA) - out).abs().amax(-1) > 1e-9).all()
    with pytest.raises(ConfigError, match=r"`gate_init` has no meaning in a time-free"):
        network(time_input="none", gate_init=1.0)
