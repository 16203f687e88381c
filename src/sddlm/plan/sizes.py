"""Size of the vocabulary and of the prepared text, without reading or downloading."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from sddlm.data.config import DataArgs
from sddlm.data.texts import is_remote, known_source
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError

#: sizes of common tokenizers on the hub by their names without owner; nothing is downloaded
KNOWN = {
    "gpt2": 50257, "gpt2-large": 50257, "gpt-neox-20b": 50277, "bert-base-uncased": 30522,
    "TinyLlama_v1.1": 32000, "TinyLlama-1.1B-Chat-v1.0": 32000, "Llama-2-7b-hf": 32000,
    "Mistral-7B-v0.1": 32000,
}  # fmt: skip


def vocabulary(data: DataArgs, given: int | None) -> int:
    """V of the data, without reading a text or asking the hub.

    Args:
        data: names the tokenizer.
        given: V given by the user, or None.

    Raises:
        ConfigError: it is unknown or too small.
    """
    name = data.tokenizer
    if given is not None:
        if given < 2:
            raise ConfigError(f"`vocab_size` is {given}, must be at least 2")
        return given
    if name == "bpe":
        return data.vocab_size
    if name == "bytes":
        return 257
    if Path(name).exists():
        return Tokenizer.load(name).vocab_size
    if (base := name.rpartition("/")[2]) in KNOWN:
        return KNOWN[base]
    raise ConfigError(
        f"`data.tokenizer` {name}: how many tokens it has is not known before it is made or "
        "downloaded; give it as `vocab_size`"
    )


def prepared(data: DataArgs, vocab_size: int) -> tuple[int, int] | None:
    """Tokens and documents of the training text from the cache; None if not there.

    Local files are found by what they are and hold (`known_source`), not by their name, which many
    have; corpora and datasets of the hub by name, the newest one. Any tokenizer of that size will
    do.

    Raises:
        ConfigError: there are no such files.
    """
    if data.validation_path is not None and not is_remote(data, data.validation_path):
        known_source(data, data.validation_path)
    tokens = documents = 0
    metas = _metas(data.cache_folder, vocab_size)
    for name in data.sources:
        if is_remote(data, name):
            fit = [m for m in metas if (m["name"], m.get("limit")) == (name, data.limit)]
        else:
            text = known_source(data, name)
            fit = [m for m in metas if text is not None and m.get("text") == text.key]
        if not fit:
            return None
        train = fit[-1]["splits"]["train"]
        tokens, documents = tokens + train["tokens"], documents + train["documents"]
    return tokens, documents


def _metas(cache: Path, vocab_size: int) -> list[dict[str, Any]]:
    """Cached records of training text with a tokenizer of that size, newest last."""
    found = []
    for path in sorted(cache.glob("tokens-*/meta.json"), key=lambda path: path.stat().st_mtime):
        with suppress(OSError, ValueError, KeyError, TypeError):  # damaged: not known
            meta = json.loads(path.read_text(encoding="utf-8"))
            train = meta["splits"]["train"]
            if meta["vocab_size"] == vocab_size and train["tokens"] + train["documents"] > 0:
                found.append(meta)
    return found
