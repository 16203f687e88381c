"""Tokenisation of documents to files: multithreaded and resumable.

Each split has one file of tokens, the concatenated documents, and one with the end offset of each
document. Text is encoded in units that do not depend on the number of threads, and written in
order, so the files do not depend on it either. A journal records the state on disk at intervals,
with checksums. A resumed process truncates the files to the last record, verifies them, and skips
the source up to there without encoding it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sddlm.data.packed import INDEX_DTYPE, token_dtype
from sddlm.data.sources import TextChunk
from sddlm.data.tokenizers import Tokenizer, one_thread_each
from sddlm.progress import bar

logger = logging.getLogger(__name__)

FORMAT = 2  # of the folder; count up when the same request would give other bytes
_UNIT = 1 << 18  # characters encoded at once
_NOTED = 2.0  # seconds between notes in the journal
_JOURNAL = "journal"

#: a piece of a document: which split, text, whether the document ends with it
Piece = tuple[str, str, bool]


@dataclass
class Written:
    """Counts of a split written so far."""

    tokens: int = 0
    documents: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Encoded:
    """Encoded text of one unit for one split.

    Attributes:
        ids: tokens.
        ends: end offsets of documents, relative to the first token.
        characters: number of characters encoded.
    """

    ids: npt.NDArray[Any]
    ends: npt.NDArray[Any]
    characters: int


def write_tokens(
    folder: Path,
    parts: Iterable[tuple[str, TextChunk]],
    tokenizer: Tokenizer,
    *,
    splits: Iterable[str],
    characters: int,
    eos: bool = True,
    workers: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Write ``NAME.bin`` and ``NAME.idx`` for each split, resuming from the journal.

    Args:
        folder: an empty one, or one that an earlier call with the same arguments did not finish.
        parts: chunks of documents, each with its split.
        tokenizer: the tokenizer.
        splits: names of the splits, also of empty ones.
        characters: total number of characters, for the bar.
        eos: append an end-of-text token to each document.
        workers: number of threads; None is one per core. Does not affect the result.

    Returns:
        ``tokens``, ``documents``, ``characters`` and ``sha256`` of each split.
    """
    names = list(splits)
    with ExitStack() as files:
        writer = _Writer(folder, names, tokenizer.vocab_size, files)
        show = files.enter_context(bar("making tokens", total=characters))
        units = _skip(_units(parts, tokenizer), writer.unit, show)
        for unit in _encoded(units, tokenizer, eos, workers or cores()):
            writer.write(unit)
            show(sum(part.characters for part in unit.values()))
        writer.note()
    (folder / _JOURNAL).unlink()
    return {
        name: asdict(writer.written[name]) | {"sha256": writer.files[name][0].sha256.hexdigest()}
        for name in names
    }


def cores() -> int:
    """Number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _units(parts: Iterable[tuple[str, TextChunk]], tokenizer: Tokenizer) -> Iterator[list[Piece]]:
    """Group pieces of documents into units of at least `_UNIT` characters."""
    unit: list[Piece] = []
    size = 0
    for side, part in _joined(parts, tokenizer):
        *head, last = tokenizer.pieces(part.text)
        for text, ends in [*((piece, False) for piece in head), (last, part.is_last)]:
            unit.append((side, text, ends))
            size += len(text)
            if size >= _UNIT:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def _joined(
    parts: Iterable[tuple[str, TextChunk]], tokenizer: Tokenizer
) -> Iterator[tuple[str, TextChunk]]:
    """Join chunks to documents if the tokenizer must see whole documents."""
    if tokenizer.local:
        yield from parts
        return
    texts: list[str] = []
    for side, part in parts:
        texts.append(part.text)
        if part.is_last:
            yield side, TextChunk("".join(texts))
            texts = []


def _skip(units: Iterator[list[Piece]], count: int, show: Any) -> Iterator[list[Piece]]:
    """Skip the first ``count`` units."""
    for number, unit in enumerate(units):
        if number < count:
            show(sum(len(text) for _, text, _ in unit))
        else:
            yield unit


def _encoded(
    units: Iterable[list[Piece]], tokenizer: Tokenizer, eos: bool, workers: int
) -> Iterator[dict[str, Encoded]]:
    """Encode units with threads, in order, a few units ahead."""
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[dict[str, Encoded]]] = deque()
    try:
        with one_thread_each():
            for unit in units:
                ahead.append(pool.submit(_encode, unit, tokenizer, eos))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(unit: list[Piece], tokenizer: Tokenizer, eos: bool) -> dict[str, Encoded]:
    ids: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    characters: dict[str, int] = {}
    encoded = tokenizer.encode_batch([text for _, text, _ in unit])
    for (side, text, end), piece in zip(unit, encoded, strict=True):
        mine = ids.setdefault(side, [])
        mine += piece
        characters[side] = characters.get(side, 0) + len(text)
        if end:
            if eos:
                mine.append(tokenizer.eos_id)
            ends.setdefault(side, []).append(len(mine))
    dtype = token_dtype(tokenizer.vocab_size)
    return {
        side: Encoded(
            np.array(mine, dtype), np.array(ends.get(side, []), np.int64), characters[side]
        )
        for side, mine in ids.items()
    }


class _Writer:
    """Writer of the files of all splits, and of the journal."""

    def __init__(self, folder: Path, splits: list[str], vocab_size: int, files: ExitStack) -> None:
        self.dtype = token_dtype(vocab_size)
        self.journal = folder / _JOURNAL
        self.unit, self.written, sums = _last_note(self.journal, splits)
        self.noted = time.monotonic()
        self.files = self._open(folder, files)
        if self.unit and self._sums() != sums:
            logger.warning("%s: what was done before is damaged and made anew", folder)
            self.unit, self.written = 0, {name: Written() for name in splits}
            self.files = self._open(folder, files)

    def _open(self, folder: Path, files: ExitStack) -> dict[str, tuple[_File, _File]]:
        return {
            name: (
                _File(folder / f"{name}.bin", done.tokens * self.dtype.itemsize, files),
                _File(folder / f"{name}.idx", done.documents * INDEX_DTYPE.itemsize, files),
            )
            for name, done in self.written.items()
        }

    def _sums(self) -> dict[str, list[str]]:
        return {n: [file.sha256.hexdigest() for file in pair] for n, pair in self.files.items()}

    def write(self, unit: dict[str, Encoded]) -> None:
        for name, part in unit.items():
            tokens, index = self.files[name]
            done = self.written[name]
            tokens.write(part.ids.tobytes())
            index.write((part.ends + done.tokens).astype(INDEX_DTYPE).tobytes())
            done.tokens += len(part.ids)
            done.documents += len(part.ends)
            done.characters += part.characters
        self.unit += 1
        if time.monotonic() - self.noted > _NOTED:
            self.note()

    def note(self) -> None:
        """Flush all files to disk, then record that in the journal."""
        for pair in self.files.values():
            for file in pair:
                file.bring_to_disk()
        splits = {name: asdict(done) for name, done in self.written.items()}
        note = {"size": _UNIT, "unit": self.unit, "splits": splits, "sha256": self._sums()}
        with self.journal.open("a", encoding="utf-8") as journal:
            journal.write(_line(json.dumps(note)))
            journal.flush()
            os.fsync(journal.fileno())
        self.noted = time.monotonic()


class _File:
    """File opened for appending after its first ``size`` bytes; the rest is truncated.

    Attributes:
        sha256: hash of the content.
    """

    def __init__(self, path: Path, size: int, files: ExitStack) -> None:
        path.touch()
        self.file = files.enter_context(path.open("r+b"))
        self.sha256 = hashlib.sha256()
        while chunk := self.file.read(min(size, 1 << 20)):
            self.sha256.update(chunk)
            size -= len(chunk)
        self.file.truncate(self.file.tell())

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.sha256.update(data)

    def bring_to_disk(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())


def _last_note(
    journal: Path, splits: list[str]
) -> tuple[int, dict[str, Written], dict[str, list[str]]]:
    """Read the last record: units done, counts of the splits, checksums of the files."""
    text = journal.read_text(encoding="utf-8", errors="replace") if journal.is_file() else ""
    for line in reversed(text.splitlines(keepends=True)):
        content = line.strip().partition(" ")[2]
        if line == _line(content):  # not cut short by a kill, nor damaged
            note = json.loads(content)
            if note["size"] != _UNIT:  # of a version with other units
                break
            written = {name: Written(**note["splits"][name]) for name in splits}
            return note["unit"], written, note["sha256"]
    return 0, {name: Written() for name in splits}, {}


def _line(note: str) -> str:
    """Format a line of the journal: a checksum and a record."""
    return f"{hashlib.sha256(note.encode()).hexdigest()} {note}\n"
