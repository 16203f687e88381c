"""Files of a checkpoint: weights, ``config.json``, tokenizer; no foreign object is unpickled."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from sddlm.errors import ConfigError, one_line
from sddlm.hub import FILES, download, is_repo_id
from sddlm.io import read_json
from sddlm.model_dir import CONFIG_NAME, TOKENIZER_NAME
from sddlm.models.dit import WEIGHTS_NAME

_INDEX = "model.safetensors.index.json"
_TOKENIZERS = (TOKENIZER_NAME, "vocab.json", "vocab.txt")
_OF_THE_HUB = (*FILES, "*.safetensors", _INDEX, *_TOKENIZERS, "merges.txt")
#: what a pickle of tensors is made of, beside storages and dtypes
_ALLOWED = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_tensor_v2"),
}


@dataclass(frozen=True)
class CheckpointFiles:
    """What a checkpoint holds.

    Attributes:
        name: of the checkpoint, as given.
        tensors: by name.
        averaged: averaged weights in the order of the parameters; None if there are none.
        config: ``config.json``; empty if there is none.
        tokenizer: folder with a tokenizer; None if there is none.
    """

    name: str
    tensors: dict[str, Tensor]
    averaged: list[Tensor] | None
    config: dict[str, Any]
    tokenizer: Path | None


def read_files(source: str, revision: str | None = None) -> CheckpointFiles:
    """Read a checkpoint.

    Args:
        source: a file (``.safetensors``, or a checkpoint of torch or Lightning), a folder with
            ``model.safetensors``, or name ``owner/name`` of a repository on the hub.
        revision: branch, tag or commit of the repository.

    Raises:
        ConfigError: there is no checkpoint, or it is damaged.
    """
    place = download(source, revision, _OF_THE_HUB) if is_repo_id(source) else Path(source)
    if not place.exists():
        raise ConfigError(f"`source`: no such file or folder: {source}")
    folder = place if place.is_dir() else place.parent
    config = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else {}
    if not isinstance(config, dict):
        raise ConfigError(f"`source`: {folder / CONFIG_NAME} holds no names with values")
    tokenizer = folder if any((folder / name).is_file() for name in _TOKENIZERS) else None
    try:
        tensors, averaged = _read_weights(_weights(place))
    except ConfigError:
        raise
    except Exception as error:  # whatever a file may hold, and its readers make of it
        raise ConfigError(f"`source`: {place} cannot be read: {one_line(error)}") from error
    return CheckpointFiles(source, tensors, averaged, config, tokenizer)


def _weights(place: Path) -> list[Path]:
    """Files of the weights: one, or the shards that an index names."""
    if place.is_file():
        return [place]
    index = place / _INDEX
    if index.is_file():
        names = sorted(set(read_json(index)["weight_map"].values()))
        return [place / Path(name).name for name in names]
    for pattern in (WEIGHTS_NAME, "*.safetensors", "*.ckpt", "pytorch_model.bin"):
        if found := sorted(place.glob(pattern)):
            if len(found) > 1:
                listed = ", ".join(path.name for path in found)
                raise ConfigError(f"`source`: {place} has several checkpoints, give one: {listed}")
            return found
    raise ConfigError(f"`source`: {place} has no model.safetensors, no other one, and no .ckpt")


def _read_weights(files: list[Path]) -> tuple[dict[str, Tensor], list[Tensor] | None]:
    if files[0].suffix == ".safetensors":
        return {name: tensor for file in files for name, tensor in load_file(file).items()}, None
    checkpoint = _unpickled(files[0])
    state = checkpoint.get("state_dict", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict):
        raise ValueError("it holds no tensors by name")
    tensors = {name: value.detach() for name, value in state.items() if isinstance(value, Tensor)}
    ema = checkpoint.get("ema")
    averaged = ema.get("shadow_params") if isinstance(ema, dict) else None
    return tensors, None if averaged is None else [value.detach() for value in averaged]


def _unpickled(path: Path) -> Any:
    """A checkpoint of torch, with nothing in the place of all that is no tensor or plain value.

    ``weights_only=True`` of torch refuses a whole Lightning checkpoint, whose hyperparameters are
    pickled objects of other libraries.
    """
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no archive of torch 1.6 or later")
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("constants.pkl") for name in archive.namelist()):
            raise ValueError("it is a TorchScript archive, which holds code")
    tensors_only = SimpleNamespace(Unpickler=_TensorsOnly, __name__="sddlm")
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=tensors_only)


class _Inert:
    """What foreign objects are replaced by: takes any arguments and state, does nothing."""

    def __new__(cls, *args: Any, **named: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **named: Any) -> None:
        """Do nothing."""

    def ignore(self, *args: Any, **named: Any) -> None:
        """Do nothing."""

    __call__ = __setstate__ = __setitem__ = append = extend = add = ignore


class _TensorsOnly(pickle.Unpickler):
    """An unpickler that finds no class or function but those of tensors."""

    def find_class(self, module: str, name: str) -> Any:
        """The class, or `_Inert`; torch's own subclass has found the storages before."""
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        found = getattr(torch, name, None) if module == "torch" else None
        return found if isinstance(found, torch.dtype) else _Inert
