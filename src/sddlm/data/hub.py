"""Datasets of the Hugging Face hub, or local folders with the same layout."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field as attribute
from pathlib import Path
from typing import Any

from sddlm.data.parquet_files import column_records
from sddlm.data.paths import digest, state, visible
from sddlm.data.pieces import TextChunk
from sddlm.data.records import as_parts, no_field, one_line
from sddlm.data.sources import Source, require_any
from sddlm.data.streams import require
from sddlm.errors import ConfigError

_ROWS = 256  # read at once


@dataclass
class HubDataset(Source):
    """Source from one column of one split; each row is a document.

    `datasets` downloads the dataset once into its cache (``HF_HOME``), and copies a local folder
    into the same cache. With ``streaming`` nothing is stored.

    Attributes:
        dataset: name on the hub, such as ``owner/name``, or a folder of Parquet, JSON lines, CSV
            or text files (of a text file, each line is a row).
        config: which part of the data set, where it has several.
        split: which split, or a slice of one (``train[:-1000]``), for which ``streaming`` must be
            off.
        field: column that holds the text.
        streaming: read while downloading.
        revision: branch, tag or commit of the repository.
    """

    dataset: str
    config: str | None = None
    split: str = "train"
    field: str = "text"
    streaming: bool = False
    revision: str | None = None
    _opened: Any = attribute(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigError(
                "`data.path` hf: names no data set; use hf:OWNER/NAME, hf:OWNER/NAME:CONFIG or "
                "hf:./FOLDER"
            )
        config = f":{self.config}" if self.config else ""
        self.name = f"hf:{self.dataset}{config}, split {self.split}"
        self.once = self.streaming

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`."""
        records = column_records(self._columns())
        return require_any(as_parts(records, self.name, "row", self.field), self.name)

    def signature(self) -> str | None:
        """See `Source.signature`; the fingerprint of `datasets`, None when streaming."""
        if self.streaming:
            return None
        told = digest("hub", self._dataset()._fingerprint, self.field)
        if self._folder is None:
            return told
        here = state(visible(self._folder))
        return here and digest(told, here)

    @property
    def _folder(self) -> Path | None:
        folder = Path(self.dataset).expanduser()
        return folder if folder.is_dir() else None

    def _columns(self) -> Iterator[Any]:
        """Iterate over the column, a few rows at a time."""
        table = self._dataset().select_columns([self.field]).with_format("arrow")
        rows = table.iter(batch_size=_ROWS)
        while True:
            with self._one_line_errors():
                found = next(rows, None)
            if found is None:
                return
            yield found.column(0)

    def _dataset(self) -> Any:
        """The dataset, opened once."""
        if self._opened is None:
            require("datasets", self.name)
            with self._one_line_errors(), _quiet():
                self._opened = self._open()
        return self._opened

    def _open(self) -> Any:
        from datasets import config, load_dataset, load_dataset_builder

        name = self.dataset if self._folder is None else str(self._folder)
        options: dict[str, Any] = {"split": self.split, "streaming": self.streaming}
        options["revision"] = self.revision
        if self._folder is not None:
            # `datasets` identifies a folder by its name, even after its files have changed, if a
            # README.md lists the files
            key = state(visible(self._folder)) or digest(time.time_ns())
            options["cache_dir"] = Path(config.HF_DATASETS_CACHE, "folders", key[:16])
        found = load_dataset(name, self.config, **options)
        there = found.column_names
        if there is None:  # a stream of JSON or CSV has no schema before its first rows
            there = list(next(iter(found), {}))
        if self.field not in there:
            raise ConfigError(f"{self.name}: {no_field(self.field, there)}")
        if self.streaming:  # Parquet can leave the other columns where they are
            builder = load_dataset_builder(name, self.config, revision=self.revision)
            if hasattr(builder.config, "columns"):
                return load_dataset(name, self.config, columns=[self.field], **options)
        return found

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Convert errors of `datasets`, which raises many kinds, to one line."""
        try:
            yield
        except ConfigError:
            raise
        except Exception as error:
            cause = error.__cause__
            reason = one_line(error).rstrip(".") + (f" ({one_line(cause)})" if cause else "")
            advice = "check the name, the split and the network, or give files: `data.path='FILE'`"
            if self.streaming and "[" in self.split:
                advice = "a slice of a split cannot be streamed: leave out `data.streaming`"
            raise ConfigError(f"{self.name} cannot be read: {reason}; {advice}") from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars of `datasets` except on a terminal."""
    import datasets

    hide = not sys.stderr.isatty() and not datasets.are_progress_bars_disabled()
    if hide:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            datasets.enable_progress_bars()
