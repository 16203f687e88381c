"""Which file is read how: by the end of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sddlm.data import csv_files, parquet_files, records, text_files
from sddlm.data.pieces import Part
from sddlm.data.streams import Input
from sddlm.errors import ConfigError

#: (file, field, separator) -> its documents
Reader = Callable[[Input, str, "str | None"], Iterator[Part]]

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
    """Format and packing that a file's name ends in, such as ``(".jsonl", ".zst")``, if known."""
    name = name.lower()
    packing = next((end for end in PACKINGS if name.endswith(end)), "")
    suffix = next((end for end in READERS if name.removesuffix(packing).endswith(end)), "")
    if not suffix or (suffix == ".parquet" and packing):  # which is compressed inside
        return None
    return suffix, packing


def known_suffixes(name: str) -> tuple[str, str]:
    """The same.

    Raises:
        ConfigError: the name ends in none of them.
    """
    found = suffixes(name)
    if found is None:
        raise ConfigError(
            f"{name}: unknown kind of file; the name must end in one of {known()}: rename it "
            "(plain text: .txt) or convert it"
        )
    return found


def known() -> str:
    """All suffixes, for messages."""
    return f"{', '.join(READERS)}, all but the last also with {' or '.join(PACKINGS)}"


def read(file: Input, field: str, separator: str | None) -> Iterator[Part]:
    """The documents of one file.

    Args:
        file: what to read.
        field: key or column that holds the text, where there are any.
        separator: what stands between two documents of a text file, taken literally.

    Raises:
        ConfigError: the file as a whole cannot be read. What is wrong with one document is told in
            its part.
    """
    return READERS[file.suffix](file, field, separator)
