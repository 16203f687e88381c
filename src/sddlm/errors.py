"""The error for wrong options, and checks of arguments against their annotations."""

from __future__ import annotations

import inspect
import os
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache, wraps
from numbers import Integral, Real
from types import SimpleNamespace, UnionType
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")

#: bound of integers, which become int64 tensors
_BELOW = 2**63


class ConfigError(ValueError):
    """A wrong option: states what was given, what is allowed, and what to use instead.

    A message names arguments in backquotes, as Python has them: `` `top_p` ``, `` `data.length` ``,
    or with a value to type, `` `objective=NELBO()` ``. The command line turns them into flags,
    prints the message as one line and exits with code 2; nothing is left behind.
    """


def closest(word: str, words: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The word that was probably meant, whatever its case, or None.

    Args:
        word: what was given.
        words: what there is.
        cutoff: least likeness, from 0 to 1.
    """
    known = {each.lower(): each for each in words}
    close = get_close_matches(word.lower(), known, 1, cutoff)
    return known[close[0]] if close else None


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """The end of a message that refuses a word: ``; did you mean that?``, or nothing."""
    meant = closest(word, words)
    return f"; did you mean {meant}?" if meant else ""


def one_line(error: BaseException) -> str:
    """An exception's message in one line; the name of its class if it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, for those of the hub and of transformers."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def visible(text: str) -> str:
    r"""Escape control characters (``\x1b``), so that text cannot control a terminal.

    Line ends and tabs stay; characters that reorder a line are escaped too.
    """
    return text.replace("\r\n", "\n").translate(_ESCAPES)


#: C0, DEL and C1 without newline and tab; marks, embeddings and isolates of direction; surrogates
_ESCAPES = {
    code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    for codes in (
        range(0x09), range(0x0B, 0x20), range(0x7F, 0xA0), range(0x200E, 0x2010),
        range(0x2028, 0x202F), range(0x2066, 0x206A), range(0xD800, 0xE000),
    )
    for code in codes
}  # fmt: skip


def check_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator that checks the arguments of each call against the annotations.

    Raises:
        ConfigError: an argument has a wrong value; names both and what is allowed.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **named: P.kwargs) -> R:
        bound, hints = signature.bind(*args, **named), _hints(function)
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind is not inspect.Parameter.VAR_KEYWORD:
                bound.arguments[name] = _fitted(name, value, hints.get(name, Any))
        return function(*bound.args, **bound.kwargs)

    return call


def check_choices(knobs: Any) -> None:
    """Refuse a value that the annotation of a dataclass's field does not allow.

    Args:
        knobs: the dataclass object.

    Raises:
        ConfigError: names the field, the value and what is allowed.
    """
    kind: Any = type(knobs)
    hints = _hints(kind)
    for field in fields(knobs):
        value = getattr(knobs, field.name)
        fitted = _fitted(field.name, value, hints.get(field.name, Any))
        if fitted is not value:
            object.__setattr__(knobs, field.name, fitted)  # which may be frozen


@cache
def _hints(owner: Any) -> dict[str, Any]:
    if not isinstance(owner, type):  # a function's result may be imported for type checkers alone
        hints = {k: v for k, v in owner.__annotations__.items() if k != "return"}
        owner = SimpleNamespace(__annotations__=hints, __globals__=owner.__globals__)
    try:
        return get_type_hints(owner)
    except NameError:  # of a class made in a function
        return {}


class _MisfitError(Exception):
    """A value does not match an annotation."""


def _fitted(name: str, value: Any, hint: Any) -> Any:
    """Return the value, with paths as str and numbers of other libraries as Python's."""
    try:
        return _fit(value, hint)
    except _MisfitError:
        wanted = allowed(hint, value if isinstance(value, str) else "")
        raise ConfigError(f"`{name}` is {reprlib.repr(value)}, must be {wanted}") from None


def _fit(value: Any, hint: Any) -> Any:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return _fit_any(value, parts)
    if origin is Literal:
        return _sure(value, any(value == part and type(value) is type(part) for part in parts))
    if origin is dict:
        for key, item in _sure(value, isinstance(value, Mapping)).items():
            _fit(key, parts[0])
            _fit(item, parts[1])
        return value
    if origin in (list, tuple):
        items = _sure(value, isinstance(value, (list, tuple)))
        fixed = origin is tuple and ... not in parts
        for item in _sure(items, not fixed or len(items) == len(parts)):
            _fit(item, parts[0])
        return value
    return _fit_plain(value, hint)


def _fit_any(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _fit(value, hint)
        except _MisfitError:
            continue
    raise _MisfitError


def _fit_plain(value: Any, kind: Any) -> Any:
    if kind is int:
        number = int(_sure(value, isinstance(value, Integral) and not isinstance(value, bool)))
        return _sure(value if type(value) is int else number, -_BELOW <= number < _BELOW)
    if kind is float:
        # NaN is not equal to itself; an infinity may be meant (no limit), and has its own check
        _sure(value, isinstance(value, Real) and not isinstance(value, bool) and value == value)
        return value if isinstance(value, float) else _fit_whole(value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    # Python 3.10 takes Callable[..., X] for a type
    plain = isinstance(kind, type) and get_origin(kind) is None and kind is not Any
    open_ended = not plain or getattr(kind, "_is_protocol", False)
    return _sure(value, open_ended or isinstance(value, kind))


def _fit_whole(value: Any) -> Any:
    """Convert an integer to float where one is wanted; small integers stay unchanged."""
    try:
        return value if type(value) is int and abs(value) < 2**53 else float(value)
    except OverflowError:
        raise _MisfitError from None


def _sure(value: Any, fits: bool) -> Any:
    if not fits:
        raise _MisfitError
    return value


def allowed(hint: Any, value: str) -> str:
    """Describe the values that a type allows, with a suggestion for a misspelt one."""
    words = [word for kind in kinds(hint) for word in _words(kind)]
    listed = " or ".join(words) if len(words) < 3 else f"one of {', '.join(words)}"
    return (listed or "something else") + did_you_mean(value, words)


def _words(kind: Any) -> Iterator[str]:
    """Values of a type in words; for a class the names of its subclasses."""
    plain = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if get_origin(kind) is Literal:
        yield from map(str, get_args(kind))
    elif get_origin(kind) is list:
        yield from (word for part in get_args(kind) for word in _words(part))
    elif get_origin(kind) is tuple:
        inner = [" or ".join(_words(part)) for part in get_args(kind) if part is not ...]
        yield f"a tuple of {inner[0]}" if ... in get_args(kind) else f"({', '.join(inner)})"
    elif get_origin(kind) is dict:
        lists = get_origin(get_args(kind)[1]) is list
        yield f"names with values, such as {{name: {'[1, 2]' if lists else 1}}}"
    elif kind in plain:
        yield plain[kind]
    elif isinstance(kind, type):
        if is_dataclass(kind) and not inspect.isabstract(kind):
            yield kind.__name__
        leaves: list[type] = kind.__subclasses__()
        for leaf in leaves:
            yield from _words(leaf)
    else:
        yield "something else"


def kinds(hint: Any) -> tuple[Any, ...]:
    """Member types of a union without None; a single type for any other annotation."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(part for part in parts if part is not type(None))
