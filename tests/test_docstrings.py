"""The documentation of the public names: complete, and readable by what builds the API page."""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import sddlm

NAMES = sorted(sddlm._PUBLIC)
SECTION = re.compile(r"^(Args|Attributes|Returns|Raises):\n", re.MULTILINE)
ENTRY = re.compile(r"^    \*{0,2}(\w+): \S", re.MULTILINE)


def sections(found: Any) -> dict[str, str]:
    """Sections of a docstring: the indented lines behind each title."""
    parts = SECTION.split(inspect.getdoc(found) or "")
    return {
        title: re.match(r"(?: .*\n|\n(?= ))*(?: .*)?", text)[0]  # type: ignore[index]
        for title, text in zip(parts[1::2], parts[2::2], strict=True)
    }


def methods(cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public methods and properties that a class defines itself."""
    for name, value in vars(cls).items():
        found = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if not name.startswith("_") and inspect.isfunction(found):
            yield f"{cls.__name__}.{name}", found


def malformed(name: str, found: Any) -> list[str]:
    """What mkdocs would warn of: entries without a name, other names than the signature's."""
    if not inspect.getdoc(found):
        return [f"{name} has no documentation"]
    problems = []
    for title, text in sections(found).items():
        if title == "Returns":
            continue
        entries = [line for line in text.splitlines() if re.match(r" {4}\S", line)]
        problems += [f"{name}: {title}: {e.strip()}" for e in entries if not ENTRY.match(e)]
        if title == "Args":
            call = inspect.signature(found)
            wanted = [each for each in call.parameters if each not in ("self", "cls")]
            if ENTRY.findall(text) != wanted:
                problems.append(f"{name} documents {ENTRY.findall(text)}, takes {wanted}")
    return problems


@pytest.mark.parametrize("name", NAMES)
def test_public_documentation_is_well_formed(name: str) -> None:
    found = getattr(sddlm, name)
    problems = malformed(name, found)
    if inspect.isclass(found):
        problems += [line for each in methods(found) for line in malformed(*each)]
    assert problems == []


def incomplete(name: str) -> list[str]:
    """Fields and sections that a public name lacks."""
    found = getattr(sddlm, name)
    if not inspect.isclass(found):
        return [title for title in ("Args", "Returns") if title not in sections(found)]
    if not dataclasses.is_dataclass(found):
        return []
    # a field may be documented by a base, or by a class that the docstring names
    named = re.findall(r"`(\w+)`", inspect.getdoc(found) or "")
    others = [getattr(sddlm, each) for each in named if each in NAMES]
    known = {
        entry
        for each in (*found.__mro__[:-1], *others)
        for entry in ENTRY.findall(sections(each).get("Attributes", ""))
    }
    fields = [field.name for field in dataclasses.fields(found) if field.init]
    return [field for field in fields if field not in known]


def test_public_documentation_is_complete() -> None:
    missing = {name: what for name in NAMES if (what := incomplete(name))}
    assert missing == {}


def test_what_would_break_the_page_is_found() -> None:
    def f(x: int, y: int) -> None:
        """Do.

        Args:
            x: the first,
            over two lines.
            z: another.

        Raises:
            an error without its type.
        """

    assert malformed("f", f) == [
        "f: Args: over two lines.",
        "f documents ['x', 'z'], takes ['x', 'y']",
        "f: Raises: an error without its type.",
    ]
