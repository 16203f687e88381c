"""Runs and models that an earlier version wrote, with the names that options had then."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from sddlm.data.config import DataArgs, trained_on
from sddlm.data.tokenizer import Tokenizer
from sddlm.inherit import read_files
from sddlm.io import current_names
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig, ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import MDLM, SDDLM
from sddlm.options import merge
from sddlm.process import MaskedProcess
from sddlm.training.args import TrainArgs
from sddlm.training.monitor import read_metrics
from sddlm.training.run import changed, resolved, train_model

OLD = {
    "bos_eos": "ends", "max_errors": "max_bad", "num_extra_tokens": "input_only",
    "tie_embeddings": "tie", "copy_prob": "own_share",
}  # fmt: skip


def older(value):
    """The same as an earlier version wrote it."""
    if isinstance(value, dict):
        found = {OLD.get(name, name): older(item) for name, item in value.items()}
        if "time_input" in found:
            found["time_free"] = found.pop("time_input") == "none"
        return found
    return "light" if value == "selective" else value


def run_config():
    data = DataArgs(path="my.txt", bos_eos=True, max_errors=3, mixture=None)
    train = TrainArgs(activation_checkpointing="selective")
    return resolved(
        data, ModelArgs(tie_embeddings=True, time_input="none"), SDDLM(), train, None, 0
    )


def test_names_are_translated_at_any_depth_but_not_those_of_texts() -> None:
    config = run_config()
    assert older(config) != config
    assert current_names(older(config)) == config
    assert current_names(config) == config
    mixture = {"data": {"mixture": {"ends": 1.0, "tie": 2.0}}}
    assert current_names(mixture) == mixture


def test_an_older_run_is_resumed_read_and_built_on(tmp_path: Path) -> None:
    config = run_config()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(older(config)))
    assert "max_bad" in path.read_text()
    assert changed(tmp_path, config) == ""
    other = {**config, "data": {**config["data"], "bos_eos": False}}
    assert changed(tmp_path, other) == "`data.bos_eos` was True and is False"
    found = trained_on(tmp_path)
    assert found is not None
    assert (found.bos_eos, found.max_errors) == (True, 3)
    assert merge(read_files([str(path)]), train_model) == config


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_an_older_model_is_loaded(tmp_path: Path, tie_embeddings: bool) -> None:
    tokenizer = Tokenizer.bytes()
    config = DiTConfig(
        vocab_size=tokenizer.vocab_size + 1, length=8, width=16, blocks=1, heads=2,
        num_extra_tokens=1, tie_embeddings=tie_embeddings,
    )  # fmt: skip
    model = DiT(config, seed=1)
    estimate = MDLM().estimate
    data = {"packing": {"packing": "document", "bos_eos": True, "eos": False}}
    saved = LanguageModel(model, MaskedProcess(), estimate, tokenizer, {}, data)
    saved.save(tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(older(json.loads(path.read_text()))))
    assert "input_only" in path.read_text()
    loaded = LanguageModel.load(tmp_path / "model")
    assert loaded.network.config == config
    assert loaded.bos_in_rows
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.network.state_dict()[name], value)


def test_an_older_checkpoint_of_the_hub_mixin_is_loaded(tmp_path: Path) -> None:
    config = DiTConfig(vocab_size=9, length=4, width=8, blocks=1, heads=2, num_extra_tokens=1)
    model = DiT(config, seed=2)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(older(vars(config))))
    assert "time_free" in (tmp_path / "config.json").read_text()
    assert DiT.from_pretrained(tmp_path).config == config


def test_figures_of_an_older_run_are_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,own_share,own_share_noise,loss\n1,0.5,0.25,2.0\n")
    figures = {"step": 1, "copy_prob": 0.5, "copy_prob_noise": 0.25, "loss": 2.0}
    assert read_metrics(tmp_path) == [figures]
