"""Files that are there whole or not at all, and small files that may come from a stranger."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import IO, Any

import yaml
from filelock import FileLock, Timeout

from sddlm.errors import ConfigError

logger = logging.getLogger(__name__)

#: bounds of a file of options or facts: anything beyond them is a mistake or an attack
_BYTES, _DEPTH, _VALUES = 1 << 18, 32, 20_000


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """A file to write; it takes its public name at the end, and vanishes on an error.

    It has a temporary name in the same folder meanwhile, so an old file of that name stays
    complete until the new one is on disk. Its mode follows the umask.

    Args:
        path: the public name.
        mode: ``w`` for text (UTF-8, line ends as written) or ``wb`` for bytes.

    Raises:
        OSError: it cannot be written; the error has the public name.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode.replace("w", "x"), **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        name_file(error, path, temporary)
        raise


def append(path: Path, text: str) -> None:
    """Add text at the end of a file; where that fails, the file is as before.

    Raises:
        OSError: it cannot be written; the error has the file's name.
    """
    try:
        with path.open("ab", buffering=0) as file:
            end, left = file.tell(), memoryview(text.encode())
            try:
                while left:  # a disk that fills up takes a part of it first
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        name_file(error, path)
        raise


def name_file(error: BaseException, path: Path, *others: Path) -> None:
    """Let an error name the public file: those of ``write`` name none."""
    if not isinstance(error, OSError) or error.errno is None:  # whose text a name would replace
        return
    if error.filename in (None, *map(str, others)):
        error.filename = str(path)


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold a lock that no other process has; a kill releases it, too.

    Args:
        path: of the lock file, which exists as long as the lock is held.
        message: of the error.

    Raises:
        ConfigError: another process holds it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(message) from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        lock.release()


def sha256(path: Path) -> str:
    """SHA-256 of a file of any size (hex)."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            total.update(piece)
    return total.hexdigest()


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


def read_yaml(path: Path, name: str | None = None) -> Any:
    """What a YAML file of options holds; nothing is built before its size is known.

    Args:
        path: the file.
        name: how to call it in messages; its path if None.

    Raises:
        ConfigError: if it cannot be read, is no YAML, or is too large, deep or repetitive.
    """
    name = str(path) if name is None else name
    data = _bytes(path, name, _BYTES)
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _check_extent(name, node, _yaml_children)  # aliases are one node in several places here
        return loader.construct_document(node)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{name} is no YAML file: {_problem(error)}") from error


def read_json(path: Path, *, most: int = 64 * _BYTES) -> Any:
    """What a JSON file of facts holds.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        ConfigError: if it cannot be read, is no JSON, or is too large or deep.
    """
    data = _bytes(path, str(path), most)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is damaged: {_problem(error)}") from error
    _check_extent(str(path), value, _json_children, values=most)
    return value


def _bytes(path: Path, name: str, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise ConfigError(f"{name} has more than {most} bytes, which no such file needs")
    return data


def _check_extent(name: str, root: Any, children: Any, *, values: int = _VALUES) -> None:
    """Refuse what has too many levels or values, those counted that are repeated by aliases."""
    level, seen = [root], 0
    for _ in range(_DEPTH):
        seen += len(level)
        if not level:
            return
        if seen > values:
            raise ConfigError(f"{name} holds more than {values} values, aliases counted")
        level = list(chain.from_iterable(map(children, level)))
    raise ConfigError(f"{name} is nested more than {_DEPTH} levels deep")


def _yaml_children(node: Any) -> Iterable[Any]:
    if isinstance(node, yaml.MappingNode):
        return chain.from_iterable(node.value)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _json_children(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _problem(error: Exception) -> str:
    """Where and why a file cannot be parsed."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else str(error)
