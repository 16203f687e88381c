"""Finding input files, and detecting changes to them."""

from __future__ import annotations

import glob
import hashlib
import os
import time
from collections.abc import Iterable
from pathlib import Path

from sddlm.data.readers import READERS
from sddlm.errors import ConfigError

#: suffixes of files that `datasets` reads
TABLES = (".csv", ".tsv", ".parquet", ".arrow")
PACKINGS = (".gz", ".zst")
FRESH = 2_000_000_000  # ns; a file changed twice within a tick of its clock looks unchanged


def suffixes(name: str) -> tuple[str, str] | None:
    """Format and compression of a file name, such as ``(".jsonl", ".zst")``; None if unknown."""
    name = name.lower()
    packing = next((end for end in PACKINGS if name.endswith(end)), "")
    name = name.removesuffix(packing)
    suffix = next((end for end in (*READERS, *TABLES) if name.endswith(end)), "")
    if not suffix or (packing and suffix in (".parquet", ".arrow")):  # compressed inside
        return None
    return suffix, packing


def known_suffixes(name: str) -> tuple[str, str]:
    """Format and compression of a file name (see `suffixes`).

    Raises:
        ConfigError: the suffix is unknown.
    """
    found = suffixes(name)
    if found is None:
        raise ConfigError(
            f"{name}: unknown kind of file; the name must end in one of {_known()}: rename it "
            "(plain text: .txt) or convert it"
        )
    return found


def _known() -> str:
    known = ", ".join((*READERS, *TABLES))
    return f"{known}, all but the last two also with {' or '.join(PACKINGS)}"


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
        found = [file for file in visible(given) if suffixes(file.name)]
        if not found:
            raise ConfigError(f"no documents in the folder {given}: none of {_known()} in it")
        return found
    found = sorted({f for f in map(Path, glob.glob(str(given), recursive=True)) if f.is_file()})
    if not found:
        raise ConfigError(
            f"`data.path` {path}: no such file or folder, and no file matches it as a pattern; "
            "give a file, a folder, a quoted pattern such as 'texts/*.txt', hf:NAME for a dataset "
            "of the hub, or - for standard input"
        )
    return found


def visible(folder: Path) -> list[Path]:
    """All files of a folder, to any depth, sorted; hidden ones and linked folders left out."""
    found = []
    for top, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _unreadable(error: OSError) -> None:
    raise ConfigError(
        f"the folder {error.filename} cannot be read: {error.strerror}; check it, or move it away"
    ) from error


def digest(*values: object) -> str:
    """SHA-256 (hex) of several values, with their lengths, so different lists differ."""
    sha256 = hashlib.sha256()
    for value in values:
        data = repr(value).encode()
        sha256.update(len(data).to_bytes(8, "big"))
        sha256.update(data)
    return sha256.hexdigest()


def state(paths: Iterable[Path]) -> str | None:
    """SHA-256 (hex) of paths, sizes, times and inodes of files; None if one changed just now."""
    found: list[object] = []
    for path in paths:
        stat = path.stat()
        if time.time_ns() - stat.st_mtime_ns < FRESH:
            return None
        found += [str(path.absolute()), stat.st_size, stat.st_mtime_ns, stat.st_ino]
    return digest(*found)
