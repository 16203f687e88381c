"""What goes wrong around a run: damage, kills, full disks, two processes; nothing is lost.

A copy of the run directory, taken at some moment, is what a kill at that moment leaves.
"""

import json
import logging
import os
import random
import shutil
import signal
import tempfile
import time

import pytest
import torch
from test_training import assert_same, steps, train, weights

import sddlm
from conftest import SETTINGS
from processes import Command
from sddlm.errors import ConfigError
from sddlm.io import locked
from sddlm.training import monitor
from sddlm.training import run as run_module
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.ema import EMA
from sddlm.training.loop import Trainer
from sddlm.training.monitor import SPENT, read_metrics
from test_io import small_files


def at_step(patch, step, act):
    """Do something right behind the update of a step."""
    update = EMA.update

    def updated(self, decay):
        update(self, decay)
        if self.updates == step:
            act()

    patch.setattr(EMA, "update", updated)


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A text and options; ``whole``, a run, and ``stopped``, with checkpoints of steps 4 and 8."""
    place = tmp_path_factory.mktemp("recovery")
    text, cache = place / "text.txt", place / "cache"
    text.write_text("The quick brown fox jumps over the lazy dog.\nAnd then it sleeps.\n" * 40)
    settings = SETTINGS.format(text=text, cache=cache).replace(
        "checkpoint_every: 5", "checkpoint_every: 4"
    )
    for name in ("validate_every: 4", "preview_every: 6"):  # pictures cost more than steps
        settings = settings.replace(name, f"{name.split(':')[0]}: 12")
    (place / "tiny.yaml").write_text(settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(monitor, "draw_curves", lambda *arguments: None)  # costs more than all else
        assert train(place / "tiny.yaml", place / "whole") == 0
        with patch.context() as inner:
            at_step(inner, 8, ctrl_c)
            assert train(place / "tiny.yaml", place / "stopped") == 130
        yield place


@pytest.fixture
def config(place):
    """Path of a YAML file."""
    return place / "tiny.yaml"


@pytest.fixture
def cut(place, tmp_path):
    """A copy of the run that was stopped."""
    return shutil.copytree(place / "stopped", tmp_path / "cut")


def resumed_is_whole(config, cut, *more):
    assert train(config, cut, "--resume", *more) == 0
    assert_same(weights(config.parent / "whole"), weights(cut))


def refused(capsys, code, *words):
    """The last line of what went to stderr, without a traceback."""
    lines = capsys.readouterr().err.strip().splitlines()
    assert code in (1, 2)
    assert not [line for line in lines if line.startswith("Traceback")]
    for word in words:
        assert word in lines[-1]


# -- the run directory -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_failing_run_removes_nothing_of_another(config, tmp_path, monkeypatch):
    runs = tmp_path / "new" / "runs"
    other = runs / "b" / "checkpoints" / "last.ckpt"

    def prepare(*arguments):
        other.parent.mkdir(parents=True)
        other.write_text("another run's")
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "prepare", prepare)
    assert train(config, runs / "a") == 130
    assert other.read_text() == "another run's"
    assert [path.name for path in runs.iterdir()] == ["b"]


def test_a_failing_run_leaves_nothing_of_its_own(config, tmp_path):
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "runs" / "a", tmp_path / "there"):
        assert train(config, out, "--data.path", str(tmp_path / "missing.txt")) == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "there"]
    assert not list((tmp_path / "there").iterdir())


def test_two_processes_do_not_share_a_run(config, cut, capsys):
    before = (cut / "checkpoints" / "last.ckpt").read_bytes()
    with locked(cut / ".lock", "held"):
        refused(capsys, train(config, cut, "--resume"), "in use by another process")
    assert (cut / "checkpoints" / "last.ckpt").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_run_killed_before_its_first_checkpoint_starts_over(config, cut, more):
    shutil.rmtree(cut / "model")
    for path in (cut / "checkpoints").iterdir():
        path.unlink()
    (cut / "checkpoints" / "last.tmp").write_text("half")
    (cut / ".environment.json.12345678").write_text("half")
    (cut / ".lock").touch()
    assert train(config, cut, *more) == 0
    assert_same(weights(config.parent / "whole"), weights(cut))
    assert steps(cut) == steps(config.parent / "whole")
    assert not [*cut.glob(".*"), *cut.rglob("*.tmp")]


@pytest.mark.slow
def test_only_the_same_run_starts_over(config, cut, capsys):
    shutil.rmtree(cut / "checkpoints")
    refused(capsys, train(config, cut), "holds model and no checkpoint")
    refused(capsys, train(config, cut, "--resume"), "holds model and no checkpoint")
    shutil.rmtree(cut / "model")
    refused(capsys, train(config, cut, "--train.lr", "1.0"), "--train.lr was 0.003 and is 1.0")
    assert (cut / "metrics.csv").is_file()


def test_what_a_kill_left_is_swept(config, cut):
    (cut / "checkpoints" / "last.tmp").write_text("half")
    (cut / ".metrics.csv.12345678").write_text("half")
    (cut / ".model.new-12345678").mkdir()
    resumed_is_whole(config, cut)
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == [
        "last.ckpt",
        "previous.ckpt",
    ]
    assert not list(cut.glob(".*"))


# -- checkpoints -----------------------------------------------------------------------------------


def edited(change):
    """A damage that torch.save would write down without complaint."""

    def damage(path):
        state = torch.load(path, weights_only=True)
        change(state)
        torch.save(state, path)

    return damage


def cut_to(share):
    return lambda path: os.truncate(path, int(path.stat().st_size * share))


def not_finite(state):
    state["state_dict"]["model.embedding.weight"][0, 0] = torch.nan


DAMAGES = {
    "empty": cut_to(0),
    "cut": cut_to(0.5),
    "cut at the end": cut_to(0.999),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("no archive"),
    "no optimiser": edited(lambda state: state["optimizer_states"][0]["state"].clear()),
    "half an optimiser": edited(lambda state: state["optimizer_states"][0]["state"].popitem()),
    "no optimisers": edited(lambda state: state["optimizer_states"].clear()),
    "negative": edited(lambda state: state.update(global_step=-8)),
    "other step": edited(lambda state: state.update(global_step=7)),
    "nan": edited(not_finite),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(cut, caplog, damage):
    last, previous = (cut / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    shutil.copy(last, previous)  # the other way round it would be the wrong one that is found
    DAMAGES[damage](last)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(cut)["global_step"] == 8
    assert len(caplog.messages) == 1
    assert str(last) in caplog.messages[0]
    assert "resuming from the one before, step 8" in caplog.messages[0]
    assert not last.exists()
    DAMAGES[damage](previous)
    with pytest.raises(ConfigError, match="begin anew in another directory") as error:
        newest_checkpoint(cut)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_no_flipped_bit_of_a_checkpoint_is_used(cut):
    """But those that hold nothing, such as a date in the archive."""
    last = cut / "checkpoints" / "last.ckpt"
    data, state = last.read_bytes(), newest_checkpoint(cut)
    recovered = 0
    for bit in random.Random(0).sample(range(8 * len(data)), 25):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        last.write_bytes(flipped)
        found = newest_checkpoint(cut)
        if found["global_step"] == 4:
            recovered += 1
        else:
            assert_same(state["state_dict"], found["state_dict"])
    assert recovered >= 20


@pytest.mark.slow
def test_a_run_resumes_from_the_checkpoint_before_the_damaged_one(config, cut, capsys):
    cut_to(0.9)(cut / "checkpoints" / "last.ckpt")
    resumed_is_whole(config, cut)
    assert "last.ckpt is damaged" in capsys.readouterr().err
    assert steps(cut) == steps(config.parent / "whole")


def test_a_checkpoint_of_the_former_loop_is_resumed(config, cut):
    """Lightning had the averaged weights among its callbacks, and counts of its own."""

    def older(state):
        state["callbacks"] = {"EMA": state.pop("ema")}
        state |= {"epoch": 0, "loops": {"fit_loop": {}}, "lr_schedulers": [{"last_epoch": 8}]}

    edited(older)(cut / "checkpoints" / "last.ckpt")
    resumed_is_whole(config, cut)


@pytest.mark.slow
def test_a_checkpoint_of_another_size_is_refused_in_one_line(config, cut, capsys):
    text = (cut / "config.yaml").read_text()
    (cut / "config.yaml").write_text(text.replace("width: 32", "width: 16"))
    code = train(config, cut, "--resume", "--model.width", "16")
    refused(capsys, code, "last.ckpt is of another network", "[")


@pytest.mark.slow
def test_other_micro_batches_in_a_resumed_run_change_nothing(config, cut):
    assert train(config, cut, "--resume", "--train.micro_batch", "2") == 0
    whole = config.parent / "whole"
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(cut)[name], value, rtol=1e-3, atol=1e-4)
    assert steps(cut)[-1] == steps(whole)[-1]


def test_checkpoints_do_not_pass_through_the_temporary_folder(config, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "full"))
    assert train(config, tmp_path / "run") == 0


def test_a_last_step_that_diverged_writes_no_weights(config, tmp_path, capsys, monkeypatch):
    update = EMA.update

    def diverged(self, decay):
        if self.updates == 12:  # behind it there is no gradient that would show it
            self.live[0].data[0, 0] = torch.inf
        update(self, decay)

    monkeypatch.setattr(EMA, "update", diverged)
    run = tmp_path / "run"
    code = train(config, run, "--train.checkpoint_every", "100")
    refused(capsys, code, "the weights after step 12 are not finite", "--train.lr")
    assert not (run / "model").exists()
    assert not (run / "checkpoints").exists()


def test_a_full_disk_leaves_checkpoint_and_model(config, cut, capsys):
    kept = {
        path: path.read_bytes()
        for path in cut.rglob("*")
        if path.suffix in (".ckpt", ".safetensors")
    }
    names = {path.name for path in cut.rglob("*")}
    with small_files(100_000):
        code = train(config, cut, "--resume", "--train.checkpoint_every", "1")
    refused(capsys, code, "cannot write", "last.ckpt", "File too large")
    assert code == 1
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path.name for path in cut.rglob("*")} == names


# -- figures and signals ---------------------------------------------------------------------------


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_no_figure_and_repeats_none(config, tmp_path, monkeypatch):
    often = ["--train.validate_every", "4", "--train.preview_every", "3"]
    whole, after_preview, in_validation = (tmp_path / name for name in ("whole", "a", "b"))
    validate = Trainer._validate

    def copied(self):
        if self.step == 8:
            shutil.copytree(whole, in_validation)
        validate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_validate", copied)
        at_step(patch, 7, lambda: shutil.copytree(whole, after_preview))
        assert train(config, whole, *often) == 0
    assert not (in_validation / "model").exists()
    for killed in (after_preview, in_validation):
        assert train(config, killed, *often, "--resume") == 0
        assert_same(weights(whole), weights(killed))
        tables = [
            [row | dict.fromkeys(SPENT, 0) for row in read_metrics(run)] for run in (whole, killed)
        ]
        assert tables[0] == tables[1]
        previews = [(run / "previews.jsonl").read_text() for run in (whole, killed)]
        assert previews[0] == previews[1]


@pytest.mark.slow
def test_a_checkpoint_is_never_newer_than_the_table(config, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    often = ["--train.checkpoint_every", "5"]
    assert train(config, whole, *often) == 0
    tenth_step = ("sddlm.training.monitor:Monitor.write_table", 1)
    Command("train", "--config", config, "--out", cut, *often, hold=tenth_step).kill()
    assert newest_checkpoint(cut)["global_step"] == 5
    spent, started = newest_checkpoint(cut)["spent"], time.process_time()
    assert train(config, cut, "--resume") == 0
    used, last = time.process_time() - started, read_metrics(cut)[-1]
    assert 0 < spent["cpu_seconds"] < last["cpu_seconds"] <= spent["cpu_seconds"] + used
    assert 0 < spent["seconds"] < last["seconds"]
    tables = [[row | dict.fromkeys(SPENT, 0) for row in read_metrics(run)] for run in (whole, cut)]
    assert tables[0] == tables[1]


def test_damaged_tables_and_facts_are_made_anew(config, cut, capsys):
    table = (cut / "metrics.csv").read_bytes()
    (cut / "metrics.csv").write_bytes(table + b"8,\xff\x00,x\nnot,a,row\n")
    (cut / "environment.json").write_text('{"data": [')
    (cut / "previews.jsonl").write_text(
        '{"step": 4, "text": "kept"}\n{"step": 9, "text": "twice"}\n{"st'
    )
    resumed_is_whole(config, cut)
    said = capsys.readouterr().err
    assert "metrics.csv: damaged rows are left out: 2" in said
    assert "environment.json cannot be used" in said
    assert steps(cut)[-1] == steps(config.parent / "whole")[-1]
    assert json.loads((cut / "environment.json").read_text())["data"]
    previews = [
        json.loads(line)["text"] for line in (cut / "previews.jsonl").read_text().splitlines()
    ]
    assert (previews[0], len(previews)) == ("kept", 3)


@pytest.mark.slow
@pytest.mark.parametrize("text", ["a: [", "- 1", "\x00", "", "3", None])
def test_damaged_options_are_one_line(config, cut, capsys, text):
    (cut / "config.yaml").unlink()
    if text is not None:
        (cut / "config.yaml").write_text(text)
    refused(capsys, train(config, cut, "--resume"), "config.yaml is missing or damaged")


def test_a_second_ctrl_c_ends_at_once_with_130(config, tmp_path, monkeypatch):
    def twice():
        ctrl_c()
        ctrl_c()

    before = signal.getsignal(signal.SIGINT)
    at_step(monkeypatch, 6, twice)
    assert train(config, tmp_path / "run") == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert newest_checkpoint(tmp_path / "run")["global_step"] == 4
    assert read_metrics(tmp_path / "run") == []


def test_ctrl_c_in_python_without_a_directory_leaves_nothing(place, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = []

    def interrupt():
        folders.extend(tmp_path.glob("sddlm-*/run/checkpoints"))
        ctrl_c()

    at_step(monkeypatch, 6, interrupt)
    with pytest.raises(KeyboardInterrupt, match="stopped; without `out` nothing is kept"):
        sddlm.train(
            place / "text.txt", tokenizer="bytes", length=16, validation=0.1, preset="mini",
            width=32, heads=2, blocks=1, steps=12, batch=8, checkpoint_every=4, preview_every=0,
        )  # fmt: skip
    assert folders
    assert not list(tmp_path.iterdir())
