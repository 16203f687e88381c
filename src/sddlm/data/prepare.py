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
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from sddlm.data.cache import damage, digest, writable
from sddlm.data.config import DataArgs
from sddlm.data.mixture import Mixture
from sddlm.data.rows import DocumentRows, PackedTokens, PairRows, Rows
from sddlm.data.texts import data_sources
from sddlm.data.tokenize import make_tokenizer, make_tokens
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments
from sddlm.progress import PlainConsole

logger = logging.getLogger(__name__)

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
    with writable(args.cache_folder), ExitStack() as until_done:
        texts = data_sources(args, split, until_done)
        if tokenizer is None:
            tokenizer = make_tokenizer(args, texts)
        folders = [make_tokens(args, text, tokenizer, verify) for text in texts]
    return _open(folders, args, tokenizer, [text.weight for text in texts])


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


def _open(
    folders: list[Path], args: DataArgs, tokenizer: Tokenizer, weights: list[float]
) -> Prepared:
    metas = [json.loads((f / "meta.json").read_text(encoding="utf-8")) for f in folders]
    found = list(zip(folders, metas, weights, strict=True))
    whole = not any("train" in meta["splits"] for meta in metas)
    rows: dict[str, Rows] = {}
    sums: dict[str, Any] = {}
    for name in ("train", "validation"):
        texts = [(f, meta["splits"][name], w) for f, meta, w in found if name in meta["splits"]]
        if texts:
            parts = [_rows(f / f"{name}.bin", n, args, tokenizer, whole) for f, n, _ in texts]
            rows[name] = Mixture(parts, [w for *_, w in texts]) if texts[1:] else parts[0]
            sums[name] = _summed([counts for _, counts, _ in texts])
    keys = [meta["key"] for meta in metas]
    key = digest("mixture", *keys, *weights)[:32] if keys[1:] else keys[0]
    meta = {
        "source": ", ".join(args.sources),
        "key": key,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "packing": {"packing": args.packing, "bos_eos": args.bos_eos, "eos": args.eos},
        "special": special_tokens(tokenizer),
        "texts": [
            {"name": meta["name"], "key": meta["key"], "share": w, "out": len(meta["out"])}
            | {"splits": meta["splits"]}
            for _, meta, w in found
        ],
        "splits": sums,
    }
    train = rows.get("train")
    if train is not None and train.padded:
        meta["row_lengths"] = train.row_lengths.tolist()
    return Prepared(train, rows["validation"], tokenizer, key, meta)


def _rows(
    path: Path, counts: dict[str, Any], args: DataArgs, tokenizer: Tokenizer, whole: bool
) -> Rows:
    """Rows of a split of a text; ``whole`` if the text has no other split."""
    shape: dict[str, Any] = {
        "length": args.length,
        "vocab_size": tokenizer.vocab_size,
        "characters": counts["characters"],
        "bos_eos": (tokenizer.bos_id, tokenizer.eos_id) if args.bos_eos else None,
    }
    if args.packing == "document":
        shape |= {"eos": args.eos, "pad": tokenizer.pad_id}
    if args.prompt_field is not None:
        shape["pad"] = tokenizer.eos_id
        shape |= {name: counts.get(name, 0) for name in ("prompt_tokens", "prompt_characters")}
        kind: type[PackedTokens] = PairRows
    else:
        kind = PackedTokens if args.packing == "wrap" else DocumentRows
    rows = kind(path, **shape)
    if len(rows) == 0:
        if whole:
            raise ConfigError(
                f"{args.sources[0]} has {rows.tokens} tokens, fewer than one row of {args.length} "
                "(a model scores rows of the length it was trained for): give a longer text"
            )
        raise ConfigError(
            f"the {path.stem} split has {rows.tokens} tokens, fewer than one row: give more text, "
            f"lower `data.length` (now {args.length}) or change `data.validation` "
            f"(now {args.validation or 'the default'})"
        )
    if isinstance(rows, DocumentRows) and rows.lost > _LOST:
        logger.warning(
            "%.1f%% of the tokens for %s are cut off: documents are longer than `data.length` %d; "
            "`data.packing='wrap'` uses all of them",
            100 * rows.lost,
            path.stem,
            args.length,
        )
    return rows


def special_tokens(tokenizer: Tokenizer) -> dict[str, dict[str, Any]]:
    """Describe each special token: its id, and whether it is sampled and scored.

    All tokens of a row are scored except padding, so the ends of rows and documents are.
    """
    padding = {tokenizer.pad_id} - {tokenizer.eos_id}
    return {
        name: {"id": i, "sampled": i not in tokenizer.not_sampled, "scored": i not in padding}
        for name, i in sorted(tokenizer.special.items(), key=lambda item: item[1])
    }


def _summed(counts: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum the counts of a split over all texts."""
    sums = {what: sum(c[what] for c in counts) for what in ("tokens", "characters", "documents")}
    return sums | ({} if counts[1:] else {"sha256": counts[0]["sha256"]})


# ------------------------------------------------------------------ the verb


def prepare_text(data: DataArgs = DataArgs()) -> Prepared:
    """Tokenise text into the cache, where training finds it.

    ``sddlm train`` does the same if necessary; this verb does it ahead and reports document and
    token counts. After a kill the next call starts over.

    Args:
        data: text, tokenizer and length of the rows.

    Returns:
        the rows, with the counts in ``meta``.

    Raises:
        ConfigError: a text, the tokenizer or an option cannot be used.
    """
    prepared = prepare(data, verify=True)
    meta, console = prepared.meta, PlainConsole()
    texts = Table("text", "split")
    for name in ("documents", "left out", "characters", "tokens"):
        texts.add_column(name, justify="right")
    for text in meta["texts"]:
        for name, n in text["splits"].items():
            figures = (n["documents"], text["out"], n["characters"], n["tokens"])
            texts.add_row(text["name"], name, *(f"{figure:,}" for figure in figures))
    console.print(texts)
    special = Table("special token", "id", "sampled", "scored")
    for name, kind in meta["special"].items():
        marks = ("yes" if kind[what] else "no" for what in ("sampled", "scored"))
        special.add_row(name, str(kind["id"]), *marks)
    console.print(special)
    for name, rows in (("train", prepared.train), ("validation", prepared.validation)):
        if rows is not None:
            console.print(
                f"{name}: {len(rows):,} rows of {rows.length} tokens, "
                f"{rows.characters_per_token:.2f} characters a token",
            )
    tokens = f"prepared tokens {prepared.key} in {data.cache_folder}"
    console.print(f"V = {meta['vocab_size']:,}; {tokens}", soft_wrap=True)
    return prepared
