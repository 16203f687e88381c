"""Finding input files, and detecting changes to them."""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from sddlm.data.formats import known, suffixes
from sddlm.errors import ConfigError

FRESH = 2_000_000_000  # ns; a file changed twice within a tick of its clock looks unchanged


def digest(*said: object) -> str:
    """SHA-256 (hex) of several values, with their lengths, so different lists differ."""
    sha256 = hashlib.sha256()
    for word in said:
        data = repr(word).encode()
        sha256.update(len(data).to_bytes(8, "big"))
        sha256.update(data)
    return sha256.hexdigest()


def state(paths: Iterable[Path]) -> str | None:
    """SHA-256 (hex) of paths, sizes, times and inodes of files; None if one changed just now."""
    said: list[object] = []
    for path in paths:
        stat = path.stat()
        if time.time_ns() - stat.st_mtime_ns < FRESH:
            return None
        said += [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return digest(*said)


def visible(folder: Path) -> list[Path]:
    """All files of a folder, to any depth, sorted; hidden ones and linked folders left out."""
    found = []
    for top, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def find(path: str) -> list[Path]:
    """Find the files of a path or pattern, sorted.

    Args:
        path: a file, a folder or a glob pattern.

    Raises:
        ConfigError: there are none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        return _in_folder(given)
    found = sorted({f for f in map(Path, glob.glob(str(given), recursive=True)) if f.is_file()})
    if not found:
        raise ConfigError(
            f"`data.path` {path}: no such file or folder, and no file matches it as a pattern; "
            "give a file, a folder, a quoted pattern such as 'texts/*.txt', hf:NAME for a data set "
            "of the hub, or - for standard input"
        )
    return found


def _in_folder(folder: Path) -> list[Path]:
    found = [file for file in visible(folder) if suffixes(file.name)]
    if not found:
        raise ConfigError(f"no documents in the folder {folder}: none of {known()} in it")
    return found


def _unreadable(error: OSError) -> None:
    raise ConfigError(
        f"the folder {error.filename} cannot be read: {error.strerror}; check it, or move it away"
    ) from error
