"""Readers by file suffix."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sddlm.data import csv_files, parquet_files, records, text_files
from sddlm.data.pieces import TextChunk
from sddlm.data.streams import Input
from sddlm.errors import ConfigError

#: (file, field, separator) -> its documents
Reader = Callable[[Input, str, "str | None"], Iterator[TextChunk]]

READERS: dict[str, Reader] = {
    ".txt": text_files.text,
    ".md": text_files.text,
    ".jsonl": records.json_lines,
    ".json": records.json_lines,
    ".csv": csv_files.comma_separated,
    ".tsv": csv_files.tab_separated,
    ".parquet": parquet_files.parquet,
}
PACKINGS = (".gz", ".zst")


def suffixes(name: str) -> tuple[str, str] | None:
    """Format and compression of a file name, such as ``(".jsonl", ".zst")``; None if unknown."""
    name = name.lower()
    packing = next((end for end in PACKINGS if name.endswith(end)), "")
    suffix = next((end for end in READERS if name.removesuffix(packing).endswith(end)), "")
    if not suffix or (suffix == ".parquet" and packing):  # which is compressed inside
        return None
    return suffix, packing


def known_suffixes(name: str) -> tuple[str, str]:
    """Format and compression of a file name (see `suffixes`).

    Raises:
        ConfigError: the suffix is unknown.
    """
    found = suffixes(name)
    if found is None:
        raise ConfigError(
            f"{name}: unknown kind of file; the name must end in one of {known()}: rename it "
            "(plain text: .txt) or convert it"
        )
    return found


def known() -> str:
    """List of all suffixes, for messages."""
    return f"{', '.join(READERS)}, all but the last also with {' or '.join(PACKINGS)}"


def read(file: Input, field: str, separator: str | None) -> Iterator[TextChunk]:
    """Read the documents of one file.

    Args:
        file: what to read.
        field: key or column that holds the text, where there are any.
        separator: what stands between two documents of a text file, taken literally.

    Raises:
        ConfigError: the file as a whole cannot be read. A problem of one document is recorded in
        its
            chunk.
    """
    return READERS[file.suffix](file, field, separator)
