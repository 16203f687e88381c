"""Is it copied? How much of each sample stands in the training text, word for word.

The n-grams of the samples are put into an index; the training rows are read once, in order, and
only what may be in the index is looked at, so memory does not grow with the training text. A hash
says "maybe", the tokens decide. Real text repeats n-grams too ("once upon a time there was a"), so
the figures mean something only beside those of held-out rows of the same number and length: pass
both in one list and cut the result, ``found[:64]`` and ``found[64:]``.

An n-gram lies within one row of the training text: only what stands in one row was ever shown to
the network in one piece. A passage that runs over the end of a row is found in two parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from sddlm.data.packed import Rows
from sddlm.errors import ConfigError
from sddlm.eval.copy_index import Index, Ints
from sddlm.types import before_padding
from sddlm.work import ResumableJob, digest

#: training tokens looked at at once, about 50 bytes each; few, for the processor's cache
CHUNK = 1 << 18
#: training tokens of a unit of work, some seconds
UNIT = 1 << 26


@dataclass(frozen=True)
class Copied:
    """How much of one sample is in the training text.

    Attributes:
        tokens: its length.
        overlap: share of its n-grams that some training row has; None for a sample below n tokens.
        longest: tokens of its longest run that stands in some training row; 0 if below n.
        row: the training row that has most of its n-grams, the first of equals; None if none has
            any.
        row_overlap: share of its n-grams in that row.
        row_longest: tokens of the longest run that it has in common with that row.
        start: where in the sample this run begins.
        text: this run decoded; None if nothing decodes.
    """

    tokens: int
    overlap: float | None
    longest: int = 0
    row: int | None = None
    row_overlap: float = 0.0
    row_longest: int = 0
    start: int = 0
    text: str | None = None


@dataclass(frozen=True)
class Copying:
    """How much of some samples is in the training text, word for word.

    Attributes:
        n: length of the n-grams in tokens.
        overlap: mean of `Copied.overlap`; None without a sample of n tokens.
        longest_mean: mean of `Copied.longest`.
        longest_max: the largest.
        whole: samples that stand in one training row from beginning to end.
        tokens_searched: training tokens that were read, padding not counted.
        share_searched: of the training rows; where it is below 1 all figures are lower bounds.
        samples: one by one.
    """

    n: int
    overlap: float | None
    longest_mean: float
    longest_max: int
    whole: int
    tokens_searched: int
    share_searched: float
    samples: list[Copied]

    @classmethod
    def of(cls, n: int, samples: list[Copied], tokens: int, share: float) -> Copying:
        """Summed up.

        Args:
            n: length of the n-grams.
            samples: one or more.
            tokens: training tokens that were read.
            share: of the training rows.
        """
        overlaps = [s.overlap for s in samples if s.overlap is not None]
        mean = sum(overlaps) / len(overlaps) if overlaps else None
        longest = [s.longest for s in samples]
        whole = sum(s.longest == s.tokens > 0 for s in samples)
        return cls(
            n, mean, sum(longest) / len(longest), max(longest), whole, tokens, share, samples
        )

    def __getitem__(self, part: slice) -> Copying:
        """The same of some of the samples."""
        return Copying.of(self.n, self.samples[part], self.tokens_searched, self.share_searched)


def copying(
    samples: Sequence[Tensor],
    training: Rows,
    *,
    n: int = 8,
    most_tokens: int | None = None,
    decode: Callable[[list[list[int]]], list[str]] | None = None,
    work: ResumableJob | None = None,
) -> Copying:
    """Look for passages of the samples in the training text; exact, in one reading of it.

    Args:
        samples: tokens of each ``[l]`` int64, padding left out.
        training: rows of the training text.
        n: shortest run of tokens that counts.
        most_tokens: about so many training tokens are read, in rows spread evenly; None for all.
        decode: makes texts of tokens (a tokenizer's ``decode_batch``).
        work: shares the reading among processes and keeps what is done; its facts must name the
            training text.

    Raises:
        ConfigError: no samples, no training rows, or an n or number of tokens below 1.
    """
    given = {"n": n, "the number of samples": len(samples)}
    given["the number of training rows"] = len(training)
    if most_tokens is not None:
        given["most_tokens"] = most_tokens
    for name, value in given.items():
        if value < 1:
            raise ConfigError(f"copying: {name} is {value}, must be at least 1")
    tokens = [np.asarray(sample.cpu(), np.int64) for sample in samples]
    index = Index(tokens, n, training.vocab_size)
    many = None if most_tokens is None else max(1, int(most_tokens / training.mean_length))
    rows = training.subsample(many if len(index.grams) else 0)
    size = max(1, UNIT // training.length)
    facts = {"n": n, "samples": digest([own.tolist() for own in tokens]), "rows": len(rows),
             "training": [len(training), training.length, training.tokens]}  # fmt: skip
    found = (work or ResumableJob()).run(
        "copying",
        -(-len(rows) // size),
        lambda i: _unit(index, training, rows[i * size : (i + 1) * size]),
        facts,
    )
    seen = np.zeros(len(index.grams), bool)
    total = _Best.nothing(len(tokens))
    for unit in found:
        seen[unit["grams"]] = True
        total.add(np.array(unit["longest"]), np.array(unit["count"]), np.array(unit["row"]))
    listed = [
        _copied(own, training, n, hits, longest, count, row, decode)
        for own, hits, longest, count, row in zip(
            tokens, index.by_sample(seen), total.longest, total.count, total.row, strict=True
        )
    ]
    read = sum(unit["tokens"] for unit in found)
    return Copying.of(n, listed, read, len(rows) / len(training))


def _copied(
    own: Ints,
    training: Rows,
    n: int,
    hits: int,
    longest: int,
    count: int,
    row: int,
    decode: Callable[[list[list[int]]], list[str]] | None,
) -> Copied:
    """The report on a sample, given how many of its n-grams are anywhere and in its best row."""
    grams = len(own) - n + 1
    if grams < 1:
        return Copied(len(own), None)
    if not count:
        return Copied(len(own), 0.0)
    at = np.array([row])
    other = training.read(at)[0, : int(training.lengths(at)[0])].numpy()
    run, start = common_run(own, other)
    text = decode([own[start : start + run].tolist()])[0] if decode else None
    return Copied(
        len(own), int(hits) / grams, int(longest), int(row), int(count) / grams, run, start, text
    )


def common_run(a: Ints, b: Ints) -> tuple[int, int]:
    """Length of the longest run of tokens that both have, and where it first begins in ``a``."""
    i, j = np.nonzero(a[:, None] == b)
    if not len(i):
        return 0, 0
    order = np.lexsort((i, j - i))  # along the diagonals
    i, j = i[order], j[order]
    begins = np.flatnonzero((np.diff(i, prepend=-2) != 1) | (np.diff(j, prepend=-2) != 1))
    runs = np.diff(begins, append=len(i))
    longest = runs.max()
    return int(longest), int(i[begins[runs == longest]].min())


def _unit(index: Index, training: Rows, rows: Ints) -> dict[str, Any]:
    """What is found in some rows: n-grams, and of each sample its longest run and best row."""
    seen = np.zeros(len(index.grams), bool)
    best, read = _Best.nothing(index.samples), 0
    size = max(1, CHUNK // training.length)
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        lengths = training.lengths(chosen)
        real = before_padding(lengths, training.length).numpy() if training.padded else None
        found = index.find(training.read(chosen).numpy(), real)
        seen[found.gram] = True
        count, row = index.best_rows(found)
        best.add(index.longest(found), count, chosen[row])
        read += int(lengths.sum())
    return {
        "grams": np.flatnonzero(seen).tolist(),
        "longest": best.longest.tolist(),
        "count": best.count.tolist(),
        "row": best.row.tolist(),
        "tokens": read,
    }


@dataclass
class _Best:
    """Of each sample the longest run, and the row with most of its n-grams, ``[S]`` each."""

    longest: Ints
    count: Ints
    row: Ints

    @classmethod
    def nothing(cls, samples: int) -> _Best:
        return cls(*np.zeros((3, samples), np.int64))

    def add(self, longest: Ints, count: Ints, row: Ints) -> None:
        """What later rows have."""
        self.longest = np.maximum(self.longest, longest)
        self.row = np.where(count > self.count, row, self.row)  # of equals the first
        self.count = np.maximum(self.count, count)
