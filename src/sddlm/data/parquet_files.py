"""Readers of Parquet files and Arrow columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from sddlm.data import streams
from sddlm.data.pieces import TextChunk
from sddlm.data.records import Record, as_parts, no_field, not_utf8, one_line
from sddlm.data.streams import Input, require
from sddlm.errors import ConfigError


def parquet(file: Input, field: str, separator: str | None) -> Iterator[TextChunk]:
    """Read the documents of a Parquet file, one per row; no other column is read."""
    return as_parts(_parquet_records(file, field), file.name, "row", field)


def _parquet_records(file: Input, field: str) -> Iterator[Record]:
    require("pyarrow", file.name)
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.path is None:
        raise ConfigError(
            f"`data.path` -{file.suffix}: a Parquet file is read from its end, which standard "
            "input has not; save it in a file"
        )
    try:
        # buffered: no more than a page is held, not the column of a whole row group
        with pq.ParquetFile(file.path, pre_buffer=False, buffer_size=streams.CHUNK) as table:
            names = table.schema_arrow.names
            if field not in names:
                raise ConfigError(f"{file.name}: {no_field(field, names)}")
            size = _batch_size(table.metadata, field)
            batches = table.iter_batches(batch_size=size, columns=[field])
            yield from column_records(batch.column(0) for batch in batches)
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(
            f"{file.name} cannot be read as Parquet: {one_line(error)}; get it again"
        ) from error


def _batch_size(metadata: Any, field: str) -> int:
    """Number of rows of a batch of some MB."""
    rows = size = 1
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        columns = map(group.column, range(group.num_columns))
        found = [c.total_uncompressed_size for c in columns if c.path_in_schema == field]
        rows, size = rows + group.num_rows, size + sum(found)
    return max(1, min(1024, 4 * streams.CHUNK * rows // size))


def column_records(columns: Iterable[Any]) -> Iterator[Record]:
    """Records of Arrow arrays, numbered from 1."""
    number = 0
    for column in columns:
        for text in _values(column):
            number += 1
            if isinstance(text, UnicodeDecodeError):
                yield Record(number, None, not_utf8(text))
            else:
                yield Record(number, text)


def _values(column: Any) -> Iterable[object]:
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return map(_value, column)


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error
