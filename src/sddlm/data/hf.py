"""Everything that Hugging Face `datasets` reads: the hub, saved datasets, tables."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

from sddlm.data.cache import digest, state
from sddlm.data.documents import Document, no_field, to_document
from sddlm.data.readers import Input, first_record, require
from sddlm.data.sources import Source, is_saved, visible
from sddlm.errors import ConfigError, first_line

_ROWS = 256  # read at once
_REPAIR = "repair it, or get it again"


@dataclass
class HubDataset(Source):
    """Source from one column of one split; each row is a document.

    `datasets` downloads the dataset once into its cache (``HF_HOME``), and copies a local folder
    into the same cache. With ``streaming`` nothing is stored.

    Attributes:
        dataset: name on the hub, such as ``owner/name``; or a folder of Parquet, JSON lines, CSV
            or text files (of a text file, each line is a row), or one that ``save_to_disk`` wrote.
        config: which part of the dataset, where it has several.
        split: which split, or a slice of one (``train[:-1000]``), for which ``streaming`` must be
            off.
        field: column that holds the text.
        streaming: read while downloading.
        revision: branch, tag or commit of the repository.
        prompt_field: column that holds the prompt of the text; None if there is none.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    streaming: bool = False
    revision: str | None = None
    prompt_field: str | None = None

    @classmethod
    def of(
        cls, spec: str, *, field: str, streaming: bool, prompt_field: str | None = None
    ) -> HubDataset:
        """Open ``NAME``, ``NAME@REVISION``, ``NAME:CONFIG`` or ``NAME@REVISION:CONFIG``."""
        name, _, config = spec.partition(":")
        revision = ""
        if not Path(name).expanduser().exists():
            name, _, revision = name.partition("@")
        return cls(
            name, config or None, field=field, streaming=streaming, revision=revision or None,
            prompt_field=prompt_field,
        )  # fmt: skip

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigError(
                "`data.path` hf: names no dataset; use hf:OWNER/NAME, hf:OWNER/NAME@REVISION, "
                "hf:OWNER/NAME:CONFIG or hf:./FOLDER"
            )
        revision = f"@{self.revision}" if self.revision else ""
        config = f":{self.config}" if self.config else ""
        self.name = f"hf:{self.dataset}{revision}{config}, split {self.split}"
        self.once = self.streaming
        folder = Path(self.dataset).expanduser()
        self._folder = folder if folder.is_dir() else None

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        return _documents(lambda: self._opened, self.name, self._fields, self._advice)

    def signature(self) -> str | None:
        """See `Source.signature`; the fingerprint of `datasets`, None when streaming."""
        if self.streaming:
            return None
        found = digest("hub", self._opened._fingerprint, *self._fields)
        if self._folder is None:
            return found
        files = state(visible(self._folder))
        return files and digest(found, files)

    @property
    def _fields(self) -> list[str]:
        return [name for name in (self.prompt_field, self.field) if name is not None]

    @property
    def _advice(self) -> str:
        if self.streaming and "[" in self.split:
            return "a slice of a split cannot be streamed: leave out `data.streaming`"
        return "check the name, the split and the network, or give files: `data.path='FILE'`"

    @cached_property
    def _opened(self) -> Any:
        """The dataset, opened once."""
        require("datasets", self.name)
        with _one_line_errors(self.name, self._advice):
            return self._open()

    def _open(self) -> Any:
        from datasets import config, load_dataset, load_dataset_builder

        options: dict[str, Any] = {"split": self.split, "streaming": self.streaming}
        if self._folder is None:
            name, options["revision"] = self.dataset, self.revision
        elif is_saved(self._folder):
            return _saved(self._folder, self.split, self.streaming)
        else:
            # `datasets` identifies a folder by its name, even after its files have changed, if a
            # README.md lists the files
            key = state(visible(self._folder)) or digest(time.time_ns())
            options["cache_dir"] = Path(config.HF_DATASETS_CACHE, "folders", key[:16])
            name = str(self._folder)
        found = load_dataset(name, self.config, **options)
        if self.streaming and {*self._fields} <= {*_columns(found)}:  # Parquet leaves out others
            builder = load_dataset_builder(name, self.config, revision=self.revision)
            if hasattr(builder.config, "columns"):
                return load_dataset(name, self.config, columns=self._fields, **options)
        return found


def _saved(folder: Path, split: str, streaming: bool) -> Any:
    """Open a saved dataset; ``split`` of one that was saved without splits is all of it."""
    from datasets import DatasetDict, load_from_disk

    found = load_from_disk(str(folder))
    if isinstance(found, DatasetDict):
        if split not in found:
            raise ConfigError(f"{folder} has no split {split!r}; there are: {', '.join(found)}")
        found = found[split]
    return found.to_iterable_dataset() if streaming else found


def table(file: Input, fields: list[str]) -> Iterator[Document]:
    """Read a CSV, TSV, Parquet or Arrow file, of which each row is a document.

    It is streamed, so nothing is copied to the cache of `datasets`.

    Args:
        file: its path and format.
        fields: column of the text; of pairs those of prompt and response.
    """

    def opened() -> Any:
        require("datasets", file.name)
        with _one_line_errors(file.name, _REPAIR):
            if file.suffix in (".csv", ".tsv"):
                return _csv(file, fields)
            kind = file.suffix.removeprefix(".")
            found = _stream(kind, file.name)
            if kind == "parquet" and {*fields} <= {*_columns(found)}:
                return _stream(kind, file.name, columns=fields)
            return found

    return _documents(opened, file.name, fields, _REPAIR)


def _csv(file: Input, fields: list[str]) -> Any:
    """Columns as text: pandas infers types block by block, and takes "NA" as missing."""
    from datasets import Features, Value

    sep = "\t" if file.suffix == ".tsv" else ","
    names = first_record(file, sep)
    _check_fields(fields, names, file.name)  # `datasets` leaves a file open that is not read on
    text = Features({field: Value("string") for field in fields})
    return _stream("csv", file.name, sep=sep, features=text, keep_default_na=False)


def _stream(kind: str, path: str, **options: Any) -> Any:
    from datasets import load_dataset

    return load_dataset(kind, data_files=[path], split="train", streaming=True, **options)


def _columns(dataset: Any) -> list[str]:
    """Names of the columns; a stream of JSON or CSV has no schema before its first rows."""
    return list(dataset.column_names or next(iter(dataset), {}))


def _check_fields(fields: list[str], names: list[str], name: str) -> None:
    for field in fields:
        if field not in names:
            raise ConfigError(f"{name}: {no_field(field, names)}")


def _documents(
    opened: Callable[[], Any], name: str, fields: list[str], advice: str
) -> Iterator[Document]:
    """Documents of one column, or of two, a few rows at a time."""
    dataset = opened()
    with _one_line_errors(name, advice):
        _check_fields(fields, _columns(dataset), name)
        rows = dataset.select_columns(fields).with_format("arrow").iter(batch_size=_ROWS)
    numbers = count(1)
    while True:
        with _one_line_errors(name, advice):
            batch = next(rows, None)
        if batch is None:
            return
        columns = (_values(batch.column(field)) for field in fields)
        for values in zip(*columns, strict=True):
            yield to_document(values, fields, name, "row", next(numbers))


def _values(column: Any) -> Iterable[object]:
    """Values of an Arrow array; one that is no UTF-8 is the error."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return map(_value, column)


def _value(scalar: Any) -> object:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return error


@contextmanager
def _one_line_errors(name: str, advice: str) -> Iterator[None]:
    """Convert errors of `datasets`, which raises many kinds, to one line.

    Its own report of them, and its progress bars except on a terminal, are hidden.
    """
    import datasets

    log, hide = logging.getLogger("datasets"), not sys.stderr.isatty()
    level, hide = log.level, hide and not datasets.are_progress_bars_disabled()
    log.setLevel(logging.CRITICAL)
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        cause = error.__cause__
        reason = first_line(error).rstrip(".") + (f" ({first_line(cause)})" if cause else "")
        raise ConfigError(f"{name} cannot be read: {reason}; {advice}") from error
    finally:
        log.setLevel(level)
        if hide:
            datasets.enable_progress_bars()
