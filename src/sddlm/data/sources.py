"""Where documents come from: files, standard input, data sets of the hub.

What is wrong with one document is told where the document would be, and reading goes on; what is
wrong with a source as a whole is an error.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from sddlm.data.formats import known_suffixes, read
from sddlm.data.paths import digest, find, state
from sddlm.data.pieces import Part, parts
from sddlm.data.streams import Input, standard_input
from sddlm.errors import ConfigError

__all__ = [
    "Files", "Limited", "Mapped", "Part", "Source", "StandardInput", "digest", "open_source", "some"
]  # fmt: skip


class Source(ABC):
    """Where documents come from. Reading it again gives the same parts (unless ``once``).

    Attributes:
        name: for people and for the report.
        once: can be read a single time.
    """

    name: str
    once: bool = False

    @abstractmethod
    def parts(self) -> Iterator[Part]:
        """All documents, in parts.

        Raises:
            ConfigError: the source as a whole cannot be read, or has no document.
        """

    def signature(self) -> str | None:
        """What can be told without reading: changes when the content may have changed.

        None: only reading tells.
        """
        return None

    def documents(self) -> Iterator[str]:
        """Whole documents.

        Raises:
            ConfigError: see ``parts``; or a document with a problem.
        """
        held: list[str] = []
        for part in self.parts():
            if part.problem:
                raise ConfigError(part.problem)
            held.append(part.text)
            if part.ends:
                yield "".join(held)
                held = []


def open_source(
    spec: str, *, field: str = "text", separator: str | None = None, streaming: bool = False
) -> Source:
    r"""A source by what a user types.

    Args:
        spec: ``-`` is standard input, as plain text; ``-.jsonl`` or another suffix says what it
            is. ``hf:NAME`` or ``hf:NAME:CONFIG`` is a Hugging Face data set (its ``train`` split),
            by its name on the hub or as a local folder. All else is a file, a folder (searched to
            any depth for files of known suffixes, hidden ones left out, links to folders not
            followed) or a glob pattern; the files are read in sorted order.
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
    """The documents of files, one file after another."""

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

    def parts(self) -> Iterator[Part]:
        """See `Source.parts`."""
        found = (read(file, self.field, self.separator) for file in self.files)
        return some(chain.from_iterable(found), self.name)

    def signature(self) -> str | None:
        """Changes with a file's path, size, time and inode; None if one was changed just now."""
        found = state(self._paths)
        return found and digest("files", found, self.field, self.separator)


class StandardInput(Source):
    """The documents of standard input."""

    name = "standard input"
    once = True

    def __init__(
        self, suffix: str = ".txt", *, field: str = "text", separator: str | None = None
    ) -> None:
        """Look whether there can be any.

        Args:
            suffix: how it is read, as a file whose name ends so.
            field: key or column that holds the text.
            separator: what stands between two documents of a text.
        """
        self.field, self.separator = field, separator
        self._input = standard_input(*known_suffixes(f"-{suffix}"))
        self._read = False

    def parts(self) -> Iterator[Part]:
        """See `Source.parts`; a second call has nothing to read."""
        if self._read:
            raise ConfigError(
                "standard input can be read only once, and has been; save it in a file and give "
                "`data.path='FILE'`"
            )
        self._read = True
        return some(read(self._input, self.field, self.separator), self.name)


class Mapped(Source):
    """Each whole document of a source through a function. It must fit into memory."""

    def __init__(self, source: Source, function: Callable[[str], str], tag: str) -> None:
        """Keep them.

        Args:
            source: where documents come from.
            function: from a document to another one.
            tag: names the function; change it when the function changes.
        """
        self.name, self.once = source.name, source.once
        self.source, self.function, self.tag = source, function, tag

    def parts(self) -> Iterator[Part]:
        """See `Source.parts`. A document of which nothing is left is a problem."""
        held: list[str] = []
        number = 1
        for part in self.source.parts():
            held.append(part.text)
            if not part.ends:
                continue
            text = "" if part.problem else self.function("".join(held))
            if text and not text.isspace():
                yield from parts(text)
            elif part.problem:
                yield part
            else:
                where = f"{self.name}, document {number}"
                yield Part("", True, f"{where}: {self.tag} leaves nothing of it; leave it out")
            held = []
            number += 1

    def signature(self) -> str | None:
        """Changes with the source's and with the tag."""
        inner = self.source.signature()
        return inner and digest("mapped", inner, self.tag)


class Limited(Source):
    """The first documents of a source; those with a problem count too."""

    def __init__(self, source: Source, count: int) -> None:
        """Keep them.

        Args:
            source: where documents come from.
            count: how many to take, at most.
        """
        if count < 1:
            raise ConfigError(f"`data.limit` is {count}, must be at least 1; or leave it out")
        self.name, self.once = source.name, source.once
        self.source, self.count = source, count

    def parts(self) -> Iterator[Part]:
        """See `Source.parts`."""
        left = self.count
        for part in self.source.parts():
            yield part
            left -= part.ends
            if not left:
                return

    def signature(self) -> str | None:
        """Changes with the source's and with the count."""
        inner = self.source.signature()
        return inner and digest("limited", inner, self.count)


def some(found: Iterator[Part], name: str) -> Iterator[Part]:
    """The same parts; an error if not a single good document is among them."""
    first, bad = "", 0
    for part in found:
        yield part
        if part.problem:
            first, bad = first or part.problem, bad + 1
        elif part.ends:
            yield from found
            return
    if bad:
        raise ConfigError(f"no documents in {name}: {bad} with problems; {first}")
    raise ConfigError(f"no documents in {name}: nothing but white space; give `data.path` text")
