"""Records with one document each: validation, and the reader of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from textwrap import shorten
from typing import NamedTuple

from sddlm.data import pieces, streams
from sddlm.data.pieces import TextChunk, text_chunks
from sddlm.data.streams import Input, Long, chunks, lines

_MARK = b"\xef\xbb\xbf"  # UTF-8's byte order mark
_OBJECT = 'each line must be an object such as {"text": "..."}'


class Record(NamedTuple):
    """A record of a file or dataset.

    Attributes:
        number: line or row.
        text: the document, if valid.
        wrong: the problem and its remedy.
    """

    number: int
    text: object = None
    wrong: str = ""


def as_parts(records: Iterable[Record], name: str, unit: str, field: str) -> Iterator[TextChunk]:
    """Convert records to documents; an invalid record becomes a problem.

    Args:
        records: in order.
        name: file or data set, for messages.
        unit: what the numbers count: ``line`` or ``row``.
        field: key or column, for messages.
    """
    for number, text, wrong in records:
        wrong = wrong or _wrong(text, field, unit)
        if wrong:
            yield TextChunk("", True, f"{name}, {unit} {number}: {wrong}")
        elif len(text) <= pieces.MIN_CHUNK:  # type: ignore[arg-type]  # _wrong has looked
            yield TextChunk(text)  # type: ignore[arg-type]
        else:
            yield from text_chunks(text)  # type: ignore[arg-type]


def _wrong(text: object, field: str, unit: str) -> str:
    if not isinstance(text, str):
        kind = "null" if text is None else f"a {type(text).__name__}"
        return (
            f"the field {field!r} is {kind}, not text; choose another with `data.field` or repair "
            f"the {unit}"
        )
    if not text or text.isspace():
        return f"the field {field!r} is empty or blank; remove the {unit}"
    if "\0" in text:
        return f"the field {field!r} holds a NUL character, which no text holds; repair the {unit}"
    if len(text) > streams.RECORD:
        return too_long(unit)
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError:
        return (
            f"the field {field!r} holds half a surrogate pair (\\ud800 to \\udfff), which is no "
            f"character; repair the {unit}"
        )
    return ""


def too_long(unit: str) -> str:
    """Problem of a record that is too long."""
    limit = streams.RECORD >> 20
    return f"longer than {limit} MiB; cut the {unit} into several, or give it as a text file"


def no_field(field: str, there: Iterable[str]) -> str:
    """Problem of a missing key or column."""
    found = shorten(", ".join(map(str, there)), 200) or "none"
    return f"no field {field!r}; there are: {found}; choose one with `data.field`"


def one_line(error: BaseException) -> str:
    """First line of an error of another library."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


# ------------------------------------------------------------------ JSON lines


def json_lines(file: Input, field: str, separator: str | None) -> Iterator[TextChunk]:
    """Read the documents of a file with one JSON object per line; blank lines are skipped."""
    return as_parts(_json_records(file, field), file.name, "line", field)


def _json_records(file: Input, field: str) -> Iterator[Record]:
    for number, line in enumerate(lines(chunks(file), b"\n", b'"'), start=1):
        if isinstance(line, Long):
            yield Record(number, None, too_long("line"))
            continue
        if number == 1:
            line = line.removeprefix(_MARK)
        if line and not line.isspace():
            yield _json_record(number, line, field)


def _json_record(number: int, line: bytes, field: str) -> Record:
    try:
        record = json.loads(line.decode())
        if isinstance(record, dict):
            if field in record:
                return Record(number, record[field])
            return Record(number, None, no_field(field, record))
        wrong = f"a JSON {type(record).__name__}, not an object; {_OBJECT}"
    except UnicodeDecodeError as error:
        wrong = not_utf8(error)
    except json.JSONDecodeError as error:
        wrong = f"not JSON ({error.msg} at column {error.colno}); {_OBJECT}"
        if b"\0" in line:
            wrong = "a NUL byte, which no text holds; convert the file to UTF-8, or leave it out"
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 1000 brackets
        wrong = f"not JSON that can be read ({error}); {_OBJECT}"
    return Record(number, None, wrong)


def not_utf8(error: UnicodeDecodeError) -> str:
    """Problem of bytes that cannot be decoded."""
    byte = error.object[error.start]
    return f"not UTF-8 (byte 0x{byte:02x}); convert the file, for example: iconv -f LATIN1 -t UTF-8"
