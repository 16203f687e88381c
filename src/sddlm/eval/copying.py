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

from sddlm.data.packed import Ints, Rows
from sddlm.errors import ConfigError
from sddlm.jobs import ResumableJob, digest
from sddlm.types import before_padding

#: training tokens hashed at once, about 50 bytes each; few, for the processor's cache
CHUNK = 1 << 18
#: training tokens of a shard, some seconds
UNIT = 1 << 26

_BASE = np.uint64(0x9E3779B97F4A7C15)


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
    tokens = [np.asarray(sample.cpu(), np.int64) for sample in samples]
    index = _Index(tokens, n)
    count = None if most_tokens is None else max(1, int(most_tokens / training.mean_length))
    rows = training.subsample(count if len(index.hashes) else 0)
    size = max(1, UNIT // training.length)
    facts = {"n": n, "samples": digest([own.tolist() for own in tokens]), "rows": len(rows),
             "training": [len(training), training.length, training.tokens]}  # fmt: skip
    units = (job or ResumableJob()).run(
        "copying",
        -(-len(rows) // size),
        lambda i: _search(index, training, rows[i * size : (i + 1) * size]),
        facts,
    )
    seen = np.zeros(len(index.hashes), bool)
    runs = np.zeros((3, len(tokens)), np.int64)
    for unit in units:
        seen[unit["grams"]] = True
        runs = _longer(runs, np.array(unit["runs"]))
    hits = np.bincount(index.owner[seen[index.gram]], minlength=len(tokens))
    found = []
    for own, hit, (longest, row, start) in zip(tokens, hits.tolist(), runs.T.tolist(), strict=True):
        grams = len(own) - n + 1
        text = decode([own[start : start + longest].tolist()])[0] if decode and longest else None
        overlap = hit / grams if grams > 0 else None
        found.append(Copied(len(own), overlap, longest, row if longest else None, start, text))
    return Copying.of(n, found, sum(unit["tokens"] for unit in units), len(rows) / len(training))


def _search(index: _Index, training: Rows, rows: Ints) -> dict[str, Any]:
    """The n-grams that some rows have, and the longest run of each sample, as JSON."""
    seen = np.zeros(len(index.hashes), bool)
    runs, read = np.zeros((3, index.samples), np.int64), 0
    size = max(1, CHUNK // training.length)
    for first in range(0, len(rows), size):
        chosen = rows[first : first + size]
        lengths = training.lengths(chosen)
        real = before_padding(lengths, training.length).numpy() if training.padded else None
        row, column, gram = index.find(training.read(chosen).numpy(), real)
        seen[gram] = True
        runs = _longer(runs, index.longest_runs(chosen[row], column, gram))
        read += int(lengths.sum())
    return {"grams": np.flatnonzero(seen).tolist(), "runs": runs.tolist(), "tokens": read}


def _longer(runs: Ints, later: Ints) -> Ints:
    """The longer run of each sample ``[3, S]``; of equal ones the first."""
    return np.where(later[0] > runs[0], later, runs)


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
        samples: S.
        hashes: of the different n-grams, sorted ``[M]``.
        gram: which of them each n-gram of the samples is ``[G]``, sample after sample.
        owner: its sample ``[G]``.
        start: where it begins in its sample ``[G]``.
    """

    def __init__(self, samples: list[Ints], n: int) -> None:
        self.samples, self.n = len(samples), n
        every = [_hashes(own[None], n)[0] for own in samples]
        self.owner = np.repeat(np.arange(len(samples)), [len(own) for own in every])
        self.start = np.concatenate([np.arange(len(own)) for own in every])
        self.hashes, self.gram = np.unique(np.concatenate(every), return_inverse=True)
        # a table of the first bits turns most n-grams of the training text away
        bits = max(16, len(self.hashes).bit_length() + 5)
        self._shift = np.uint64(64 - bits)
        self._maybe = np.zeros(1 << bits, bool)
        self._maybe[self.hashes >> self._shift] = True

    def find(self, rows: Ints, real: npt.NDArray[np.bool_] | None) -> tuple[Ints, Ints, Ints]:
        """Row, column and number of every n-gram of the samples in rows ``[R, L]``: ``[H]`` each.

        Args:
            rows: tokens.
            real: what is not padding ``[R, L]``; None for all.
        """
        hashes = _hashes(rows, self.n)
        maybe = self._maybe[hashes >> self._shift]
        if real is not None:
            maybe &= real[:, self.n - 1 :]
        row, column = np.nonzero(maybe)
        hashes = hashes[row, column]
        gram = np.searchsorted(self.hashes, hashes).clip(max=len(self.hashes) - 1)
        here = self.hashes[gram] == hashes
        return row[here], column[here], gram[here]

    def longest_runs(self, row: Ints, column: Ints, gram: Ints) -> Ints:
        """Length, row and start of each sample's longest run ``[3, S]``; length 0 for none.

        Two texts share a run of k + 1 tokens where they share two runs of k, one behind the other,
        so runs grow a token at a time, all samples and rows together: ``name`` is the same for
        equal runs. Memory is that of the n-grams found, however often they repeat.
        """
        best = np.zeros((3, self.samples), np.int64)
        hit = np.zeros(len(self.hashes), bool)
        hit[gram] = True
        ours = hit[self.gram]
        side = np.repeat([0, 1], [len(gram), ours.sum()])  # training text, samples
        text = np.concatenate((row, self.owner[ours]))
        at = np.concatenate((column, self.start[ours]))
        name, length = np.concatenate((gram, self.gram[ours])), self.n
        while len(name):
            own, names = side == 1, int(name.max()) + 1
            first_row = np.zeros(names, np.int64)
            first_row[name[~own][::-1]] = text[~own][::-1]  # the last to write is the first row
            owner, start, rows = text[own], at[own], first_row[name[own]]
            order = np.lexsort((start, rows, owner))[::-1]
            best[:, owner[order]] = np.stack((np.full_like(rows, length), rows, start))[:, order]
            next_to = (side[1:] == side[:-1]) & (text[1:] == text[:-1]) & (at[1:] == at[:-1] + 1)
            pair = np.flatnonzero(next_to)
            _, longer = np.unique(name[pair] * names + name[pair + 1], return_inverse=True)
            shared = np.zeros((2, len(pair)), bool)
            shared[side[pair], longer] = True
            both = (shared[0] & shared[1])[longer]
            pair, name = pair[both], longer[both]
            side, text, at, length = side[pair], text[pair], at[pair], length + 1
        return best
