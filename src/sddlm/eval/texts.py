"""The texts that an evaluation reads: held-out rows and the training text."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sddlm.data.config import DataArgs, trained_on
from sddlm.data.prepare import Prepared, load_prepared, prepare
from sddlm.data.rows import Rows
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.ngram import NGram
from sddlm.jobs import digest
from sddlm.lm import LanguageModel
from sddlm.types import before_padding, unpadded

logger = logging.getLogger(__name__)

#: stands for the end of a document where an n-gram model reads, so that it pays for it too
END = "\x03"
#: most characters that the n-gram models learn from (a second a million, 0.3 GB a million)
MOST_CHARACTERS = 5_000_000

_CHUNK_ROWS = 256
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


@dataclass(frozen=True)
class HeldOut:
    """Rows that are scored, and the text behind exactly these rows.

    Attributes:
        tokens: ``[n, L]`` int64.
        texts: each row decoded, documents joined by `END`.
        source: description of the text.
        lengths: tokens before the padding of each row ``[n]`` int64; None where there is none.
        prompts: tokens of the prompt that each row begins with, in no text ``[n]`` int64; None
            where there is none.
        ends: rows begin with the beginning of text, which stands for no characters.
    """

    tokens: Tensor
    texts: list[str]
    source: str
    lengths: Tensor | None = None
    ends: bool = False
    prompts: Tensor | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the rows."""
        shapes = [x.tolist() for x in (self.lengths, self.prompts) if x is not None]
        return digest(self.tokens, *(shapes or [[]]))

    @property
    def characters(self) -> int:
        """Characters of text, ends of documents not counted."""
        return sum(len(text) - text.count(END) for text in self.texts)

    @property
    def characters_per_token(self) -> float:
        """Characters behind one token, on average over these rows."""
        tokens = self.tokens.numel() if self.lengths is None else int(self.lengths.sum())
        return self.characters / (tokens - (0 if self.prompts is None else int(self.prompts.sum())))

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Baselines:
    """n-gram models of the training text on the scored text.

    Attributes:
        bpc: bits per character by model.
        learnt_from: characters of training text.
        characters: of the scored text.
    """

    bpc: dict[str, float]
    learnt_from: int
    characters: int

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.bpc.items())


@dataclass(frozen=True)
class TrainingText:
    """The text that the model was trained on, for the baselines; read when first needed.

    Attributes:
        rows: packed training rows.
        tokenizer: decodes them.
        fingerprint: hash of the tokens.
    """

    rows: Rows
    tokenizer: Tokenizer
    fingerprint: str

    @cached_property
    def texts(self) -> list[str]:
        """About the first `MOST_CHARACTERS`, in long pieces."""
        found: list[str] = []
        read = start = 0
        while start < len(self.rows) and read < MOST_CHARACTERS:
            chosen = np.arange(start, min(start + _CHUNK_ROWS, len(self.rows)))
            real = before_padding(self.rows.lengths(chosen), self.rows.length)
            found.append(with_ends(self.tokenizer, self.rows.read(chosen)[real].tolist()))
            read, start = read + len(found[-1]), start + _CHUNK_ROWS
        return found

    @property
    def characters(self) -> int:
        """Number of characters of `texts`."""
        return sum(map(len, self.texts))

    @cached_property
    def words(self) -> set[str]:
        """Every word in them."""
        return {word for text in self.texts for word in words(text)}

    @cached_property
    def _ngrams(self) -> dict[int, NGram]:
        return {}

    def ngram(self, order: int) -> NGram:
        """A character n-gram model of them."""
        if order not in self._ngrams:
            self._ngrams[order] = NGram(order).fit(self.texts)
        return self._ngrams[order]

    def baselines(self, text: HeldOut) -> Baselines:
        """Score each row by itself, as the model does.

        Ends of documents are scored, and not counted as characters, as for the model.
        """
        bpc = {
            name: float(self.ngram(n).nats(text.texts).sum()) / math.log(2) / text.characters
            for name, n in (("unigram", 1), ("5-gram", 5))
        }
        return Baselines(bpc, self.characters, text.characters)


def words(text: str) -> list[str]:
    """The words of a text, lower case: runs of letters, apostrophes inside."""
    return _WORD.findall(text.lower())


def with_ends(tokenizer: Tokenizer, ids: list[int]) -> str:
    """The text of ``ids`` with `END` where a document ends."""
    parts: list[list[int]] = [[]]
    for i in ids:
        if i == tokenizer.eos_id:
            parts.append([])
        else:
            parts[-1].append(i)
    return END.join(tokenizer.decode_batch(parts))


def held_out(
    place: Path | None, lm: LanguageModel, data: DataArgs | None, rows: int | None
) -> tuple[HeldOut, TrainingText | None]:
    """The rows to score, and the training text where it is still there.

    Args:
        place: the run or model directory that ``lm`` came from; None if unknown.
        lm: the model; its own tokenizer and length are used.
        data: a text to score as a whole, in rows as those the model was trained on; None for the
            held-out part of what it was trained on, and so is naming that text itself: its training
            part would be no test.
        rows: number of rows, spread evenly; None for all.

    Raises:
        ConfigError: neither a text nor a record of the training data.
    """
    own = None if place is None else trained_on(place)
    if own is not None and data is not None and (not data.named or same_text(own, data)):
        own, data = replace(own, cache=data.cache or own.cache), None
    training = prepared = None
    if own is not None:
        own = replace(own, length=lm.network.length)
        prepared = load_prepared(own, lm.data, lm.tokenizer)
        if prepared is None and (data is None or _readable(own)):
            prepared = prepare(own, lm.tokenizer)
    if prepared is not None:
        if not _same_tokens(prepared.meta, lm.data):
            logger.warning(
                "%s is not what the model was trained on any more: its held-out part may hold "
                "text that was trained on",
                prepared.meta["source"],
            )
        if prepared.train is not None:
            fingerprint = digest(prepared.meta["splits"])
            training = TrainingText(prepared.train, lm.tokenizer, fingerprint)
    if data is not None:
        return other_text(lm, data, rows), training
    if prepared is None:
        raise ConfigError(
            f"{place or 'a loaded model'} does not state what it was trained on (no config.yaml of "
            "a run); give a text to evaluate on: `data.path`"
        )
    return _chosen(prepared, lm.tokenizer, rows), training


def other_text(
    lm: LanguageModel,
    data: DataArgs,
    rows: int | None,
    *,
    split: Literal["all", "validation"] = "all",
    **packing: Any,
) -> HeldOut:
    """Rows of another text.

    Args:
        lm: the model; its own tokenizer and length are used.
        data: the text.
        rows: number of rows, spread evenly; None for all.
        split: ``all`` is the text as a whole, or a corpus' scored split; ``validation`` is what
            training on it would hold out.
        packing: options of `DataArgs` that are to differ from how the model's rows were made.
    """
    as_trained = dict(lm.data.get("packing", {}))
    data = replace(data, length=lm.network.length, **(as_trained | packing))
    return _chosen(prepare(data, lm.tokenizer, split=split), lm.tokenizer, rows)


def _chosen(prepared: Prepared, tokenizer: Tokenizer, rows: int | None) -> HeldOut:
    """The rows to score of a prepared text."""
    held = prepared.validation
    chosen = held.subsample(rows)
    tokens, lengths = held.read(chosen), held.lengths(chosen)  # [n, L], [n]
    prompts = held.prompts(chosen)  # [n]
    rows_of_text = zip(unpadded(tokens, lengths), prompts.tolist(), strict=True)
    texts = [with_ends(tokenizer, row[start:].tolist()) for row, start in rows_of_text]
    if held.paired:  # one end of text, behind which the row is filled with more
        texts = [text.partition(END)[0] + END * (END in text) for text in texts]
    bos = bool(prepared.meta["packing"]["bos_eos"])
    source = str(prepared.meta["source"])
    padded = lengths if held.padded else None
    return HeldOut(tokens, texts, source, padded, bos, prompts if held.paired else None)


def _same_tokens(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether two records of prepared text are of the same tokens, as far as they state it.

    Keys depend on the version of this package; hashes of the files identify the tokens of an older
    one.
    """
    if then.get("key", now["key"]) == now["key"]:
        return True
    found, known = (
        {name: split.get("sha256") for name, split in meta.get("splits", {}).items()}
        for meta in (now, then)
    )
    return found == known and None not in found.values()


def same_text(a: DataArgs, b: DataArgs) -> bool:
    """Whether both name one text."""
    if a.path is None or b.path is None:
        return a.path is b.path and a.sources == b.sources
    return Path(a.path).resolve() == Path(b.path).resolve()


def _readable(own: DataArgs) -> bool:
    """Whether the training text can still be there (what is no plain file is tried)."""
    path = own.path
    return path is None or path.startswith("hf:") or "*" in path or Path(path).exists()
