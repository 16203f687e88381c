"""Character n-gram models: the baselines that a likelihood per character is read beside.

Interpolated Witten-Bell smoothing (Witten and Bell 1991; Chen and Goodman 1999, section 2.6):

    p(w | c) = (count(c w) + T(c) p(w | shorter c)) / (count(c) + T(c)),

T(c) the number of different characters seen after the context c. Below the unigrams lies the
uniform law over all 0x110000 code points, so every text has a probability and all of them sum to 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sddlm.errors import ConfigError

Ints = NDArray[np.int64]

_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class _Level:
    """All grams of one length; a gram's id is its place in ``keys``.

    Attributes:
        keys: id of the gram without its last character, times ``_CODE_POINTS``, plus that
            character, sorted.
        counts: how often each occurs.
    """

    keys: Ints
    counts: Ints

    def find(self, keys: Ints) -> Ints:
        """The id of each key, -1 where it was never seen (and for negative keys)."""
        place = np.searchsorted(self.keys, keys)
        place[place == len(self.keys)] = 0
        return np.where(self.keys[place] == keys, place, -1)


def _characters(texts: Iterable[str]) -> tuple[Ints, Ints]:
    """Code points of all texts in a row, and each one's place in its own text."""
    pieces = [np.frombuffer(t.encode("utf-32-le", "surrogatepass"), "<u4") for t in texts]
    places = [np.arange(len(p), dtype=np.int64) for p in pieces]
    if not pieces:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.concatenate(pieces).astype(np.int64), np.concatenate(places)


def _extend(previous: Ints, characters: Ints) -> Ints:
    """Keys of the grams that end at each place, one longer than those that end just before it."""
    before = np.empty_like(previous)
    before[0], before[1:] = -1, previous[:-1]
    return np.where(before >= 0, before * _CODE_POINTS + characters, -1)


@dataclass
class NGram:
    """A character n-gram model.

    Attributes:
        order: length of the longest gram; 1 is the unigram model, 5 looks at 4 characters.

    Raises:
        ConfigError: if the order is below 1, or ``fit`` is given no character.
    """

    order: int
    _levels: list[_Level] = field(default_factory=list, init=False, repr=False)
    _totals: list[Ints] = field(default_factory=list, init=False, repr=False)
    _kinds: list[Ints] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ConfigError(f"order must be at least 1, not {self.order}")

    def fit(self, texts: Iterable[str]) -> NGram:
        """Count the grams of ``texts``, none across two texts; returns itself.

        Takes about a second for a million characters at order 5.
        """
        characters, places = _characters(texts)
        if not len(characters):
            raise ConfigError("an n-gram model needs some text; there is none")
        self._levels, self._totals, self._kinds = [], [], []
        keys, parents = characters, 1
        for length in range(1, self.order + 1):
            valid = places >= length - 1
            if not valid.any():  # every text is shorter
                break
            seen, inverse, counts = np.unique(keys[valid], return_inverse=True, return_counts=True)
            self._levels.append(_Level(seen, counts.astype(np.int64)))
            parent = seen // _CODE_POINTS  # the context that each gram extends
            self._totals.append(np.bincount(parent, counts, parents).astype(np.int64))
            self._kinds.append(np.bincount(parent, minlength=parents).astype(np.int64))
            ids = np.full(len(characters), -1, np.int64)
            ids[valid] = inverse.reshape(-1)
            keys, parents = _extend(ids, characters), len(seen)
        return self

    def nats(self, texts: Iterable[str]) -> NDArray[np.float64]:
        """-log p of each character of all texts in a row, given those before it in its text."""
        if not self._levels:
            raise ConfigError("fit the n-gram model first: NGram(order).fit(texts)")
        characters, places = _characters(texts)
        p = np.full(len(characters), 1 / _CODE_POINTS)
        context = np.zeros(len(characters), np.int64)  # id of the context before each character
        for level, totals, kinds in zip(self._levels, self._totals, self._kinds, strict=True):
            known = context >= 0
            keys = np.where(known, context * _CODE_POINTS + characters, -1)
            ids = level.find(keys)
            count = np.where(ids >= 0, level.counts[ids], 0)
            total, kind = totals[context], kinds[context]
            # a context seen only at the end of a text has no followers: nothing to interpolate
            known &= total > 0
            p = np.where(known, (count + kind * p) / np.maximum(total + kind, 1), p)
            context = np.where(places > 0, np.roll(ids, 1), -1)
        return -np.log(p)

    def bits_per_character(self, text: str | Iterable[str]) -> float:
        """Mean -log2 p of a character; NaN for no text."""
        nats = self.nats([text] if isinstance(text, str) else text)
        return float(nats.mean()) / math.log(2) if len(nats) else float("nan")
