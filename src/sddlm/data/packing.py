"""From documents to files of tokens, with threads, and from where a killed process stopped.

For each split there is one file of tokens, documents one behind the other, and one with the place
behind each document's last token, so that documents can be found again. Text is encoded in units
that do not depend on the number of threads, and written in their order, so neither do the files.
What is on disk is noted in a journal now and then, with checksums; who goes on cuts the files back
to the last note, compares them, and reads the source up to there without encoding it.
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
from sddlm.data.sources import Part
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
    """What has been written of a split."""

    tokens: int = 0
    documents: int = 0
    characters: int = 0


@dataclass(frozen=True)
class Encoded:
    """A unit's part of a split.

    Attributes:
        ids: its tokens.
        ends: behind which of them a document ends, counted from the beginning of the part.
        characters: that became these tokens.
    """

    ids: npt.NDArray[Any]
    ends: npt.NDArray[Any]
    characters: int


def write_tokens(
    folder: Path,
    parts: Iterable[tuple[str, Part]],
    tokenizer: Tokenizer,
    *,
    splits: Iterable[str],
    characters: int,
    eos: bool = True,
    workers: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Write ``NAME.bin`` and ``NAME.idx`` for each split, or go on where the journal ends.

    Args:
        folder: an empty one, or one that an earlier call with the same arguments did not finish.
        parts: of the documents, and the split that each is for.
        tokenizer: what makes the tokens.
        splits: their names, also of those that no document is for.
        characters: how many there are, for the bar.
        eos: put the end of text behind each document.
        workers: threads; None: one a core. They change nothing but the time.

    Returns:
        of each split ``tokens``, ``documents``, ``characters`` and ``sha256``.
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
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _units(parts: Iterable[tuple[str, Part]], tokenizer: Tokenizer) -> Iterator[list[Piece]]:
    """Pieces of documents, so many at a time that their text has `_UNIT` characters or more."""
    unit: list[Piece] = []
    size = 0
    for side, part in _joined(parts, tokenizer):
        *head, last = tokenizer.pieces(part.text)
        for text, ends in [*((piece, False) for piece in head), (last, part.ends)]:
            unit.append((side, text, ends))
            size += len(text)
            if size >= _UNIT:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def _joined(parts: Iterable[tuple[str, Part]], tokenizer: Tokenizer) -> Iterator[tuple[str, Part]]:
    """Whole documents where the tokenizer does not give pieces the ids of the whole."""
    if tokenizer.local:
        yield from parts
        return
    texts: list[str] = []
    for side, part in parts:
        texts.append(part.text)
        if part.ends:
            yield side, Part("".join(texts))
            texts = []


def _skip(units: Iterator[list[Piece]], count: int, show: Any) -> Iterator[list[Piece]]:
    """The units behind the first ``count``."""
    for number, unit in enumerate(units):
        if number < count:
            show(sum(len(text) for _, text, _ in unit))
        else:
            yield unit


def _encoded(
    units: Iterable[list[Piece]], tokenizer: Tokenizer, eos: bool, workers: int
) -> Iterator[dict[str, Encoded]]:
    """Each unit's tokens, in order; some units are ahead of the one that is asked for."""
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
    """The files of all splits, and the journal."""

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
        """Bring everything to disk, then say so."""
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
    """A file to write behind its first ``size`` bytes; the rest is cut off.

    Attributes:
        sha256: of the whole content.
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
    """Units done, what was written by then, and the checksums of the files."""
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
    """A line of the journal: a note behind its checksum."""
    return f"{hashlib.sha256(note.encode()).hexdigest()} {note}\n"
