"""From documents to one file of tokens for each split."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from sddlm.data.cache import new_folder
from sddlm.data.packed import token_dtype
from sddlm.data.tokenizers import Tokenizer

FORMAT = 1  # of the folder; count up when the same request would give other bytes
_GROUP = 1 << 22  # characters encoded at once


def write_tokens(
    folder: Path, texts: Mapping[str, Sequence[str]], tokenizer: Tokenizer, key: str
) -> None:
    """Write ``folder``: tokens of each split, ``tokenizer.json`` and ``meta.json``, or nothing.

    Args:
        folder: the public name; it appears when everything is on disk.
        texts: the documents of each split.
        tokenizer: what makes the tokens.
        key: what the tokens are known by; only noted.
    """
    with new_folder(folder) as temporary:
        tokenizer.save(temporary)
        meta = {
            "format": FORMAT,
            "key": key,
            "vocab_size": tokenizer.vocab_size,
            "tokenizer": tokenizer.fingerprint,
            "splits": {
                name: _pack(temporary / f"{name}.bin", docs, tokenizer)
                for name, docs in texts.items()
            },
        }
        (temporary / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")


def _pack(path: Path, texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    """Write the tokens of ``texts``, an end of text behind each, and say what was written."""
    dtype = token_dtype(tokenizer.vocab_size)
    tokens, sha256 = 0, hashlib.sha256()
    characters = sum(map(len, texts))
    hidden = not sys.stderr.isatty()
    with (
        path.open("wb") as file,
        Progress(console=Console(stderr=True), transient=True, disable=hidden) as progress,
    ):
        bar = progress.add_task(f"tokens for {path.stem}", total=characters)
        for group in _groups(texts, tokenizer):
            ids: list[int] = []
            pieces = [piece for piece, _ in group]
            for encoded, (_, last) in zip(tokenizer.encode_batch(pieces), group, strict=True):
                ids.extend(encoded)
                if last:
                    ids.append(tokenizer.eos_id)
            data = np.array(ids, dtype).tobytes()
            file.write(data)
            sha256.update(data)
            tokens += len(ids)
            progress.advance(bar, sum(map(len, pieces)))
    return {
        "tokens": tokens,
        "characters": characters,
        "documents": len(texts),
        "sha256": sha256.hexdigest(),
    }


def _groups(texts: Iterable[str], tokenizer: Tokenizer) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of the documents, and whether each ends its document, some 4 MB at a time."""
    group: list[tuple[str, bool]] = []
    size = 0
    for text in texts:
        *head, last = tokenizer.pieces(text)
        for piece, ends in [*((p, False) for p in head), (last, True)]:
            group.append((piece, ends))
            size += len(piece)
            if size >= _GROUP:
                yield group
                group, size = [], 0
    if group:
        yield group
