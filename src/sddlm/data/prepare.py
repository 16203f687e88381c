"""Preparation of text: scan, split, tokenizer and packed tokens, all cached.

A text is read up to three times, a document at a time: to scan it for its contents and its
problems, to learn a vocabulary if needed, and to tokenise it. The cache holds three kinds of
entries: scans, keyed by names, sizes and times of the files; learnt tokenizers, keyed by texts and
options; and packed tokens, keyed by texts, split and *fingerprint* of the tokenizer. So a run and a
later evaluation with the run's tokenizer share the same packed tokens.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers as hf

from sddlm.data.cache import build_once, damage, digest, writable
from sddlm.data.config import DataArgs
from sddlm.data.rows import DocumentRows, Mixture, PackedTokens, Rows
from sddlm.data.texts import DataSource, data_sources
from sddlm.data.tokenize import FORMAT, write_tokens
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments
from sddlm.progress import bar

logger = logging.getLogger(__name__)

_LEARN = 10**8  # characters that a vocabulary is learnt from, at most
_LOST = 0.01  # share of truncated tokens above which a warning is logged


@dataclass(frozen=True)
class Prepared:
    """Prepared data: rows of tokens.

    Attributes:
        train: training rows; None if the whole text is for validation.
        validation: validation rows.
        tokenizer: the tokenizer.
        key: hash of everything that determines the tokens (texts, split, tokenizer, format).
        meta: ``source``, ``vocab_size``, ``tokenizer`` (fingerprint), ``key``, ``packing``,
            ``special`` (each special token with its id, whether it may be sampled and whether it is
            scored), ``texts`` (for each: its name, key, share and ``splits`` with ``tokens``,
            ``characters``, ``documents``, ``sha256``, and how many documents were left ``out``),
            ``splits``, the sums over the texts, and of documents in rows ``row_lengths``, how many
            rows have each length.
    """

    train: Rows | None
    validation: Rows
    tokenizer: Tokenizer
    key: str
    meta: dict[str, Any]


@check_arguments
def prepare(
    args: DataArgs,
    tokenizer: Tokenizer | None = None,
    *,
    split: Literal["both", "validation", "all"] = "both",
    verify: bool = False,
) -> Prepared:
    """Read, split, tokenise and pack text, or load it from the cache.

    Each document is encoded and followed by an end-of-text token. The documents of a split are
    concatenated in the order of the source, and cut into rows when read. ``bpe`` learns
    from the training split alone; ``characters`` takes its alphabet from both splits, since a
    character that only the validation text has could otherwise not be scored.

    Args:
        args: data options.
        tokenizer: tokenizer (of a model) in place of ``args.tokenizer``.
        split: ``both``, ``validation`` alone, or ``all``: every document is for validation, none
            for training (to score a text as a whole).
        verify: read prepared tokens whole and compare their checksums, also where no time stamp
            has changed since that was done.

    Returns:
        rows of training and held-out text (``train``, ``validation``), tokenizer and figures.

    Raises:
        ConfigError: see ``DataArgs``, ``open_source``, ``scan`` and ``Tokenizer``; or a split
            shorter than one row; or a cache that cannot be written to.
        OSError: the cache's disk is full; nothing half-made is left.
    """
    args.check()
    cache = args.cache_folder
    with writable(cache), ExitStack() as until_done:
        found = data_sources(args, split, until_done)
        if tokenizer is None:
            tokenizer = _tokenizer(args, found)
        folders = [_tokens(args, text, tokenizer, verify) for text in found]
    return _open(folders, args, tokenizer, [text.weight for text in found])


def load_prepared(
    args: DataArgs, meta: Mapping[str, Any], tokenizer: Tokenizer | None = None
) -> Prepared | None:
    """Load the result of an earlier `prepare` from the cache, without reading the texts.

    None if an entry of the cache is missing or damaged.

    Args:
        args: data options of that call; not checked.
        meta: its ``Prepared.meta``.
        tokenizer: its tokenizer; None loads the one stored with the tokens.
    """
    try:
        known = [(f"tokens-{text['key']}", text["share"]) for text in meta["texts"]]
    except (KeyError, TypeError, ValueError):  # of another version, or damaged
        return None
    folders = [args.cache_folder / name for name, _ in known]
    if not folders or any(map(damage, folders)):
        return None
    tokenizer = tokenizer or Tokenizer.load(folders[0])
    return _open(folders, args, tokenizer, [share for _, share in known])


def _tokens(args: DataArgs, text: DataSource, tokenizer: Tokenizer, verify: bool) -> Path:
    """Folder of the tokens of a text."""
    key = digest("tokens", FORMAT, hf.__version__, text.key, tokenizer.fingerprint, args.eos)[:32]
    folder = args.cache_folder / f"tokens-{key}"
    with build_once(folder, verify=verify) as temporary:
        if temporary is None:
            logger.info("prepared tokens reused from %s", folder)
            return folder
        splits = write_tokens(
            temporary,
            text.documents(),
            tokenizer,
            splits=text.splits,
            characters=text.characters,
            eos=args.eos,
            workers=args.workers,
        )
        tokenizer.save(temporary)
        meta = {
            "format": FORMAT,
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


def _tokenizer(args: DataArgs, found: list[DataSource]) -> Tokenizer:
    """Make the tokenizer of the options; a learnt one is cached."""
    if args.tokenizer == "characters":
        return Tokenizer.characters(text for source in found for _, text in source.documents())
    if args.tokenizer != "bpe":
        return Tokenizer.load(args.tokenizer)
    keys = [text.key for text in found]
    key = digest("bpe", FORMAT, hf.__version__, _LEARN, *keys, args.vocab_size)[:32]
    folder = args.cache_folder / f"tokenizer-{key}"
    with build_once(folder) as temporary:
        if temporary is None:
            return Tokenizer.load(folder)
        logger.info("learning a vocabulary of %d", args.vocab_size)
        share = min(1.0, _LEARN / sum(text.characters for text in found))
        tokenizer = Tokenizer.train_bpe(_some(found, share), args.vocab_size)
        tokenizer.save(temporary)
    if tokenizer.vocab_size < args.vocab_size:
        logger.warning(
            "the text gives no more than %d tokens of the %d asked for with `data.vocab_size`",
            tokenizer.vocab_size,
            args.vocab_size,
        )
    return tokenizer


def _some(found: list[DataSource], share: float) -> Iterator[str]:
    """Iterate over an evenly spread share of the training text, with a progress bar."""
    seen = taken = 0
    with bar("learning a vocabulary", total=sum(text.characters for text in found)) as advance:
        for source in found:
            for split, text in source.documents():
                advance(len(text))
                if split == "train" or "train" not in source.splits:
                    seen += len(text)
                    if taken < share * seen:
                        taken += len(text)
                        yield text


def _open(
    folders: list[Path], args: DataArgs, tokenizer: Tokenizer, weights: list[float]
) -> Prepared:
    metas = [json.loads((f / "meta.json").read_text(encoding="utf-8")) for f in folders]
    splits: dict[str, Rows] = {}
    whole = not any("train" in meta["splits"] for meta in metas)
    for name in ("train", "validation"):
        mine = [(f, meta, w) for f, meta, w in zip(folders, metas, weights, strict=True)
                if name in meta["splits"]]  # fmt: skip
        parts = [
            _rows(f, name, meta["splits"][name], args, tokenizer, whole) for f, meta, _ in mine
        ]
        if len(parts) > 1:
            splits[name] = Mixture(parts, [w for _, _, w in mine])
        elif parts:
            splits[name] = parts[0]
    keys = [meta["key"] for meta in metas]
    key = keys[0] if len(keys) == 1 else digest("mixture", *keys, *weights)[:32]
    return Prepared(
        train=splits.get("train"),
        validation=splits["validation"],
        tokenizer=tokenizer,
        key=key,
        meta={
            "source": ", ".join(args.sources),
            "key": key,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "packing": {"packing": args.packing, "bos_eos": args.bos_eos, "eos": args.eos},
            "special": special_tokens(tokenizer),
            "texts": [
                {"name": meta["name"], "key": meta["key"], "share": w, "out": len(meta["out"])}
                | {"splits": meta["splits"]}
                for meta, w in zip(metas, weights, strict=True)
            ],
            "splits": {name: _summed(metas, name) for name in splits},
        }
        | _row_lengths(splits.get("train")),
    )


def _row_lengths(train: Rows | None) -> dict[str, Any]:
    """Distribution of row lengths, if they differ."""
    return {"row_lengths": train.row_lengths.tolist()} if train and train.padded else {}


def _rows(
    folder: Path,
    name: str,
    counts: dict[str, Any],
    args: DataArgs,
    tokenizer: Tokenizer,
    whole: bool,
) -> Rows:
    """Rows of a split."""
    path = folder / f"{name}.bin"
    bos_eos = (tokenizer.bos_id, tokenizer.eos_id) if args.bos_eos else None
    shape: dict[str, Any] = {
        "length": args.length,
        "vocab_size": tokenizer.vocab_size,
        "characters": counts["characters"],
        "bos_eos": bos_eos,
    }
    rows = (
        PackedTokens(path, **shape)
        if args.packing == "wrap"
        else DocumentRows(path, **shape, eos=args.eos, pad=tokenizer.pad_id)
    )
    if len(rows) == 0:
        raise _too_short(name, rows.tokens, args, whole)
    if isinstance(rows, DocumentRows) and rows.lost > _LOST:
        logger.warning(
            "%.1f%% of the tokens for %s are cut off: documents are longer than `data.length` %d; "
            "`data.packing='wrap'` uses all of them",
            100 * rows.lost,
            name,
            args.length,
        )
    return rows


def _too_short(name: str, tokens: int, args: DataArgs, whole: bool) -> ConfigError:
    if whole:
        return ConfigError(
            f"{args.sources[0]} has {tokens} tokens, fewer than one row of {args.length} (a model "
            "scores rows of the length it was trained for): give a longer text"
        )
    return ConfigError(
        f"the {name} split has {tokens} tokens, fewer than one row: give more text, lower "
        f"`data.length` (now {args.length}) or change `data.validation` "
        f"(now {args.validation or 'the default'})"
    )


def special_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Describe each special token: its id, and whether it is sampled and scored.

    All tokens of a row are scored except padding, so the ends of rows and documents are.
    """
    padding = {tokenizer.pad_id} - {tokenizer.eos_id}
    return {
        name: {"id": i, "sampled": i not in tokenizer.not_sampled, "scored": i not in padding}
        for name, i in sorted(tokenizer.special.items(), key=lambda item: item[1])
    }


def _summed(metas: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Sum the counts of a split over all texts."""
    counts = [meta["splits"][name] for meta in metas if name in meta["splits"]]
    sums = {what: sum(c[what] for c in counts) for what in ("tokens", "characters", "documents")}
    return sums | ({"sha256": counts[0]["sha256"]} if len(counts) == 1 else {})
