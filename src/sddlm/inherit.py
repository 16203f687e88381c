"""Files of options that build on other files.

    inherit: [../base.yaml, ../objectives/v1.yaml]
    train: {steps: 1000}

The files named are read first, each behind those that it names itself; later ones win, and the file
itself wins over all of them. Names are relative to the file that has them. A file that is reached
twice is read once, where it is met first, so that a common base does not undo what builds on it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from os.path import normpath
from pathlib import Path
from typing import Any, NamedTuple

from sddlm.errors import ConfigError
from sddlm.io import current_names, read_yaml

Options = dict[str, Any]


class File(NamedTuple):
    """The options of one file, without ``inherit`` and what it brings."""

    path: str
    options: Options


def read_files(paths: Sequence[str]) -> list[File]:
    """Files with those that they inherit from; later ones win.

    Args:
        paths: what a user gave with ``--config``.

    Raises:
        ConfigError: for what is no file of options, for an ``inherit`` that names none, and for
            files that inherit from themselves; one line that names the file.
    """
    files: list[File] = []
    for path in paths:
        found: dict[Path, File] = {}
        _read(Path(path), [], found)
        files += found.values()
    return files


def _read(path: Path, above: Sequence[Path], found: dict[Path, File]) -> None:
    """Add to ``found`` what a file inherits, then the file. ``above`` leads from --config to it."""
    known = [each.resolve() for each in above]
    if path.resolve() in known:
        circle = [*above[known.index(path.resolve()) :], path]
        listed = " -> ".join(normpath(each) for each in circle)
        raise ConfigError(f"--config {normpath(above[0])} inherits in a circle: {listed}")
    shown = normpath(path)
    who = f"{shown}, which {normpath(above[-1])} inherits," if above else f"--config {path}"
    options = _load(path, who)
    bases = options.pop("inherit", [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(name and isinstance(name, str) for name in names):
        raise ConfigError(
            f"inherit is {bases!r} in {shown}, must be a path or a list of paths, relative to that "
            "file, such as: inherit: base.yaml"
        )
    for name in names:
        _read(path.parent / name, [*above, path], found)
    found.setdefault(path.resolve(), File(shown, options))


def _load(path: Path, name: str) -> Options:
    options = current_names(read_yaml(path, name))
    if not isinstance(options, dict):
        given = "is empty" if options is None else f"holds {str(options)[:40]!r}"
        raise ConfigError(f"{name} {given}, must hold options, such as: seed: 0")
    for key in options:
        if not isinstance(key, str):
            raise ConfigError(f"{name} has an option {key!r}, must be a name, such as: seed: 0")
    return options


def merged(files: Sequence[File]) -> Options:
    """All options together."""
    nothing: Options = {}
    return reduce(_merge, (file.options for file in files), nothing)


def _merge(base: Any, over: Any) -> Any:
    """``over`` laid on ``base``: mappings key by key, but a class only on the same class."""
    if isinstance(over, dict) and over.keys() & {"class_path", "init_args"}:
        base = {"class_path": base} if isinstance(base, str) else base
    elif isinstance(over, str) and isinstance(base, dict) and "class_path" in base:
        over = {"class_path": over}
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    if class_name(over, base) != class_name(base, over):
        return over
    return {**base, **{k: _merge(base[k], v) if k in base else v for k, v in over.items()}}


def class_name(value: Options, other: Options) -> str:
    """The name of the class that a mapping chooses; the other's if it chooses none."""
    path = value.get("class_path", other.get("class_path"))
    return str(path).rpartition(".")[2]


def origins(files: Sequence[File]) -> Mapping[str, str]:
    """The file that decides an option, by the option's dotted name on the command line."""
    found: dict[str, str] = {}
    for file in files:
        for key, value in _keys(file.options):
            if not (isinstance(value, dict) and key in found):  # a mapping adds, it does not decide
                found[key] = file.path
    return found


def _keys(options: Options, section: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        key = section if name in ("class_path", "init_args") else f"{section}.{name}".strip(".")
        yield key, value
        if isinstance(value, dict):
            yield from _keys(value, key)
