"""Fine-tuning: start a training from a trained model."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from sddlm.data.config import DataArgs, trained_on
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.model_dir import locate, read_model_dir
from sddlm.models.backbone import Backbone
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import Objective

#: options of a network; an imported one has more fields, which no option sets
_MEASURES = sorted({field.name for field in fields(ModelArgs)} - {"preset"})


def open_start(start: str, data: DataArgs, model: ModelArgs, objective: Objective) -> LanguageModel:
    """Load the model to start from, and check it against the options.

    Args:
        start: its run or model directory.
        data: tokenizer and ``vocab_size`` must be the defaults, or those of the model's run.
        model: must be the defaults, or describe the same network.
        objective: objective of the new training; may differ from the model's.

    Raises:
        ConfigError: an option contradicts the model.
    """
    try:
        place = locate(start)
        loaded = LanguageModel(**read_model_dir(place, "cpu")[1])  # which may be untrained
    except ConfigError as error:
        raise ConfigError(f"`start`: {error}") from error
    own, its_own = DataArgs(), trained_on(place)
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
    """Sizes of a model's network as options, for the record of the new run.

    One of transformers has none of them.
    """
    if isinstance(start.network, Backbone):
        return ModelArgs()
    return ModelArgs(**{name: getattr(start.network.config, name) for name in _MEASURES})


def _check_network(start: str, loaded: LanguageModel, model: ModelArgs) -> None:
    """Check that given sizes are the model's."""
    config = loaded.network.config
    if model == ModelArgs():
        return
    if isinstance(loaded.network, Backbone):
        raise ConfigError(
            f"`start` {start} is a network of transformers, which has its own sizes; leave all "
            "`model` options out"
        )
    asked = model.build(
        vocab_size=config.vocab_size,
        length=config.length,
        causal=config.causal,
        num_extra_tokens=config.num_extra_tokens,
    )
    for name in _MEASURES:
        here, there = getattr(asked, name), getattr(config, name)
        if here != there:
            raise ConfigError(
                f"`model.{name}` is {here}, but the network of `start` {start} has {there}; "
                "leave all `model` options out, its measures are taken over"
            )


def _check_objective(start: str, loaded: LanguageModel, objective: Objective) -> None:
    """Check that the objective matches the kind of network and the extra tokens."""
    config = loaded.network.config
    name = type(objective).__name__
    if config.causal != objective.causal:
        kind = "an autoregressive" if config.causal else "a diffusion"
        raise ConfigError(
            f"`start` {start} is {kind} model, which `objective={name}()` cannot train"
            f"{f'; first: sddlm adapt {start} START' if config.causal else ''}"
        )
    extra = objective.process.extra_tokens
    if config.num_extra_tokens != extra:
        raise ConfigError(
            f"`start` {start} was trained with {type(loaded.process).__name__}, but "
            f"`objective={name}()` has {type(objective.process).__name__}, another vocabulary; "
            "choose an objective with the same process"
        )


def continued(start: LanguageModel, length: int, seed: int) -> Any:
    """Build a network with the model's weights, for rows of any length.

    Args:
        start: the model.
        length: training length L; no parameter depends on it.
        seed: seed of the initialisation, which the weights replace.
    """
    network: Any = start.network
    if isinstance(network, Backbone):
        network.resize(length)
        return network
    network = DiT(replace(start.network.config, length=length), seed=seed)
    network.load_state_dict(start.network.state_dict())
    return network
