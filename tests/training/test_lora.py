"""Low-rank adapters: only they are trained, resumed like all weights, and merged at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sddlm
from networks import randomised
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.lora import add_adapters, merge_adapters

KINDS: list[dict[str, Any]] = [
    {},
    {"architecture": "hollow", "blocks": 2},
    {"architecture": "llama", "cond_dim": 128},
    {"architecture": "gidd", "cond_dim": 128},
]
X = torch.randint(0, 11, (3, 8), generator=torch.Generator().manual_seed(0))
SIGMA = torch.tensor([0.1, 1.0, 3.0])


def network(**changes: Any) -> DiT:
    """Every parameter random, float64."""
    values = {"vocab_size": 11, "length": 8, "width": 16, "blocks": 2, "heads": 2, "cond_dim": 8}
    return randomised(DiT(DiTConfig(**{**values, **changes})).double())


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_adapters_begin_as_nothing_and_merge_into_an_ordinary_network(
    changes: dict[str, Any],
) -> None:
    model, before = network(**changes), network(**changes)
    add_adapters(model, rank=2, seed=0)
    torch.testing.assert_close(model(X, SIGMA), before(X, SIGMA))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name and name.startswith("blocks.") for name in trained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapted = model(X, SIGMA)
    assert (adapted - before(X, SIGMA)).abs().max() > 1e-3
    merge_adapters(model)
    torch.testing.assert_close(model(X, SIGMA), adapted)
    assert model.state_dict().keys() == before.state_dict().keys()
    changed = {
        name
        for name, value in model.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    matrices = {n for n, p in before.blocks.named_parameters(prefix="blocks") if p.ndim == 2}
    assert changed == matrices
    merge_adapters(model)
    assert model.state_dict().keys() == before.state_dict().keys()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("lora")
    (folder / "text.txt").write_text("<|endoftext|>".join(f"the {n} foxes" for n in range(300)))
    options = {
        "path": str(folder / "text.txt"), "cache": str(folder / "cache"), "length": 16,
        "batch": 8, "validate_every": 4, "preview_every": 0, "checkpoint_every": 2, "steps": 4,
    }  # fmt: skip
    sddlm.train(
        **options, out=folder / "run", tokenizer="bytes", preset="mini", width=32, blocks=2,
        heads=2, gate_init=1.0,
    )  # fmt: skip
    return folder, options


@pytest.mark.slow
def test_a_run_trains_its_adapters_alone_and_goes_on(
    base: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, options = base
    options |= {"start": str(folder / "run"), "lora": 3, "lr": 1e-2, "warmup": 0}
    whole = sddlm.train(**options, out=tmp_path / "whole").network.state_dict()
    start = LanguageModel.load(folder / "run").network.state_dict()
    assert whole.keys() == start.keys()
    for name, value in start.items():
        one_matrix = name.startswith("blocks.") and value.ndim == 2
        assert torch.equal(value, whole[name]) != one_matrix, name
        if one_matrix:
            assert torch.linalg.matrix_rank(whole[name] - value, atol=1e-6) == 3
    state = newest_checkpoint(tmp_path / "whole")
    assert state is not None
    kept = sum(len(x["exp_avg"].flatten()) for x in state["optimizer_states"][0]["state"].values())
    assert kept < 0.2 * sum(value.numel() for value in start.values())  # memory of the optimiser

    from sddlm.training import loop

    real = loop.save_checkpoint

    def stop(run: Path, state: dict[str, Any]) -> None:
        real(run, state)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", stop)
    with pytest.raises(KeyboardInterrupt):
        sddlm.train(**options, out=tmp_path / "parts")
    monkeypatch.undo()
    parts = sddlm.train(**options, out=tmp_path / "parts", resume=True).network.state_dict()
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


def test_adapters_need_a_model(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"`train\.lora` adapts a trained model"):
        sddlm.train("text.txt", out=tmp_path / "run", lora=8)
    with pytest.raises(ConfigError, match="`lora` is 0, must be at least 1"):
        sddlm.TrainArgs(lora=0)
