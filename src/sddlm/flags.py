"""The command line before the parser sees it."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import yaml

from sddlm.errors import ConfigError
from sddlm.inherit import Options, class_name

#: brings classes of the user's own; a file, which may come from anywhere, must not
IMPORT = "--import"

#: what begins with one dash and is a value all the same: ``-.jsonl``, standard input as JSON lines
_VALUE = re.compile(r"-\.")

#: levels of lists and mappings in a value; the parser reads values as YAML with a recursion in C,
#: which some thousands overflow
_DEPTH = 500


def taken(flag: str, what: str, arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of an option that may be repeated, and the rest of the command line."""
    values, rest = [], []
    left = list(arguments)
    while left:
        given = left.pop(0)
        if given == flag:
            if not left:
                raise ConfigError(f"{flag} needs a value: {flag} {what}")
            values.append(left.pop(0))
        elif given.startswith(f"{flag}="):
            values.append(given.removeprefix(f"{flag}="))
        else:
            rest.append(given)
    return values, rest


def prepared(arguments: list[str], switches: set[str]) -> list[str]:
    """The command line as the parser needs it: a bare switch is true.

    Raises:
        ConfigError: for a value that the parser cannot read.
    """
    flags, left = [], list(arguments)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        check_depth(value if equals and name.startswith("--") else argument, name[:40])
    while left:
        flag = left.pop(0)
        if flag in switches and left[:1] not in (["true"], ["false"]):
            flags.append(f"{flag}=true")
        elif left and flag.startswith("--") and "=" not in flag and _VALUE.match(left[0]):
            flags.append(f"{flag}={left.pop(0)}")  # else taken for a flag
        else:
            flags.append(flag)
    return flags


def check_depth(value: Any, where: str) -> None:
    """Refuse a value, or one in a tree of options, that the parser cannot read.

    Args:
        value: the value.
        where: names it in the message.

    Raises:
        ConfigError: if it has too many levels.
    """
    if isinstance(value, str) and _is_deep(value):
        raise ConfigError(f"{where} has more than {_DEPTH} lists or mappings in one another")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        check_depth(each, where)


def _is_deep(text: str) -> bool:
    """Whether a value has more than `_DEPTH` levels as YAML, up to its first error."""
    depth = 0
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                return True
    except (yaml.YAMLError, UnicodeError):
        pass
    return False


def chosen_over(options: Options, flags: Sequence[str]) -> Options:
    """The options without those of a class in whose place a flag chooses another one.

    Args:
        options: of all files.
        flags: the rest of the command line, as ``--objective=NELBO`` or ``--objective NELBO``.
    """
    for flag, follower in zip_longest(flags, flags[1:], fillvalue=""):
        key, equals, value = flag.removeprefix("--").partition("=")
        path = key.removesuffix(".class_path").split(".")
        if flag.startswith("--") and path[-1] != "init_args":
            names = [name for name in path if name != "init_args"]
            options = _chosen(options, names, value if equals else follower)
    return options


def _chosen(options: Options, path: Sequence[str], name: str) -> Options:
    """The options without a class at a path, if it is another one than that of a name."""
    first, *rest = path
    key = first if first in options else "init_args"
    there = options.get(key)
    if not isinstance(there, dict):
        return options
    if key != first or rest:
        return {**options, key: _chosen(there, rest if key == first else path, name)}
    other = "class_path" in there and class_name(there, {}) != name.rpartition(".")[2]
    return {k: v for k, v in options.items() if k != key} if other else options


def import_modules(modules: Sequence[str]) -> None:
    """Import modules of the user, also from the current folder, after all others."""
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        wrong = not all(part.isidentifier() for part in module.split("."))
        if wrong or module.split(".")[0] == "jsonargparse":
            raise ConfigError(f"{IMPORT} is {module!r}, must be a module, such as my_objective")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{IMPORT} {module}: {error}; it must be installed, or a file {module}.py here"
            ) from error
