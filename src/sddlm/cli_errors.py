"""Errors as the command line prints them: one line, with flags for arguments.

The library names arguments as Python has them, `` `steps` `` or `` `data.length` ``; here they
become ``--train.steps`` and ``--data.length``.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import signature
from shlex import quote
from traceback import format_exception
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from sddlm.errors import ConfigError, allowed, closest, kinds
from sddlm.inherit import File

#: an argument in a message: `` `top_p` ``, `` `data.length` `` or `` `data.ends=True` ``
_ARGUMENT = re.compile(r"`([\w.]+)(?:=([^`]*))?`")

#: a statement in a message
_IMPORT = re.compile(r"`import ([^`]+)`")

#: what a parser's message names on the way to the option that it is about
_TOKENS = re.compile(
    r'Parser key "(?P<key>[\w.]+)"'
    r"|given class_path '(?P<owner>[\w.]+)'"
    r"|(?:Group '(?P<group>[\w.]+)' does not accept o|O)ption '(?P<extra>[\w.]+)'"
)
#: and the value that it refuses
_VALUES = re.compile(
    r"(?:Got value|Given value|path string): (?:NestedArg\(.*val=')?(.*?)(?:'\))?$"
    r"|Import path (\S+)|given class_path '([\w.]+)'|class, but (\w+)",
    re.MULTILINE,
)

#: a file, or a class, where a section of options is wanted
_SECTION = re.compile(
    r"Unable to load config '(.*?)'|Parser key \"\w+\":\s+Importing '(.*?)' is not allowed"
)
#: a class of a module that the user did not name
_DENIED = re.compile(r"Importing '(.*?)' is not allowed")


def option_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Every option by its dotted name, those of classes that can be chosen too, with its type."""
    return dict(_options(function, ""))


def _options(owner: Any, section: str) -> Iterator[tuple[str, Any]]:
    for name, hint in _hints(owner).items():
        yield section + name, hint
        for kind in kinds(hint):
            for leaf in _leaves(kind):
                yield from _options(leaf, f"{section}{name}.")


def required(function: Callable[..., Any]) -> set[str]:
    """Arguments without a default."""
    parameters = signature(function).parameters
    return {name for name, each in parameters.items() if each.default is each.empty}


def _leaves(kind: Any) -> Iterator[type]:
    """Classes whose fields are options; a library may have made some of str or dict."""
    if isinstance(kind, type) and kind.__module__ != "builtins":
        if is_dataclass(kind):
            yield kind
        leaves: list[type] = kind.__subclasses__()
        for leaf in leaves:
            yield from _leaves(leaf)


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
        name for name, hint in options.items() if any(kind in _leaves(base) for base in kinds(hint))
    )
    own = {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    section = next(sections, None)

    def dotted(found: re.Match[str]) -> str:
        return f"`{section}.{found[0][1:]}" if section and found[1] in own else found[0]

    return _ARGUMENT.sub(dotted, message)


#: options of former versions that chose an evaluation: the command now
_MOVED = {
    "--frontier": "eval frontier RUN --judge JUDGE",
    "--zero_shot": "eval zero-shot RUN --sets all",
    "--tasks": "eval tasks RUN --tasks hellaswag,piqa",
    "--correction": "eval correction RUN --shares 0.05,0.1",
}


def check_moved(verb: str, flags: Sequence[str]) -> None:
    """Refuse an option that has become a command.

    Raises:
        ConfigError: names the command.
    """
    for flag in (
        [flag.partition("=")[0] for flag in flags] if verb in ("eval", "eval report") else ()
    ):
        if flag in _MOVED:
            raise ConfigError(f"{flag} is a command of its own now: sddlm {_MOVED[flag]}")


def check_sections(file: File, function: Callable[..., Any]) -> None:
    """Refuse a section of options that is none.

    Args:
        file: the options of one file.
        function: what the options are for.

    Raises:
        ConfigError: names the option and the file.
    """
    hints = _hints(function)
    for key, value in file.options.items():
        hint = hints.get(key, Any)
        fits = isinstance(value, dict) or (value is None and type(None) in get_args(hint))
        if is_dataclass(kinds(hint)[0]) and not fits:
            given = "empty" if value is None else repr(value)
            raise ConfigError(f"--{key} is {given} in {file.path}, must be a section of options")


def explain(
    error: BaseException,
    function: Callable[..., Any],
    keys: Sequence[str],
    origins: Mapping[str, str],
    flags: Sequence[str],
    example: str,
) -> str:
    """One line: what was given, what is allowed, what to type.

    Args:
        error: of the parser.
        function: what the options are for.
        keys: options by their dotted names.
        origins: the YAML file that decides an option, by the option's dotted name.
        flags: the rest of the command line.
        example: a complete command.
    """
    if isinstance(error.__cause__, ConfigError):  # a choice refused by the object itself
        return str(error.__cause__)
    text = str(error)
    return (
        _flag_line(text, keys, example)
        or _option_line(text, function, keys, origins, flags)
        or _class_line(text)
        or " ".join(text.split())
    )


def _flag_line(text: str, keys: Sequence[str], example: str) -> str | None:
    """For what is wrong on the command line itself."""
    if missing := re.search(r"arguments are required: (\w+)", text):
        name = "--out" if missing[1] == "out" else "the directory of a run or model"
        return f"{name} is missing: type {example}"
    if empty := re.search(r"argument (--[\w.]+): expected one", text):
        return f"{empty[1]} needs a value: {empty[1]} VALUE"
    if unknown := re.search(r"unrecognized arguments: (\S+)", text):
        flag = unknown[1].split("=")[0]
        if not flag.startswith("--"):
            return f"{flag} is one argument too many; options start with --, see --help"
        return f"{flag} is no option{_suggest(flag[2:], keys)}"
    if section := _SECTION.search(text):
        given = section[1] or section[2]
        return f"no file {given} of options; use --config FILE, or single options, see --help"
    return None


def _class_line(text: str) -> str | None:
    """For a class of a module that is not imported, where no option is named."""
    denied = _DENIED.search(text)
    return denied and f"{denied[1]} is not imported; a class of your own needs --import MODULE"


def _option_line(
    text: str,
    function: Callable[..., Any],
    keys: Sequence[str],
    origins: Mapping[str, str],
    flags: Sequence[str],
) -> str | None:
    """For an option that is unknown, or has a value that it cannot have."""
    path: list[str] = []
    hint: Any = function
    for token in _TOKENS.finditer(text):
        if token["owner"]:
            hint = _loaded(token["owner"]) or hint
        elif token["extra"]:
            given = ".".join(filter(None, [*path, token["group"], token["extra"]]))
            if hint is not function:
                keys = [".".join([*path, name]) for name in _hints(hint)]
            return f"--{given} is no option{_where(given, origins, flags)}{_suggest(given, keys)}"
        else:
            for name in token["key"].split("."):
                path, hint = [*path, name], _hints(kinds(hint)[0]).get(name, Any)
    if not path:
        return None
    key = ".".join(path)
    found = ["".join(group or "" for group in match.groups()) for match in _VALUES.finditer(text)]
    value = found[-1] if found else ""
    own = "; a class of your own needs --import MODULE" if _DENIED.search(text) else ""
    where = _where(key, origins, flags)
    return f"--{key} is {value!r}{where}, must be {allowed(hint, value)}{own}"


def _where(key: str, origins: Mapping[str, str], flags: Sequence[str]) -> str:
    """The YAML file to look into, for an option that is not on the command line."""
    if f"--{key}" in {flag.split("=")[0].replace(".init_args", "") for flag in flags}:
        return ""
    while key and key not in origins:
        key = key.rpartition(".")[0]
    return f" in {origins[key]}" if key else ""


def _suggest(key: str, keys: Sequence[str]) -> str:
    """The option that was probably meant, or those that there are beside it."""
    keys = [k for k in keys if ".init_args" not in k and not k.endswith(".class_path")]
    section, _, name = key.rpartition(".")
    beside = {k.rpartition(".")[2]: k for k in keys if k.rpartition(".")[0] == section}
    anywhere = {k.rpartition(".")[2]: k for k in reversed(keys)}
    close = anywhere.get(name) or closest(key, keys, 0.8)
    for names in (beside, anywhere):
        close = close or names.get(closest(name, names) or "")
    if close:
        return f"; did you mean --{close}?"
    if section and beside:
        return f"; there are {', '.join(f'--{k}' for k in beside.values())}"
    return "; see --help"


def _hints(owner: Any) -> dict[str, Any]:
    """Options of a function or a class, with their types."""
    try:
        hints = get_type_hints(owner, include_extras=True)
    except (NameError, TypeError):
        return {}
    if is_dataclass(owner):
        return {field.name: hints[field.name] for field in fields(owner) if field.init}
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        if get_origin(hint) is Annotated:  # ``**how``: all fields of the annotated class
            found |= _hints(get_args(hint)[1])
        elif name != "return":
            found[name] = hint
    return found


def _loaded(path: str) -> Any:
    """A class by its path, if its module is imported; nothing is imported for a message."""
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def saved_traceback(error: BaseException) -> str:
    """Save the traceback of an error that nobody foresaw; returns the end of its line."""
    try:
        handle, path = tempfile.mkstemp(prefix="sddlm-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(format_exception(error))
    except OSError as full:
        return f" ({type(error).__name__}, not foreseen; no traceback: {full.strerror})"
    return f" ({type(error).__name__}, not foreseen: please report it with {path})"
