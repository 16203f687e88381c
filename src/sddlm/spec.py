"""Objects as plain data: a class path and the arguments of its constructor, as in YAML files."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from sddlm.errors import ConfigError
from sddlm.process.base import Process
from sddlm.process.schedule import Schedule


def to_spec(obj: Any) -> Any:
    """A dataclass object as ``{"class_path": ..., "init_args": {...}}``, fields in turn.

    Enums become their values, paths text, tuples lists; plain values stay.
    """
    if is_dataclass(obj) and not isinstance(obj, type):
        arguments = {f.name: to_spec(getattr(obj, f.name)) for f in fields(obj) if f.init}
        kind = type(obj)
        return {"class_path": f"{kind.__module__}.{kind.__qualname__}", "init_args": arguments}
    if isinstance(obj, Enum):
        return obj.value
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, (list, tuple)):
        return [to_spec(item) for item in obj]
    if isinstance(obj, Mapping):
        return {key: to_spec(value) for key, value in obj.items()}
    return obj


def from_spec(spec: Any) -> Any:
    """The object of a spec, and of the specs in it.

    A model directory may come from anywhere, so it must not choose what is imported: only
    processes, schedules and objectives of this package are built, and processes and schedules of
    modules that the user has imported.

    Raises:
        ConfigError: for any other class, or arguments that it does not take.
    """
    if isinstance(spec, list):
        return [from_spec(item) for item in spec]
    if not isinstance(spec, Mapping) or "class_path" not in spec:
        return spec
    class_path = str(spec["class_path"])
    kind = _our_class(class_path)
    arguments = {name: from_spec(value) for name, value in dict(spec.get("init_args", {})).items()}
    try:
        return kind(**arguments)
    except (TypeError, AttributeError, ArithmeticError) as error:
        raise ConfigError(f"{class_path} cannot be built: {error}") from error


def _our_class(class_path: str) -> Any:
    """The process, schedule or objective that the path names, among those that are imported."""
    module_name, _, name = class_path.rpartition(".")
    kind = getattr(sys.modules.get(module_name), name, None)
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__ == module_name:
        ours = module_name.startswith(("sddlm.process.", "sddlm.objectives."))
        if ours or issubclass(kind, (Process, Schedule)):
            return kind
    raise ConfigError(
        f"class_path {class_path!r} is no class of sddlm; if it is your own, import its module "
        "first: `import MODULE`"
    )
