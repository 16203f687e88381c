"""Errors as the command line prints them: one line, with flags for arguments.

The library names arguments as Python has them, `` `steps` `` or `` `data.length` ``; here they
become ``--train.steps`` and ``--data.length``.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields, is_dataclass
from shlex import quote
from traceback import format_exception
from typing import Any

from sddlm.errors import ConfigError, kinds
from sddlm.options import leaves, option_types

#: an argument in a message: `` `top_p` ``, `` `data.length` `` or `` `data.ends=True` ``
_ARGUMENT = re.compile(r"`([\w.]+)(?:=([^`]*))?`")

#: a statement in a message
_IMPORT = re.compile(r"`import ([^`]+)`")


def with_flags(message: str, options: Collection[str]) -> str:
    """The message with flags in the place of arguments in backquotes.

    An option's own name comes first, else the only option that ends in ``.name``. A name that is no
    option keeps its backquotes.

    Args:
        message: such as "`top_p` is 2.0, must be at most 1: try `top_p=0.9`".
        options: their dotted names.
    """

    def flag(found: re.Match[str]) -> str:
        name, value = found.groups()
        named = [name] if name in options else [o for o in options if o.endswith(f".{name}")]
        if len(named) != 1:
            return found[0]
        return f"--{named[0]}" if value is None else f"--{named[0]} {_typed(value)}"

    return _IMPORT.sub(r"--import \1", _ARGUMENT.sub(flag, message))


def _typed(value: str) -> str:
    """Format a Python value as text of the command line."""
    known = {"True": "true", "False": "false", "None": "null"}
    return known.get(value) or quote(value.removesuffix("()").strip("'\""))


def made(function: Callable[..., Any], kind: type, *args: Any, **named: Any) -> Any:
    """An object of a section of a function's options.

    Raises:
        ConfigError: of the object's class, its fields with their section: `train.steps`.
    """
    try:
        return kind(*args, **named)
    except ConfigError as error:
        raise ConfigError(_with_section(str(error), kind, option_types(function))) from error


def _with_section(message: str, kind: type, options: Mapping[str, Any]) -> str:
    sections = (
        name for name, hint in options.items() if any(kind in leaves(base) for base in kinds(hint))
    )
    own = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    section = next(sections, None)

    def dotted(found: re.Match[str]) -> str:
        return f"`{section}.{found[0][1:]}" if section and found[1] in own else found[0]

    return _ARGUMENT.sub(dotted, message)


def saved_traceback(error: BaseException) -> str:
    """Save the traceback of an error that nobody foresaw; returns the end of its line."""
    try:
        handle, path = tempfile.mkstemp(prefix="sddlm-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(format_exception(error))
    except OSError as full:
        return f" ({type(error).__name__}, not foreseen; no traceback: {full.strerror})"
    return f" ({type(error).__name__}, not foreseen: please report it with {path})"
