"""The plan as a whole: time, room, text, errors, output, and nothing downloaded."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sddlm.cli import main
from sddlm.data import python_docs
from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.models.config import ModelArgs
from sddlm.objectives import SDDLM
from sddlm.plan.run import DEVICES, Plan, make_plan, short
from sddlm.training.args import TrainArgs

DATA = DataArgs(tokenizer="gpt2", length=32)
TOY = ModelArgs(preset="mini", width=16, blocks=1, heads=2)
TRAIN = TrainArgs(steps=100, batch=64, micro_batch=4, devices=8)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))


def planned(data: DataArgs = DATA, train: TrainArgs = TRAIN, **more: Any) -> Plan:
    return make_plan(data, TOY, SDDLM(), train, **{"device": "h100-sxm", **more})


def test_time_is_flops_over_the_rate_that_is_reached() -> None:
    made = planned(tokens=64 * 32 * 7 + 1)
    step = made.token_flops["all"] * 64 * 32
    assert (made.steps, made.tokens) == (8, 8 * 64 * 32)
    assert made.step_seconds == pytest.approx(step / 8 / (0.4 * 989e12))
    assert made.run_flops == pytest.approx(8 * step)
    assert made.hours == pytest.approx(8 * (made.step_seconds or 0) / 3600)
    assert made.device_hours == pytest.approx(8 * (made.hours or 0))
    # weights, two moments and average; the last two checkpoints, and one being written
    assert made.disk["checkpoints"] == 3 * 16 * made.parameters["all"]
    exact = planned(train=replace(TRAIN, precision="32", devices="auto"), utilization=0.25)
    assert exact.step_seconds == pytest.approx(step / (0.25 * 67e12))


@pytest.mark.slow
def test_the_largest_micro_batch_fits_and_the_next_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    train = TrainArgs(batch=24, devices=2)

    def sized(bytes_: float, micro_batch: int) -> Plan:
        monkeypatch.setitem(DEVICES, "l4", (121, 30.3, bytes_ / 1e9 / 0.9))
        return planned(train=replace(train, micro_batch=micro_batch), device="l4", vocab_size=300)

    needed = {size: sized(1e9, size).memory["all"] for size in (1, 3, 4, 12)}
    assert [*needed.values()] == sorted(set(needed.values()))
    four = sized(needed[4] * 1.001, 4)
    assert (four.largest_micro_batch, four.fits) == (4, True)
    three = sized(needed[4] * 0.999, 4)
    assert (three.largest_micro_batch, three.fits) == (3, False)
    assert sized(needed[1] * 0.9, 1).largest_micro_batch is None
    assert sized(2 * needed[12], 12).largest_micro_batch == 12


def test_what_does_not_fit_is_not_measured() -> None:
    model = ModelArgs(preset="10b", width=16384, heads=128, blocks=1)
    made = make_plan(DATA, model, SDDLM(), TrainArgs(batch=2))
    assert not made.fits
    assert made.largest_micro_batch is made.step_seconds is made.hours is made.device_hours is None


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_this_machine_is_measured(precision: Any) -> None:
    """Seconds are those of the machine, so only what must hold anywhere is asked."""
    train = TrainArgs(batch=4, precision=precision)
    made = planned(train=train, device="here", vocab_size=300)
    assert made.fits
    assert made.utilization is None
    assert (made.step_seconds or 0) > 0
    assert made.hours == pytest.approx(2000 * (made.step_seconds or 0) / 3600)


def written(folder: Path, documents: int) -> None:
    folder.mkdir(exist_ok=True)
    texts = [f"text {i} of many" for i in range(documents)]
    (folder / "my.txt").write_text("<|endoftext|>".join(texts))
    os.utime(folder / "my.txt", (1e9, 1e9))  # what changed just now may change again


def test_epochs_of_a_text_that_is_known_by_what_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataArgs(path="my.txt", tokenizer="bytes", length=8)
    for folder, documents in (("a", 40), ("b", 400)):
        written(tmp_path / folder, documents)
    monkeypatch.chdir(tmp_path / "a")
    assert planned(data).epochs is None
    tokens = prepare(data).meta["splits"]["train"]["tokens"]
    made = planned(data)
    assert made.epochs == pytest.approx(100 * 64 * 8 / tokens)
    assert made.disk["tokens"] == 2 * tokens
    for other in (replace(data, limit=30), replace(data, validation=0.5)):
        assert planned(other).epochs is None
    assert planned(data, vocab_size=258).epochs is None
    monkeypatch.chdir(tmp_path / "b")  # another file of the same name
    assert planned(data).epochs is None
    (meta,) = data.cache_folder.glob("tokens-*/meta.json")
    meta.write_bytes(meta.read_bytes()[:-9])  # damaged
    monkeypatch.chdir(tmp_path / "a")
    assert planned(data).epochs is None


def test_epochs_of_a_corpus_that_is_known_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    few = tuple(f"text {i} of many\n" for i in range(30))  # to read them all takes seconds
    monkeypatch.setattr(python_docs, "python_documents", lambda: few)
    data = DataArgs(corpus="pydoc", tokenizer="bytes", length=8, limit=30)
    tokens = prepare(data).meta["splits"]["train"]["tokens"]
    assert planned(data).epochs == pytest.approx(100 * 64 * 8 / tokens)
    assert planned(replace(data, limit=None)).epochs is None


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        planned(DataArgs(path=str(tmp_path / "absent.txt"), tokenizer="bytes"))


def test_vocabulary(tmp_path: Path) -> None:
    Tokenizer.characters(["abc"]).save(tmp_path)
    for name, V in (("bytes", 257), ("bpe", 4096), ("o/gpt2", 50257), (str(tmp_path), 4)):
        made = planned(replace(DATA, tokenizer=name))
        assert made.parameters["embedding"] == 16 * V
    assert (
        planned(replace(DATA, tokenizer="characters"), vocab_size=27).parameters["embedding"] == 432
    )
    for name in ("characters", "someone/something"):
        with pytest.raises(ConfigError, match="give it as `vocab_size`"):
            planned(replace(DATA, tokenizer=name))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, f"`device` is 'h1000', must be here or one of {', '.join(DEVICES)}"),
        ({"utilization": 0.0}, "`utilization` is 0.0, must be above 0, at most 1"),
        ({"utilization": 1.1}, "`utilization` is 1.1, must be above 0, at most 1"),
        ({"device": "here"}, "`train.devices` is 8, but here is one machine"),
        ({"train": replace(TRAIN, devices=3)}, "`train.batch` is 64, must be a multiple of the 3"),
        ({"tokens": 0.0}, "`tokens` is 0.0, must be above 0"),
        ({"tokens": float("inf")}, "`tokens` is inf, must be above 0 and below 1e20"),
        ({"vocab_size": 1}, "`vocab_size` is 1, must be at least 2"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        planned(**options)


@pytest.mark.slow
def test_the_command_line_takes_a_training_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {tokenizer: gpt2, length: 32}\n"
        "model: {preset: mini, width: 16, blocks: 1, heads: 2}\n"
        "train: {steps: 100, batch: 64, micro_batch: 4, devices: 8}\nseed: 1\nout: run\n"
    )
    arguments = ["plan", "--config", str(recipe), "--device", "l40s", "--tokens", "1e6"]
    assert main([*arguments, "--utilization", "0.3"]) == 0
    made = planned(device="l40s", tokens=1e6, utilization=0.3)
    printed = capsys.readouterr().out
    assert printed == str(made)
    for words in ("8 x l40s", "0.3", short(made.memory["all"], "B"), short(made.run_flops)):
        assert words in printed
    assert main([*arguments, "--device", "l41"]) == 2
    assert "l40s" in capsys.readouterr().err
