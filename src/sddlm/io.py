"""Atomic file writing, locks, and safe reading of untrusted YAML and JSON."""

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

#: limits of a configuration file: anything beyond them is a mistake or an attack
_BYTES, _DEPTH, _VALUES = 1 << 18, 32, 20_000


@contextmanager
def atomic_write(path: str | os.PathLike[str], mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under its name only when complete.

    It has a temporary name in the same folder until then, so an existing file stays intact until
    the new one is on disk. On an error the temporary file is removed. Permissions follow the umask.

    Args:
        path: the final name.
        mode: ``w`` for text (UTF-8, line ends as written) or ``wb`` for bytes.

    Raises:
        OSError: it cannot be written; the error has the final name.
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
    """Append text to a file; on failure the file is unchanged.

    Raises:
        OSError: it cannot be written; the error has the file's name.
    """
    try:
        with path.open("ab", buffering=0) as file:
            end, left = file.tell(), memoryview(text.encode())
            try:
                while left:  # a disk that fills up accepts a part first
                    left = left[file.write(left) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        name_file(error, path)
        raise


def name_file(error: BaseException, path: Path, *others: Path) -> None:
    """Set the file name of an OSError, because errors of ``write`` have none."""
    if not isinstance(error, OSError) or error.errno is None:  # a name would replace its text
        return
    if error.filename in (None, *map(str, others)):
        error.filename = str(path)


@contextmanager
def locked(path: Path, message: str) -> Iterator[None]:
    """Hold an exclusive lock between processes; a kill releases it too.

    Args:
        path: lock file, which exists as long as the lock is held.
        message: message of the error.

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
    """Compute the SHA-256 of a file (hex), in constant memory."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            total.update(piece)
    return total.hexdigest()


def make_durable(path: Path) -> None:
    """Flush a file or a directory to disk (fsync)."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_writable(path: Path) -> None:
    """Check early that a file can be written.

    Raises:
        ConfigError: its folder is missing or read-only.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"cannot write {path}: choose another file")


def write_keeping(
    path: Path, text: str, facts: Callable[[bytes], Any] = bytes, *, beside: str | None = None
) -> None:
    """Write a text file; a previous one that differs is kept as NAME-1.EXT, NAME-2.EXT, ...

    Args:
        path: the file.
        text: its content.
        facts: extracts what is compared from the bytes of a file.
        beside: suffix of an accompanying file, such as ``.png``, which is kept with it.
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
    """Read a YAML file of options; its extent is checked before objects are built.

    Args:
        path: the file.
        name: name in messages; its path if None.

    Raises:
        ConfigError: it cannot be read, is no YAML, or is too large, deep or repetitive.
    """
    name = str(path) if name is None else name
    return parse_yaml(_bytes(path, name, _BYTES), name)


def parse_yaml(text: str | bytes, name: str) -> Any:
    """Parse YAML; its extent is checked before objects are built.

    Args:
        text: the YAML; bytes are UTF-8.
        name: name in messages.

    Raises:
        ConfigError: it is no YAML, or is too deep or repetitive.
    """
    try:
        loader = yaml.SafeLoader(text if isinstance(text, str) else text.decode("utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _check_extent(name, node, _yaml_children)  # an alias is one node with several parents
        return loader.construct_document(node)
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is no YAML file: {_problem(error)}") from error


#: options, fields and columns that earlier versions wrote, and their present names
_RENAMED = {
    "ends": "bos_eos",
    "max_bad": "max_errors",
    "input_only": "num_extra_tokens",
    "tie": "tie_embeddings",
    "own_share": "copy_prob",
    "own_share_noise": "copy_prob_noise",
    "clean_share": "clean_prob",
}


def current_names(options: Any) -> Any:
    """Options or figures that an earlier version wrote, under their present names."""
    if not isinstance(options, dict):
        return options
    found = {
        _RENAMED.get(name, name): value if name == "mixture" else current_names(value)
        for name, value in options.items()  # a mixture's keys are names of texts
    }
    if "time_free" in found:
        found["time_input"] = "none" if found.pop("time_free") else "sigma"
    if found.get("activation_checkpointing") == "light":
        found["activation_checkpointing"] = "selective"
    return found


def read_json(path: Path, *, most: int = 64 * _BYTES) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        most: largest size in bytes.

    Raises:
        ConfigError: it cannot be read, is no JSON, or is too large or deep.
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
    """Check the number of levels and values, counting each repetition by an alias."""
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
    """Line and reason of a parse error."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    return f"line {mark.line + 1}: {problem}" if mark and problem else str(error)
