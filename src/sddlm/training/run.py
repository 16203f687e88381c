"""The verb ``sddlm train``: from text to a model directory."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import Dataset

from sddlm.data.config import DataArgs
from sddlm.data.dataset_rows import described, prepare_dataset, row_length
from sddlm.data.prepare import Prepared, load_prepared, prepare
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments, closest
from sddlm.io import current_names, read_yaml
from sddlm.lm import LanguageModel
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import SDDLM, Objective
from sddlm.objectives.base import check_architecture
from sddlm.sampling.base import choose_device
from sddlm.spec import to_spec
from sddlm.training.args import TrainArgs, has_checkpoint
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.directory import CONFIG, ENVIRONMENT, removed_on_failure, run_directory
from sddlm.training.environment import write_records
from sddlm.training.fit import fit
from sddlm.training.loggers import check_installed
from sddlm.training.lora import add_adapters, check_adapters
from sddlm.training.pmi import start_from_counts
from sddlm.training.processes import others, world_size
from sddlm.training.start import continued, measures, open_start

_SECTIONS: dict[str, type[Any]] = {"data": DataArgs, "model": ModelArgs, "train": TrainArgs}

logger = logging.getLogger(__name__)

#: options that a resumed run may change
FREE = frozenset(
    f"train.{name}"
    for name in (
        "validate_every", "validation_rows", "preview_every", "checkpoint_every", "micro_batch",
        "workers", "devices", "accelerator", "activation_checkpointing", "compile", "logger",
    )
) | {"data.workers", "data.cache"}  # fmt: skip


def train_model(
    out: str,
    data: DataArgs = DataArgs(),
    model: ModelArgs = ModelArgs(),
    objective: Objective = SDDLM(),
    train: TrainArgs = TrainArgs(),
    start: str | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Train a model on text, and write the model and the records of the run to a directory.

    Args:
        out: the run directory, new or empty.
        data: text, tokenizer and length of the rows.
        model: size of the network.
        objective: the training objective.
        train: steps, optimiser, curriculum.
        start: run or model directory to start from instead of a new network: weights, sizes and
            tokenizer are taken over; the length may differ.
        seed: seed of weights, order and noise; same seed, same weights.
        resume: continue from the checkpoint in ``out``; without one, start over.

    Returns:
        the run directory; ``model/`` in it has the averaged weights.

    Raises:
        ConfigError: a value cannot be used; nothing is left behind.
        FloatingPointError: a gradient is not finite.
        KeyboardInterrupt: it was stopped, and saved; the message has the command that goes on.
    """
    return _train_model(out, data, model, objective, train, start, seed, resume)


@check_arguments
def _train_model(
    out: str,
    data: DataArgs,
    model: ModelArgs,
    objective: Objective,
    train: TrainArgs,
    start: str | None,
    seed: int,
    resume: bool,
    dataset: Dataset[Any] | None = None,
) -> Path:
    """See `train_model`; rows are those of ``dataset``, if there is one."""
    run = Path(out)
    check_options(data, model, objective, train, seed)
    world = world_size(train)
    check_adapters(train.lora, start)
    begun = None if start is None else open_start(start, data, model, objective)
    model = model if begun is None else measures(begun)
    check_architecture(objective, hollow=model.architecture == "hollow")
    config = resolved(data, model, objective, train, start, seed)
    with run_directory(run, resume, lambda: changed(run, config)):
        with removed_on_failure(run):
            state = newest_checkpoint(run) if resume and has_checkpoint(run) else None
            prepared = _prepared(run, data, begun.tokenizer if begun else None, dataset)
            objective.check(length=data.length, tokenizer=prepared.tokenizer.fingerprint)
            network = (
                continued(begun, data.length, seed)
                if begun
                else _network(model, objective, prepared, data.length, seed)
            )
            if train.lora is not None:
                add_adapters(network, train.lora, seed)
            if not (state or begun):  # else the weights are there
                assert prepared.train is not None
                start_from_counts(network, prepared.train, seed)
            write_records(run, config, prepared.meta)
        arguments = (out, data, model, objective, train, start, seed, resume, dataset)
        with others(world, _train_model, *arguments):
            fit(run, train, seed, state, network, objective, prepared)
    return run


def train(
    path: str | Path | Dataset[Any] | None = None,
    *,
    out: str | Path | None = None,
    objective: Objective = SDDLM(),
    start: str | None = None,
    seed: int = 0,
    resume: bool = False,
    device: str = "auto",
    **options: Any,
) -> LanguageModel:
    """Train a model on text or rows of tokens and return it: `train_model` for a notebook.

    Without ``out`` nothing is left on disk; with it the run's directory holds checkpoints, curves
    and the model. A terminal shows the progress.

    Args:
        path: text as ``DataArgs.path``: a file, a folder, a pattern, ``hf:NAME``; None is the
            built-in corpus. Or a map-style ``torch.utils.data.Dataset`` whose items are rows of
            token ids ``[L]``; ``tokenizer`` then names the tokenizer that made them, and the last
            rows (``validation``, a share or a number) are held out.
        out: the run directory, new or empty.
        objective: the loss.
        start: run or model directory to begin from, instead of a new network.
        seed: of weights, order and noise; same seed, same weights.
        resume: go on from the checkpoint in ``out``.
        device: where the returned model is: cpu, cuda, or auto.
        options: fields of `sddlm.DataArgs`, `sddlm.ModelArgs` and `sddlm.TrainArgs` by name, such
            as ``length``, ``preset``, ``steps``.

    Returns:
        the model with its averaged weights, in evaluation mode.

    Raises:
        ConfigError: if a value cannot be used; then nothing is left behind.
        FloatingPointError: if a gradient is not finite.
        KeyboardInterrupt: it was stopped; with ``out`` the message has the command that goes on.
    """
    dataset = path if isinstance(path, Dataset) else None
    if dataset is not None:
        options.setdefault("length", row_length(dataset))
    name = described(path) if isinstance(path, Dataset) else path
    data, model, args = _sections(name, options)
    if resume and out is None:
        raise ConfigError("`resume` needs `out`, the directory of the run that goes on")
    with TemporaryDirectory(prefix="sddlm-") as folder:
        if out is None:
            data.cache = data.cache or str(Path(folder) / "cache")
        place = str(out or Path(folder) / "run")
        try:
            run = _train_model(place, data, model, objective, args, start, seed, resume, dataset)
        except KeyboardInterrupt:
            if out is not None:
                raise
            raise KeyboardInterrupt("stopped; without `out` nothing is kept") from None
        return LanguageModel.load(run, choose_device(device))


def _sections(
    path: str | Path | None, options: dict[str, Any]
) -> tuple[DataArgs, ModelArgs, TrainArgs]:
    """Options by name, each in the configuration that has a field of that name."""
    chosen: dict[str, dict[str, Any]] = {}
    for name, value in options.items():
        homes = [key for key, kind in _SECTIONS.items() if name in _names(kind)]
        if len(homes) != 1:
            raise ConfigError(f"`{name}` {_no_home(name, homes)}")
        chosen.setdefault(homes[0], {})[name] = value
    if path is not None:
        chosen.setdefault("data", {})["path"] = str(path)
    data, model, args = (kind(**chosen.get(key, {})) for key, kind in _SECTIONS.items())
    return data, model, args


def _no_home(name: str, homes: list[str]) -> str:
    if homes:
        return f"is an option of {' and of '.join(homes)}; use train_model, which takes each apart"
    known = sorted(name for kind in _SECTIONS.values() for name in _names(kind))
    meant = closest(name, known)
    return f"is no option; {f'did you mean `{meant}`?' if meant else ', '.join(known)}"


def _names(kind: type[Any]) -> set[str]:
    return {field.name for field in fields(kind)}


def check_options(
    data: DataArgs, model: ModelArgs, objective: Objective, args: TrainArgs, seed: int
) -> None:
    """Check all options of a training before any work."""
    if not 0 <= seed < 2**63:
        raise ConfigError(f"`seed` is {seed}, must be at least 0 and below 2**63")
    check_installed(args.loggers)
    objective.check(length=data.length)
    model.build(vocab_size=max(2, data.vocab_size), length=data.length, causal=objective.causal)
    if args.accelerator == "gpu" and not torch.cuda.is_available():
        raise ConfigError("`train.accelerator` is gpu, but torch finds none here; use auto or cpu")
    if objective.causal and data.length < 2:
        raise ConfigError("`data.length` is 1, but next-token prediction needs at least 2")
    if objective.causal and data.packing == "document" and not data.bos_eos:
        raise ConfigError(
            "`data.packing` document gives next-token prediction nothing to begin a document from; "
            "add `data.bos_eos=True`"
        )


def resolved(
    data: DataArgs,
    model: ModelArgs,
    objective: Objective,
    train: TrainArgs,
    start: str | None,
    seed: int,
) -> dict[str, Any]:
    """Configuration of a run, as recorded in ``config.yaml``."""
    return {
        "data": asdict(data), "model": asdict(model), "objective": to_spec(objective),
        "train": to_spec(train)["init_args"], "start": start, "seed": seed,
    }  # fmt: skip


def changed(run: Path, config: dict[str, Any]) -> str:
    """List the options that differ from those of the run in a directory; empty if none.

    Args:
        run: run directory.
        config: requested configuration (`resolved`).

    Raises:
        ConfigError: its ``config.yaml`` cannot be read.
    """
    path = run / CONFIG
    try:
        before = _flat(current_names(read_yaml(path)))
    except (ConfigError, AttributeError) as error:
        raise ConfigError(
            f"{path} is missing or damaged: put the options there that the run began with, "
            "or choose another directory"
        ) from error
    now = _flat(config)
    # an option that the run does not record is newer than the run; its default is the old behaviour
    defaults = resolved(DataArgs(), ModelArgs(), SDDLM(), TrainArgs(), None, 0)
    before = _flat({name: defaults[name] for name in _SECTIONS}) | before
    if now["start"] is not None:  # it determines the network
        now = {k: v for k, v in now.items() if not k.startswith("model.")}
    names = [k for k in now if k not in FREE and before.get(k) != now[k]]
    return ", ".join(f"`{_name(k)}` was {before.get(k)} and is {now[k]}" for k in names)


def _name(key: str) -> str:
    """The argument that a key of ``config.yaml`` belongs to."""
    return key.replace("init_args.", "").removesuffix(".class_path")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested dictionary to dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _network(
    model: ModelArgs, objective: Objective, prepared: Prepared, length: int, seed: int
) -> DiT:
    extra = objective.process.extra_tokens
    config = model.build(
        vocab_size=prepared.tokenizer.vocab_size + extra,
        length=length,
        causal=objective.causal,
        num_extra_tokens=extra,
    )
    return DiT(config, seed=seed)


def _prepared(
    run: Path, data: DataArgs, tokenizer: Tokenizer | None, dataset: Dataset[Any] | None
) -> Prepared:
    """Prepare the tokens, or load those that the run began with.

    A resumed run and further processes therefore read no text, which may be readable only once, or
    take hours.
    """
    path, found, meta = run / ENVIRONMENT, None, {}
    if path.is_file():
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))["data"]
            found = load_prepared(data, meta, tokenizer) if dataset is None else None
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            logger.warning("%s cannot be used (%s): the text is prepared again", path, error)
    if dataset is None:
        return found or prepare(data, tokenizer)
    rows = prepare_dataset(dataset, data, tokenizer)
    if meta.get("key", rows.key) != rows.key:
        raise ConfigError(f"the rows of {data.path} are not those that {run} was trained on")
    return rows
