"""Character n-gram models: baselines for a likelihood per character.

Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1999, section 2.6):

    p(w | c) = (count(c w) + T(c) p(w | shorter c)) / (count(c) + T(c)),

T(c) the number of different characters seen after the context c. Below the unigrams lies the
uniform law over all 0x110000 code points, so every text has a probability and all of them sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sddlm.errors import ConfigError

Ints = NDArray[np.int64]

_CODE_POINTS = 0x110000


class _Level(NamedTuple):
    """All grams of one length; a gram's id is its place in ``keys``.

    Attributes:
        keys: id of the context (the gram without its last character), times ``_CODE_POINTS``, plus
            that character, sorted.
        counts: occurrences of each.
        total: occurrences of each context, by its id.
        kinds: T(c) of each context.
    """

    keys: Ints
    counts: Ints
    total: Ints
    kinds: Ints


def _characters(texts: Iterable[str]) -> tuple[Ints, Ints]:
    """Code points of all texts in a row, and each one's place in its own text."""
    codes = [np.frombuffer(t.encode("utf-32-le", "surrogatepass"), "<u4") for t in texts]
    places = [np.arange(len(own)) for own in codes]
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *codes]).astype(np.int64), np.concatenate([empty, *places])


class NGram:
    """A character n-gram model.

    Args:
        order: length of the longest gram; 1 is the unigram model, 5 looks at 4 characters.

    Raises:
        ConfigError: if the order is below 1, or ``fit`` is given no character.
    """

    def __init__(self, order: int) -> None:
        if order < 1:
            raise ConfigError(f"NGram: `order` is {order}, must be at least 1")
        self.order = order
        self._levels: list[_Level] = []

    def fit(self, texts: Iterable[str]) -> NGram:
        """Count the grams of ``texts``, none across two texts; returns itself.

        Takes about a second for a million characters at order 5.
        """
        characters, places = _characters(texts)
        if not len(characters):
            raise ConfigError("an n-gram model needs some text; there is none")
        self._levels = []
        context, contexts = np.zeros(len(characters), np.int64), 1  # ids before each character
        for length in range(1, self.order + 1):
            valid = places >= length - 1
            if not valid.any():  # every text is shorter
                break
            keys = context[valid] * _CODE_POINTS + characters[valid]
            keys, ids, counts = np.unique(keys, return_inverse=True, return_counts=True)
            parent = keys // _CODE_POINTS
            total = np.bincount(parent, counts, contexts).astype(np.int64)
            kinds = np.bincount(parent, minlength=contexts)
            self._levels.append(_Level(keys, counts, total, kinds))
            context[valid] = ids.reshape(-1)
            context, contexts = np.roll(context, 1), len(keys)
        return self

    def nats(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """-log p of each character of all texts in a row, given those before it in its text."""
        if not self._levels:
            raise ConfigError("fit the n-gram model first: NGram(order).fit(texts)")
        characters, places = _characters(texts)
        p = np.full(len(characters), 1 / _CODE_POINTS)
        context = np.zeros(len(characters), np.int64)  # ids before each character; -1 is unseen
        for level in self._levels:
            keys = np.where(context >= 0, context * _CODE_POINTS + characters, -1)
            ids = np.searchsorted(level.keys, keys).clip(max=len(level.keys) - 1)
            ids = np.where(level.keys[ids] == keys, ids, -1)
            count = np.where(ids >= 0, level.counts[ids], 0)
            total, kinds = level.total[context], level.kinds[context]
            # a context seen only at the end of a text has no followers: nothing to interpolate
            known = (context >= 0) & (total > 0)
            p = np.where(known, (count + kinds * p) / np.maximum(total + kinds, 1), p)
            context = np.where(places > 0, np.roll(ids, 1), -1)
        return -np.log(p)

    def bits_per_character(self, text: str | Iterable[str]) -> float:
        """Mean -log2 p of a character; NaN for no text."""
        nats = self.nats([text] if isinstance(text, str) else text)
        return float(nats.mean()) / math.log(2) if len(nats) else float("nan")
