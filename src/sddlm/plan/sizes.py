"""What is known without data, network or device: tokens, parameters, files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from sddlm.data.args import DataArgs
from sddlm.data.packed import token_dtype
from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError
from sddlm.models.dit import DiT

#: tokenizers on the hub whose size everybody knows, so that nothing is downloaded
KNOWN = {
    "gpt2": 50257,
    "openai-community/gpt2": 50257,
    "gpt2-large": 50257,
    "bert-base-uncased": 30522,
    "google-bert/bert-base-uncased": 30522,
    "TinyLlama/TinyLlama_v1.1": 32000,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 32000,
    "meta-llama/Llama-2-7b-hf": 32000,
    "mistralai/Mistral-7B-v0.1": 32000,
    "EleutherAI/gpt-neox-20b": 50277,
}


def vocabulary(data: DataArgs, given: int | None) -> int:
    """V of the data, without reading a text or asking the hub.

    Args:
        data: names the tokenizer.
        given: what the user says, if anything.

    Raises:
        ConfigError: if it cannot be known, or is too small.
    """
    name = data.tokenizer
    if given is not None:
        if given < 2:
            raise ConfigError(f"--vocab_size is {given}, must be at least 2")
        return given
    if name == "bpe":
        return data.vocab_size
    if name == "bytes":
        return 257
    if name in KNOWN:
        return KNOWN[name]
    if Path(name).exists():
        return Tokenizer.load(name).vocab_size
    raise ConfigError(
        f"--data.tokenizer {name}: how many tokens it has is not known before it is made or "
        "downloaded; say it with --vocab_size"
    )


def prepared(data: DataArgs, vocab_size: int) -> tuple[int, int] | None:
    """Tokens and documents of the training text, if it lies in the cache; nothing is read for it.

    What is found is the newest of that name made with a tokenizer of that size.
    """
    tokens = documents = 0
    for name in data.sources:
        metas = sorted(
            data.cache_folder.glob("tokens-*/meta.json"), key=lambda path: path.stat().st_mtime
        )
        said = [json.loads(path.read_text(encoding="utf-8")) for path in metas]
        fit = [
            meta["splits"]["train"]
            for meta in said
            if meta.get("name") == name
            and meta["vocab_size"] == vocab_size
            and "train" in meta["splits"]
        ]
        if not fit:
            return None
        tokens, documents = tokens + fit[-1]["tokens"], documents + fit[-1]["documents"]
    return tokens, documents


def parameters(network: DiT) -> tuple[dict[str, int], int]:
    """Parameters by part and in all, exactly, and the most that any one block, or the head, has."""
    parts = Counter({"embedding": 0, "blocks": 0, "conditioning": 0, "head": 0})
    units: Counter[str] = Counter()
    for name, parameter in network.named_parameters():
        first = name.split(".")[0]
        part = first if first in parts else "blocks"
        parts["conditioning" if {"sigma", "modulation"} & set(name.split(".")) else part] += (
            parameter.numel()
        )
        units[".".join(name.split(".")[: 2 if first == "blocks" else 1])] += parameter.numel()
    return {**parts, "all": sum(parts.values())}, max(units.values())


def disk(total: int, text: tuple[int, int] | None, vocab_size: int) -> dict[str, float]:
    """Bytes of the files of a run.

    Args:
        total: parameters.
        text: tokens and documents of the prepared text; None if not known.
        vocab_size: V of the data.
    """
    files = {
        "checkpoint": 16.0 * total,  # weights, two moments, average, each float32
        "checkpoint being written": 16.0 * total,  # beside the one before
        "exported model": 4.0 * total,
    }
    if text is not None:
        files["tokens"] = float(text[0] * token_dtype(vocab_size).itemsize)
        files["document index"] = 8.0 * text[1]
    return files
