"""Sources of documents: files, standard input, datasets.

A problem of one document is recorded in its place, and reading continues. A problem of a source as
a whole is an error.
"""

from __future__ import annotations

import glob
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

from sddlm.data.cache import digest, state
from sddlm.data.documents import Document
from sddlm.data.readers import Input, json_lines, text
from sddlm.errors import ConfigError

TEXT, LINES = (".txt", ".md"), (".jsonl", ".json")
TABLES = (".csv", ".tsv", ".parquet", ".arrow")  # of `datasets`; the last two pack inside
PACKINGS = (".gz", ".zst")
_SUFFIXES = (*TEXT, *LINES, *TABLES)
_KNOWN = f"{', '.join(_SUFFIXES)}, all but the last two also with {' or '.join(PACKINGS)}"


class Source(ABC):
    """Source of documents. Reading it again gives the same ones (unless ``once``).

    Attributes:
        name: name in messages and reports.
        once: it can be read only once, or is slow to read; further readings are of a copy.
    """

    name: str
    once: bool = False

    @abstractmethod
    def read(self) -> Iterator[Document]:
        """Iterate over all documents, malformed ones included.

        Raises:
            ConfigError: the source as a whole cannot be read.
        """

    def signature(self) -> str | None:
        """Identifier that changes when the content may have changed, without reading it.

        None if a change can only be found by reading.
        """
        return None


class Adapted(Source):
    """Source whose documents are made of those of another one.

    Args:
        source: the other source.
        function: from its documents, malformed ones included, to the documents.
        key: identifies the function; change it when the function changes.
    """

    def __init__(
        self, source: Source, function: Callable[[Iterator[Document]], Iterator[Document]], key: str
    ) -> None:
        self.name, self.once = source.name, source.once
        self.source, self.function, self.key = source, function, key

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        return self.function(self.source.read())

    def signature(self) -> str | None:
        """See `Source.signature`; changes with that of the other source and with the key."""
        inner = self.source.signature()
        return inner and digest(self.key, inner)


def mapped(source: Source, function: Callable[[str], str], tag: str) -> Source:
    """Source with a function applied to each document, once; an empty result is a problem."""

    def apply(documents: Iterator[Document]) -> Iterator[Document]:
        for number, document in enumerate(documents, start=1):
            text = "" if document.problem else function(document.text)
            if document.problem:
                yield document
            elif text and not text.isspace():
                yield Document(text)
            else:
                where = f"{source.name}, document {number}"
                yield Document("", f"{where}: {tag} leaves nothing of it; leave it out")

    found = Adapted(source, apply, tag)
    found.once = True
    return found


class Files(Source):
    """Documents of files, one file after another, or of standard input.

    Args:
        name: name in messages.
        inputs: the files.
        field: key or column that holds the text.
        separator: what stands between two documents of a text file, taken literally.
        prompt_field: key or column that holds its prompt; None if there is none.

    Raises:
        ConfigError: prompts are asked of a text file.
    """

    def __init__(
        self,
        name: str,
        inputs: list[Input],
        field: str = "text",
        separator: str | None = None,
        prompt_field: str | None = None,
    ) -> None:
        self.name, self.inputs, self.separator = name, inputs, separator
        self.fields = [f for f in (prompt_field, field) if f is not None]
        plain = [file.name for file in inputs if file.suffix in TEXT]
        if prompt_field is not None and plain:
            raise ConfigError(
                f"`data.prompt_field` is {prompt_field!r}, but {plain[0]} is a text file and has "
                "no fields; give JSON lines or a table"
            )
        self.paths = [file.path for file in inputs if file.path is not None]
        self.once = not self.paths

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        return chain.from_iterable(map(self._read, self.inputs))

    def _read(self, file: Input) -> Iterator[Document]:
        if file.suffix in TEXT:
            return text(file, self.separator)
        if file.suffix in LINES:
            return json_lines(file, self.fields)
        from sddlm.data.hf import table

        return table(file, self.fields)

    def signature(self) -> str | None:
        """See `Source.signature`; from path, size, time and inode of the files."""
        found = None if self.once else state(self.paths)
        return found and digest("files", found, *self.fields, self.separator)


def open_source(
    spec: str,
    *,
    field: str = "text",
    separator: str | None = None,
    streaming: bool = False,
    prompt_field: str | None = None,
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
        prompt_field: key or column that holds the prompt of the text; None if there is none.

    Raises:
        ConfigError: there is no such thing, a file is empty or of an unknown kind.
    """
    if separator == "":
        raise ConfigError("`data.separator` is empty; leave it out, or give what to cut at")
    if spec == "-" or spec.startswith("-."):
        return Files("standard input", [_standard_input(spec)], field, separator, prompt_field)
    if spec.startswith("dataset:"):
        raise ConfigError(
            f"`data.path` {spec}: the rows came from a Dataset in Python; give a text: "
            "`data.path='FILE'`"
        )
    if (saved := is_saved(Path(spec).expanduser())) or spec.startswith("hf:"):
        from sddlm.data.hf import HubDataset

        if saved:
            return HubDataset(spec, field=field, prompt_field=prompt_field)
        name = spec.removeprefix("hf:")
        return HubDataset.of(name, field=field, streaming=streaming, prompt_field=prompt_field)
    inputs = [_input(str(path), path) for path in _find(spec)]
    return Files(spec, inputs, field, separator, prompt_field)


# ------------------------------------------------------------------ finding files


def _suffixes(name: str) -> tuple[str, str] | None:
    """Format and compression of a file name, such as ``(".jsonl", ".zst")``; None if unknown."""
    name = name.lower()
    packing = next((end for end in PACKINGS if name.endswith(end)), "")
    name = name.removesuffix(packing)
    suffix = next((end for end in _SUFFIXES if name.endswith(end)), "")
    return None if not suffix or (packing and suffix in TABLES[2:]) else (suffix, packing)


def _input(name: str, path: Path | None = None) -> Input:
    """A file or standard input, by its name."""
    found = _suffixes(name)
    if found is None:
        raise ConfigError(
            f"{name}: unknown kind of file; the name must end in one of {_KNOWN}: rename it "
            "(plain text: .txt) or convert it"
        )
    if path is not None and path.stat().st_size == 0:
        raise ConfigError(f"{path} is empty; remove it or give `data.path` another file")
    return Input(name, *found, path)


def _standard_input(spec: str) -> Input:
    found = _input("-.txt" if spec == "-" else spec)
    if found.suffix in TABLES:
        raise ConfigError(
            f"`data.path` {spec}: standard input is text or JSON lines; save it in a file"
        )
    if sys.stdin is None or sys.stdin.closed or sys.stdin.isatty():
        raise ConfigError(
            "`data.path` - reads standard input, and nothing is piped into it; for example: "
            "cat FILE | sddlm prepare --data.path -, or give a file"
        )
    return Input("standard input", found.suffix, found.packing)


def _find(path: str) -> list[Path]:
    """Find the files of a path, a folder or a pattern, sorted.

    Raises:
        ConfigError: there are none.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        found = [file for file in visible(given) if _suffixes(file.name)]
        if not found:
            raise ConfigError(f"no documents in the folder {given}: none of {_KNOWN} in it")
        return found
    found = sorted({f for f in map(Path, glob.glob(str(given), recursive=True)) if f.is_file()})
    if not found:
        raise ConfigError(
            f"`data.path` {path}: no such file or folder, and no file matches it as a pattern; "
            "give a file, a folder, a quoted pattern such as 'texts/*.txt', hf:NAME for a dataset "
            "of the hub, or - for standard input"
        )
    return found


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a dataset that ``save_to_disk`` wrote."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


def visible(folder: Path) -> list[Path]:
    """All files of a folder, to any depth, sorted; hidden ones and linked folders left out."""
    found = []
    for top, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(top, name) for name in names if not name.startswith(".")]
    return sorted(file for file in found if file.is_file())


def _unreadable(error: OSError) -> None:
    raise ConfigError(
        f"the folder {error.filename} cannot be read: {error.strerror}; check it, or move it away"
    ) from error
