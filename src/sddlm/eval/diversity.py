"""Diversity of samples: entropy, distinct and repeated n-grams, and known words.

A judge's perplexity falls when text repeats itself; these figures show it. Compare them
only between sets of the same number of samples and the same length, and with real text beside.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sddlm.eval.samples import SampleSet
from sddlm.eval.texts import TrainingText, words
from sddlm.sampling.entropy import Rows, entropy


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


@dataclass(frozen=True)
class Diversity:
    """Figures of a set of texts, defined in docs/evaluation.md.

    Attributes:
        entropy: unigram entropy within a text, nats, mean over texts.
        distinct_1: different tokens over tokens of the set.
        distinct_2: different pairs over pairs of the set.
        repeated_4: share of a text's 4-grams that occurred in it before, mean over texts.
        known_words: share of words that the training text has; None without that text.
        bpc_5gram: bits per character under its 5-gram model; None without that text.
    """

    entropy: float
    distinct_1: float
    distinct_2: float
    repeated_4: float
    known_words: float | None = None
    bpc_5gram: float | None = None

    @classmethod
    def of(cls, tokens: list[Tensor], texts: list[str], training: TrainingText | None) -> Diversity:
        """Measure texts and their tokens."""
        longest = max(map(len, tokens))
        return cls(
            entropy(tokens),
            distinct_n(tokens, 1),
            distinct_n(tokens, min(2, longest)),
            repeated_ngrams(tokens, min(4, longest)),
            None if training is None else known_words(texts, training.words),
            None if training is None else training.ngram(5).bits_per_character(texts),
        )

    def as_dict(self) -> dict[str, float]:
        """The figures that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SampleDiversity:
    """Diversity of samples and of real rows, both sets cut to the smaller one's number.

    Attributes:
        count: texts on each side.
        length: tokens of the longest sample.
        origin: how the samples were drawn, or the file that they are from.
        generated: of the samples.
        real: of the real rows.
    """

    count: int
    length: int
    origin: dict[str, Any]
    generated: Diversity
    real: Diversity

    @classmethod
    def of(
        cls, drawn: SampleSet, reference: SampleSet, training: TrainingText | None
    ) -> SampleDiversity:
        """Measure both sets."""
        n = min(len(drawn.texts), len(reference.texts))
        return cls(
            n,
            max(map(len, drawn.rows)),
            drawn.origin,
            *(Diversity.of(each.rows[:n], each.texts[:n], training) for each in (drawn, reference)),
        )
