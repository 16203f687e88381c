"""Folders that are there whole or not at all, and that a later start goes on filling."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sddlm.errors import ConfigError
from sddlm.files import make_durable

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
_STALE = 7 * 24 * 3600  # seconds after which nobody will go on with an unfinished folder


def complete(folder: Path) -> bool:
    """Whether the folder was finished. Only ``filled`` gives it this name, so it exists."""
    return folder.is_dir()


@contextmanager
def filled(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, one process at a time; it becomes ``folder`` at the end.

    What a killed or failed process leaves stands under a temporary name and is given to the next
    one, which may go on with it. A process that comes while another one is at work waits for it.

    Args:
        folder: the public name; whoever names folders by their content fills each one once.

    Yields:
        The folder under its temporary name, or None if there is nothing left to do.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    if complete(folder):
        yield None
        return
    lock = FileLock(folder.parent / f"{UNFINISHED}{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process, which is preparing %s", folder)
        lock.acquire()
    try:
        if complete(folder):
            yield None
            return
        temporary = folder.parent / f"{UNFINISHED}{folder.name}"
        temporary.mkdir(exist_ok=True)
        yield temporary
        for path in (*temporary.iterdir(), temporary):
            make_durable(path)
        os.rename(temporary, folder)
        make_durable(folder.parent)
    finally:
        # whoever waits holds the same file open, gets it, and sees what was done meanwhile
        if complete(folder):
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


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
    """Unfinished folders that nobody has worked on for a week."""
    for path in parent.glob(f"{UNFINISHED}*"):
        if path.is_dir() and time.time() - _last_work(path) > _STALE:
            shutil.rmtree(path, ignore_errors=True)


def _last_work(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
