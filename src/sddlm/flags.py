"""The command line before its options are checked."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Collection, Sequence

from sddlm.errors import ConfigError

#: what a flag that may be repeated takes, in messages
_REPEATED = {"config": "FILE", "import": "MODULE"}

#: name of what prints and exits
PRINTS = ""


def read_flags(
    arguments: Sequence[str],
    known: Collection[str],
    switches: Collection[str],
    positional: Sequence[str],
) -> list[tuple[str, str]]:
    """Split a command line into names without dashes and values; a bare switch is true.

    Flags that print and exit, such as ``--help``, have their own text as value.

    Args:
        arguments: of the command line.
        known: names of options.
        switches: those of them that are true or false.
        positional: those of them that are given without a name.

    Raises:
        ConfigError: an option has no value, or a value has no option.
    """
    found: list[tuple[str, str]] = []
    left, places = list(arguments), list(positional)
    while left:
        flag = left.pop(0)
        name, equals, value = flag.removeprefix("--").partition("=")
        follows = bool(left) and not left[0].startswith("--")
        if flag in ("-h", "--help") or name == "print_config":
            name, value = PRINTS, flag
        elif not flag.startswith("--"):
            if not places:
                raise ConfigError(
                    f"{flag} is one argument too many; options start with --, see --help"
                )
            name, value = places.pop(0), flag
        elif not equals:
            value = left[0] if follows else ""
            if name in switches and value not in ("true", "false") and (places or not follows):
                value = "true"  # what follows is a positional argument
            elif follows:
                left.pop(0)
            elif name in {*known, *_REPEATED}:
                raise ConfigError(f"{flag} needs a value: {flag} {_REPEATED.get(name, 'VALUE')}")
        found.append((name, value))
        if name.endswith(".help"):  # lists the options of a class
            chosen = [(name.removesuffix(".help"), value)] if value else []
            found[-1:] = [*chosen, (PRINTS, f"--{name}={value}".removesuffix("="))]
    return found


def import_modules(modules: Sequence[str]) -> None:
    """Import modules of the user, also from the current folder, after all others."""
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    for module in modules:
        wrong = not all(part.isidentifier() for part in module.split("."))
        if wrong or module.split(".")[0] == "jsonargparse":
            raise ConfigError(f"--import is {module!r}, must be a module, such as my_objective")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--import {module}: {error}; it must be installed, or a file {module}.py here"
            ) from error
