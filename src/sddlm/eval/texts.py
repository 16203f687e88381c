"""The texts that an evaluation reads: held-out rows, the training text, samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sddlm.data.args import DataArgs, trained_on
from sddlm.data.packed import Rows
from sddlm.data.prepare import Prepared, load_prepared, prepare
from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.diversity import words
from sddlm.eval.ngram import NGram
from sddlm.lm import LanguageModel
from sddlm.types import before_padding
from sddlm.work import digest

logger = logging.getLogger(__name__)

#: stands for the end of a document where an n-gram model reads, so that it pays for it too
END = "\x03"
#: most characters that the n-gram models learn from (a second a million, 0.3 GB a million)
MOST_CHARACTERS = 5_000_000

_CHUNK_ROWS = 256


@dataclass(frozen=True)
class HeldOut:
    """Rows that are scored, and the text behind exactly these rows.

    Attributes:
        tokens: ``[n, L]`` int64.
        texts: each row decoded, documents joined by `END`.
        source: what they come from.
        lengths: tokens before the padding of each row ``[n]`` int64; None where there is none.
        ends: rows begin with the beginning of text, which stands for no characters.
    """

    tokens: Tensor
    texts: list[str]
    source: str
    lengths: Tensor | None = None
    ends: bool = False

    @property
    def characters(self) -> int:
        """Characters of text, ends of documents not counted."""
        return sum(len(text) - text.count(END) for text in self.texts)

    @property
    def characters_per_token(self) -> float:
        """Characters behind one token, on average over these rows."""
        tokens = self.tokens.numel() if self.lengths is None else int(self.lengths.sum())
        return self.characters / tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> Tensor:
        return self.tokens[index]


@dataclass
class TrainingText:
    """The text that the model was trained on, for the baselines; learnt from when first asked.

    Attributes:
        rows: packed training rows.
        tokenizer: decodes them.
        fingerprint: hash of the tokens.
    """

    rows: Rows
    tokenizer: Tokenizer
    fingerprint: str
    _texts: list[str] = field(default_factory=list, init=False, repr=False)
    _models: dict[int, NGram] = field(default_factory=dict, init=False, repr=False)
    _words: set[str] = field(default_factory=set, init=False, repr=False)

    @property
    def texts(self) -> list[str]:
        """The first `MOST_CHARACTERS` or so, in long pieces."""
        if not self._texts:
            self._texts = list(self._pieces())
        return self._texts

    @property
    def characters(self) -> int:
        """How much was learnt from."""
        return sum(map(len, self.texts))

    @property
    def words(self) -> set[str]:
        """Every word in it."""
        if not self._words:
            self._words = {word for text in self.texts for word in words(text)}
        return self._words

    def ngram(self, order: int) -> NGram:
        """A character n-gram model of it."""
        if order not in self._models:
            self._models[order] = NGram(order).fit(self.texts)
        return self._models[order]

    def _pieces(self) -> Iterator[str]:
        read = 0
        for start in range(0, len(self.rows), _CHUNK_ROWS):
            stop = min(start + _CHUNK_ROWS, len(self.rows))
            chosen = np.arange(start, stop)
            real = before_padding(self.rows.lengths(chosen), self.rows.length)
            text = with_ends(self.tokenizer, self.rows.read(chosen)[real].tolist())
            yield text
            read += len(text)
            if read >= MOST_CHARACTERS:
                return


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
    place: Path, loaded: LanguageModel, data: DataArgs | None, rows: int | None
) -> tuple[HeldOut, TrainingText | None]:
    """The rows to score, and the training text where it can be had.

    Args:
        place: the run or model directory that ``loaded`` came from.
        loaded: the model; its own tokenizer and length are used.
        data: a text to score as a whole, in rows as those the model was trained on; None for the
            held-out part of what it was trained on, and so is naming that text itself: its training
            part would be no test.
        rows: so many rows, spread evenly; None for all.

    Raises:
        ConfigError: neither a text nor a record of the training data.
    """
    own, length, tokenizer = trained_on(place), loaded.network.length, loaded.tokenizer
    if own is not None and data is not None and (not data.named or same_text(own, data)):
        own, data = replace(own, cache=data.cache or own.cache), None
    training = None
    prepared = None
    if own is not None:
        own = replace(own, length=length)
        prepared = load_prepared(own, loaded.data, tokenizer)
        if prepared is None and (data is None or _readable(own)):
            prepared = prepare(own, tokenizer)
    if prepared is not None:
        if not _same_tokens(prepared.meta, loaded.data):
            logger.warning(
                "%s is not what the model was trained on any more: its held-out part may hold "
                "text that was trained on",
                prepared.meta["source"],
            )
        if prepared.train is not None:
            training = TrainingText(prepared.train, tokenizer, digest(prepared.meta["splits"]))
    if data is not None:
        return other_text(loaded, data, rows), training
    if prepared is None:
        raise ConfigError(
            f"{place} does not say what the model was trained on (no config.yaml of a run); give "
            "a text to evaluate on: --data.path FILE"
        )
    return _chosen(prepared, tokenizer, rows), training


def other_text(loaded: LanguageModel, data: DataArgs, rows: int | None, **packing: Any) -> HeldOut:
    """Rows of a text as a whole, or of a corpus' scored split.

    Args:
        loaded: the model; its own tokenizer and length are used.
        data: the text.
        rows: so many rows, spread evenly; None for all.
        packing: options of `DataArgs` that are to differ from how the model's rows were made.
    """
    as_trained = dict(loaded.data.get("packing", {}))
    data = replace(data, length=loaded.network.length, **(as_trained | packing))
    return _chosen(prepare(data, loaded.tokenizer, split="all"), loaded.tokenizer, rows)


def held_out_alone(loaded: LanguageModel, data: DataArgs, rows: int | None) -> HeldOut:
    """Rows of the held-out part of a text alone; the arguments are those of `other_text`."""
    as_trained = dict(loaded.data.get("packing", {}))
    data = replace(data, length=loaded.network.length, **as_trained)
    prepared = prepare(data, loaded.tokenizer, split="validation")
    return _chosen(prepared, loaded.tokenizer, rows)


def _chosen(prepared: Prepared, tokenizer: Tokenizer, rows: int | None) -> HeldOut:
    """The rows to score of a prepared text."""
    chosen = prepared.validation.subsample(rows)
    tokens = prepared.validation.read(chosen)  # [n, L]
    lengths = prepared.validation.lengths(chosen)  # [n]
    texts = [
        with_ends(tokenizer, row[:n])
        for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)
    ]
    padded = lengths if prepared.validation.padded else None
    ends = bool(prepared.meta["packing"]["bos_eos"])
    return HeldOut(tokens, texts, str(prepared.meta["source"]), padded, ends)


def _same_tokens(now: dict[str, Any], then: dict[str, Any]) -> bool:
    """Whether two records of prepared text are of the same tokens, as far as they tell.

    Keys are of a version of this package; the sums of the files show that one of an older version
    means the same.
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


@dataclass(frozen=True)
class SampleSet:
    """Samples with their text and where they come from.

    Attributes:
        rows: the tokens of each ``[l]`` int64.
        texts: decoded, special tokens left out.
        origin: facts for the report (sampler, steps, nfe, seconds; or the file).
    """

    rows: list[Tensor]
    texts: list[str]
    origin: dict[str, Any]


def read_samples(path: str | Path, tokenizer: Tokenizer) -> SampleSet:
    """Samples from JSON lines with ``text`` and, best, ``tokens``.

    Where one is without tokens, all texts are encoded again and cut to the shortest.

    Raises:
        ConfigError: no such file, or a line that is no sample.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"--samples {path} cannot be read: {error.strerror}") from error
    texts, rows = [], []
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            texts.append(str(sample["text"]))
            rows.append(sample.get("tokens"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'--samples {path}, line {number} is no sample such as {{"text": "..."}}'
            ) from error
    if not texts:
        raise ConfigError(f"--samples {path} is empty")
    again = any(row is None for row in rows)
    if again:
        rows = tokenizer.encode_batch(texts)
        rows = [row[: min(map(len, rows))] for row in rows]
    if not all(rows):
        raise ConfigError(f"--samples {path} has a sample without a token")
    origin = {"file": str(path)} | ({"tokens": "encoded again"} if again else {})
    return SampleSet([torch.tensor(row) for row in rows], texts, origin)
