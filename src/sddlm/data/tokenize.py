"""Tokenisation of documents to files, with several threads.

Each split has one file of tokens, the concatenated documents, and one with the end offset of each
document. Text is encoded in units that do not depend on the number of threads, and written in
order, so the files do not depend on it either.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sddlm.data.rows import INDEX_DTYPE, token_dtype
from sddlm.data.tokenizer import Tokenizer
from sddlm.progress import bar

FORMAT = 2  # of the folder; count up when the same request would give other bytes
_UNIT = 1 << 18  # characters encoded at once


class Piece(NamedTuple):
    """A piece of a document, which ends with it where ``is_last``."""

    split: str
    text: str
    is_last: bool


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
    documents: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    splits: Iterable[str],
    characters: int,
    eos: bool = True,
    workers: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Write ``NAME.bin`` and ``NAME.idx`` for each split.

    Args:
        folder: an empty one.
        documents: split and text of each document.
        tokenizer: the tokenizer.
        splits: names of the splits, also of empty ones.
        characters: total number of characters, for the bar.
        eos: append an end-of-text token to each document.
        workers: number of threads; None is one per core. Does not affect the result.

    Returns:
        ``tokens``, ``documents``, ``characters`` and ``sha256`` of each split.
    """
    with ExitStack() as files:
        written = {name: _SplitFiles(folder, name, files) for name in splits}
        show = files.enter_context(bar("making tokens", total=characters))
        units = _units(documents, tokenizer)
        for unit in _encoded(units, tokenizer, eos, workers or cores()):
            for name, encoded in unit.items():
                written[name].append(encoded)
                show(encoded.characters)
    return {name: split.counts() for name, split in written.items()}


def cores() -> int:
    """Number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _SplitFiles:
    """Files of one split, and what was written to them."""

    def __init__(self, folder: Path, name: str, files: ExitStack) -> None:
        self.tokens: IO[bytes] = files.enter_context((folder / f"{name}.bin").open("xb"))
        self.index: IO[bytes] = files.enter_context((folder / f"{name}.idx").open("xb"))
        self.sha256 = hashlib.sha256()
        self.counted = {"tokens": 0, "documents": 0, "characters": 0}

    def append(self, encoded: Encoded) -> None:
        data = encoded.ids.tobytes()
        self.tokens.write(data)
        self.sha256.update(data)
        self.index.write((encoded.ends + self.counted["tokens"]).astype(INDEX_DTYPE).tobytes())
        self.counted["tokens"] += len(encoded.ids)
        self.counted["documents"] += len(encoded.ends)
        self.counted["characters"] += encoded.characters

    def counts(self) -> dict[str, Any]:
        return {**self.counted, "sha256": self.sha256.hexdigest()}


def _units(documents: Iterable[tuple[str, str]], tokenizer: Tokenizer) -> Iterator[list[Piece]]:
    """Group pieces of documents into units of at least `_UNIT` characters."""
    unit: list[Piece] = []
    size = 0
    for split, text in documents:
        left = len(text)
        for piece in tokenizer.pieces(text):
            left -= len(piece)
            unit.append(Piece(split, piece, is_last=not left))
            size += len(piece)
            if size >= _UNIT:
                yield unit
                unit, size = [], 0
    if unit:
        yield unit


def _encoded(
    units: Iterable[list[Piece]], tokenizer: Tokenizer, eos: bool, workers: int
) -> Iterator[dict[str, Encoded]]:
    """Encode units with threads, in order, a few units ahead."""
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[dict[str, Encoded]]] = deque()
    try:
        with _one_thread_each():
            for unit in units:
                ahead.append(pool.submit(_encode, unit, tokenizer, eos))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Context in which each call of the library encodes on the thread of its caller."""
    before = os.environ["TOKENIZERS_PARALLELISM"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before


def _encode(unit: list[Piece], tokenizer: Tokenizer, eos: bool) -> dict[str, Encoded]:
    ids: dict[str, list[int]] = {}
    ends: dict[str, list[int]] = {}
    characters: dict[str, int] = {}
    encoded = tokenizer.encode_batch([piece.text for piece in unit])
    for piece, tokens in zip(unit, encoded, strict=True):
        mine = ids.setdefault(piece.split, [])
        mine += tokens
        characters[piece.split] = characters.get(piece.split, 0) + len(piece.text)
        if piece.is_last:
            if eos:
                mine.append(tokenizer.eos_id)
            ends.setdefault(piece.split, []).append(len(mine))
    dtype = token_dtype(tokenizer.vocab_size)
    return {
        split: Encoded(
            np.array(mine, dtype), np.array(ends.get(split, []), np.int64), characters[split]
        )
        for split, mine in ids.items()
    }
