"""Folders with checksums, there whole or not at all, that a later start goes on filling."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sddlm.data.paths import FRESH
from sddlm.errors import ConfigError
from sddlm.files import atomic_write, make_durable, name_file, sha256

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
_STALE = 7 * 24 * 3600  # seconds after which nobody will go on with an unfinished folder
_CHECKSUMS = "checksums.json"
_LARGE = ".bin"  # files too large to be read at every start


def damage(folder: Path, *, verify: bool = False) -> str:
    """What is wrong with a finished folder, which is to be made anew then; empty if nothing is.

    Size and checksum of every file are compared at every call. Of token files the checksum is
    compared if their time stamps are not those of the last comparison, which any program that
    writes changes. A disk that loses bits does not: only ``verify`` finds that.

    Args:
        folder: made by `filled`.
        verify: compare the checksums of token files as well.
    """
    try:
        known = json.loads((folder / _CHECKSUMS).read_text(encoding="utf-8"))
        sums, stamps = known["sha256"], known["stamps"]
        now = {name: _stamp(folder / name) for name in sums if name.endswith(_LARGE)}
        if known["folder"] != folder.name:
            return f"it was made as {known['folder']}"
        for name, written in sums.items():
            trusted = not verify and now.get(name) is not None and now[name] == stamps.get(name)
            if not trusted and sha256(folder / name) != written:
                return f"{name} is not as it was written"
    except FileNotFoundError as error:
        name = Path(error.filename).name
        return f"it has no {name}" + " (of an earlier version?)" * (name == _CHECKSUMS)
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_CHECKSUMS} cannot be read"
    if now != stamps:
        with suppress(OSError):  # a cache that only others may write to
            _write_checksums(folder, {**known, "stamps": now})
    return ""


@contextmanager
def filled(folder: Path, *, verify: bool = False) -> Iterator[Path | None]:
    """A folder to fill, one process at a time; it becomes ``folder`` at the end.

    What a killed or failed process leaves stands under a temporary name and is given to the next
    one, which may go on with it. A process that comes while another one is at work waits for it.
    A damaged folder is replaced, with a warning, when the new one is whole.

    Args:
        folder: the public name; whoever names folders by their content fills each one once.
        verify: see `damage`.

    Yields:
        The folder under its temporary name, or None if there is nothing left to do.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(folder.parent)
    if folder.is_dir() and not damage(folder, verify=verify):
        yield None
        return
    with _lock(folder):
        wrong = damage(folder, verify=verify) if folder.is_dir() else "it is not there"
        if not wrong:
            yield None
            return
        if folder.is_dir():
            logger.warning("%s is damaged and made anew: %s", folder, wrong)
        temporary = folder.parent / f"{UNFINISHED}{folder.name}"
        temporary.mkdir(exist_ok=True)
        try:
            yield temporary
        except ConfigError:  # going on would not help
            shutil.rmtree(temporary)
            raise
        _seal(temporary, folder.name)
        if folder.is_dir():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        make_durable(folder.parent)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One process at a time; the lock's file goes when the folder is there."""
    lock = FileLock(folder.parent / f"{UNFINISHED}{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process, which is preparing %s", folder)
        lock.acquire()
    try:
        yield
        # whoever waits holds the same file open, gets it, and sees what was done meanwhile
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _seal(temporary: Path, name: str) -> None:
    """Bring a folder to disk, with the checksums of its files."""
    for path in temporary.glob(".*"):  # half written, then killed
        path.unlink()
    paths = sorted(path for path in temporary.iterdir() if path.name != _CHECKSUMS)
    sums = {path.name: sha256(path) for path in paths}
    stamps = {path.name: _stamp(path) for path in paths if path.name.endswith(_LARGE)}
    _write_checksums(temporary, {"folder": name, "sha256": sums, "stamps": stamps})
    for path in (*paths, temporary):
        make_durable(path)


def _write_checksums(folder: Path, known: dict[str, Any]) -> None:
    with atomic_write(folder / _CHECKSUMS) as file:
        json.dump(known, file, indent=2)


def _stamp(path: Path) -> list[int] | None:
    """Size and times of a file; None if it changed just now: another change may look the same."""
    stat = path.stat()
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    if time.time_ns() - changed < FRESH:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@contextmanager
def naming(folder: Path) -> Iterator[None]:
    """Put the folder into an error of the disk that names no file, as those of ``write`` do not."""
    try:
        yield
    except OSError as error:
        name_file(error, folder)
        raise


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
            f"`data.cache` {folder} cannot be written to ({error.strerror}); give a folder that "
            "can, or set SDDLM_CACHE"
        ) from error


def _remove_stale(parent: Path) -> None:
    """Unfinished folders that nobody has worked on for a week."""
    for path in parent.glob(f"{UNFINISHED}*"):
        if path.is_dir() and time.time() - _last_work(path) > _STALE:
            shutil.rmtree(path, ignore_errors=True)


def _last_work(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
