"""Beginning a training from a trained model: what is its own is taken over."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

from sddlm.data.args import DataArgs, trained_on
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import Objective


def open_start(start: str, data: DataArgs, model: ModelArgs, objective: Objective) -> LanguageModel:
    """The model that a training begins from, known to fit what is asked.

    Args:
        start: its run or model directory.
        data: tokenizer and ``vocab_size`` must be the defaults, or those of the model's own run.
        model: must be the defaults, or describe the same network.
        objective: of the training to come; another one than the model's is welcome.

    Raises:
        ConfigError: what contradicts the model, and what to leave out.
    """
    try:
        loaded = LanguageModel.load(Path(start))
    except ConfigError as error:
        raise ConfigError(f"`start`: {error}") from error
    own, its_own = DataArgs(), trained_on(Path(start))
    for name in ("tokenizer", "vocab_size"):
        value = getattr(data, name)
        if value not in (getattr(own, name), getattr(its_own, name, None)):
            raise ConfigError(
                f"`data.{name}` is {value}, but `start` {start} has a tokenizer of its own; "
                f"leave `data.{name}` out"
            )
    _check_objective(start, loaded, objective)
    _check_network(start, loaded, model)
    return loaded


def measures(start: LanguageModel) -> ModelArgs:
    """The network of a model as options, for the record of a run that begins from it."""
    names = {field.name for field in fields(ModelArgs)} - {"preset"}
    return ModelArgs(**{name: getattr(start.network.config, name) for name in names})


def _check_network(start: str, loaded: LanguageModel, model: ModelArgs) -> None:
    """The measures are the model's; those that are named must be the same."""
    config = loaded.network.config
    if model == ModelArgs():
        return
    asked = model.build(
        vocab_size=config.vocab_size,
        length=config.length,
        causal=config.causal,
        input_only=config.input_only,
    )
    for field in fields(config):
        here, there = getattr(asked, field.name), getattr(config, field.name)
        if here != there:
            raise ConfigError(
                f"`model.{field.name}` is {here}, but the network of `start` {start} has {there}; "
                "leave all `model` options out, its measures are taken over"
            )


def _check_objective(start: str, loaded: LanguageModel, objective: Objective) -> None:
    """The kind of network and the tokens that are noise only belong to it."""
    config = loaded.network.config
    name = type(objective).__name__
    if config.causal != objective.causal:
        kind = "an autoregressive" if config.causal else "a diffusion"
        raise ConfigError(
            f"`start` {start} is {kind} model, which `objective={name}()` cannot train"
        )
    extra = objective.process.extra_tokens
    if config.input_only != extra:
        raise ConfigError(
            f"`start` {start} was trained with {type(loaded.process).__name__}, but "
            f"`objective={name}()` has {type(objective.process).__name__}, another vocabulary; "
            "choose an objective with the same process"
        )


def continued(start: LanguageModel, length: int, seed: int) -> DiT:
    """A network with the model's weights, for rows of any length.

    Args:
        start: the model.
        length: L to train for; no parameter depends on it.
        seed: of what a network starts from that has no weights yet; here of nothing.
    """
    network = DiT(replace(start.network.config, length=length), seed=seed)
    network.load_state_dict(start.network.state_dict())
    return network
