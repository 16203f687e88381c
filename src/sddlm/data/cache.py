"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sddlm.errors import ConfigError
from sddlm.files import make_durable

_PREFIX = ".unfinished-"
_STALE = 24 * 3600  # seconds after which an unfinished folder is what a kill left behind


def complete(folder: Path) -> bool:
    """Whether the folder was finished. Only ``new_folder`` gives it this name, so it exists."""
    return folder.is_dir()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder to fill; it becomes ``folder`` at the end, and vanishes on an error.

    A killed process leaves nothing under the public name; what it leaves under a temporary one is
    removed by a later call, a day on. If another process finished the same folder first, its
    folder stays: whoever names folders by their content does not care.

    Args:
        folder: the public name.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=_PREFIX))
    try:
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            make_durable(path)
        os.chmod(temporary, 0o755)  # mkdtemp's folders are private
        try:
            os.rename(temporary, folder)
        except OSError:
            if not complete(folder):
                raise
        make_durable(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """See that files can be made in the cache folder, or where it is to be; nothing is made yet.

    Raises:
        ConfigError: they cannot.
    """
    try:
        there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"--data.cache {folder} cannot be written to ({error.strerror}); give a folder that "
            "can, or set SDDLM_CACHE"
        ) from error


def _remove_stale(parent: Path) -> None:
    for path in parent.glob(f"{_PREFIX}*"):
        if path.is_dir() and time.time() - path.stat().st_mtime > _STALE:
            shutil.rmtree(path, ignore_errors=True)
