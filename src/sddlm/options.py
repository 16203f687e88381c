"""The options of a function: names and types from annotations, values from files and flags.

An option is named by its path, ``objective.process.schedule``. It is a value, a section (a
dataclass, such as ``train``), or a choice among classes (``objective``) with options of its own.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, NamedTuple, NoReturn, get_args, get_origin, get_type_hints

import yaml

from sddlm.errors import ConfigError, allowed, closest, kinds
from sddlm.io import parse_yaml

Tree = dict[str, Any]

#: most levels of lists and mappings in a text; some thousands overflow the parser
_DEPTH = 500
_EVENTS = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Layer(NamedTuple):
    """Options of one file or one flag; a flag has no file."""

    file: str
    options: Tree


def option_types(owner: Any, *, chosen: bool = True) -> dict[str, Any]:
    """Options of a function or class by their dotted names, with their types.

    Args:
        owner: the function or class.
        chosen: include the options of all classes that can be chosen.
    """
    return dict(_options(owner, "", chosen))


def _options(owner: Any, section: str, chosen: bool) -> Iterator[tuple[str, Any]]:
    for name, hint in _hints(owner).items():
        yield section + name, hint
        for kind in kinds(hint):
            for leaf in leaves(kind) if chosen or _is_section(kind) else ():
                yield from _options(leaf, f"{section}{name}.", chosen)


def required(function: Callable[..., Any]) -> list[str]:
    """Arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    named = [each for each in parameters if each.kind is not each.VAR_KEYWORD]
    return [each.name for each in named if each.default is each.empty]


def leaves(kind: Any) -> Iterator[type]:
    """Classes whose fields are options; a library may have made some of str or dict."""
    if isinstance(kind, type) and kind.__module__ != "builtins":
        if is_dataclass(kind):
            yield kind
        subclasses: list[type] = kind.__subclasses__()
        for leaf in subclasses:
            yield from leaves(leaf)


def merge(layers: Iterable[Layer], function: Callable[..., Any]) -> Tree:
    """All options together; later layers win.

    Sections and mappings are merged name by name. A class is merged with itself alone: another one
    replaces it with its options.

    Args:
        layers: options of files, then of flags.
        function: what the options are for.

    Returns:
        a tree whose choices are ``{"class_path": ..., "init_args": {...}}``.

    Raises:
        ConfigError: an option does not exist, or cannot have its value; names the file.
    """
    tree: Tree = {}
    names = list(option_types(function, chosen=False))
    for file, options in layers:
        where = f" in {file}" if file else ""
        tree = _Merge(where, names).section(tree, options, function)
    return tree


class _Merge(NamedTuple):
    """The merging of one layer; keys are dotted names."""

    where: str
    names: list[str]

    def section(self, base: Tree, over: Tree, owner: Any, key: str = "") -> Tree:
        """Options of a function or class."""
        hints, tree = _hints(owner), dict(base)
        for given, value in over.items():
            name, _, rest = str(given).partition(".")
            path = f"{key}.{name}".strip(".")
            if name not in hints:
                of_class = isinstance(owner, type) and not _is_section(owner)
                names = [f"{key}.{each}" for each in hints] if of_class else self.names
                typed = f"{path}.{rest}".strip(".")
                raise ConfigError(f"--{typed} is no option{self.where}{_suggest(typed, names)}")
            value, default = {rest: value} if rest else value, _default(owner, name)
            tree[name] = self.value(tree.get(name), value, hints[name], path, default)
        return tree

    def value(self, base: Any, over: Any, hint: Any, key: str, default: Any) -> Any:
        """An option of any kind."""
        kind = kinds(hint)[0]
        inner: Any = get_args(kind)[0] if get_origin(kind) is list else None
        if over is None and type(None) in get_args(hint):
            return None
        if _is_section(kind):
            return self.section(base or {}, self.mapping(over, key), kind, key)
        if _is_choice(kind):
            return self.choice(base, over, kind, key, default)
        if _is_choice(inner) and isinstance(parts := _loaded(over), list):
            return [self.choice(None, part, inner, key, None) for part in parts]
        if isinstance(over, dict) and get_origin(kind) is dict:
            over = {name: _loaded(each) for name, each in over.items()}
            over = {**base, **over} if isinstance(base, dict) else over
        if _is_deep(over):
            most = f"more than {_DEPTH} lists or mappings in one another"
            raise ConfigError(f"--{key} has {most}{self.where}")
        if not _fits(hint, over):
            self.refuse(over, hint, key)
        return over

    def mapping(self, over: Any, key: str) -> Tree:
        """The options of a section."""
        if isinstance(options := _loaded(over), dict):
            return options
        given = "empty" if over is None else repr(over)
        how = "" if self.where else "; a file of options is given with --config"
        raise ConfigError(f"--{key} is {given}{self.where}, must be a section of options{how}")

    def choice(self, base: Tree | None, over: Any, kind: type, key: str, default: Any) -> Tree:
        """An object, given by its class, by its options, or by both."""
        over = _loaded(over)
        over = over if isinstance(over, dict) else {"class_path": over}
        base = base or {"class_path": f"{type(default).__module__}.{type(default).__qualname__}"}
        path = over.get("class_path", base["class_path"])
        chosen = _class(path, kind)
        if chosen is None:
            self.refuse(path if "class_path" in over else over, kind, key)
        options = {str(n).removeprefix("init_args."): v for n, v in over.items()}
        options.pop("class_path", None)
        options |= self.mapping(options.pop("init_args", {}), key)
        kept = base.get("init_args", {}) if chosen is _class(base["class_path"], kind) else {}
        return {"class_path": path, "init_args": self.section(kept, options, chosen, key)}

    def refuse(self, value: Any, hint: Any, key: str) -> NoReturn:
        """Refuse the value of an option."""
        text = value if isinstance(value, str) else ""
        own = _is_choice(hint) and "." in text and not text.startswith("sddlm.")
        own_class = "; a class of your own needs --import MODULE" if own else ""
        must = f"must be {allowed(hint, text)}{own_class}"
        raise ConfigError(f"--{key} is {value!r}{self.where}, {must}")


def _is_section(kind: Any) -> bool:
    """Whether a type is a dataclass without a base class, so that nothing else can be chosen."""
    return isinstance(kind, type) and all(map(is_dataclass, kind.__mro__[:-1]))


def _is_choice(kind: Any) -> bool:
    """Whether a type is a base class or a class of those whose options are fields."""
    return not _is_section(kind) and any(True for _ in leaves(kind))


def _class(path: Any, kind: type) -> type | None:
    """A class by its name or path, if it can be chosen; nothing is imported for it."""
    module, _, name = str(path).rpartition(".")
    if module:
        found = getattr(sys.modules.get(module), name, None)
        return next((leaf for leaf in leaves(kind) if leaf is found), None)
    return next((leaf for leaf in leaves(kind) if leaf.__name__ == name), None)


def _default(owner: Any, name: str) -> Any:
    """The default of an option, a class's or a function's."""
    for field in fields(owner) if is_dataclass(owner) else ():
        if field.name == name:
            return field.default if field.default_factory is MISSING else field.default_factory()
    parameter = inspect.signature(owner).parameters.get(name)
    return parameter and parameter.default


def _hints(owner: Any) -> dict[str, Any]:
    """Options of a function or a class, with their types."""
    try:
        hints = get_type_hints(owner, include_extras=True)
    except (NameError, TypeError):  # of a class made in a function, whose fields may have any value
        hints = {}
    if is_dataclass(owner):
        return {field.name: hints.get(field.name, Any) for field in fields(owner) if field.init}
    found: dict[str, Any] = {}
    for name, hint in hints.items():
        if get_origin(hint) is Annotated:  # ``**how``: all fields of the annotated class
            found |= _hints(get_args(hint)[1])
        elif name != "return":
            found[name] = hint
    return found


def _loaded(value: Any) -> Any:
    """A list or mapping that is written as text; any other value unchanged."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        with suppress(ConfigError):
            return parse_yaml(value, "")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether the parser takes a value for a type."""
    if isinstance(value, str) and str in kinds(hint):
        return True
    try:
        _parser_of(hint).parse_object({"value": value})
    except Exception:  # several kinds, some with a cause
        return False
    return True


@cache
def _parser_of(hint: Any) -> Any:
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    return parser


def _is_deep(value: Any) -> bool:
    """Whether a text in a value overflows the parser, which reads it as YAML, recursively in C."""
    if not isinstance(value, str):
        inner = value.values() if isinstance(value, dict) else value
        return isinstance(inner, Iterable) and any(map(_is_deep, inner))
    depth = 0
    with suppress(yaml.YAMLError, UnicodeError):  # it is no YAML from there on
        for event in yaml.parse(value, Loader=_EVENTS):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > _DEPTH:
                return True
    return False


def _suggest(key: str, names: list[str]) -> str:
    """The option that was probably meant, or those that there are beside it."""
    section, _, name = key.rpartition(".")
    ends = {known.rpartition(".")[2]: known for known in reversed(names)}
    close = ends.get(name) or closest(key, names, 0.8) or ends.get(closest(name, ends) or "")
    beside = [f"--{known}" for known in names if section and known.rpartition(".")[0] == section]
    if close:
        return f"; did you mean --{close}?"
    return f"; there are {', '.join(beside)}" if beside else "; see --help"
