"""Keys of the cache, and its directories: built once, atomically, with checksums."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sddlm.errors import ConfigError
from sddlm.io import atomic_write, make_durable, name_file, sha256

logger = logging.getLogger(__name__)

UNFINISHED = ".unfinished-"
FRESH = 2_000_000_000  # ns; a file changed twice within a tick of its clock looks unchanged
_CHECKSUMS = "checksums.json"
_LARGE = ".bin"  # files too large to be read at every start


def digest(*values: object) -> str:
    """SHA-256 (hex) of several values, with their lengths, so different lists differ."""
    found = hashlib.sha256()
    for value in values:
        data = repr(value).encode()
        found.update(len(data).to_bytes(8, "big"))
        found.update(data)
    return found.hexdigest()


def state(paths: Iterable[Path]) -> str | None:
    """SHA-256 (hex) of paths, sizes, times and inodes of files; None if one changed just now."""
    found: list[object] = []
    for path in paths:
        stat = path.stat()
        if time.time_ns() - stat.st_mtime_ns < FRESH:
            return None
        found += [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return digest(*found)


def damage(folder: Path, *, verify: bool = False) -> str:
    """Describe the damage of a finished folder; empty if it is intact.

    Sizes and checksums are compared at every call. The checksum of a token file is only compared if
    its time stamps changed since the last comparison. Bits that a disk loses change no time stamp:
    only ``verify`` finds them.

    Args:
        folder: a folder made by `build_once`.
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
def build_once(folder: Path, *, verify: bool = False) -> Iterator[Path | None]:
    """Build a folder once, in one process at a time; it gets its name when complete.

    Other processes wait. A failure leaves nothing; a kill leaves the temporary folder, which the
    next process that builds the folder removes, with a warning, before it starts over. A damaged
    folder is replaced, with a warning, when the new one is complete.

    Args:
        folder: final name; named by its content, a folder is built once.
        verify: see `damage`.

    Yields:
        the temporary folder to fill, or None if the folder exists.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
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
        if temporary.is_dir():
            logger.warning("%s: an earlier preparation was interrupted; starting over", folder)
            shutil.rmtree(temporary)
        temporary.mkdir()
        try:
            yield temporary
            _seal(temporary, folder.name)
        except BaseException:
            shutil.rmtree(temporary)
            raise
        if folder.is_dir():
            shutil.rmtree(folder)
        os.rename(temporary, folder)
        make_durable(folder.parent)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Lock a folder between processes; the lock file is removed when the folder exists."""
    lock = FileLock(folder.parent / f"{UNFINISHED}{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("waiting for another process, which is preparing %s", folder)
        lock.acquire()
    try:
        yield
        # a waiting process has the same file open, so it gets the lock and finds the folder
        Path(lock.lock_file).unlink(missing_ok=True)
    finally:
        lock.release()


def _seal(temporary: Path, name: str) -> None:
    """Flush a folder to disk, with checksums of its files."""
    paths = sorted(temporary.iterdir())
    sums = {path.name: sha256(path) for path in paths}
    stamps = {path.name: _stamp(path) for path in paths if path.name.endswith(_LARGE)}
    _write_checksums(temporary, {"folder": name, "sha256": sums, "stamps": stamps})
    for path in (*paths, temporary):
        make_durable(path)


def _write_checksums(folder: Path, known: dict[str, Any]) -> None:
    with atomic_write(folder / _CHECKSUMS) as file:
        json.dump(known, file, indent=2)


def _stamp(path: Path) -> list[int] | None:
    """Size and times of a file; None if it changed just now, as another change may look the
    same."""
    stat = path.stat()
    changed = max(stat.st_mtime_ns, stat.st_ctime_ns)
    if time.time_ns() - changed < FRESH:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Check that the cache is or will be writable, without making it, and name it in OSErrors.

    Raises:
        ConfigError: it is not writable.
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
    try:
        yield
    except OSError as error:  # those of ``write`` have no name
        name_file(error, folder)
        raise
