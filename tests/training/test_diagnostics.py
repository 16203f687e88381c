"""Health: each figure against a plain computation, and alarms that sound only when they should."""

import json
import re
import shutil
from math import isnan, log

import pytest
import torch
from safetensors.torch import load_file

from processes import several
from sddlm import (
    MDLM,
    NELBO,
    SDDLM,
    SDDLMV1,
    SDDLMV2,
    SEDD,
    Autoregressive,
    DiT,
    DiTConfig,
    Geometric,
    NaiveDenoising,
    TopNegatives,
    UniformNegatives,
    UniformProcess,
    World,
)
from sddlm.cli import main
from sddlm.exact.tabular import TabularModel
from sddlm.models.padding import hide_padding
from sddlm.rng import Draw
from sddlm.sampling import base
from sddlm.training.alarms import Alarms, alarms
from sddlm.training.curves import draw_curves, panels_of
from sddlm.training.diagnostics import diagnostics, gradient_norms, output_figures
from sddlm.training.monitor import SPENT, read_metrics

V, L, B = 11, 7, 8


def network(**more):
    config = DiTConfig(
        vocab_size=V, length=L, width=16, blocks=2, heads=2, head_init=0.5,
        **({} if more.get("causal") else {"gate_init": 1.0}), **more,
    )  # fmt: skip
    return DiT(config, seed=1)


def batch(draw_seed=5, batch_size=B, vocab_size=V):
    generator = torch.Generator().manual_seed(2)
    x0 = torch.randint(vocab_size, (batch_size, L), generator=generator)
    return x0, Draw.simple(draw_seed, -1, batch_size)


def by_hand(model, process, x0, draw, shift, counted=None):
    """The figures, one position after the other, from all logits at once."""
    noisy = process.corrupt(x0, draw.times(), draw, vocab_size=model.vocab_size)
    logits = model.head.logits(model(noisy.x_t, noisy.sigma)).detach().double()
    found = {name: [] for name in ("copy_prob", "copy_prob_noise", "clean_prob")}
    entropies, ranges = [], []
    for b in range(len(x0)):
        alpha = float(noisy.alpha_t[b, 0])
        for i in range(x0.shape[1]):
            if counted is not None and not counted[b, i]:
                continue
            z, x = int(noisy.x_t[b, i]), int(x0[b, i])
            row = logits[b, i].clone()
            ranges.append(float(row.max() - row.min()))
            row[z] -= shift(alpha)
            p = row.exp() / row.exp().sum()
            entropies.append(-float((p * p.log()).sum()))
            if z == x:
                found["copy_prob"].append((1 - alpha, float(p[z])))
            else:
                found["copy_prob_noise"].append((alpha + (1 - alpha) / V, float(p[z])))
                found["clean_prob"].append((alpha + (1 - alpha) / V, float(p[x])))
    return {
        name: sum(w * value for w, value in values) / sum(w for w, _ in values)
        for name, values in found.items()
    } | {
        "output_entropy": sum(entropies) / len(entropies),
        "logit_range": sum(ranges) / len(ranges),
    }


@pytest.mark.parametrize(
    ("objective", "shift"),
    [
        (SDDLM(), lambda alpha: 0.0),
        (NaiveDenoising(), lambda alpha: log(1 + V * alpha / (1 - alpha))),
    ],
)
def test_figures_of_the_output_are_those_computed_by_hand(objective, shift, monkeypatch):
    model, (x0, draw) = network(dropout=0.5).train(), batch()
    model.blocks[0].eval()
    before = [module.training for module in model.modules()]
    found = output_figures(model, objective, x0, draw)
    assert [module.training for module in model.modules()] == before
    monkeypatch.setattr(base, "CHUNK_BYTES", 5 * 8 * V)  # five rows at a time
    assert output_figures(model, objective, x0, draw) == pytest.approx(found, rel=1e-6)
    assert found == pytest.approx(
        by_hand(model.eval(), objective.process, x0, draw, shift), rel=1e-5
    )


def test_padding_is_neither_seen_nor_counted():
    model, (x0, draw) = network().eval(), batch()
    lengths = torch.tensor([7, 3, 5, 7, 2, 6, 4, 7])
    figures = []
    for pad in (0, 3):
        real = torch.arange(L) < lengths[:, None]
        padded, loss_mask = hide_padding(model, lengths, x0.where(real, torch.tensor(pad)))
        figures.append(
            diagnostics(padded, SDDLMV1(), x0.where(real, torch.tensor(pad)), draw, real)
        )
        assert torch.equal(loss_mask, real)
    assert figures[0] == figures[1]
    whole = output_figures(model, SDDLM(), x0, draw)
    assert figures[0]["output_entropy"] != whole["output_entropy"]


def test_uniform_outputs():
    config = DiTConfig(vocab_size=V, length=L, width=16, blocks=1, heads=2)  # as published
    x0, draw = batch()
    found = output_figures(DiT(config), SDDLM(), x0, draw)
    assert found == pytest.approx(
        {
            "copy_prob": 1 / V, "copy_prob_noise": 1 / V, "clean_prob": 1 / V,
            "output_entropy": log(V), "logit_range": 0,
        }
    )  # fmt: skip


def test_masks_are_no_tokens_and_kept_tokens_no_questions():
    config = DiTConfig(vocab_size=V, length=L, width=16, blocks=1, heads=2, num_extra_tokens=1)
    x0, draw = batch(vocab_size=V - 1)
    found = output_figures(DiT(config), MDLM(), x0, draw)
    assert found == pytest.approx(
        {
            "copy_prob_noise": 0, "clean_prob": 1 / (V - 1),
            "output_entropy": log(V - 1), "logit_range": 0,
        }
    )  # fmt: skip


def test_an_autoregressive_network_has_an_output_and_no_noise():
    model, (x0, draw) = network(causal=True).eval(), batch()
    logits = model.head.logits(model(x0[:, :-1], torch.zeros(B))).detach().double()
    log_p = logits.log_softmax(-1)
    assert diagnostics(model, Autoregressive(), x0, draw) == pytest.approx(
        {
            "output_entropy": -float((log_p.exp() * log_p).sum(-1).mean()),
            "logit_range": float((logits.amax(-1) - logits.amin(-1)).mean()),
        },
        rel=1e-5,
    )


def test_a_score_is_read_as_the_prediction_that_it_is_of():
    found = output_figures(network().eval(), SEDD(), *batch())
    assert all(0 <= found[name] <= 1 for name in ("copy_prob", "copy_prob_noise", "clean_prob"))
    assert found["output_entropy"] <= log(V)


def test_a_network_that_does_not_look_at_its_own_token_knows_and_does_not_copy():
    world, many = World.random(5, 3), 6000
    # one time for all, at which half the tokens are kept: a table for each time is slow
    process = UniformProcess(Geometric(sigma_min=log(2), sigma_max=20.0))
    draw, figures = Draw(3, -1, torch.arange(many), many, t_max=1e-3), {}
    x0 = world.tokens(many, seed=1)
    for name, predictions, objective in [
        ("right", world.leave_one_out, SDDLM(process)),
        ("converted", world.denoiser, NaiveDenoising(process)),
        ("misread", world.denoiser, SDDLM(process)),  # as public code samples it
    ]:
        model = TabularModel(predictions, vocab_size=5, length=3)
        figures[name] = output_figures(model, objective, x0, draw)
    assert figures["converted"] == pytest.approx(
        figures["right"] | {"logit_range": figures["converted"]["logit_range"]}, rel=1e-6
    )
    right, misread = figures["right"], figures["misread"]
    assert right["copy_prob"] == pytest.approx(right["clean_prob"], abs=0.02)
    # a uniform token that is not x0 gets its part of what is left
    assert right["copy_prob_noise"] == pytest.approx((1 - right["clean_prob"]) / 4, abs=0.01)
    assert misread["copy_prob_noise"] > right["copy_prob_noise"] + 0.1
    assert misread["copy_prob"] > misread["clean_prob"] + 0.1
    for name, due in (("right", []), ("converted", []), ("misread", ["copying"])):
        seen = [{"step": step, **figures[name]} for step in (100, 150)]
        assert [alarm.name for alarm in alarms(seen, vocab_size=5, warmup=0)] == due


def plain_norm(value, model):
    gradients = torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    return float(torch.cat([g.flatten() for g in gradients]).norm())


@pytest.mark.parametrize(
    "objective",
    [
        SDDLMV1(negatives=UniformNegatives("exact"), weight=0.7, eps=1e-3),
        SDDLMV2(weight=1.5, eps=1e-3, positions="changed"),
    ],
)
def test_gradient_norms_are_those_of_the_two_parts_of_the_loss(objective):
    model, (x0, draw) = network(dropout=0.5).train(), batch()
    model.head.weight.grad = torch.full_like(model.head.weight, 7.0)
    with torch.inference_mode():
        found = gradient_norms(model, objective, x0, draw)
    assert model.training
    assert torch.equal(model.head.weight.grad, torch.full_like(model.head.weight, 7.0))
    assert all(p.grad is None for n, p in model.named_parameters() if n != "head.weight")

    model.eval()
    noisy = UniformProcess().corrupt(x0, draw.times(), draw, vocab_size=V)
    at = noisy.changed if isinstance(objective, SDDLMV2) else noisy.resampled
    p = model.head.logits(model(noisy.x_t, noisy.sigma)).softmax(-1)  # [B, L, V]
    away = (p + objective.eps).log()
    if isinstance(objective, SDDLMV2):
        away = away.gather(-1, noisy.x_t[..., None])
    towards = -(p.gather(-1, x0[..., None])[..., 0] + objective.eps).log()
    assert found == pytest.approx(
        {
            "attractive_norm": plain_norm(towards[at].sum() / x0.numel(), model),
            "repulsive_norm": plain_norm(
                objective.weight * away.mean(-1)[at].sum() / x0.numel(), model
            ),
        },
        rel=1e-4,
    )


def test_a_look_in_half_precision_has_both_norms():
    """Figures are taken without gradients, norms with them, within one autocast."""
    model, (x0, draw) = network().eval(), batch()
    exact = diagnostics(model, SDDLMV1(), x0, draw)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        half = diagnostics(model, SDDLMV1(), x0, draw)
    assert half == pytest.approx(exact, rel=0.1)


@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_the_weight_of_the_negatives_scales_their_norm_alone(mode):
    model, (x0, draw) = network().eval(), batch()
    model.checkpointing = mode
    for negatives in (UniformNegatives(3), TopNegatives(2)):
        one, three = (
            gradient_norms(model, SDDLMV1(negatives=negatives, weight=w), x0, draw)
            for w in (1.0, 3.0)
        )
        assert three["attractive_norm"] == pytest.approx(one["attractive_norm"], rel=1e-6)
        assert three["repulsive_norm"] == pytest.approx(3 * one["repulsive_norm"], rel=1e-3)


def test_an_objective_without_parts_has_no_norms_of_them():
    model, (x0, draw) = network().eval(), batch()
    for objective in (SDDLM(), NELBO(), NaiveDenoising()):
        assert gradient_norms(model, objective, x0, draw) == {}


WELL = {
    "copy_prob": 0.2, "copy_prob_noise": 0.002, "clean_prob": 0.2, "output_entropy": 5.0,
    "logit_range": 18.0, "val_nelbo": 8.0, "attractive_norm": 1.0, "repulsive_norm": 1.0,
    "preview_entropy": 3.0, "text_entropy": 3.3,
}  # fmt: skip
SIGNS = {
    "copying": {"copy_prob_noise": 0.11},
    "repetition": {"preview_entropy": 2.2},
    "uniform": {"output_entropy": 6.8},
    "negatives": {"val_nelbo": 12.2},
}


def table(*rows, first=200, every=50):
    return [{"step": first + every * i, "loss": 1.0, **row} for i, row in enumerate(rows)]


def names(rows, warmup=30, **more):
    return [alarm.name for alarm in alarms(rows, vocab_size=1000, warmup=warmup, **more)]


def test_a_healthy_table_has_no_alarm():
    assert names(table(*[WELL] * 5)) == []
    edge = {
        "copy_prob_noise": 0.1, "preview_entropy": 2.32, "output_entropy": 6.6, "val_nelbo": 12.0,
        "logit_range": 39.0, "repulsive_norm": 5.0,
    }  # fmt: skip
    assert names(table(*[WELL | edge] * 2)) == []
    assert names([]) == []


@pytest.mark.parametrize("name", SIGNS)
def test_an_alarm_is_due_when_its_sign_is_there_twice_in_succession(name):
    bad = WELL | SIGNS[name]
    assert names(table(WELL, bad, bad)) == [name]
    assert names(table(bad, WELL, bad)) == []
    assert names(table(bad, WELL, bad), looks=1) == [name]
    assert names(table(bad, bad, WELL)) == []
    if name == "negatives":
        assert names(table(bad, WELL | {"logit_range": 41.0})) == [name]
    # rows of steps in between have no such figures, and are no looks
    assert names(table(bad, {}, bad, {})) == [name]
    assert names(table({}, {}, bad)) == []
    # not while the learning rate is still growing
    assert names(table(bad, bad, first=50)) == []
    assert names(table(bad, bad, first=50), warmup=0) == []
    assert names(table(bad, bad, first=100)) == [name]
    assert names(table(bad, bad), warmup=101) == []


def test_an_alarm_says_what_was_measured_and_what_to_type():
    bad = [WELL | sign for sign in SIGNS.values()]
    for name, row in zip(SIGNS, bad, strict=True):
        (alarm,) = alarms(table(row, row), vocab_size=1000, warmup=0)
        figure = next(iter(SIGNS[name].values()))
        assert any(f"{figure:.{n}f}" in alarm.measured for n in (1, 2)), alarm
        assert "`" in alarm.advice
        assert "\n" not in alarm.measured + alarm.advice


def test_negatives_are_blamed_only_where_there_are_any():
    bad = {k: v for k, v in (WELL | SIGNS["negatives"]).items() if not k.endswith("_norm")}
    assert names(table(bad, bad)) == []


def test_a_small_vocabulary_may_have_noise_that_is_likely():
    rows = table(*[{"copy_prob_noise": 0.3, "output_entropy": 1.0}] * 2)
    assert alarms(rows, vocab_size=5, warmup=0) == []
    assert [alarm.name for alarm in alarms(rows, vocab_size=9, warmup=0)] == ["copying"]


def test_an_alarm_is_said_once_and_again_when_it_had_gone(tmp_path, caplog):
    rows = []
    bell = Alarms(tmp_path, rows, vocab_size=1000, warmup=30)
    bad = WELL | SIGNS["uniform"]
    for row in [bad, bad, bad, WELL, bad, bad]:
        rows.append({"step": 200 + 50 * len(rows), **row})
        bell.check()
    said = [json.loads(line) for line in (tmp_path / "alarms.jsonl").read_text().splitlines()]
    assert [(line["step"], line["name"]) for line in said] == [(250, "uniform"), (450, "uniform")]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "`train.lr`" in caplog.text
    # a resumed run has said it
    Alarms(tmp_path, rows, vocab_size=1000, warmup=30).check()
    assert len(caplog.records) == 2
    assert bell.near[0].startswith("uniform?")
    rows.append({"step": 500, **WELL})
    bell.check()
    assert bell.near == []


def train(config, out, *more):
    return main(["train", "--config", str(config), "--out", str(out), *more])


def weights(run):
    return load_file(run / "model" / "model.safetensors")


V1 = ("--objective", "SDDLMV1", "--model.dropout", "0.1")
FIGURES = ("copy_prob", "copy_prob_noise", "clean_prob", "output_entropy", "logit_range")
NORMS = ("attractive_norm", "repulsive_norm")


@pytest.mark.slow
def test_a_run_writes_the_figures_beside_the_bound_and_resumes_with_them(config, tmp_path):
    run = tmp_path / "run"
    assert train(config, run, *V1) == 0
    rows = read_metrics(run)
    assert [row["step"] for row in rows if set(FIGURES + NORMS) <= row.keys()] == [4, 8, 12]
    assert [row["step"] for row in rows if "preview_entropy" in row] == [6, 12]
    previews = [row["preview_entropy"] for row in rows if "preview_entropy" in row]
    assert all(0 <= entropy <= log(16) for entropy in previews)
    assert 1.5 < rows[-1]["text_entropy"] < log(16)  # English letters, 16 of them
    assert not (run / "alarms.jsonl").exists()

    # a look changes no bit of the training
    never = ("--train.validate_every", "1000", "--train.preview_every", "0")
    assert train(config, tmp_path / "blind", *V1, *never) == 0
    trained, blind = weights(run), weights(tmp_path / "blind")
    assert all(torch.equal(trained[name], blind[name]) for name in trained)

    shutil.rmtree(run / "model")
    kept = [row | dict.fromkeys(SPENT, 0) for row in rows]
    assert train(config, run, *V1, "--resume", "true") == 0
    assert [row | dict.fromkeys(SPENT, 0) for row in read_metrics(run)] == kept


@pytest.mark.slow
def test_a_run_that_learns_nothing_is_told_once(config, tmp_path, capsys):
    run = tmp_path / "run"
    more = ("--train.steps", "150", "--train.validate_every", "50", "--train.preview_every", "0")
    assert train(config, run, *more, "--train.lr", "1e-9", "--model.head_init", "0") == 0
    (line,) = (run / "alarms.jsonl").read_text().splitlines()
    alarm = json.loads(line)
    assert (alarm["step"], alarm["name"]) == (150, "uniform")
    said = capsys.readouterr().err
    advice = re.sub(r"`([\w.]+)=?(.*?)`", lambda m: f"--{m[1]} {m[2]}".strip(), alarm["advice"])
    assert said.count(advice) == 1
    assert "step 100:" in said.split("uniform?")[0]  # a look before, it was near


@pytest.mark.slow
def test_two_processes_see_what_one_sees(config, tmp_path):
    """One of them looks, by a backward pass of its own that the others do not wait for.

    It looks at the weights: how they are averaged changes the bound beside the figures, not them.
    """
    short = (*V1[:2], "--train.steps", "4", "--train.validate_every", "2")
    assert train(config, tmp_path / "one", *short) == 0
    more = ["--train.devices", "2", "--train.accelerator", "cpu", "--train.ema", "0"]
    run = ["train", "--config", config, "--out", tmp_path / "two", *more, *short]
    for code, _, said in several(2, *run):
        assert code == 0, said
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    assert [row["step"] for row in two if "repulsive_norm" in row] == [2, 4]
    assert abs(one[-1]["val_nelbo"] - two[-1]["val_nelbo"]) > 0.01
    for a, b in zip(one, two, strict=True):
        for name in FIGURES + NORMS:
            assert a.get(name) == pytest.approx(b.get(name), rel=2e-3), name


def test_the_table_is_read_back_as_it_was_written(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,own_share,loss,val_loss\n5,1e-05,-2.5,\n6,,nan,3\n")
    five, six = read_metrics(tmp_path)
    assert five == {"step": 5, "copy_prob": 1e-5, "loss": -2.5}
    assert isnan(six.pop("loss"))
    assert six == {"step": 6, "val_loss": 3}


def test_the_picture_has_panels_for_what_was_measured(tmp_path):
    plain = [{"step": 1, "loss": 2.0, "val_nelbo": 3.0}, {"step": 2, "loss": 1.0}]
    assert len(panels_of({"a": plain})) == 4
    more = [row | {"preview_entropy": 3.0, "attractive_norm": 1.0} for row in plain]
    found = panels_of({"a": plain, "b": more})[4:]
    assert [columns[0] for columns, _ in found] == ["preview_entropy", "attractive_norm"]
    draw_curves({"a": plain, "b": more}, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
