"""Documents: what is valid text, and where a text may be cut."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from textwrap import shorten
from typing import NamedTuple

#: characters of a document of a text file; a longer one becomes several
LONGEST = 1 << 24
#: bytes of a line of JSON; a longer one is malformed
LINE = 1 << 26

#: stands between a prompt and its response in a document of a pair (ASCII's record separator)
PROMPT_END = "\x1e"

_NEAR = 1000  # characters back to the next line end or blank
_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")  # before a lone blank no byte-level word ends elsewhere
_INVALID = re.compile("[\0\udc80-\udcff]")  # NUL, and surrogateescape's bytes that are not UTF-8


class Document(NamedTuple):
    """A document, or the report of a malformed one.

    Attributes:
        text: characters; empty if there is a problem.
        problem: what is wrong, with file and record, and the remedy.
    """

    text: str
    problem: str = ""


def to_document(
    values: Sequence[object], fields: Sequence[str], name: str, unit: str, number: int
) -> Document:
    """Check the values of a record.

    Args:
        values: what the record holds as its text; of a pair its prompt and its response.
        fields: their keys or columns, for messages.
        name: file or dataset, for messages.
        unit: what the numbers count: ``line`` or ``row``.
        number: place of the record, from 1.
    """
    for value, field in zip(values, fields, strict=True):
        if problem := _problem(value, paired=len(fields) > 1):
            if isinstance(value, UnicodeDecodeError):
                return malformed(problem, name, unit, number)
            remedy = f"the field {field!r} {problem.format(unit=unit)}"
            return malformed(remedy, name, unit, number)
    return Document(PROMPT_END.join(map(str, values)))


def _problem(value: object, *, paired: bool) -> str:
    """What is wrong with the value of a record; empty if nothing is."""
    if isinstance(value, UnicodeDecodeError):
        return not_utf8(value.object[value.start])
    if not isinstance(value, str):
        kind = "null" if value is None else f"a {type(value).__name__}"
        return f"is {kind}, not text; choose another with `data.field` or repair the {{unit}}"
    if not value or value.isspace():
        return "is empty or blank; remove the {unit}"
    if "\0" in value:
        return "holds a NUL character, which no text holds; repair the {unit}"
    if not _encodes(value):
        half = r"half a surrogate pair (\ud800 to \udfff), which is no character"
        return f"holds {half}; repair the {{unit}}"
    if paired and PROMPT_END in value:
        return "holds the character U+001E, which separates prompts here; repair the {unit}"
    return ""


def malformed(problem: str, name: str, unit: str, number: int) -> Document:
    """Report a malformed record (see `to_document`)."""
    return Document("", f"{name}, {unit} {number}: {problem}")


def no_field(field: str, found: Iterable[str]) -> str:
    """Problem of a missing key or column."""
    names = shorten(", ".join(map(str, found)), 200) or "none"
    return f"no field {field!r}; there are: {names}; choose one with `data.field`"


def not_utf8(byte: int) -> str:
    """Problem of a byte that cannot be decoded."""
    return f"not UTF-8 (byte 0x{byte:02x}); convert the file, for example: iconv -f LATIN1 -t UTF-8"


def invalid_characters(text: str) -> tuple[int, str] | None:
    """Find the first NUL or undecodable byte: line ends before it, and the problem.

    Args:
        text: UTF-8, decoded with ``surrogateescape``.
    """
    found = None if "\0" not in text and _encodes(text) else _INVALID.search(text)
    if found is None:
        return None
    lines = text.count("\n", 0, found.start())
    if found[0] == "\0":
        return lines, "a NUL byte, which no text holds; convert the file to UTF-8, or leave it out"
    return lines, not_utf8(ord(found[0]) - 0xDC00)


def _encodes(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cut_near(text: str, at: int) -> int:
    """Position at most ``at``: after a line end or a blank nearby, or exactly there."""
    for mark in ("\n", " "):
        near = text.rfind(mark, max(0, at - _NEAR), at)
        if near > 0:
            return near + 1
    return at


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at least ``size`` characters, and a rest.

    A piece ends before a lone blank or line end between two other characters: there the words of a
    byte-level tokenizer end as well, so the ids of the pieces are the ids of the text.
    """
    start = 0
    while place := _CUT.search(text, start + size):
        yield text[start : place.start()]
        start = place.start()
    yield text[start:]
