"""Models by name: load a directory or a repository of the hub, upload one with a card."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from sddlm.errors import ConfigError, first_line
from sddlm.io import atomic_write, read_json
from sddlm.model_dir import CONFIG_NAME, TOKENIZER_NAME, check_device, is_public
from sddlm.models.dit import WEIGHTS_NAME

if TYPE_CHECKING:
    from sddlm.lm import LanguageModel

CARD_NAME = "README.md"
FILES = (CONFIG_NAME, WEIGHTS_NAME, TOKENIZER_NAME)
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
#: the code in a repository by which ``transformers`` reads the model
_CODE = Path(__file__).with_name("modeling_sddlm.py")
_AUTO_MAP = {
    "AutoConfig": f"{_CODE.stem}.SddlmConfig",
    "AutoModel": f"{_CODE.stem}.SddlmModel",
}


def load(path: str | Path, device: str = "auto", *, revision: str | None = None) -> LanguageModel:
    """Load a trained model from a directory, from this package or from the Hugging Face hub.

        lm = sddlm.load("stories")  # comes with the package
        lm = sddlm.load("run")

    Args:
        path: run directory, model directory, the name of a model in the package, or ``owner/name``
            of a repository on the hub. A public checkpoint of other code is converted, if nothing
            needs to be decided (`sddlm.import_model`).
        device: cpu, cuda, or auto (cuda if there is one).
        revision: branch, tag or commit of the repository.

    Returns:
        the model, its network in evaluation mode.

    Raises:
        ConfigError: there is no model, or a file of it is missing or damaged.
    """
    from sddlm.lm import LanguageModel
    from sddlm.sampling.base import choose_device

    device = choose_device(device)
    place = download(str(path), revision) if is_repo_id(path) else path
    if not is_public(place):
        return LanguageModel.load(place, device)
    from sddlm.importer.run import ImportConfig, open_checkpoint

    check_device(device)
    lm = open_checkpoint(str(path), ImportConfig(revision=revision))
    lm.network.to(device)
    return lm


def is_repo_id(path: str | Path) -> bool:
    """Whether it is a repository's name, ``owner/name``, and nothing of that name is here."""
    return _REPOSITORY.fullmatch(str(path)) is not None and not Path(path).exists()


def download(repo_id: str, revision: str | None = None, files: Sequence[str] = FILES) -> Path:
    """A folder with the model directory of a repository, from the hub's cache where it is there.

    Args:
        repo_id: ``owner/name``.
        revision: branch, tag or commit; None is the main branch.
        files: patterns of the names of the files.

    Raises:
        ConfigError: no such repository, no permission, or no network.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=[*files]))
    except Exception as error:  # whatever the network, the hub or its cache may raise
        raise ConfigError(
            f"no directory {repo_id} here, and none from the hub ({first_line(error)})"
        ) from error


def upload(
    lm: LanguageModel,
    repo_id: str,
    *,
    private: bool | None,
    token: str | None,
    commit_message: str | None,
) -> str:
    """Put a model into a repository; see `LanguageModel.push_to_hub`."""
    from huggingface_hub import HfApi

    from sddlm.card import card

    api, message = HfApi(token=token), commit_message or "Upload with sddlm"
    with TemporaryDirectory(prefix="sddlm-") as parent:
        folder = Path(parent) / "model"
        write_repository(lm, folder)
        try:
            api.create_repo(repo_id, private=private, exist_ok=True)
            if not api.file_exists(repo_id, CARD_NAME):  # one that somebody has written stays
                (folder / CARD_NAME).write_text(card(lm, repo_id), encoding="utf-8")
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # whatever the network or the hub may raise
            raise ConfigError(f"cannot upload to {repo_id}: {first_line(error)}") from error
    return f"{api.endpoint}/{repo_id}"


def write_repository(lm: LanguageModel, folder: Path) -> None:
    """Write a model directory that ``transformers.AutoModel`` reads too.

    Args:
        lm: the model.
        folder: the directory; see `LanguageModel.save`.
    """
    lm.save(folder)
    shutil.copyfile(_CODE, folder / _CODE.name)
    config = read_json(folder / CONFIG_NAME)
    with atomic_write(folder / CONFIG_NAME) as file:
        file.write(json.dumps(config | {"auto_map": _AUTO_MAP}, indent=2) + "\n")
