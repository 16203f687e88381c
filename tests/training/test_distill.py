"""Beginning from a trained model, and distilling one, through the command line."""

import shutil
import signal

import pytest
import torch
import yaml
from test_training import assert_same, steps, train, weights

from conftest import SETTINGS
from processes import Command
from sddlm.cli import main
from sddlm.data.config import trained_on
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.monitor import read_metrics

SIXTEENTH_STEP = ("sddlm.training.module:TrainModule.forward", 16)
FEW = [
    "--train.batch",
    "8",
    "--train.warmup",
    "1",
    "--train.validation_rows",
    "16",
    "--train.validate_every",
    "1000",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A directory with a text, a configuration and a trained model, made once."""
    place = tmp_path_factory.mktemp("trained")
    text, cache, config = place / "text.txt", place / "cache", place / "tiny.yaml"
    text.write_text("The quick brown fox jumps over the lazy dog.\nAnd then it sleeps.\n" * 40)
    # tables and pictures at the end only: they cost more than these steps
    rarely = {"validate_every: 4": "validate_every: 12", "preview_every: 6": "preview_every: 0"}
    settings = SETTINGS.format(text=text, cache=cache)
    for often, seldom in rarely.items():
        settings = settings.replace(often, seldom)
    config.write_text(settings)
    assert train(config, place / "run") == 0
    return place


@pytest.fixture
def config(trained):
    """Path of a YAML file."""
    return trained / "tiny.yaml"


@pytest.fixture
def run(trained):
    """A trained model."""
    return trained / "run"


def distil(model, out, *more):
    return main(["distill", str(model), "--out", str(out), *FEW, *more])


def refused(capsys, arguments, message, *untouched):
    """Exit code 2, one line, and nothing written."""
    capsys.readouterr()
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    said = [line for line in said if not line.startswith("prepared tokens")]
    assert len(said) == 1
    assert message in said[0]
    for place in untouched:
        assert not place.exists()


# -- sddlm train --start ---------------------------------------------------------------------------


@pytest.mark.slow
def test_it_begins_at_the_models_weights_and_bound(config, run, tmp_path):
    out = tmp_path / "out"
    still = ["--train.lr", "1e-12", "--train.steps", "4", "--train.validate_every", "4"]
    assert train(config, out, "--start", str(run), *still) == 0
    for name, value in weights(run).items():
        torch.testing.assert_close(weights(out)[name], value, rtol=0, atol=1e-9)
    before, after = (read_metrics(place)[-1]["val_nelbo"] for place in (run, out))
    assert after == pytest.approx(before, rel=1e-6)
    assert yaml.safe_load((out / "config.yaml").read_text())["start"] == str(run)
    # and the written configuration repeats the run
    assert main(["train", "--config", str(out / "config.yaml"), "--out", str(tmp_path / "b")]) == 0
    assert_same(weights(out), weights(tmp_path / "b"))


def test_measures_and_tokenizer_are_the_models_and_the_length_may_differ(run, tmp_path):
    out = tmp_path / "longer"
    text = ["--data.path", str(run.parent / "text.txt"), "--data.length", "24"]
    assert main(["train", "--start", str(run), "--out", str(out), *text, *FEW,
                 "--train.steps", "3"]) == 0  # fmt: skip
    old, new = LanguageModel.load(run), LanguageModel.load(out)
    assert (old.network.length, new.network.length) == (16, 24)
    assert new.network.config.width == 32
    assert new.tokenizer.fingerprint == old.tokenizer.fingerprint
    assert not torch.equal(new.network.head.weight, old.network.head.weight)


@pytest.mark.slow
def test_a_training_that_began_from_a_model_resumes(config, run, tmp_path, capsys):
    out = tmp_path / "out"
    assert train(config, out, "--start", str(run)) == 0
    trained = weights(out)
    shutil.rmtree(out / "model")
    assert train(config, out, "--start", str(run), "--resume") == 0
    assert_same(trained, weights(out))
    again = ["train", "--config", config, "--out", out, "--resume"]
    refused(capsys, again, "--start was")


@pytest.mark.slow
def test_what_does_not_fit_the_model_is_refused(config, run, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    base = ["train", "--config", config, "--out", out, "--start", run]
    refused(capsys, [*base[:-1], tmp_path / "no"], "--start: no such directory", out.parent)
    wrong = {
        ("--data.tokenizer", "characters"): "leave --data.tokenizer out",
        ("--data.vocab_size", "300"): "leave --data.vocab_size out",
        ("--model.width", "64"): "--model.width is 64, but the network of --start",
        ("--model.dropout", "0.5"): "--model.dropout is 0.5, but the network of --start",
        ("--objective", "Autoregressive", "--model.gate_init", "0"): "is a diffusion model, which",
        ("--objective", "MDLM"): "another vocabulary",
        ("--objective", "DCD"): "--objective.teacher is missing",
    }
    for options, message in wrong.items():
        refused(capsys, [*base, *options], message, out.parent)
    taught = [*base, "--objective", "DCD", "--objective.teacher", run]
    refused(capsys, [*taught, "--data.length", "8"], "type --data.length 16", out.parent)
    refused(capsys, [*taught, "--objective.dt", "2"], "--objective.dt is 2.0", out.parent)
    other = ["--data.tokenizer", "characters", "--objective", "DCD", "--objective.teacher", run]
    refused(capsys, [*base[:-2], *other], "tokenizer is not that of", out.parent)


# -- sddlm distill ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_rounds_are_ordinary_runs(config, run, tmp_path):
    out = tmp_path / "out"
    few = ["--train.steps", "6", "--train.lr", "0.002", "--seed", "5"]
    assert distil(run, out, "--rounds", "2", "--dt", "0.1", *few) == 0
    assert {p.name for p in out.iterdir()} == {"round-1", "round-2", "model", "config.yaml"}
    saved = [yaml.safe_load((out / f"round-{n}" / "config.yaml").read_text()) for n in (1, 2)]
    asked = [config["objective"]["init_args"] for config in saved]
    assert [a["dt"] for a in asked] == [0.1, 0.2]
    assert [a["teacher"] for a in asked] == [str(run), str(out / "round-1")]
    assert [config["start"] for config in saved] == [a["teacher"] for a in asked]
    assert_same(weights(out), weights(out / "round-2"))
    assert steps(out / "round-2")[-1] == steps(out / "round-1")[-1]
    # what each round does can be said to ``sddlm train`` as well
    by_hand = tmp_path / "by-hand"
    again = ["--config", str(out / "round-2" / "config.yaml"), "--out", str(by_hand)]
    assert main(["train", *again]) == 0
    assert_same(weights(by_hand), weights(out))
    # a directory that every verb takes
    assert trained_on(out).path == trained_on(run).path
    assert LanguageModel.load(out).estimate is LanguageModel.load(run).estimate
    drawn = ["--steps", "4", "--count", "2", "--out", str(tmp_path / "s.jsonl")]
    assert main(["sample", str(out), *drawn]) == 0


@pytest.mark.slow
def test_a_distillation_stopped_by_hand_goes_on(run, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--rounds", "2", "--dt", "0.1", "--train.steps", "10", "--train.checkpoint_every", "4"]
    # six of sixteen steps are in round 2
    command = Command("distill", run, "--out", cut, *FEW, *more, hold=SIXTEENTH_STEP)
    code, said = command.interrupted(signal.SIGINT)
    assert code == 130, said
    assert "stopped in round 2 of 2" in said
    assert f"sddlm distill {run} --out {cut} --resume true" in said
    assert not (cut / "model").exists()
    assert newest_checkpoint(cut / "round-2")["global_step"] == 7
    first = (cut / "round-1" / "model" / "model.safetensors").stat().st_mtime_ns
    assert distil(run, cut, *more, "--resume", "true") == 0
    assert (cut / "round-1" / "model" / "model.safetensors").stat().st_mtime_ns == first
    assert distil(run, whole, *more) == 0
    assert_same(weights(whole / "round-1"), weights(cut / "round-1"))
    assert_same(weights(whole), weights(cut))


@pytest.mark.slow
def test_a_round_killed_before_its_first_checkpoint_begins_anew(run, tmp_path, capsys):
    out = tmp_path / "out"
    more = ["--rounds", "2", "--dt", "0.1", "--train.steps", "4"]
    assert distil(run, out, *more) == 0
    done = weights(out)
    shutil.rmtree(out / "model")
    for part in ("model", "checkpoints"):
        shutil.rmtree(out / "round-2" / part)
    base = ["distill", run, "--out", out, *FEW]
    refused(capsys, [*base, *more], "is not empty", out / "model")
    changed = [*base, "--rounds", "2", "--dt", "0.2", "--train.steps", "4", "--resume"]
    refused(capsys, changed, "cannot resume: --dt was 0.1 and is 0.2", out / "model")
    assert distil(run, out, *more, "--resume", "true") == 0
    assert_same(done, weights(out))


def test_wrong_choices_leave_nothing_behind(run, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    base = ["distill", run, "--out", out, *FEW]
    wrong = {
        ("--rounds", "0"): "--rounds is 0, must be at least 1",
        ("--train.steps", "0"): "--train.steps is 0",
        ("--rounds", "5", "--dt", "0.1"): "in the last of 5 rounds 1.6",
        ("--dt", "0"): "must be above 0",
        ("--dt", "nan"): "must be a number",
        ("--divergence", "both"): "--divergence is 'both'",
        ("--train.devices", "2"): "a distillation is one process",
        ("--data.path", str(tmp_path / "no.txt")): "no.txt",
        ("--data.path", str(run.parent / "text.txt"), "--data.length", "8"): "--data.length 16",
    }
    for options, message in wrong.items():
        refused(capsys, [*base, *options], message, out.parent)
    refused(capsys, ["distill", run], "--out is missing")
    refused(capsys, ["distill", tmp_path / "no", "--out", out], "no such directory", out.parent)
    (tmp_path / "alone").mkdir()
    shutil.copytree(run / "model", tmp_path / "alone" / "model")
    alone = ["distill", tmp_path / "alone", "--out", out]
    refused(capsys, alone, "give a text: --data.path FILE", out.parent)
    LanguageModel(
        DiT(DiTConfig(vocab_size=300, length=16, width=8, blocks=1, heads=2, causal=True)),
        UniformProcess(), Estimate.NEXT_TOKEN, LanguageModel.load(run).tokenizer, {}, {},
    ).save(tmp_path / "ar")  # fmt: skip
    refused(capsys, ["distill", tmp_path / "ar", "--out", out], "is an autoregressive", out.parent)
