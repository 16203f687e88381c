"""Streaming input: decompressed bytes, lines and text of a file or of standard input."""

from __future__ import annotations

import codecs
import gzip
import importlib
import io
import sys
import zlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, AnyStr, NamedTuple

from sddlm.errors import ConfigError

CHUNK = 1 << 20  # bytes handed on at once
RECORD = 1 << 26  # bytes or characters of a record, at most

_FED = 1 << 8  # bytes given to zstd at once: at worst each becomes 32 kB, in one go
_STANDARD_INPUT = "standard input"


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


class Long(NamedTuple):
    """Placeholder for a line that is too long, with its number of quotation marks."""

    quotes: int


def chunks(file: Input) -> Iterator[bytes]:
    """Iterate over the decompressed content, about ``CHUNK`` bytes at a time.

    Raises:
        ConfigError: no permission, no package to decompress with, or a damaged file.
    """
    try:
        with file.open() as stream:
            if file.packing == ".gz":
                yield from _gzip(stream, file.name)
            elif file.packing == ".zst":
                yield from _zstd(stream, file.name)
            else:
                while chunk := stream.read(CHUNK):
                    yield chunk
    except OSError as error:
        raise ConfigError(
            f"{file.name} cannot be read: {error.strerror or error}; check it, or leave it out"
        ) from error


def _gzip(stream: IO[bytes], name: str) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=stream) as plain:
            while chunk := plain.read(CHUNK):
                yield chunk
    except EOFError as error:
        raise ConfigError(f"{name} is cut short: its gzip data has no end; get it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{name} cannot be decompressed: {error}; get it again") from error


def _zstd(stream: IO[bytes], name: str) -> Iterator[bytes]:
    """Decompress frame by frame: the stream reader of `zstandard` accepts a truncated file."""
    require("zstandard", name)
    import zstandard

    # files made with zstd --long need a window of up to 2 GiB
    make = zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj
    frame = make()
    ready: list[bytes] = []
    size = 0
    try:
        while fed := stream.read(_FED):
            while fed:
                frame = make() if frame.eof else frame
                ready.append(frame.decompress(fed))
                size += len(ready[-1])
                fed = frame.unused_data
            if size >= CHUNK:
                yield b"".join(ready)
                ready, size = [], 0
    except zstandard.ZstdError as error:
        raise ConfigError(f"{name} cannot be decompressed: {error}; get it again") from error
    if not frame.eof:
        raise ConfigError(f"{name} is cut short: its last zstd frame has no end; get it again")
    yield b"".join(ready)


def lines(chunks: Iterable[AnyStr], end: AnyStr, quote: AnyStr) -> Iterator[AnyStr | Long]:
    """Iterate over lines without their ends; one longer than ``RECORD`` is not held.

    Args:
        chunks: text or bytes, cut anywhere.
        end: the line end.
        quote: what is counted in a line that is too long.
    """
    rest: list[AnyStr] = []  # the beginning of the line
    size = quotes = 0  # of that line, also when it is no longer held
    for chunk in chunks:
        found = chunk.split(end)
        rest.append(found[0])
        size += len(found[0])
        if size > RECORD:
            quotes += sum(piece.count(quote) for piece in rest)
            rest = []
        if len(found) == 1:
            continue
        yield Long(quotes) if size > RECORD else end[:0].join(rest)
        for line in found[1:-1]:
            yield Long(line.count(quote)) if len(line) > RECORD else line
        rest, size, quotes = [found[-1]], len(found[-1]), 0
    if size:
        yield Long(quotes) if size > RECORD else end[:0].join(rest)


def texts(chunks: Iterable[bytes]) -> Iterator[str]:
    r"""Decode UTF-8, without byte order mark, with line ends as ``\n``.

    A byte 0xNN that is no UTF-8 becomes the character U+DCNN, which no UTF-8 stands for.
    """
    utf8 = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    decoder = io.IncrementalNewlineDecoder(utf8, translate=True)
    mark = "\ufeff"
    for chunk in chunks:
        text = decoder.decode(chunk)
        if text:
            yield text.removeprefix(mark)
            mark = ""
    yield decoder.decode(b"", final=True)


def standard_input(suffix: str, packing: str) -> Input:
    """Standard input as an `Input`.

    Raises:
        ConfigError: it is a terminal, or closed.
    """
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise ConfigError(
            "`data.path` - reads standard input, and nothing is piped into it; for example: "
            "cat FILE | sddlm prepare --data.path -, or give a file"
        )
    return Input(_STANDARD_INPUT, suffix, packing)


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
