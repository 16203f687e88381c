"""Readers of CSV and TSV files."""

from __future__ import annotations

import csv
from collections.abc import Iterator

from sddlm.data import streams
from sddlm.data.pieces import TextChunk
from sddlm.data.records import Record, as_parts, no_field, too_long
from sddlm.data.streams import Input, Long, chunks, lines, texts
from sddlm.data.text_files import wrong_characters
from sddlm.errors import ConfigError

_NUL = "\udc00"  # stands for NUL, which the csv module of Python 3.10 refuses
_SKIPPED = "\udc01"  # stands for a line too long to be held


def comma_separated(file: Input, field: str, separator: str | None) -> Iterator[TextChunk]:
    """Read the documents of a CSV file, whose first line names the columns."""
    return as_parts(_csv_records(file, field, ","), file.name, "line", field)


def tab_separated(file: Input, field: str, separator: str | None) -> Iterator[TextChunk]:
    """Read the documents of a TSV file, whose first line names the columns."""
    return as_parts(_csv_records(file, field, "\t"), file.name, "line", field)


class _TooLongError(Exception):
    """A record exceeds the limit."""


class _Lines:
    """Lines of a text for the csv module, with the current position."""

    def __init__(self, file: Input, delimiter: str) -> None:
        self.read = 0  # lines, so far
        self.begin()
        self._lines = lines(texts(chunks(file)), "\n", '"')
        # a quote behind it, inside quotes ends them, outside begins some: as the line itself did
        self._unpaired = f'{_SKIPPED}{delimiter}"\n'

    def begin(self) -> None:
        """Start a record."""
        self.size = 0
        self.skipped = False  # a line of the record was not held

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.read += 1
        if isinstance(line, Long):
            self.skipped = True
            return self._unpaired if line.quotes % 2 else f"{_SKIPPED}\n"
        self.size += len(line) + 1
        if self.size > streams.RECORD + 1:
            self._leave(line)
            raise _TooLongError
        return line.replace("\0", _NUL) + "\n"

    def _leave(self, line: str | Long | None) -> None:
        """Skip to the end of a quoted record, of which ``line`` is a line."""
        while line is not None:
            quotes = line.quotes if isinstance(line, Long) else line.count('"')
            if quotes % 2:
                return
            line = next(self._lines, None)
            self.read += line is not None


def _csv_records(file: Input, field: str, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(max(csv.field_size_limit(), streams.RECORD + 1))  # the module's own is low
    source = _Lines(file, delimiter)
    rows = _csv_rows(source, csv.reader(source, delimiter=delimiter, strict=True))
    header = next(rows, None)
    if header is None:
        return
    _, names, wrong = header
    if wrong or field not in names:
        raise ConfigError(
            f"{file.name}, line {header[0]}: {wrong or no_field(field, names)}; the first line "
            "must name the columns"
        )
    column = names.index(field)
    for number, row, wrong in rows:
        if not wrong and len(row) != len(names):
            wrong = (
                f"{len(row)} fields where the first line names {len(names)}; put quotation marks "
                "around a text with commas, line ends or quotation marks (doubled) in it"
            )
        yield Record(number, None, wrong) if wrong else _csv_record(number, row, column)


def _csv_rows(source: _Lines, reader: Iterator[list[str]]) -> Iterator[tuple[int, list[str], str]]:
    """First line, fields and problem of each row."""
    while True:
        number, row, wrong = source.read + 1, [], ""
        source.begin()
        try:
            row = next(reader)
        except StopIteration:
            return
        except _TooLongError:
            wrong = too_long("record")
        except csv.Error as error:
            wrong = (
                f"not CSV ({error}); a text with quotation marks needs them doubled, and others "
                "around it"
            )
        if source.skipped:
            wrong = too_long("line")
        if row or wrong:  # a blank line has no fields
            yield number, row, wrong


def _csv_record(number: int, row: list[str], column: int) -> Record:
    text = row[column]
    if text.isascii():
        return Record(number, text)
    found = wrong_characters(text.replace(_NUL, "\0"), number + "".join(row[:column]).count("\n"))
    return Record(found[0], None, found[1]) if found else Record(number, text)
