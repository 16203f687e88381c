"""The plan as a whole: time, room, text, errors, output, and nothing downloaded."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict, replace
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
from sddlm.plan.cost import CostModel
from sddlm.plan.devices import DEVICES, _of_driver
from sddlm.plan.run import ROOM, Plan, make_plan, short
from sddlm.plan.sizes import prepared, vocabulary
from sddlm.training.args import TrainArgs

DATA = DataArgs(tokenizer="gpt2", length=32)
TOY = ModelArgs(preset="mini", width=64, blocks=1, heads=2)
TRAIN = TrainArgs(steps=100, batch=64, micro_batch=4)
GPU: dict[str, Any] = {"device": "h100-sxm", "devices": 8}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def toy() -> Plan:
    return make_plan(DATA, TOY, SDDLM(), TRAIN, **GPU)


def test_more_devices_take_less_time_and_as_many_hours(toy: Plan) -> None:
    one = make_plan(DATA, TOY, SDDLM(), TRAIN, device="h100-sxm")
    assert one.step_seconds == pytest.approx(8 * (toy.step_seconds or 0))
    assert one.days == pytest.approx(8 * (toy.days or 0))
    assert one.device_hours == pytest.approx(toy.device_hours)


def test_time_is_flops_over_the_rate_that_is_reached(toy: Plan) -> None:
    step = toy.flops["all"] * 64 * 32
    assert toy.step_seconds == pytest.approx(step / 8 / (0.4 * 989e12))
    half = make_plan(DATA, TOY, SDDLM(), replace(TRAIN, precision="32"), utilization=0.25, **GPU)
    assert half.step_seconds == pytest.approx(step / 8 / (0.25 * 67e12))
    assert toy.run_flops == pytest.approx(100 * step)
    assert toy.tokens == 100 * 64 * 32
    assert toy.days == pytest.approx(100 * (toy.step_seconds or 0) / 86400)
    assert toy.device_hours == pytest.approx(8 * 24 * (toy.days or 0))


def test_tokens_instead_of_steps() -> None:
    made = make_plan(DATA, TOY, SDDLM(), TRAIN, tokens=64 * 32 * 7 + 1, **GPU)
    assert made.steps == 8


@pytest.mark.slow
def test_the_largest_micro_batch_fits_and_the_next_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, train = TOY.build(vocab_size=300, length=32), TrainArgs(batch=24)
    costs = CostModel(config, SDDLM(), train, gpu=True)
    bytes_of = {size: costs.memory(size, 2)["all"] for size in (1, 2, 3, 4, 6, 12)}
    assert [*bytes_of.values()] == sorted(set(bytes_of.values()))

    def largest(size: float) -> int | None:
        device = replace(DEVICES["l4"], memory=size / ROOM)
        monkeypatch.setitem(DEVICES, "l4", device)
        return make_plan(DATA, TOY, SDDLM(), train, device="l4", devices=2, vocab_size=300).largest

    assert largest(bytes_of[4] + 1) == 4
    assert largest(bytes_of[4] - 1) == 3
    assert largest(bytes_of[1] - 1) is None
    assert largest(2 * bytes_of[12]) == 12


def test_what_does_not_fit_at_all() -> None:
    model = ModelArgs(preset="10b", width=16384, heads=128, blocks=1)
    for device in ("l4", "here"):
        made = make_plan(DATA, model, SDDLM(), TrainArgs(batch=2), device=device)
        assert made.largest is None
        assert not made.fits
    assert made.step_seconds is made.days is made.device_hours is None  # nothing was measured
    assert "DOES NOT FIT" in str(made)


def test_known_text_gives_epochs_and_files(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("<|endoftext|>".join(f"text {i} of many" for i in range(99)))
    os.utime(tmp_path / "text.txt", (1e9, 1e9))  # what changed just now may change again
    data = DataArgs(path=str(tmp_path / "text.txt"), tokenizer="bytes", length=8)
    assert prepared(data, 257) is None
    said = prepare(data).meta["splits"]["train"]
    made = make_plan(data, TOY, SDDLM(), TRAIN, **GPU)
    assert made.epochs == pytest.approx(100 * 64 * 8 / said["tokens"])
    assert made.disk["tokens"] == 2 * said["tokens"]
    assert made.disk["document index"] == 8 * said["documents"]
    # weights, two moments and average; the last two checkpoints, and one being written
    assert made.disk["checkpoints"] == 3 * 16 * made.parameters["all"]


def written(folder: Path, documents: int) -> None:
    folder.mkdir(exist_ok=True)
    texts = [f"text {i} of many" for i in range(documents)]
    (folder / "my.txt").write_text("<|endoftext|>".join(texts))
    os.utime(folder / "my.txt", (1e9, 1e9))


def test_another_file_of_the_same_name_is_another_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = DataArgs(path="my.txt", tokenizer="bytes", length=8)
    for folder, documents in (("a", 40), ("b", 400)):
        written(tmp_path / folder, documents)
    monkeypatch.chdir(tmp_path / "a")
    train = prepare(data).meta["splits"]["train"]
    small = (train["tokens"], train["documents"])
    assert prepared(data, 257) == small
    assert prepared(replace(data, limit=30), 257) is None  # another part of it
    assert prepared(replace(data, validation=0.5), 257) is None
    assert prepared(data, 258) is None
    monkeypatch.chdir(tmp_path / "b")
    assert prepared(data, 257) is None
    large = prepare(data).meta["splits"]["train"]["tokens"]
    assert large > 5 * small[0]
    found = prepared(data, 257)
    assert found is not None
    assert found[0] == large
    written(tmp_path / "b", 41)  # it has changed
    assert prepared(data, 257) is None
    monkeypatch.chdir(tmp_path / "a")
    assert prepared(data, 257) == small
    parts = {"my.txt": 1.0, str(tmp_path / "b" / "my.txt"): 1.0}
    assert prepared(replace(data, path=None, mixture=parts), 257) is None


@pytest.mark.slow
def test_corpora_are_known_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    few = tuple(f"text {i} of many\n" for i in range(30))  # to read them all takes seconds
    monkeypatch.setattr(python_docs, "python_documents", lambda: few)
    data = DataArgs(corpus="pydoc", tokenizer="bytes", length=8, limit=30)
    train = prepare(data).meta["splits"]["train"]
    assert prepared(data, 257) == (train["tokens"], train["documents"])
    assert prepared(replace(data, limit=None), 257) is None
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "pydoc", 30)  # a folder, which is no corpus
    assert prepared(DataArgs(path="pydoc", tokenizer="bytes", limit=30), 257) is None


def test_damaged_records_are_not_known(tmp_path: Path) -> None:
    written(tmp_path, 40)
    data = DataArgs(path=str(tmp_path / "my.txt"), tokenizer="bytes", length=8)
    prepare(data)
    (meta,) = data.cache_folder.glob("tokens-*/meta.json")
    for content in (b"", b"[]", b"{", b'{"splits": 1}', b"\xff", meta.read_bytes()[:-9]):
        meta.write_bytes(content)
        assert prepared(data, 257) is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["absent.txt", "absent/*.txt", "hf-like/absent.jsonl"])
def test_a_file_that_is_not_there_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = ["--data.path", str(tmp_path / name), "--data.tokenizer", "bytes"]
    assert main(["plan", *arguments, "--device", "l4"]) == 2
    assert f"{name}: no such file or folder" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no such file"):
        prepared(DataArgs(validation_path=str(tmp_path / name), tokenizer="bytes"), 257)


def test_vocabulary(tmp_path: Path) -> None:
    Tokenizer.characters(["abc"]).save(tmp_path)
    for name, V in (
        ("bytes", 257),
        ("gpt2", 50257),
        ("bpe", 4096),
        (str(tmp_path), 4),
        ("o/gpt2", 50257),
    ):
        assert vocabulary(DataArgs(tokenizer=name), None) == V
    assert Tokenizer.bytes().vocab_size == 257
    assert vocabulary(DataArgs(tokenizer="characters"), 27) == 27
    for name in ("characters", "someone/something"):
        with pytest.raises(ConfigError, match="give it as `vocab_size`"):
            vocabulary(DataArgs(tokenizer=name), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, f"`device` is 'h1000', must be one of {', '.join(DEVICES)}"),
        ({**GPU, "utilization": 0.0}, "`utilization` is 0.0, must be above 0, at most 1"),
        ({**GPU, "utilization": 1.1}, "`utilization` is 1.1, must be above 0, at most 1"),
        ({"device": "here", "utilization": 0.5}, "`utilization` has no meaning for `device` here"),
        ({"device": "here", "devices": 2}, "`devices` is 2, but here is one machine"),
        ({"device": "l4", "devices": 0}, "`devices` is 0, must be at least 1"),
        ({"device": "l4", "devices": 3}, "`train.batch` is 64, must be a multiple of the 3"),
        ({**GPU, "tokens": 0.0}, "`tokens` is 0.0, must be above 0"),
        ({**GPU, "vocab_size": 1}, "`vocab_size` is 1, must be at least 2"),
        ({**GPU, "device": "h100"}, "`device` is 'h100', must be one of"),
    ],
)  # fmt: skip
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        make_plan(DATA, TOY, SDDLM(), TRAIN, **options)


def test_the_table_and_the_file(tmp_path: Path, toy: Plan) -> None:
    out = tmp_path / "plan.json"
    made = make_plan(DATA, TOY, SDDLM(), TRAIN, json=str(out), **GPU)
    assert made == toy
    assert json.loads(out.read_text()) == json.loads(json.dumps(asdict(made)))
    printed = " ".join(str(made).split())
    figures = [f"{made.parameters['all']:,}", short(made.memory["all"], "B")]
    for words in ("8 x h100-sxm", "40%", "text is not prepared", "as is communication", *figures):
        assert words in printed
    with pytest.raises(ConfigError, match="cannot write to `json`"):
        make_plan(DATA, TOY, SDDLM(), TRAIN, json=str(tmp_path / "no" / "plan.json"), **GPU)


def test_this_machine_is_measured() -> None:
    """Rates are those of the machine, so only what must hold anywhere is asked."""
    made = make_plan(DATA, TOY, SDDLM(), TrainArgs(batch=4), device="here", vocab_size=300)
    assert made.fits
    assert not made.bf16
    assert (made.step_seconds or 0) > 0
    assert made.days == pytest.approx(2000 * (made.step_seconds or 0) / 86400)
    assert "this machine" in str(made)
    assert "measured" in str(made)


@pytest.mark.parametrize(
    ("driver", "name"),
    [("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA A100 80GB PCIe", "a100-80"),
     ("NVIDIA H100 PCIe", "h100-pcie"), ("NVIDIA H100 80GB HBM3", "h100-sxm"),
     ("NVIDIA L40S", "l40s"), ("NVIDIA L4", "l4"), ("NVIDIA GeForce RTX 4090", "rtx-4090")],
)  # fmt: skip
def test_devices_are_found_by_what_their_driver_reports(driver: str, name: str) -> None:
    assert _of_driver(driver) is DEVICES[name]


def test_an_unknown_driver_is_refused() -> None:
    with pytest.raises(ConfigError, match="'GeForce 256', must be one of"):
        _of_driver("GeForce 256")


@pytest.mark.slow
def test_the_command_line_takes_a_training_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {tokenizer: gpt2, length: 32}\n"
        "model: {preset: mini, width: 64, blocks: 1, heads: 2}\n"
        "objective: {class_path: SDDLMV1, init_args: {weight: 0.5}}\n"
        "train: {steps: 10, batch: 8}\nseed: 1\nout: run\n"
    )
    arguments = ["--config", str(recipe), "--device", "l40s", "--devices", "2", "--tokens", "1e6"]
    assert main(["plan", *arguments, "--utilization", "0.3"]) == 0
    assert "2 x l40s" in capsys.readouterr().out
    assert main(["plan", *arguments, "--device", "l41"]) == 2
    assert "l40s" in capsys.readouterr().err
