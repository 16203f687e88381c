"""Verbatim copying: how much of each sample stands word for word in the training text.

The n-grams of the samples are kept as a set of 64-bit hashes. The training rows are read once, in
order, a chunk at a time, so memory does not grow with the training text. Two n-grams that share a
hash are the only source of error: below 1e-5 in a search of a billion tokens for a hundred thousand
n-grams.

Real text repeats n-grams too ("once upon a time there was a"), so the figures mean something only
beside those of held-out rows of the same number and length: pass both in one list and cut the
result, ``found[:64]`` and ``found[64:]``. An n-gram lies within one training row, because only what
stands in one row was ever shown to the network in one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sddlm.data.rows import Ints, Rows
from sddlm.errors import ConfigError
from sddlm.jobs import ResumableJob, digest
from sddlm.types import before_padding

#: training tokens hashed at once, about 50 bytes each; few, for the processor's cache
CHUNK = 1 << 18
#: training tokens of a shard, some seconds
SHARD = 1 << 26

_BASE = np.uint64(0x9E3779B97F4A7C15)

#: tokens of a run, the first training row that has it, and where in the sample it begins
Run = tuple[int, int | None, int]
_NO_RUN: Run = (0, None, 0)


@dataclass(frozen=True)
class Copied:
    """How much of one sample is in the training text.

    Attributes:
        tokens: its length.
        overlap: fraction of its n-grams that some training row has; None below n tokens.
        longest: tokens of its longest run that stands in one training row; 0 if below n.
        row: the first training row that has a run of this length; None if there is none.
        start: where in the sample this run begins.
        text: this run decoded; None if nothing decodes.
    """

    tokens: int
    overlap: float | None
    longest: int = 0
    row: int | None = None
    start: int = 0
    text: str | None = None


@dataclass(frozen=True)
class Copying:
    """How much of a set of samples is in the training text.

    Attributes:
        n: length of the n-grams in tokens.
        overlap: mean of `Copied.overlap`; None without a sample of n tokens.
        longest_mean: mean of `Copied.longest`.
        longest_max: the largest.
        whole: number of samples that stand in one training row from beginning to end.
        tokens_searched: training tokens that were read, padding not counted.
        share_searched: fraction of the training rows; below 1 all figures are lower bounds.
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
        """Figures of one or more samples; ``tokens`` and ``share`` are those searched."""
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
    job: ResumableJob | None = None,
) -> Copying:
    """Search the training text for passages of the samples, in one reading.

    Args:
        samples: tokens of each ``[l]`` int64, padding left out.
        training: rows of the training text.
        n: shortest run of tokens that counts.
        most_tokens: about this number of training tokens is read, in rows spread evenly; None reads
            all.
        decode: makes texts of tokens (a tokenizer's ``decode_batch``).
        job: shares the reading among processes and keeps what is done; its key
            must name the training text.

    Raises:
        ConfigError: no samples, no training rows, or an ``n`` or ``most_tokens`` below 1.
    """
    given = {"n": n, "len(samples)": len(samples), "len(training)": len(training)}
    given |= {} if most_tokens is None else {"most_tokens": most_tokens}
    for name, value in given.items():
        if value < 1:
            raise ConfigError(f"copying: `{name}` is {value}, must be at least 1")
    tokens = [sample.tolist() for sample in samples]
    index = _Index([np.array(own, np.int64) for own in tokens], n)
    count = None if most_tokens is None else max(1, int(most_tokens / training.mean_length))
    rows = training.subsample(count if len(index.hashes) else 0)
    size = max(1, SHARD // training.length)
    cache_key = {"n": n, "samples": digest(tokens), "rows": len(rows),
                 "training": [len(training), training.length, training.tokens]}  # fmt: skip
    shards = (job or ResumableJob()).run(
        "copies",
        -(-len(rows) // size),
        lambda i: index.search(training, rows[i * size : (i + 1) * size]),
        cache_key,
    )
    seen = {gram for shard in shards for gram in shard["grams"]}
    found = []
    for number, (own, grams) in enumerate(zip(tokens, index.grams, strict=True)):
        runs = (shard["runs"][number] for shard in shards)
        longest, row, start = max(runs, key=lambda run: run[0], default=_NO_RUN)  # the first one
        text = decode([own[start : start + longest]])[0] if decode and longest else None
        overlap = sum(gram in seen for gram in grams) / len(grams) if grams else None
        found.append(Copied(len(own), overlap, longest, row, start, text))
    return Copying.of(n, found, sum(shard["tokens"] for shard in shards), len(rows) / len(training))


def _hashes(rows: Ints, n: int) -> npt.NDArray[np.uint64]:
    """A hash of each n-gram in rows ``[R, L]``: ``[R, L - n + 1]``, a polynomial modulo 2^64."""
    width = max(0, rows.shape[1] - n + 1)
    found = np.zeros((len(rows), width), np.uint64)
    tokens = rows.astype(np.uint64)
    for k in range(n):
        found = (found + tokens[:, k : k + width]) * _BASE
    return found


class _Index:
    """The n-grams of samples.

    Attributes:
        hashes: of the different n-grams, sorted ``[M]``.
        grams: of each sample, the number in ``hashes`` of each of its n-grams.
        places: of each number, where it stands: (sample, start) of each.
    """

    def __init__(self, samples: list[Ints], n: int) -> None:
        self.n = n
        every = [_hashes(own[None], n)[0] for own in samples]
        self.hashes = np.unique(np.concatenate(every))
        self.grams = [np.searchsorted(self.hashes, own).tolist() for own in every]
        self.places: list[list[tuple[int, int]]] = [[] for _ in self.hashes]
        for sample, grams in enumerate(self.grams):
            for start, gram in enumerate(grams):
                self.places[gram].append((sample, start))

    def search(self, training: Rows, rows: Ints) -> dict[str, Any]:
        """The n-grams that some rows have, and the longest run of each sample, as JSON."""
        known: set[tuple[int, ...]] = set()
        best, read = [_NO_RUN] * len(self.grams), 0
        size = max(1, CHUNK // training.length)
        for first in range(0, len(rows), size):
            chosen = rows[first : first + size]
            lengths = training.lengths(chosen)
            hashes = _hashes(training.read(chosen).numpy(), self.n)
            gram = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
            here = self.hashes[gram] == hashes
            here &= before_padding(lengths, training.length).numpy()[:, self.n - 1 :]
            row, column = np.nonzero(here)
            ends = np.flatnonzero((np.diff(row) != 0) | (np.diff(column) != 1)) + 1
            firsts = chosen[row[np.r_[0, ends]]].tolist() if len(row) else []
            for number, grams in zip(firsts, np.split(gram[here], ends), strict=False):
                passage = tuple(grams.tolist())
                if passage not in known:  # a formula stands in many rows, and the first one counts
                    self._extend(best, number, passage)
                    known.add(passage)
            read += int(lengths.sum())
        seen = sorted({gram for passage in known for gram in passage})
        return {"grams": seen, "runs": best, "tokens": read}

    def _extend(self, best: list[Run], row: int, passage: Sequence[int]) -> None:
        """Put longer runs in the place of those in ``best``, of equal ones the first.

        Args:
            best: of each sample.
            row: number of a training row.
            passage: numbers of n-grams one behind the other in it.
        """
        runs: dict[tuple[int, int], int] = {}  # n-grams of the runs that end here, by their place
        for gram in passage:
            runs = {(s, at): runs.get((s, at - 1), 0) + 1 for s, at in self.places[gram]}
            for (s, at), count in runs.items():
                length, start = count + self.n - 1, at - count + 1
                longest, there, first = best[s]
                if length > longest or (length == longest and row == there and start < first):
                    best[s] = (length, row, start)
