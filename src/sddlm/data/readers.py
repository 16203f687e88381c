"""Readers of text files and JSON lines, plain or compressed."""

from __future__ import annotations

import csv
import gzip
import importlib
import io
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sddlm.data import documents
from sddlm.data.documents import (
    Document,
    cut_near,
    invalid_characters,
    malformed,
    no_field,
    not_utf8,
    to_document,
)
from sddlm.data.tokenizer import END_OF_TEXT
from sddlm.errors import ConfigError

CHUNK = 1 << 22  # characters or bytes read at once
_FED = 1 << 8  # bytes given to zstd at once: at worst each becomes 32 kB
_OBJECT = 'each line must be an object such as {"text": "..."}'


@dataclass(frozen=True)
class Input:
    """An input file or standard input.

    Attributes:
        name: name in messages.
        suffix: format, such as ``.jsonl``.
        packing: ``.gz``, ``.zst`` or nothing.
        path: the file; None is standard input.
    """

    name: str
    suffix: str
    packing: str = ""
    path: Path | None = None

    def open(self) -> AbstractContextManager[IO[bytes]]:
        """Open the raw bytes."""
        if self.path is not None:
            return self.path.open("rb")
        return nullcontext(sys.stdin.buffer)  # not ours to close


def require(package: str, name: str) -> None:
    """Check that an optional package is installed.

    Args:
        package: name of the package.
        name: the input that needs it.
    """
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise ConfigError(
            f"{name} needs the package {package}: pip install 'sddlm[data]'"
        ) from error


# ------------------------------------------------------------------ text


def text(file: Input, separator: str | None = None) -> Iterator[Document]:
    r"""Read the documents of a text file; those of white space alone are skipped.

    A document of more than `documents.LONGEST` characters becomes several, cut at a line end or a
    blank.

    Args:
        file: UTF-8; ``\r\n`` and ``\r`` are line ends like ``\n``.
        separator: what stands between two documents, taken literally; None is ``<|endoftext|>``.
    """
    mark = (separator or END_OF_TEXT).replace("\r\n", "\n").replace("\r", "\n")
    line = 1
    with _decompressed(file) as stream:
        for found, separated in _split(stream, mark):
            if wrong := invalid_characters(found):
                yield malformed(wrong[1], file.name, "line", line + wrong[0])
            elif found and not found.isspace():
                yield Document(found)
            line += found.count("\n") + separated * mark.count("\n")


def _split(stream: IO[bytes], mark: str) -> Iterator[tuple[str, bool]]:
    """Iterate over the texts between marks, each with whether a mark follows."""
    # an undecodable byte 0xNN becomes the character U+DCNN
    decoder = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape")
    rest, more = "", True
    try:
        while more:
            more = bool(chunk := decoder.read(CHUNK))
            *whole, rest = (rest + chunk).split(mark)
            for text in whole:
                *pieces, end = _cut(text)
                yield from ((piece, False) for piece in pieces)
                yield end, True
            *pieces, rest = _cut(rest, len(mark) - 1 if more else 0)  # a mark may have begun
            yield from ((piece, False) for piece in pieces)
        yield rest, False
    finally:
        decoder.detach()  # else it closes standard input


def _cut(text: str, ahead: int = 0) -> list[str]:
    """Pieces of at most `documents.LONGEST` characters while ``ahead`` more follow; the rest."""
    found = []
    while len(text) > documents.LONGEST + ahead:
        end = cut_near(text, documents.LONGEST)
        found.append(text[:end])
        text = text[end:]
    return [*found, text]


# ------------------------------------------------------------------ JSON lines


def json_lines(file: Input, fields: Sequence[str]) -> Iterator[Document]:
    """Read the documents of a file with one JSON object per line; blank lines are skipped.

    Args:
        file: UTF-8.
        fields: key of the text; of pairs those of prompt and response.
    """
    with _decompressed(file) as stream:
        for number, line in enumerate(_lines(stream), start=1):
            if line is None:
                limit = f"longer than {documents.LINE >> 20} MiB"
                advice = "cut the line into several, or give it as a text file"
                yield malformed(f"{limit}; {advice}", file.name, "line", number)
            elif line and not line.isspace():
                yield _json_document(line, fields, file.name, number)


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Iterate over lines; None stands for one longer than `documents.LINE`, which is not held."""
    mark = b"\xef\xbb\xbf"  # UTF-8's byte order mark
    while line := stream.readline(documents.LINE + 1):
        if len(line) > documents.LINE and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = stream.readline(CHUNK)
            yield None
        else:
            yield line.removeprefix(mark).removesuffix(b"\n")
        mark = b""


def _json_document(line: bytes, fields: Sequence[str], name: str, number: int) -> Document:
    try:
        record = json.loads(line.decode())
        if isinstance(record, dict):
            if missing := [field for field in fields if field not in record]:
                return malformed(no_field(missing[0], record), name, "line", number)
            return to_document([record[f] for f in fields], fields, name, "line", number)
        problem = f"a JSON {type(record).__name__}, not an object; {_OBJECT}"
    except UnicodeDecodeError as error:
        problem = not_utf8(line[error.start])
    except json.JSONDecodeError as error:
        problem = f"not JSON ({error.msg} at column {error.colno}); {_OBJECT}"
        if b"\0" in line:
            problem = "a NUL byte, which no text holds; convert the file to UTF-8, or leave it out"
    except (ValueError, RecursionError) as error:  # a number of 5000 digits, 1000 brackets
        problem = f"not JSON that can be read ({error}); {_OBJECT}"
    return malformed(problem, name, "line", number)


def first_record(file: Input, delimiter: str) -> list[str]:
    """Names of the columns of a CSV file."""
    with _decompressed(file) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        return next(csv.reader(lines, delimiter=delimiter), [])


# ------------------------------------------------------------------ compression


@contextmanager
def _decompressed(file: Input) -> Iterator[Any]:
    """Open a file, decompressed; what is wrong with it becomes one line.

    Raises:
        ConfigError: no permission, no package to decompress with, or a damaged file.
    """
    try:
        with file.open() as stream:
            if file.packing == ".gz":
                yield gzip.GzipFile(fileobj=stream)
            elif file.packing == ".zst":
                yield io.BufferedReader(_Zstd(stream, file.name), CHUNK)
            else:
                yield stream
    except EOFError as error:
        kind = file.packing.removeprefix(".")
        raise ConfigError(
            f"{file.name} is cut short: its {kind} data has no end; get it again"
        ) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{file.name} cannot be decompressed: {error}; get it again") from error
    except OSError as error:
        raise ConfigError(
            f"{file.name} cannot be read: {error.strerror or error}; check it, or leave it out"
        ) from error


class _Zstd(io.RawIOBase):
    """Decompressed zstd, frame by frame: the reader of `zstandard` accepts a truncated file."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        require("zstandard", name)
        import zstandard

        # files made with zstd --long need a window of up to 2 GiB
        self._new = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
        self._error = zstandard.ZstdError
        self._stream, self._frame, self._ready = stream, self._new(), b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            fed = self._frame.unused_data if self._frame.eof else b""
            fed = fed or self._stream.read(_FED)
            if not fed:
                if self._frame.eof:
                    return 0
                raise EOFError
            if self._frame.eof:
                self._frame = self._new()
            try:
                self._ready = self._frame.decompress(fed)
            except self._error as error:
                raise zlib.error(str(error)) from error
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n
