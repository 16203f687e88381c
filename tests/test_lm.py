"""The model directory: what it holds, what it refuses, and that it is never half there."""

from __future__ import annotations

import json
import os
import random
import stat
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import sddlm
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.model_dir import PACKAGED, is_model_dir, locate, packaged, sweep
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.schedule import LogLinear
from sddlm.process.uniform import UniformProcess
from sddlm.spec import from_spec, to_spec
from test_io import small_files

OBJECTIVE = {"class_path": "sddlm.objectives.denoising.SDDLM", "init_args": {}}


def _model_dir(**changes: Any) -> LanguageModel:
    tokenizer = Tokenizer.characters(["abcdef"])
    values = {"vocab_size": tokenizer.vocab_size, "length": 6, "width": 16, "blocks": 1, "heads": 2}
    return LanguageModel(
        network=DiT(DiTConfig(**{**values, "gate_init": 1.0, "head_init": 0.0, **changes})),
        process=UniformProcess(schedule=LogLinear(eps=0.02)),
        estimate=Estimate.DENOISER,
        tokenizer=tokenizer,
        objective=OBJECTIVE,
        data={"corpus": "six letters", "characters_per_token": 1.0},
    )


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_round_trip(tmp_path: Path, tie_embeddings: bool) -> None:
    saved = _model_dir(tie_embeddings=tie_embeddings)
    saved.save(tmp_path / "run" / "model")
    for place in (tmp_path / "run", tmp_path / "run" / "model"):
        assert is_model_dir(place)
        loaded = LanguageModel.load(place)
        assert loaded.network.config == saved.network.config
        for a, b in zip(loaded.network.parameters(), saved.network.parameters(), strict=True):
            assert torch.equal(a, b)
        assert loaded.process == saved.process
        assert loaded.estimate is Estimate.DENOISER
        assert loaded.tokenizer.decode(loaded.tokenizer.encode_batch(["fade"])[0]) == "fade"
        assert (loaded.objective, loaded.data) == (saved.objective, saved.data)
        assert not loaded.network.training
    names = {file.name for file in (tmp_path / "run" / "model").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}
    other = DiT.from_pretrained(tmp_path / "run" / "model")
    assert torch.equal(other.embedding.weight, saved.network.embedding.weight)


def test_replaces_an_older_one_whole(tmp_path: Path) -> None:
    place = tmp_path / "model"
    first, second = _model_dir(), _model_dir(width=32)
    first.save(place)
    second.save(place)
    assert LanguageModel.load(place).network.config.width == 32
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("fails", ["network", "tokenizer"])
def test_failure_leaves_the_older_one(tmp_path: Path, fails: str) -> None:
    class Full:
        config = _model_dir().network.config

        def save_weights(self, path: Path) -> None:
            raise OSError("disk full")

        def state_dict(self) -> dict[str, torch.Tensor]:
            return {}

        save = save_weights

    place = tmp_path / "model"
    _model_dir().save(place)
    broken: Any = replace(_model_dir(), **{fails: Full()})
    with pytest.raises(OSError, match="disk full"):
        broken.save(place)
    assert LanguageModel.load(place).network.config.width == 16
    assert list(tmp_path.iterdir()) == [place]


def test_failed_rename_brings_the_older_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "model"
    _model_dir().save(place)
    rename = Path.rename

    def fail(self: Path, target: Path) -> Path:
        if ".new-" in self.name:
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"):
        _model_dir(width=32).save(place)
    assert LanguageModel.load(place).network.config.width == 16
    assert list(tmp_path.iterdir()) == [place]


def test_does_not_replace_what_is_not_a_model_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert not is_model_dir(tmp_path)
    with pytest.raises(ConfigError, match="exists and is no model directory"):
        _model_dir().save(tmp_path)
    assert (tmp_path / "config.json").is_file()
    with pytest.raises(ConfigError, match="was not written by sddlm"):
        LanguageModel.load(tmp_path)


def _edit(**changes: Any) -> Callable[[Path], None]:
    def edit(place: Path) -> None:
        config = json.loads((place / "config.json").read_text())
        (place / "config.json").write_text(json.dumps(config | changes))

    return edit


def _drop(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).unlink()


def _without_process(place: Path) -> None:
    config = json.loads((place / "config.json").read_text())
    del config["process"]
    (place / "config.json").write_text(json.dumps(config))


def _cut_weights(place: Path) -> None:
    data = (place / "model.safetensors").read_bytes()
    (place / "model.safetensors").write_bytes(data[:-100])


def _cut_old_weights(place: Path) -> None:
    _cut_weights(place)
    _edit(sha256={})(place)


def _larger_tokenizer(place: Path) -> None:
    Tokenizer.characters(["abcdefghij"]).save(place)
    _edit(sha256={})(place)


def _other_tokenizer(place: Path) -> None:
    Tokenizer.characters(["abcdeg"]).save(place)


def _not_finite(place: Path) -> None:
    weights = load_file(place / "model.safetensors")
    weights["embedding.weight"][1, 2] = torch.nan
    save_file(weights, place / "model.safetensors")
    _edit(sha256={})(place)  # as older directories, which have no checksums


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("config.json"), "no model directory: neither config.json nor model/config.json"),
        (_drop("model.safetensors"), "model.safetensors is missing"),
        (_drop("tokenizer.json"), "tokenizer.json is missing"),
        (lambda place: (place / "config.json").write_text("{"), "config.json is damaged"),
        (lambda place: (place / "config.json").write_text("3"), "no format number"),
        (_edit(format=2), "has format 2, this sddlm reads 1"),
        (_edit(estimate="guess"), "'guess' is not a valid Estimate"),
        (_edit(process=3), "process is no process"),
        (_edit(process=to_spec(LogLinear())), "process is no process"),
        (_edit(objective=None), "config.json cannot be used"),
        (_without_process, "'process' is missing"),
        (_edit(width=32), "embedding.weight is .* instead of"),
        (_edit(width="a"), "`width` is 'a', must be a whole number"),
        (_edit(heads=3), "`heads` is 3"),
        (_cut_weights, "model.safetensors is damaged: its SHA-256"),
        (_cut_old_weights, "cannot be used"),
        (_other_tokenizer, "tokenizer.json is damaged: its SHA-256"),
        (_not_finite, r"embedding.weight is not finite"),
        (_larger_tokenizer, "do not belong together"),
    ],
)
def test_damage_is_told_in_one_line(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    _model_dir().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as error:
        LanguageModel.load(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_every_flipped_bit_of_the_weights_is_found(tmp_path: Path) -> None:
    _model_dir().save(tmp_path)
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(data)), 25):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(ConfigError, match=r"model\.safetensors is damaged"):
            LanguageModel.load(tmp_path)


def test_a_directory_without_checksums_is_read(tmp_path: Path) -> None:
    """All that were written before there were any."""
    _model_dir().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["sha256"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert LanguageModel.load(tmp_path).network.config.width == 16


def test_weights_that_are_not_finite_replace_nothing(tmp_path: Path) -> None:
    _model_dir().save(tmp_path / "model")
    diverged = _model_dir(width=32)
    with torch.no_grad():
        diverged.network.embedding.weight[0, 0] = torch.inf
    with pytest.raises(ConfigError, match=r"is not written: embedding\.weight is not finite"):
        diverged.save(tmp_path / "model")
    assert LanguageModel.load(tmp_path / "model").network.config.width == 16


def test_the_files_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _model_dir().save(tmp_path / "model")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "model").iterdir()}
    assert modes == {0o640}


def test_what_a_kill_left_is_swept(tmp_path: Path) -> None:
    place = tmp_path / "[1] model"
    _model_dir().save(place)
    (tmp_path / ".[1] model.new-1234").mkdir()
    other = tmp_path / ".1 model.new-1234"
    other.mkdir()
    place.rename(tmp_path / ".[1] model.old-1234")  # killed between the two renames
    sweep(place)
    assert sorted(tmp_path.iterdir()) == sorted([place, other])
    assert LanguageModel.load(place).network.config.width == 16


def test_a_full_disk_is_one_line_and_leaves_the_older_one(tmp_path: Path) -> None:
    _model_dir().save(tmp_path / "model")
    for size in (100, 3000, 9000):  # weights, tokenizer or weights, whatever comes first
        with small_files(size), pytest.raises(OSError, match=r"cannot write .*/model, what was"):
            _model_dir(width=32).save(tmp_path / "model")
        assert list(tmp_path.iterdir()) == [tmp_path / "model"]
        assert LanguageModel.load(tmp_path).network.config.width == 16


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        LanguageModel.load(tmp_path / "nowhere")
    assert not is_model_dir(tmp_path / "nowhere")


def test_weights_of_16_bits_are_float32_on_a_cpu(tmp_path: Path) -> None:
    lm = _model_dir(tie_embeddings=True)
    lm.network.bfloat16()
    lm.save(tmp_path)
    loaded = LanguageModel.load(tmp_path)
    for a, b in zip(loaded.network.parameters(), lm.network.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.float())
    assert loaded.network.head.weight is loaded.network.embedding.weight


def test_a_model_of_the_package_is_found_by_name_unless_a_directory_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert locate("stories") == PACKAGED / "stories"
    with pytest.raises(ConfigError, match=r"no such directory: storys; give that .*: stories$"):
        sddlm.load("storys")
    _model_dir().save("stories")
    assert locate("stories") == Path("stories")
    assert sddlm.load("stories").network.config.width == 16


@pytest.mark.parametrize("name", packaged())
def test_models_of_the_package_write_text_and_have_a_card(name: str) -> None:
    place = locate(name)
    lm = sddlm.load(name, "cpu")
    (text,) = lm.generate(n=1, steps=4, length=16)
    assert text.text
    assert sum(file.stat().st_size for file in place.iterdir()) <= 12_000_000
    card = (place / "README.md").read_text()
    for needed in ("## Data", "## Figures", "## Limits", "## Twenty texts"):
        assert needed in card


def test_specs() -> None:
    spec = to_spec(UniformProcess(schedule=LogLinear(eps=0.5)))
    assert spec == {
        "class_path": "sddlm.process.uniform.UniformProcess",
        "init_args": {
            "schedule": {
                "class_path": "sddlm.process.schedule.LogLinear",
                "init_args": {"eps": 0.5},
            }
        },
    }
    assert from_spec(spec) == UniformProcess(schedule=LogLinear(eps=0.5))
    assert to_spec({"a": (Path("b"), Estimate.DENOISER)}) == {"a": ["b", "denoiser"]}


@dataclass
class Foreign:
    """No class of the package."""


@pytest.mark.parametrize(
    "class_path",
    [
        f"{__name__}.Foreign",
        "subprocess.Popen",
        "os.system",
        "sddlmx.process.Uniform",
        "sddlm.model_dir.shutil",
        "sddlm.model_dir.Path",
        "sddlm.process.uniform.LogLinear",  # ours, but not defined there
        "sddlm.__main__.Anything",
        "sddlm.models.dit.DiT",  # no dataclass
        "sddlm.nothing.Here",
        "sddlm.",
        "",
    ],
)
def test_only_our_dataclasses_are_built(class_path: str) -> None:
    inner = {"class_path": class_path, "init_args": {}}
    outer = {
        "class_path": "sddlm.process.uniform.UniformProcess",
        "init_args": {"schedule": inner},
    }
    for spec in (inner, outer):
        with pytest.raises(ConfigError, match="is no class of sddlm"):
            from_spec(spec)


def test_unknown_argument_is_named() -> None:
    spec = {"class_path": "sddlm.process.schedule.LogLinear", "init_args": {"epz": 1}}
    with pytest.raises(ConfigError, match=r"LogLinear cannot be built.*epz"):
        from_spec(spec)
