"""From documents to tokens in the cache: learning a vocabulary, and encoding with several threads.

Each split has one file of tokens, the concatenated documents, and one with the end offset of each
document. Text is encoded in units that do not depend on the number of threads, and written in
order, so the files do not depend on it either.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tokenizers as hf

from sddlm.data.cache import build_once, digest
from sddlm.data.config import DataArgs
from sddlm.data.documents import PROMPT_END
from sddlm.data.rows import INDEX_DTYPE, token_dtype
from sddlm.data.texts import DataSource
from sddlm.data.tokenizer import Tokenizer
from sddlm.progress import bar

logger = logging.getLogger(__name__)

_FORMAT = 2  # of the folders; count up when the same request would give other bytes
_LEARN = 10**8  # characters that a vocabulary is learnt from, at most
_UNIT = 1 << 18  # characters encoded at once


class Piece(NamedTuple):
    """A piece of a document or of its prompt, and whether that ends with it."""

    text: str
    is_prompt: bool
    is_last: bool


# ------------------------------------------------------------------ in the cache


def make_tokenizer(args: DataArgs, texts: list[DataSource]) -> Tokenizer:
    """Make the tokenizer of the options; a learnt one is cached."""
    pairs = args.prompt_field is not None
    if args.tokenizer == "characters":
        documents = (text for source in texts for _, text in source.documents())
        return Tokenizer.characters(part for text in documents for part in _parts(text, pairs))
    if args.tokenizer != "bpe":
        return Tokenizer.load(args.tokenizer)
    keys = [text.key for text in texts]
    key = digest("bpe", _FORMAT, hf.__version__, _LEARN, *keys, args.vocab_size)[:32]
    folder = args.cache_folder / f"tokenizer-{key}"
    with build_once(folder) as temporary:
        if temporary is None:
            return Tokenizer.load(folder)
        logger.info("learning a vocabulary of %d", args.vocab_size)
        sample = (part for text in _sample(texts) for part in _parts(text, pairs))
        tokenizer = Tokenizer.train_bpe(sample, args.vocab_size)
        tokenizer.save(temporary)
    if tokenizer.vocab_size < args.vocab_size:
        logger.warning(
            "the text gives no more than %d tokens of the %d asked for with `data.vocab_size`",
            tokenizer.vocab_size,
            args.vocab_size,
        )
    return tokenizer


def _parts(text: str, pairs: bool) -> list[str]:
    """Prompt and text of a pair; else the text."""
    return text.split(PROMPT_END) if pairs else [text]


def _sample(texts: list[DataSource]) -> Iterator[str]:
    """Iterate over an evenly spread share of the training text, with a progress bar."""
    total = sum(text.characters for text in texts)
    share = min(1.0, _LEARN / total)
    seen = taken = 0
    with bar("learning a vocabulary", total=total) as advance:
        for source in texts:
            for split, text in source.documents():
                advance(len(text))
                if split == "train" or "train" not in source.splits:
                    seen += len(text)
                    if taken < share * seen:
                        taken += len(text)
                        yield text


def make_tokens(args: DataArgs, text: DataSource, tokenizer: Tokenizer, verify: bool) -> Path:
    """Folder of the tokens of a text, in the cache; ``verify`` as for `build_once`."""
    parts = ["tokens", _FORMAT, hf.__version__, text.key, tokenizer.fingerprint, args.eos]
    key = digest(*parts, *(["pairs"] if args.prompt_field else []))[:32]
    folder = args.cache_folder / f"tokens-{key}"
    with build_once(folder, verify=verify) as temporary:
        if temporary is None:
            logger.info("prepared tokens reused from %s", folder)
            return folder
        with bar("making tokens", total=text.characters) as advance:
            splits = write_tokens(
                temporary,
                text.documents(),
                tokenizer,
                splits=text.splits,
                eos=args.eos,
                pairs=args.prompt_field is not None,
                workers=args.workers,
                advance=advance,
            )
        tokenizer.save(temporary)
        meta = {
            "format": _FORMAT,
            "key": key,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "name": text.name,
            "text": text.key,
            "limit": args.limit,
            "out": text.left_out,
            "splits": splits,
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    logger.info("prepared tokens written to %s", folder)
    return folder


# ------------------------------------------------------------------ encoding


def write_tokens(
    folder: Path,
    documents: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    *,
    splits: Iterable[str],
    eos: bool = True,
    pairs: bool = False,
    workers: int | None = None,
    advance: Any = lambda characters: None,
) -> dict[str, dict[str, Any]]:
    """Write ``NAME.bin`` and ``NAME.idx`` for each split; a prompt has an entry in the index too.

    Args:
        folder: an empty one.
        documents: split and text of each document.
        tokenizer: the tokenizer.
        splits: names of the splits, also of empty ones.
        eos: append an end-of-text token to each document.
        pairs: each document is a prompt and its text, with `PROMPT_END` between them.
        workers: number of threads; None is one per core. Does not affect the result.
        advance: called with numbers of characters for each unit written.

    Returns:
        ``tokens``, ``documents``, ``characters`` and ``sha256`` of each split; of pairs also
        ``prompt_tokens`` and ``prompt_characters``.
    """
    with ExitStack() as files:
        written = {name: _SplitFiles(folder, name, files) for name in splits}
        for encoded in _encoded(
            _units(documents, tokenizer, pairs), tokenizer, eos, workers or _cores()
        ):
            written[encoded.split].append(encoded)
            advance(encoded.counts["characters"])
    return {name: split.counts() for name, split in written.items()}


class Encoded(NamedTuple):
    """Encoded text of one unit.

    Attributes:
        split: name of its split.
        ids: tokens.
        ends: end offsets of documents and prompts, relative to the first token.
        counts: of tokens, characters, documents, and of those of prompts.
    """

    split: str
    ids: npt.NDArray[Any]
    ends: npt.NDArray[Any]
    counts: Counter[str]


class _SplitFiles:
    """Files of one split, and what was written to them."""

    def __init__(self, folder: Path, name: str, files: ExitStack) -> None:
        self.tokens: IO[bytes] = files.enter_context((folder / f"{name}.bin").open("xb"))
        self.index: IO[bytes] = files.enter_context((folder / f"{name}.idx").open("xb"))
        self.sha256 = hashlib.sha256()
        self.counted = Counter({"tokens": 0, "documents": 0, "characters": 0})

    def append(self, encoded: Encoded) -> None:
        data = encoded.ids.tobytes()
        self.tokens.write(data)
        self.sha256.update(data)
        self.index.write((encoded.ends + self.counted["tokens"]).astype(INDEX_DTYPE).tobytes())
        self.counted.update(encoded.counts)

    def counts(self) -> dict[str, Any]:
        return {**self.counted, "sha256": self.sha256.hexdigest()}


def _units(
    documents: Iterable[tuple[str, str]], tokenizer: Tokenizer, pairs: bool
) -> Iterator[tuple[str, list[Piece]]]:
    """Group pieces of the documents of a split into units of at least `_UNIT` characters."""
    units: dict[str, list[Piece]] = {}
    sizes: dict[str, int] = {}
    for split, text in documents:
        for piece in _pieces(_parts(text, pairs), tokenizer):
            units.setdefault(split, []).append(piece)
            sizes[split] = sizes.get(split, 0) + len(piece.text)
            if sizes[split] >= _UNIT:
                yield split, units.pop(split)
                sizes[split] = 0
    yield from units.items()


def _pieces(parts: list[str], tokenizer: Tokenizer) -> Iterator[Piece]:
    for number, text in enumerate(parts, start=1):
        left = len(text)
        for piece in tokenizer.pieces(text):
            left -= len(piece)
            yield Piece(piece, number < len(parts), not left)


def _encoded(
    units: Iterable[tuple[str, list[Piece]]], tokenizer: Tokenizer, eos: bool, workers: int
) -> Iterator[Encoded]:
    """Encode units with threads, in order, a few units ahead."""
    pool = ThreadPoolExecutor(workers)
    ahead: deque[Future[Encoded]] = deque()
    try:
        with _one_thread_each():
            for split, unit in units:
                ahead.append(pool.submit(_encode, split, unit, tokenizer, eos))
                if len(ahead) > workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _encode(split: str, unit: list[Piece], tokenizer: Tokenizer, eos: bool) -> Encoded:
    texts = [piece.text for piece in unit]
    ids: list[int] = []
    ends: list[int] = []
    counts: Counter[str] = Counter(characters=sum(map(len, texts)))
    for piece, tokens in zip(unit, tokenizer.encode_batch(texts), strict=True):
        ids += tokens
        if piece.is_prompt:
            counts.update(prompt_tokens=len(tokens), prompt_characters=len(piece.text))
        elif piece.is_last:
            ids += [tokenizer.eos_id] * eos
            counts["documents"] += 1
        if piece.is_last:
            ends.append(len(ids))
    counts["tokens"] = len(ids)
    dtype = token_dtype(tokenizer.vocab_size)
    return Encoded(split, np.array(ids, dtype), np.array(ends, np.int64), counts)


def _cores() -> int:
    """Number of cores available to this process."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Context in which each call of the library encodes on the thread of its caller."""
    before = os.environ["TOKENIZERS_PARALLELISM"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before
