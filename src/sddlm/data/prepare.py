"""From text to packed tokens: split, tokenizer, cache.

Two caches lie in one folder. A trained tokenizer is known by the texts and the request it came
from; packed tokens are known by the texts, the split and the tokenizer's *fingerprint*. So a run
and a later evaluation with the run's own tokenizer share the same packed tokens.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers as hf

from sddlm.data.cache import check_writable, complete
from sddlm.data.corpora import CORPORA
from sddlm.data.packed import PackedTokens
from sddlm.data.packing import FORMAT, write_tokens
from sddlm.data.sources import documents
from sddlm.data.split import split_documents
from sddlm.data.tokenizers import FILE_NAME, Tokenizer
from sddlm.errors import ConfigError

logger = logging.getLogger(__name__)

Splits = dict[str, list[str]]


@dataclass
class DataArgs:
    """What to learn from, and as which tokens."""

    path: str | None = None
    """Text to use instead of the corpus: a file, a folder or a quoted pattern ('texts/*.txt');
    .txt, .md, .jsonl, .parquet, also .zst."""
    corpus: str = "builtin"
    """Corpus known by name, used if no path is given. builtin: the documentation that comes with
    Python."""
    validation_path: str | None = None
    """Text to validate on; all of path or corpus is then for training."""
    validation: float = 0.05
    """Share of the documents held out for validation, chosen by a hash of their text; with fewer
    than 20 documents, the last share of each one."""
    tokenizer: str = "bpe"
    """bytes, characters, bpe (learnt from the training text), a tokenizer.json, a folder with one,
    or a hub name (gpt2)."""
    vocab_size: int = 4096
    """Number of tokens that bpe learns, special ones included. Other tokenizers bring their own."""
    length: int = 128
    """Tokens in a row, the length the model is trained for."""
    field: str = "text"
    """Key or column with the text in JSON lines and Parquet files."""
    separator: str | None = None
    """What stands between two documents in a text file, taken literally. Without it a file is cut
    at <|endoftext|>, or is one document."""
    cache: str | None = None
    """Folder for prepared tokens. Without it $SDDLM_CACHE, else ~/.cache/sddlm."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Refuse what can never work.

        Raises:
            ConfigError: names the flag, the value and what is allowed.
        """
        if self.length < 1:
            raise ConfigError(f"--data.length {self.length} is too small; use at least 1")
        if not 0 < self.validation < 1:
            raise ConfigError(
                f"--data.validation {self.validation} is no share; use a number between 0 and 1, "
                "such as 0.05"
            )
        if self.vocab_size < 2:
            raise ConfigError(f"--data.vocab_size {self.vocab_size} is too small; use at least 2")
        if self.path is None and self.corpus not in CORPORA:
            raise ConfigError(
                f"--data.corpus {self.corpus} is unknown; there are: {', '.join(CORPORA)}; for "
                "your own text use --data.path FILE"
            )

    @property
    def cache_folder(self) -> Path:
        """Where prepared tokens lie."""
        folder = self.cache or os.environ.get("SDDLM_CACHE") or "~/.cache/sddlm"
        return Path(folder).expanduser()


@dataclass(frozen=True)
class Prepared:
    """Text as rows of tokens.

    Attributes:
        train: rows to train on; None if the whole text was asked for as validation.
        validation: rows to validate on.
        tokenizer: what made the tokens.
        key: hash of everything that made the bytes (texts, split, tokenizer, format).
        meta: ``source``, ``vocab_size``, ``tokenizer`` (fingerprint), ``key`` and for each split
            ``tokens``, ``characters``, ``documents``, ``sha256``.
    """

    train: PackedTokens | None
    validation: PackedTokens
    tokenizer: Tokenizer
    key: str
    meta: dict[str, Any]


def prepare(
    args: DataArgs,
    tokenizer: Tokenizer | None = None,
    *,
    split: Literal["both", "all"] = "both",
) -> Prepared:
    """Read, split, tokenise and pack a text, or find that done in the cache.

    Each document is encoded and followed by the end of text; the documents of a split are
    concatenated in the order of the source and cut into rows of ``args.length`` when read. ``bpe``
    learns from the training split alone; ``characters`` takes its alphabet from both splits, since
    a character that only the validation text has could otherwise not be scored.

    Args:
        args: what to prepare.
        tokenizer: use this one (a model's own) instead of ``args.tokenizer``.
        split: ``both``, or ``all``: every document is for validation, none for training (to
            score a text as a whole).

    Raises:
        ConfigError: see ``DataArgs``, ``documents`` and ``Tokenizer``; or a split shorter than one
            row; or a cache that cannot be written to.
    """
    args.check()
    cache = args.cache_folder
    check_writable(cache)
    texts = _splits(args, split)
    key = _digest("text", *(_digest(name, *docs) for name, docs in texts.items()))
    if tokenizer is None:
        tokenizer = _tokenizer(args, texts, key)
    key = _digest("tokens", FORMAT, hf.__version__, key, tokenizer.fingerprint)[:32]
    folder = cache / f"tokens-{key}"
    if complete(folder):
        logger.info("prepared tokens reused from %s", folder)
    else:
        write_tokens(folder, texts, tokenizer, key)
        logger.info("prepared tokens written to %s", folder)
    return _open(folder, args, tokenizer)


def _splits(args: DataArgs, split: Literal["both", "all"]) -> Splits:
    if split == "all" and args.validation_path is not None:
        raise ConfigError(
            "--data.validation_path has no place where a whole text is scored; give the text as "
            "--data.path"
        )
    texts = list(_source(args, args.path))
    if split == "all":
        return {"validation": texts}
    if args.validation_path is not None:
        return {"train": texts, "validation": list(_source(args, args.validation_path))}
    train, validation = split_documents(texts, args.validation)
    return {"train": train, "validation": validation}


def _source(args: DataArgs, path: str | None) -> Iterator[str]:
    if path is None:
        return CORPORA[args.corpus].documents()
    return documents(path, args.field, args.separator)


def _tokenizer(args: DataArgs, texts: Splits, text_key: str) -> Tokenizer:
    """The tokenizer asked for; one that takes time to learn is kept in the cache."""
    train = texts.get("train", texts["validation"])
    if args.tokenizer == "characters":
        return Tokenizer.characters(text for split in texts.values() for text in split)
    if args.tokenizer != "bpe":
        return Tokenizer.choose(args.tokenizer, train, args.vocab_size)
    key = _digest("bpe", FORMAT, hf.__version__, text_key, args.vocab_size)[:32]
    folder = args.cache_folder / f"tokenizer-{key}"
    if (folder / FILE_NAME).is_file():
        return Tokenizer.load(folder)
    logger.info("learning a vocabulary of %d from %d documents", args.vocab_size, len(train))
    tokenizer = Tokenizer.train_bpe(train, args.vocab_size)
    if tokenizer.vocab_size < args.vocab_size:
        logger.warning(
            "the text gives no more than %d tokens of the %d asked for with --data.vocab_size",
            tokenizer.vocab_size,
            args.vocab_size,
        )
    tokenizer.save(folder)
    return tokenizer


def _open(folder: Path, args: DataArgs, tokenizer: Tokenizer) -> Prepared:
    meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    splits: dict[str, PackedTokens] = {}
    for name, said in meta["splits"].items():
        rows = PackedTokens(
            folder / f"{name}.bin",
            length=args.length,
            vocab_size=tokenizer.vocab_size,
            characters=said["characters"],
        )
        if rows.tokens != said["tokens"]:
            raise ConfigError(f"{rows.path} is damaged; remove the folder {folder}, try again")
        if len(rows) == 0:
            raise ConfigError(
                f"the {name} split has {rows.tokens} tokens, fewer than one row: give more text, "
                f"lower --data.length (now {args.length}) or change --data.validation "
                f"(now {args.validation})"
            )
        splits[name] = rows
    meta["source"] = args.path or args.corpus
    return Prepared(
        train=splits.get("train"),
        validation=splits["validation"],
        tokenizer=tokenizer,
        key=meta["key"],
        meta=meta,
    )


def _digest(*parts: object) -> str:
    """SHA-256 (hex) of the parts; their lengths count, so no two lists run together."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = str(part).encode()
        sha256.update(len(data).to_bytes(8, "big"))
        sha256.update(data)
    return sha256.hexdigest()
