"""Optimisers: Muon for the matrices beside AdamW, its arithmetic, its checkpoints."""

import pytest
import torch
from test_recovery import at_step, ctrl_c, refused
from test_training import assert_same, train, weights

import sddlm
from networks import randomised
from sddlm import DiT, DiTConfig, Muon, TrainArgs
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.optimizers import Float32Muon, Update


def network():
    config = DiTConfig(vocab_size=30, length=8, width=16, blocks=2, heads=2, input_conv=3)
    return randomised(DiT(config))


def test_muon_has_the_matrices_of_the_blocks_and_adamw_all_else():
    model = network()
    adamw, muon = Muon().build(model, TrainArgs())
    names = {id(p): name for name, p in model.named_parameters()}
    held = [[names[id(p)] for p in each.param_groups[0]["params"]] for each in (adamw, muon)]
    assert sorted(held[0] + held[1]) == sorted(names.values())
    parts = ("qkv.weight", "out.weight", "mlp.0.weight", "mlp.2.weight")
    assert held[1] == [f"blocks.{block}.{part}" for block in (0, 1) for part in parts]


def moved(kind, shapes, steps=4):
    """Weights after some steps with random gradients."""
    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    optimizer = kind(weights, lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return weights


def test_muon_in_float32_is_that_of_torch_but_for_its_rounding(monkeypatch):
    shapes = [(8, 8), (24, 8), (8, 40)]
    ours, theirs = moved(Float32Muon, shapes), moved(torch.optim.Muon, shapes)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.02)
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    for a, b in zip(ours, moved(torch.optim.Muon, shapes), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_schedule_multiplies_both_learning_rates():
    args = TrainArgs(steps=100, warmup=10, lr=1e-3, optimizer=Muon(lr=2e-2))
    update = Update(network(), args)
    for step in (0, 9, 99):
        for parameter in update.parameters:
            parameter.grad = torch.ones_like(parameter)
        update.step(step)
        rates = [each.param_groups[0]["lr"] for each in update.optimizers]
        assert rates == pytest.approx([1e-3 * args.lr_factor(step), 2e-2 * args.lr_factor(step)])


MUON = ["--train.optimizer", "Muon", "--train.optimizer.lr", "0.02"]
FEW = ["--train.preview_every=0", "--train.validate_every=12", "--train.checkpoint_every=4"]


@pytest.mark.slow
def test_a_run_with_muon_resumes_bit_for_bit_and_with_no_other_optimiser(
    config, tmp_path, capsys, monkeypatch
):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert train(config, whole, *FEW, *MUON) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 7, ctrl_c)
        assert train(config, cut, *FEW, *MUON) == 130
    states = [each["state"] for each in newest_checkpoint(cut)["optimizer_states"]]
    kinds = [{name for moment in state.values() for name in moment} for state in states]
    assert kinds == [{"step", "exp_avg", "exp_avg_sq"}, {"momentum_buffer"}]
    code = train(config, cut, *FEW, "--resume")
    refused(capsys, code, "--train.optimizer was sddlm.training.optimizers.Muon and is sddlm.train")
    code = train(config, cut, *FEW, *MUON[:2], "--resume")
    refused(capsys, code, "--train.optimizer.lr was 0.02 and is 0.005")
    assert train(config, cut, *FEW, *MUON, "--resume") == 0
    assert_same(weights(whole), weights(cut))
    assert main_config(cut) == Muon(lr=0.02)


def main_config(run):
    """The optimiser that the recorded options choose."""
    from sddlm.cli import _parse

    typed = ["--config", str(run / "config.yaml"), "--out", "x"]
    return _parse("train", typed)[1]["train"].optimizer


@pytest.mark.slow
def test_python_takes_the_object(tmp_path):
    (tmp_path / "t.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    how = {"tokenizer": "bytes", "length": 8, "width": 16, "heads": 2, "blocks": 1, "batch": 2}
    more = {"preset": "mini", "validation": 0.2, "steps": 1, "preview_every": 0}
    more |= {"gate_init": 1.0, "head_init": 0.02}
    first, second = (
        sddlm.train(tmp_path / "t.txt", optimizer=each, **how, **more)
        for each in (sddlm.AdamW(), sddlm.Muon())
    )
    assert first.network.state_dict().keys() == second.network.state_dict().keys()
    different = [
        name
        for name, value in first.network.state_dict().items()
        if not torch.equal(value, second.network.state_dict()[name])
    ]
    assert different
    assert all("blocks.0" in name for name in different)
