"""Files that are there whole or not at all."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import IO, Any

from sddlm.errors import ConfigError

logger = logging.getLogger(__name__)


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


def write_keeping(
    path: Path, text: str, facts: Callable[[bytes], Any] = bytes, *, beside: str | None = None
) -> None:
    """Write a text file; a former one that differs is kept as NAME-1.EXT, NAME-2.EXT, ...

    Args:
        path: the file.
        text: what belongs in it.
        facts: what is compared of the bytes of two files.
        beside: ending of a file that belongs to it, such as ``.png``, and is kept with it.
    """
    with atomic_write(path) as file:
        file.write(text)
        file.flush()  # on a full disk nothing is renamed
        if not path.exists() or facts(path.read_bytes()) == facts(text.encode()):
            return
        names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(1))
        kept = path.rename(next(name for name in names if not name.exists()))
        if beside and path.with_suffix(beside).exists():
            path.with_suffix(beside).rename(kept.with_suffix(beside))
        logger.info("%s is new; the former one, which differs, is kept as %s", path, kept.name)
