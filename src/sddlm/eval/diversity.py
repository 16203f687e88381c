"""Diversity of samples: entropy, distinct and repeated n-grams, and known words.

A judge's perplexity falls when text repeats itself; these figures show it. Compare them
only between sets of the same number of samples and the same length, and with real text beside.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

import torch

from sddlm.sampling.entropy import Rows, entropies, entropy

__all__ = ["distinct_n", "entropies", "entropy", "known_words", "repeated_ngrams", "words"]

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")


def _distinct(tokens: Rows, n: int) -> tuple[int, int]:
    """Number of different n-grams and of n-grams in samples."""
    longest = max(map(len, tokens))
    if not 1 <= n <= longest:
        raise ValueError(f"n must lie in 1..{longest} (the length), not {n}")
    grams = torch.cat([row.cpu().unfold(0, n, 1) for row in tokens if len(row) >= n])  # [., n]
    return len(grams.unique(dim=0)), len(grams)


def distinct_n(tokens: Rows, n: int) -> float:
    """Different n-grams over all n-grams of the whole set (Li et al. 2016).

    Falls as the set grows, so it compares sets of one size only.

    Args:
        tokens: the samples.
        n: length of the n-grams, at most that of the longest sample.
    """
    different, total = _distinct(tokens, n)
    return different / total


def repeated_ngrams(tokens: Rows, n: int) -> float:
    """Fraction of a sample's n-grams that occur earlier in it, mean over samples with any."""
    pairs = [_distinct([row], n) for row in tokens if len(row) >= n]
    return sum(1 - different / total for different, total in pairs) / len(pairs)


def words(text: str) -> list[str]:
    """The words of a text, lower case: runs of letters, apostrophes inside."""
    return _WORD.findall(text.lower())


def known_words(texts: Iterable[str], reference_words: Collection[str]) -> float:
    """Fraction of all words in ``texts`` that occur in ``reference_words`` (lower case, a set).

    Words cut at the two ends of a sample count like whole ones, in real rows too. NaN without
    words.
    """
    found = total = 0
    for text in texts:
        own = words(text)
        total += len(own)
        found += sum(word in reference_words for word in own)
    return found / total if total else float("nan")
