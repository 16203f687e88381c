"""Sources of documents: files, standard input, datasets of the hub.

A problem of one document is recorded in its place, and reading continues. A problem of a source as
a whole is an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from sddlm.data.formats import known_suffixes, read
from sddlm.data.paths import digest, find, state
from sddlm.data.pieces import TextChunk, text_chunks
from sddlm.data.streams import Input, standard_input
from sddlm.errors import ConfigError

__all__ = [
    "Files",
    "Limited",
    "Mapped",
    "Source",
    "StandardInput",
    "TextChunk",
    "digest",
    "open_source",
    "require_any"
]  # fmt: skip


class Source(ABC):
    """Source of documents. Reading it again gives the same chunks (unless ``once``).

    Attributes:
        name: name in messages and reports.
        once: whether it can be read only once.
    """

    name: str
    once: bool = False

    @abstractmethod
    def chunks(self) -> Iterator[TextChunk]:
        """Iterate over all documents, in chunks.

        Raises:
            ConfigError: the source as a whole cannot be read, or has no document.
        """

    def signature(self) -> str | None:
        """Identifier that changes when the content may have changed, without reading it.

        None if a change can only be found by reading.
        """
        return None

    def documents(self) -> Iterator[str]:
        """Iterate over whole documents.

        Raises:
            ConfigError: see ``chunks``; or a document with a problem.
        """
        held: list[str] = []
        for chunk in self.chunks():
            if chunk.problem:
                raise ConfigError(chunk.problem)
            held.append(chunk.text)
            if chunk.is_last:
                yield "".join(held)
                held = []


def open_source(
    spec: str, *, field: str = "text", separator: str | None = None, streaming: bool = False
) -> Source:
    r"""Open a source by its specification.

    Args:
        spec: ``-`` is standard input, as plain text; ``-.jsonl`` or another suffix gives its
            format. ``hf:NAME`` or ``hf:NAME:CONFIG`` is a Hugging Face data set (its ``train``
            split), by its name on the hub or as a local folder. All else is a file, a folder
            (searched to any depth for files of known suffixes, hidden ones left out, links to
            folders not followed) or a glob pattern; the files are read in sorted order.
        field: key or column that holds the text.
        separator: what stands between two documents of a text file, taken literally. Without it
            ``<|endoftext|>`` does, and a file in which that does not occur is one document.
        streaming: read a data set of the hub while it is downloaded, and keep nothing of it.

    Raises:
        ConfigError: there is no such thing, a file is empty or of an unknown kind.
    """
    if separator == "":
        raise ConfigError("`data.separator` is empty; leave it out, or give what to cut at")
    if spec == "-" or spec.startswith("-."):
        return StandardInput(spec[1:] or ".txt", field=field, separator=separator)
    if spec.startswith("hf:"):
        from sddlm.data.hub import HubDataset

        name, _, config = spec[3:].partition(":")
        return HubDataset(name, config or None, field=field, streaming=streaming)
    return Files(spec, field=field, separator=separator)


class Files(Source):
    """Documents of files, one file after another."""

    def __init__(self, path: str, *, field: str = "text", separator: str | None = None) -> None:
        """Find the files.

        Args:
            path: a file, a folder or a glob pattern.
            field: key or column that holds the text.
            separator: what stands between two documents of a text file.
        """
        self.name = path
        self.field, self.separator = field, separator
        self.files = [Input(str(file), *known_suffixes(str(file)), file) for file in find(path)]
        for file in self._paths:
            if file.stat().st_size == 0:
                raise ConfigError(f"{file} is empty; remove it or give `data.path` another file")

    @property
    def _paths(self) -> list[Path]:
        return [file.path for file in self.files if file.path]

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`."""
        found = (read(file, self.field, self.separator) for file in self.files)
        return require_any(chain.from_iterable(found), self.name)

    def signature(self) -> str | None:
        """See `Source.signature`; from path, size, time and inode of the files."""
        found = state(self._paths)
        return found and digest("files", found, self.field, self.separator)


class StandardInput(Source):
    """Documents of standard input."""

    name = "standard input"
    once = True

    def __init__(
        self, suffix: str = ".txt", *, field: str = "text", separator: str | None = None
    ) -> None:
        """Check that standard input is open.

        Args:
            suffix: how it is read, as a file whose name ends so.
            field: key or column that holds the text.
            separator: what stands between two documents of a text.
        """
        self.field, self.separator = field, separator
        self._input = standard_input(*known_suffixes(f"-{suffix}"))
        self._read = False

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`; a second call has nothing to read."""
        if self._read:
            raise ConfigError(
                "standard input can be read only once, and has been; save it in a file and give "
                "`data.path='FILE'`"
            )
        self._read = True
        return require_any(read(self._input, self.field, self.separator), self.name)


class Mapped(Source):
    """Source that applies a function to each document, which must fit into memory."""

    def __init__(self, source: Source, function: Callable[[str], str], tag: str) -> None:
        """Wrap a source.

        Args:
            source: where documents come from.
            function: from a document to another one.
            tag: names the function; change it when the function changes.
        """
        self.name, self.once = source.name, source.once
        self.source, self.function, self.tag = source, function, tag

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`; an empty result is a problem."""
        held: list[str] = []
        number = 1
        for chunk in self.source.chunks():
            held.append(chunk.text)
            if not chunk.is_last:
                continue
            text = "" if chunk.problem else self.function("".join(held))
            if text and not text.isspace():
                yield from text_chunks(text)
            elif chunk.problem:
                yield chunk
            else:
                where = f"{self.name}, document {number}"
                yield TextChunk("", True, f"{where}: {self.tag} leaves nothing of it; leave it out")
            held = []
            number += 1

    def signature(self) -> str | None:
        """See `Source.signature`; changes with that of the source and with the tag."""
        inner = self.source.signature()
        return inner and digest("mapped", inner, self.tag)


class Limited(Source):
    """First documents of a source, including those with a problem."""

    def __init__(self, source: Source, count: int) -> None:
        """Wrap a source.

        Args:
            source: where documents come from.
            count: how many to take, at most.
        """
        if count < 1:
            raise ConfigError(f"`data.limit` is {count}, must be at least 1; or leave it out")
        self.name, self.once = source.name, source.once
        self.source, self.count = source, count

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`."""
        left = self.count
        for chunk in self.source.chunks():
            yield chunk
            left -= chunk.is_last
            if not left:
                return

    def signature(self) -> str | None:
        """See `Source.signature`; changes with that of the source and with the count."""
        inner = self.source.signature()
        return inner and digest("limited", inner, self.count)


def require_any(found: Iterator[TextChunk], name: str) -> Iterator[TextChunk]:
    """Pass chunks through; raise an error if there is no valid document."""
    first, bad = "", 0
    for chunk in found:
        yield chunk
        if chunk.problem:
            first, bad = first or chunk.problem, bad + 1
        elif chunk.is_last:
            yield from found
            return
    if bad:
        raise ConfigError(f"no documents in {name}: {bad} with problems; {first}")
    raise ConfigError(f"no documents in {name}: nothing but white space; give `data.path` text")
