"""Files of options that build on other files.

    inherit: [../base.yaml, ../objectives/v1.yaml]
    train: {steps: 1000}

The files named are read first, each behind those that it names itself; later ones win, and the file
itself wins over all of them. Names are relative to the file that has them. A file that is reached
twice is read once, where it is met first, so that a common base does not undo what builds on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from os.path import normpath
from pathlib import Path

from sddlm.errors import ConfigError
from sddlm.io import current_names, read_yaml
from sddlm.options import Layer, Tree


def read_files(paths: Sequence[str]) -> list[Layer]:
    """Options of files, without ``inherit``, behind those that they inherit from; later ones win.

    Args:
        paths: what a user gave with ``--config``.

    Raises:
        ConfigError: for what is no file of options, for an ``inherit`` that names none, and for
            files that inherit from themselves; one line that names the file.
    """
    files: list[Layer] = []
    for path in paths:
        found: dict[Path, Layer] = {}
        _read(Path(path), [], found)
        files += found.values()
    return files


def _read(path: Path, above: Sequence[Path], found: dict[Path, Layer]) -> None:
    """Add to ``found`` what a file inherits, then the file. ``above`` leads from --config to it."""
    known = [each.resolve() for each in above]
    if path.resolve() in known:
        circle = [*above[known.index(path.resolve()) :], path]
        listed = " -> ".join(normpath(each) for each in circle)
        raise ConfigError(f"--config {normpath(above[0])} inherits in a circle: {listed}")
    shown = normpath(path)
    who = f"{shown}, which {normpath(above[-1])} inherits," if above else f"--config {path}"
    options = _load(path, who)
    for name in inherited(options, shown):
        _read(path.parent / name, [*above, path], found)
    own = {key: value for key, value in options.items() if key != "inherit"}
    found.setdefault(path.resolve(), Layer(shown, own))


def inherited(options: Tree, where: str) -> list[str]:
    """The files that options inherit from.

    Args:
        options: with or without ``inherit``.
        where: the file that has them, for messages.

    Raises:
        ConfigError: ``inherit`` names none.
    """
    bases = options.get("inherit", [])
    names = [bases] if isinstance(bases, str) else bases
    if not isinstance(names, list) or not all(name and isinstance(name, str) for name in names):
        raise ConfigError(
            f"inherit is {bases!r} in {where}, must be a path or a list of paths, relative to that "
            "file, such as: inherit: base.yaml"
        )
    return names


def _load(path: Path, name: str) -> Tree:
    options = current_names(read_yaml(path, name))
    if not isinstance(options, dict):
        given = "is empty" if options is None else f"holds {str(options)[:40]!r}"
        raise ConfigError(f"{name} {given}, must hold options, such as: seed: 0")
    if "import" in options:  # a file may come from anywhere
        raise ConfigError(
            f"{name} has an option import, but only the command line chooses what is imported: "
            "--import MODULE"
        )
    return options
