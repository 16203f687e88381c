"""The one error a user can cause."""

from __future__ import annotations

from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


class ConfigError(ValueError):
    """A wrong choice of the user: what was given, what is allowed, and what to type instead.

    The command line prints the message as one line and exits with code 2; nothing is left behind.
    """


def check_choices(knobs: Any, flag: str) -> None:
    """Refuse a value that a dataclass's field of type ``Literal`` does not name.

    Args:
        knobs: the dataclass object.
        flag: what stands before the field's name on the command line, such as ``--train.``.

    Raises:
        ConfigError: names the flag, the value and what is allowed.
    """
    for name, hint in get_type_hints(type(knobs)).items():
        parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        named = [
            choice for part in parts if get_origin(part) is Literal for choice in get_args(part)
        ]
        others = tuple(part for part in parts if isinstance(part, type))
        value = getattr(knobs, name)
        if named and value not in named and not isinstance(value, others):
            words = [*("a whole number" for kind in others if kind is int), *named]
            raise ConfigError(f"{flag}{name} is {value!r}, must be {' or '.join(words)}")
