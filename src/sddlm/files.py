"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sddlm.errors import ConfigError


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write; it takes its public name at the end, and vanishes on an error.

    It has a temporary name in the same folder meanwhile, so an old file of that name stays
    complete until the new one is on disk.

    Args:
        path: the public name.
        mode: ``w`` for text (UTF-8, line ends as written) or ``wb`` for bytes.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with os.fdopen(handle, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def make_durable(path: Path) -> None:
    """Bring a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written later.

    Raises:
        ConfigError: if its folder is missing or closed.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"cannot write {path}: choose another file")
