"""Real runs through the command line: reproducible, resumable, unhurt by signals."""

import csv
import json
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from processes import Command
from sddlm.cli import main
from sddlm.data.config import DataArgs
from sddlm.data.prepare import load_prepared
from sddlm.lm import LanguageModel
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.ema import EMA
from sddlm.training.monitor import read_metrics
from sddlm.training.pmi import pmi_embedding


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def assert_same_figures(a, b):
    """Two tables of one training, however it was shared: the means over the global batch."""
    columns = ("loss", "loss_per_row", "gradient_norm", "val_loss", "val_nelbo")
    rows = [read_metrics(run) for run in (a, b)]
    assert len(rows[0]) == len(rows[1])
    for one, other in zip(*rows, strict=True):
        assert set(columns[:3]) <= one.keys()
        for name in one.keys() & set(columns):
            assert other[name] == pytest.approx(one[name], rel=1e-4), (one["step"], name)


def train(config, out, *more):
    return main(["train", "--config", str(config), "--out", str(out), *more])


def samples(run, out):
    code = main(["sample", str(run), "--steps", "8", "--count", "3", "--out", str(out)])
    assert code == 0
    return out.read_text()


@pytest.mark.slow
def test_same_seed_gives_the_same_weights_and_samples_bit_for_bit(config, tmp_path):
    for name in "ab":
        assert train(config, tmp_path / name) == 0
    assert_same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    drawn = [samples(tmp_path / name, tmp_path / f"{name}.jsonl") for name in "ab"]
    assert drawn[0] == drawn[1]
    assert train(config, tmp_path / "c", "--seed", "4") == 0
    other = weights(tmp_path / "c")
    assert not torch.equal(other["head.weight"], weights(tmp_path / "a")["head.weight"])


@pytest.mark.slow
def test_a_run_directory_explains_itself(config, tmp_path, pictures):
    run = tmp_path / "run"
    assert train(config, run) == 0
    assert {p.name for p in run.iterdir()} == {
        "config.yaml", "environment.json", "metrics.csv", "curves.png", "previews.jsonl",
        "checkpoints", "model",
    }  # fmt: skip
    rows = read_metrics(run)
    validated = [row for row in rows if "val_nelbo" in row]
    assert [row["step"] for row in validated] == [4, 8, 12]
    assert rows[-1]["tokens"] == 12 * 8 * 16
    previews = [json.loads(line) for line in (run / "previews.jsonl").read_text().splitlines()]
    assert {preview["step"] for preview in previews} == {6, 12}
    # the written configuration repeats the run
    assert main(["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "b")]) == 0
    assert_same(weights(run), weights(tmp_path / "b"))


@pytest.mark.slow
def test_a_run_killed_in_the_middle_resumes_to_the_uninterrupted_one(config, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    config.write_text(config.read_text().replace("model: {", "model: {dropout: 0.1, "))
    assert train(config, whole) == 0
    Command("train", "--config", config, "--out", cut, hold=SEVENTH_STEP).kill()
    assert newest_checkpoint(cut)["global_step"] == 5
    assert train(config, cut, "--resume", "true") == 0
    assert_same(weights(whole), weights(cut))
    assert steps(cut) == steps(whole)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_stopped_by_hand_saves_and_resumes(config, tmp_path, number):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    command = Command("train", "--config", config, "--out", cut, hold=SEVENTH_STEP)
    code, said = command.interrupted(number)
    assert code == 130, said
    assert "--resume" in said
    assert LanguageModel.load(cut).network.length == 16
    assert newest_checkpoint(cut)["global_step"] == 8  # the step that it was in is finished
    assert train(config, cut, "--resume", "true") == 0
    assert train(config, whole) == 0
    assert_same(weights(whole), weights(cut))


@pytest.mark.slow
def test_a_run_killed_before_its_model_was_written_gets_it_by_resuming(config, tmp_path):
    run = tmp_path / "run"
    assert train(config, run) == 0
    trained = weights(run)
    shutil.rmtree(run / "model")
    assert train(config, run, "--resume") == 0
    assert_same(trained, weights(run))


@pytest.mark.slow
def test_micro_batches_do_not_change_the_noise_or_the_result(config, tmp_path):
    assert train(config, tmp_path / "whole") == 0
    assert train(config, tmp_path / "parts", "--train.micro_batch", "2") == 0
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=1e-3, atol=1e-4)
    assert steps(tmp_path / "whole") == steps(tmp_path / "parts")
    assert_same_figures(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_gradients_are_freed_behind_the_step(config, tmp_path, monkeypatch):
    left = []
    update = EMA.update

    def watched(self, decay):
        left.extend(parameter.grad for parameter in self.live)
        update(self, decay)

    monkeypatch.setattr(EMA, "update", watched)
    assert train(config, tmp_path / "run", "--train.micro_batch", "4") == 0
    assert left
    assert all(grad is None for grad in left)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_activation_checkpointing_changes_no_bit(config, tmp_path, mode):
    assert train(config, tmp_path / "kept") == 0
    assert train(config, tmp_path / "again", "--train.activation_checkpointing", mode) == 0
    assert_same(weights(tmp_path / "kept"), weights(tmp_path / "again"))


@pytest.mark.slow
def test_a_time_free_network_trains_and_samples(config, tmp_path):
    run = tmp_path / "run"
    assert train(config, run, "--model.time_input", "none", "--model.gate_init", "0") == 0
    records = [json.loads(line) for line in samples(run, tmp_path / "s.jsonl").splitlines()]
    assert len(records) == 3
    assert LanguageModel.load(run).network.time_free


@pytest.mark.slow
def test_two_processes_train_what_one_does(config, tmp_path):
    """On standard input, which only one can read; the other opens what the first has prepared."""
    assert train(config, tmp_path / "one") == 0
    text = tmp_path / "text.txt"
    more = ["--data.path", "-", "--train.devices", "2", "--train.accelerator", "cpu"]
    command = [
        sys.executable,
        "-m",
        "sddlm",
        "train",
        "--config",
        config,
        "--out",
        tmp_path / "two",
    ]
    with text.open() as stdin:
        subprocess.run([*command, *more], stdin=stdin, check=True, timeout=600)
    one, two = (LanguageModel.load(tmp_path / name) for name in ("one", "two"))
    assert one.data["key"] == two.data["key"]
    for name, value in one.network.state_dict().items():
        torch.testing.assert_close(value, two.network.state_dict()[name], rtol=1e-3, atol=1e-4)
    assert_same_figures(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_resumed_run_does_not_read_its_text_again(config, tmp_path):
    run = tmp_path / "run"
    assert train(config, run) == 0
    (tmp_path / "text.txt").unlink()
    shutil.rmtree(run / "model")
    assert train(config, run, "--resume", "true") == 0
    assert (run / "model").is_dir()
    shutil.rmtree(tmp_path / "cache")
    assert train(config, run, "--resume", "true") == 2  # nothing is left of it


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    [
        "NaiveDenoising",
        "CalibratedDenoising",
        "SDDLMV1",
        "SDDLMV2",
        "NELBO",
        "MDLM",
        "DuoCurriculum",
        "D3PM",
        "SEDD",
        "SEDD --objective.process MaskedProcess",
        "NELBO --objective.process HybridProcess",
        "SDDLM --objective.positions all --model.architecture hollow --train.optimizer Muon",
    ],
)
def test_every_objective_trains_samples_and_reports_the_bound(config, tmp_path, objective):
    run = tmp_path / "run"
    more = ["--objective", *objective.split(), "--train.preview_every", "0"]
    assert train(config, run, *more) == 0
    assert read_metrics(run)[-1]["val_nelbo"] > 0
    drawn = samples(run, tmp_path / "samples.jsonl")
    tokens = [token for line in drawn.splitlines() for token in json.loads(line)["tokens"]]
    assert max(tokens) < 257  # no mask is left


@pytest.mark.slow
@pytest.mark.parametrize("form", ["null", "5"])
def test_duos_curriculum_ends_within_a_run(config, tmp_path, form):
    more = ["--objective", "DuoCurriculum", "--objective.until", "6", "--objective.top_k", form]
    run = tmp_path / "run"
    assert train(config, run, *more, "--objective.tau_start", "0.1") == 0
    assert samples(run, tmp_path / "samples.jsonl")
    assert train(config, tmp_path / "x", *more[:-1], "300") == 2  # bytes are fewer


def test_an_autoregressive_model_trains_samples_and_judges(config, tmp_path):
    run = tmp_path / "run"
    more = ["--objective", "Autoregressive", "--model.gate_init", "0"]
    assert train(config, run, *more) == 0
    assert samples(run, tmp_path / "samples.jsonl")


@pytest.mark.slow
def test_resuming_as_another_run_is_refused(config, tmp_path, capsys):
    run = tmp_path / "run"
    assert train(config, run) == 0
    assert train(config, run, "--resume", "true", "--train.lr", "1.0") == 2
    assert "--train.lr was 0.003 and is 1.0" in capsys.readouterr().err
    # an option newer than the run is no difference as long as it is at its default
    text = yaml.safe_load((run / "config.yaml").read_text())
    del text["data"]["packing"], text["model"]["architecture"]
    (run / "config.yaml").write_text(yaml.safe_dump(text))
    assert train(config, run, "--resume", "true", "--data.packing", "document") == 2
    assert "--data.packing was wrap and is document" in capsys.readouterr().err
    assert train(config, run, "--resume", "true") == 0
    assert train(config, run) == 2
    assert "not empty" in capsys.readouterr().err
    assert train(config, tmp_path / "none", "--resume", "true") == 2
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_is_one_line(config, tmp_path):
    """A limit on the size of files fails the write as a full disk does."""
    run = tmp_path / "run"
    code, _, said = Command("train", "--config", config, "--out", run, file_size=300_000).wait()
    assert code == 1, said
    last = said.strip().splitlines()[-1]
    assert last.startswith("sddlm train: cannot write")
    assert "last.ckpt" in last
    assert "Traceback" not in said
    assert not list((run / "checkpoints").iterdir())


def test_a_gradient_that_is_not_finite_ends_the_run_with_advice(
    config, tmp_path, capsys, monkeypatch
):
    def diverged(self, decay):
        self.live[0].data.fill_(torch.inf)

    monkeypatch.setattr(EMA, "update", diverged)
    code = train(config, tmp_path / "run")
    assert code == 1
    assert "--train.lr" in capsys.readouterr().err


#: a run is met behind its seventh step, two behind a checkpoint
SEVENTH_STEP = ("sddlm.training.module:TrainModule.forward", 7)


def steps(run):
    with (run / "metrics.csv").open() as file:
        return [(row["step"], row["val_nelbo"] != "") for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_compiled_network_trains_alike_and_keeps_the_names_of_its_weights(
    config, tmp_path, monkeypatch
):
    """With the backend that needs no compiler of C++."""
    used = []

    def compiled(module, *args, **options):
        used.append(module)
        real(module, *args, backend="eager", **options)

    real = torch.nn.Module.compile
    few = ["--train.steps", "3", "--train.preview_every", "0"]
    assert train(config, tmp_path / "plain", *few) == 0
    monkeypatch.setattr(torch.nn.Module, "compile", compiled)
    assert train(config, tmp_path / "run", *few, "--train.compile", "true") == 0
    assert [type(module).__name__ for module in used] == ["DiT"]
    assert used[0]._compiled_call_impl is not None
    states = [newest_checkpoint(tmp_path / name)["state_dict"] for name in ("plain", "run")]
    assert states[0].keys() == states[1].keys()
    for name, value in weights(tmp_path / "plain").items():
        torch.testing.assert_close(weights(tmp_path / "run")[name], value, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mask", [False, True])
def test_a_head_can_begin_with_the_frequencies_of_the_tokens(config, tmp_path, mask):
    more = ["--model.head_init", "0", "--model.head_bias", "unigram", "--train.lr", "1e-9"]
    more += ["--train.steps", "1", "--train.preview_every", "0"]
    more += ["--objective", "MDLM"] if mask else []
    assert train(config, tmp_path / "run", *more) == 0
    lm = LanguageModel.load(tmp_path / "run")
    rows = load_prepared(DataArgs(cache=str(tmp_path / "cache"), length=16), lm.data)
    counts = rows.train.counts()
    x_t, sigma = rows.train.read(np.arange(2)), torch.ones(2)
    found = lm.network.head.logits(lm.network(x_t, sigma)).softmax(-1)  # [B, L, V]
    wanted = (counts + 0.5) / (counts + 0.5).sum()
    torch.testing.assert_close(found[1, 3, : len(counts)], wanted.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_an_embedding_can_begin_with_the_neighbours_of_the_tokens(config, tmp_path, tied):
    more = ["--model.embedding_init", "pmi", "--train.lr", "1e-9", "--train.steps", "1"]
    more += ["--model.head_init", "0", "--model.tie_embeddings", str(tied).lower()]
    assert train(config, tmp_path / "run", *more, "--train.preview_every", "0") == 0
    lm = LanguageModel.load(tmp_path / "run")
    rows = load_prepared(DataArgs(cache=str(tmp_path / "cache"), length=16), lm.data)
    width = lm.network.config.width
    wanted = pmi_embedding(rows.train, lm.network.vocab_size, width, seed=3)
    found = weights(tmp_path / "run")
    torch.testing.assert_close(found["embedding.weight"], wanted, rtol=0, atol=1e-6)
    assert lm.network.config.embedding_init == "pmi"


@pytest.mark.slow
def test_a_run_goes_on_from_a_hollow_network(config, tmp_path, capsys):
    every = ["--objective", "SDDLM", "--objective.positions", "all", "--train.preview_every", "0"]
    hollow, seeing = tmp_path / "hollow", tmp_path / "seeing"
    assert train(config, hollow, *every, "--model.architecture", "hollow") == 0
    assert train(config, seeing, "--train.preview_every", "0") == 0
    lines = config.read_text().splitlines(keepends=True)
    config.write_text("".join(line for line in lines if not line.startswith("model:")))
    assert train(config, tmp_path / "more", *every, "--start", str(hollow)) == 0
    assert LanguageModel.load(tmp_path / "more").network.hollow
    capsys.readouterr()
    assert train(config, tmp_path / "no", *every, "--start", str(seeing)) == 2
    assert "--objective.positions all needs a network that does not see" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()
