"""Changes of a tokenizer's ids: a token taken out, or ids filled up."""

from __future__ import annotations

import json
from typing import Any

import tokenizers as hf

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError


def without(tokenizer: Tokenizer, removed: int) -> Tokenizer:
    """A tokenizer without one of its special tokens; the ids above move down by one.

    Args:
        tokenizer: it is not changed.
        removed: id of the token.

    Raises:
        ConfigError: the id is that of an ordinary token, which text needs.
    """
    if removed not in tokenizer.special.values():
        shown = tokenizer.decode([removed], skip_special=False)
        raise ConfigError(
            f"`mask` is {removed}, which is {shown!r} in this tokenizer and no special token"
        )

    def moved(found: int) -> int:
        return found - (found > removed)

    state: dict[str, Any] = json.loads(tokenizer.to_json())
    state["added_tokens"] = [
        {**token, "id": moved(token["id"])}
        for token in state["added_tokens"]
        if token["id"] != removed
    ]
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {k: moved(i) for k, i in model["vocab"].items() if i != removed}
    else:  # of a unigram model: pairs of a token and its score, in the order of the ids
        model["vocab"] = [pair for i, pair in enumerate(model["vocab"]) if i != removed]
        model["unk_id"] = model["unk_id"] and moved(model["unk_id"])
    state["post_processor"] = None  # encoding adds no special token, and this one names ids
    return Tokenizer(hf.Tokenizer.from_str(json.dumps(state)))


def filled(tokenizer: Tokenizer, size: int) -> Tokenizer:
    """A tokenizer of ``size`` ids: ``[PAD]`` and ``<unused N>`` stand for those that it lacked.

    Args:
        tokenizer: it is not changed.
        size: number of ids.

    Raises:
        ConfigError: it has more ids.
    """
    if tokenizer.vocab_size > size:
        raise ConfigError(
            f"`tokenizer` has {tokenizer.vocab_size} tokens, but the network only {size} that are "
            "text: they do not belong together"
        )
    inner = hf.Tokenizer.from_str(tokenizer.to_json())
    names = ["[PAD]", *(f"<unused {n}>" for n in range(size))]
    free = [name for name in names if inner.token_to_id(name) is None]
    lacking = size - tokenizer.vocab_size
    inner.add_special_tokens([hf.AddedToken(name, special=True) for name in free[:lacking]])
    return Tokenizer(inner)
