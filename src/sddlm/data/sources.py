"""Sources of documents: files, standard input, datasets.

A problem of one document is recorded in its place, and reading continues. A problem of a source as
a whole is an error.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path

from sddlm.data.documents import Document
from sddlm.data.files import digest, find, known_suffixes, state
from sddlm.data.readers import READERS, Input
from sddlm.errors import ConfigError


class Source(ABC):
    """Source of documents. Reading it again gives the same ones (unless ``once``).

    Attributes:
        name: name in messages and reports.
        once: whether it can be read only once.
    """

    name: str
    once: bool = False

    @abstractmethod
    def read(self) -> Iterator[Document]:
        """Iterate over all documents, malformed ones included.

        Raises:
            ConfigError: the source as a whole cannot be read, or has no document.
        """

    def signature(self) -> str | None:
        """Identifier that changes when the content may have changed, without reading it.

        None if a change can only be found by reading.
        """
        return None

    def documents(self) -> Iterator[str]:
        """Iterate over the texts.

        Raises:
            ConfigError: see ``read``; or a document with a problem.
        """
        for document in self.read():
            if document.problem:
                raise ConfigError(document.problem)
            yield document.text


def open_source(
    spec: str, *, field: str = "text", separator: str | None = None, streaming: bool = False
) -> Source:
    r"""Open a source by its specification.

    Args:
        spec: ``-`` is standard input, as plain text; ``-.jsonl`` or another suffix gives its
            format. ``hf:NAME``, ``hf:NAME@REVISION`` or ``hf:NAME:CONFIG`` is a Hugging Face
            dataset (its ``train`` split), by its name on the hub or as a local folder. All else is
            a file, a folder (searched to any depth for files of known suffixes, hidden ones left
            out, links to folders not followed; or a dataset that ``save_to_disk`` wrote) or a glob
            pattern; the files are read in sorted order.
        field: key or column that holds the text.
        separator: what stands between two documents of a text file, taken literally. Without it
            ``<|endoftext|>`` does, and a file in which that does not occur is one document.
        streaming: read a dataset of the hub while it is downloaded, and keep nothing of it.

    Raises:
        ConfigError: there is no such thing, a file is empty or of an unknown kind.
    """
    if separator == "":
        raise ConfigError("`data.separator` is empty; leave it out, or give what to cut at")
    if spec == "-" or spec.startswith("-."):
        return StandardInput(spec[1:] or ".txt", field=field, separator=separator)
    if spec.startswith("dataset:"):
        raise ConfigError(
            f"`data.path` {spec}: the rows came from a Dataset in Python; give a text: "
            "`data.path='FILE'`"
        )
    from sddlm.data.hf import HubDataset, is_saved

    if spec.startswith("hf:"):
        return HubDataset.of(spec.removeprefix("hf:"), field=field, streaming=streaming)
    if is_saved(Path(spec).expanduser()):
        return HubDataset(spec, field=field)
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
        self.paths = find(path)
        self.files = [Input(str(file), *known_suffixes(str(file)), file) for file in self.paths]
        for file in self.paths:
            if file.stat().st_size == 0:
                raise ConfigError(f"{file} is empty; remove it or give `data.path` another file")

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        return require_any(chain.from_iterable(map(self._read, self.files)), self.name)

    def _read(self, file: Input) -> Iterator[Document]:
        if file.suffix in READERS:
            return READERS[file.suffix](file, self.field, self.separator)
        from sddlm.data.hf import TableFile

        return TableFile(file, self.field).read()

    def signature(self) -> str | None:
        """See `Source.signature`; from path, size, time and inode of the files."""
        found = state(self.paths)
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
        kind, packing = known_suffixes(f"-{suffix}")
        if kind not in READERS:
            raise ConfigError(
                f"`data.path` -{suffix}: standard input is text or JSON lines; save it in a file"
            )
        if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
            raise ConfigError(
                "`data.path` - reads standard input, and nothing is piped into it; for example: "
                "cat FILE | sddlm prepare --data.path -, or give a file"
            )
        self._input = Input(self.name, kind, packing)
        self._read = False

    def read(self) -> Iterator[Document]:
        """See `Source.read`; a second call has nothing to read."""
        if self._read:
            raise ConfigError(
                "standard input can be read only once, and has been; save it in a file and give "
                "`data.path='FILE'`"
            )
        self._read = True
        reader = READERS[self._input.suffix]
        return require_any(reader(self._input, self.field, self.separator), self.name)


class Mapped(Source):
    """Source that applies a function to each document."""

    def __init__(self, source: Source, function: Callable[[str], str], tag: str) -> None:
        """Wrap a source.

        Args:
            source: where documents come from.
            function: from a document to another one.
            tag: names the function; change it when the function changes.
        """
        self.name, self.once = source.name, source.once
        self.source, self.function, self.tag = source, function, tag

    def read(self) -> Iterator[Document]:
        """See `Source.read`; an empty result is a problem."""
        for number, document in enumerate(self.source.read(), start=1):
            text = "" if document.problem else self.function(document.text)
            if document.problem:
                yield document
            elif text and not text.isspace():
                yield Document(text)
            else:
                where = f"{self.name}, document {number}"
                yield Document("", f"{where}: {self.tag} leaves nothing of it; leave it out")

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

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        return islice(self.source.read(), self.count)

    def signature(self) -> str | None:
        """See `Source.signature`; changes with that of the source and with the count."""
        inner = self.source.signature()
        return inner and digest("limited", inner, self.count)


def require_any(found: Iterator[Document], name: str) -> Iterator[Document]:
    """Pass documents through; raise an error if there is no valid one."""
    first, bad = "", 0
    for document in found:
        yield document
        if not document.problem:
            yield from found
            return
        first, bad = first or document.problem, bad + 1
    if bad:
        raise ConfigError(f"no documents in {name}: {bad} with problems; {first}")
    raise ConfigError(f"no documents in {name}: nothing but white space; give `data.path` text")
