"""The directory of a language model: all that sampling and scoring need, in three files.

``config.json`` (network, process, estimate, objective, data, and the SHA-256 of the other two),
``model.safetensors`` (weights) and ``tokenizer.json``; nothing is pickled. `DiT.from_pretrained`
reads the same directory.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from glob import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, one_line
from sddlm.io import atomic_write, current_names, make_durable, read_json, sha256
from sddlm.models.backbone import ARCHITECTURE, Backbone
from sddlm.models.dit import WEIGHTS_NAME, DiT
from sddlm.models.weights import not_finite
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.spec import from_spec, to_spec

FORMAT = 1
"""Version of the layout of ``config.json``; a newer one is refused."""

CONFIG_NAME = "config.json"
TOKENIZER_NAME = "tokenizer.json"
PACKAGED = Path(__file__).with_name("pretrained")


def is_model_dir(path: str | Path) -> bool:
    """Whether it is a model directory of ours, or a run directory with one."""
    return any(_is_ours(place) for place in _places(Path(path)))


def is_public(path: str | Path) -> bool:
    """Whether a folder has the ``config.json`` of a model of other code (Hugging Face's)."""
    return _has_key(Path(path), "model_type")


def check_device(device: str) -> None:
    """Refuse a GPU where there is none."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"`device` is {device}, but torch finds no GPU here; use `device='cpu'`")


def locate(name: str | Path) -> Path:
    """The directory of a model, before anything of it is loaded.

    Args:
        name: run or model directory, or the name of a model in this package; a directory of that
            name wins.

    Raises:
        ConfigError: there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if str(name) in (there := packaged()):
        return PACKAGED / str(name)
    raise ConfigError(
        f"no such directory: {name}; give that of a finished run, or the name of a model that "
        f"comes with sddlm: {', '.join(there)}"
    )


def packaged() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(place.parent.name for place in PACKAGED.glob(f"*/{CONFIG_NAME}"))


def read_model_dir(path: str | Path, device: str) -> tuple[Path, dict[str, Any]]:
    """The model directory at a path, in a run or of a name, and its fields of a `LanguageModel`.

    Weights of 16 bits become float32 on a CPU, which computes with them several times faster.

    Raises:
        ConfigError: in one line, if there is none or something in it is missing or damaged.
    """
    place = _find(locate(path))
    check_device(device)
    config = _read_config(place / CONFIG_NAME)
    for name in (WEIGHTS_NAME, TOKENIZER_NAME):
        if not (place / name).is_file():
            raise ConfigError(f"{place} is incomplete: {name} is missing; export it again")
        _check_sum(place / name, config)
    try:
        process = from_spec(config["process"])
        estimate = Estimate(config["estimate"])
        objective, data = dict(config["objective"]), _record(config["data"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{place / CONFIG_NAME} cannot be used: {_line(error)}") from error
    if not isinstance(process, Process):
        raise ConfigError(f"{place / CONFIG_NAME} cannot be used: process is no process")
    try:
        if config.get("architecture") == ARCHITECTURE:
            network: Any = Backbone.from_folder(place, config, device)
        else:
            network = DiT.from_pretrained(place, map_location=device)
    except Exception as error:  # whatever a file may hold, and safetensors make of it
        raise ConfigError(f"{place} cannot be used: {_line(error)}") from error
    if device == "cpu" and next(network.parameters()).dtype.itemsize == 2:
        network.float()
    tokenizer = Tokenizer.load(place)
    if tokenizer.vocab_size > network.vocab_size:
        raise ConfigError(
            f"{place}: the tokenizer has {tokenizer.vocab_size} tokens but the network "
            f"{network.vocab_size}; they do not belong together"
        )
    return place.absolute(), {
        "network": network, "process": process, "estimate": estimate, "tokenizer": tokenizer,
        "objective": objective, "data": data,
    }  # fmt: skip


def write_model_dir(
    path: str | Path,
    *,
    network: DiT,
    process: Process,
    estimate: Estimate,
    tokenizer: Tokenizer,
    objective: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Write a model directory, or replace one: there is always a complete one or none.

    Raises:
        ConfigError: if something stands there that is not a model directory, or a weight is not a
            finite number.
        OSError: it cannot be written; what was there before is intact.
    """
    path = Path(path).absolute()
    if problems := not_finite(network.state_dict()):
        raise ConfigError(f"{path} is not written: {problems[0]}")
    with _swapped_in(path) as new:
        network.save_weights(new / WEIGHTS_NAME)
        tokenizer.save(new)
        config = asdict(network.config) | {
            "format": FORMAT,
            "sddlm_version": version("sddlm"),
            "process": to_spec(process),
            "estimate": estimate.value,
            "objective": objective,
            "data": data,
            "sha256": {name: sha256(new / name) for name in (WEIGHTS_NAME, TOKENIZER_NAME)},
        }
        with atomic_write(new / CONFIG_NAME) as file:
            file.write(json.dumps(config, indent=2) + "\n")
        shutil.copymode(new / CONFIG_NAME, new / WEIGHTS_NAME)  # safetensors' files are private


def _places(path: Path) -> tuple[Path, Path]:
    """Where a model directory may be: in a run directory, or right here."""
    return path / "model", path


def _is_ours(place: Path) -> bool:
    """Whether a ``config.json`` with our format number is there (Hugging Face's has none)."""
    return _has_key(place, "format")


def _has_key(place: Path, key: str) -> bool:
    """Whether ``config.json`` of a folder is there and has a key."""
    try:
        return key in read_json(place / CONFIG_NAME)
    except (ConfigError, TypeError):
        return False


def _find(path: Path) -> Path:
    """The model directory in or at a path, ours or not."""
    for place in _places(path):
        if (place / CONFIG_NAME).is_file():
            return place
    raise ConfigError(
        f"{path} is no model directory: neither {CONFIG_NAME} nor model/{CONFIG_NAME} is in it; "
        "give the directory of a finished run"
    )


def _read_config(path: Path) -> dict[str, Any]:
    """``config.json``, known to be of our format."""
    config = read_json(path)
    found = config.get("format") if isinstance(config, dict) else None
    if found is None:
        raise ConfigError(
            f"{path} was not written by sddlm: it has no format number; a public "
            "checkpoint is converted by sddlm import SOURCE OUT"
        )
    if found != FORMAT:
        raise ConfigError(f"{path} has format {found!r}, this sddlm reads {FORMAT}: upgrade sddlm")
    return dict(current_names(config))


def _record(data: Any) -> dict[str, Any]:
    """What a model was trained on; what is read of it later has the right form."""
    packing, rows = data.get("packing", {}), data.get("row_lengths")
    if not isinstance(packing, dict):
        raise TypeError("data.packing is no object")
    if rows is not None and not (
        isinstance(rows, list) and any(rows) and all(type(n) is int and n >= 0 for n in rows)
    ):
        raise TypeError("data.row_lengths is no list of counts")
    return dict(data)


def _check_sum(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse a file that is not the one that was written; older directories have no checksums."""
    sums = config.get("sha256")
    if isinstance(sums, dict) and path.name in sums and sums[path.name] != sha256(path):
        raise ConfigError(
            f"{path} is damaged: its SHA-256 is not that in {CONFIG_NAME}; copy or export it again"
        )


def _line(error: Exception) -> str:
    """An exception in one line."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return one_line(error)


@contextmanager
def _swapped_in(path: Path) -> Iterator[Path]:
    """A new directory beside ``path`` that takes its place, complete and on disk, at the end.

    POSIX cannot exchange two directories, so an old one is renamed away first and deleted last.
    """
    if path.exists() and not _is_ours(path) and not _is_empty(path):
        raise ConfigError(f"{path} exists and is no model directory: choose another place")
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = uuid.uuid4().hex[:8]
    new, old = (path.with_name(f".{path.name}.{what}-{tag}") for what in ("new", "old"))
    new.mkdir()
    try:
        yield new
        for place in [*new.iterdir(), new]:
            make_durable(place)
        if path.exists():
            path.rename(old)
        new.rename(path)
        make_durable(path.parent)
    except (OSError, SafetensorError) as error:
        message = f"cannot write {path}, what was there before is intact: {_line(error)}"
        raise OSError(message) from error
    finally:
        sweep(path, tag)


def sweep(path: Path, tag: str = "*") -> None:
    """Remove what a kill left beside a model directory, while no other process writes it.

    A kill between the two renames leaves the old directory renamed away: it gets its name back.

    Args:
        path: of the model directory.
        tag: of what is removed; all of it by default.
    """
    name = escape(path.name)
    for old in path.parent.glob(f".{name}.old-{tag}"):
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)
    for new in path.parent.glob(f".{name}.new-{tag}"):
        shutil.rmtree(new, ignore_errors=True)


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
