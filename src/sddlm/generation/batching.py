"""Samples without a condition, cut into batches of one length each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import torch

from sddlm.lm import LanguageModel


@dataclass(frozen=True)
class SampleBatch:
    """Samples that are drawn together.

    Attributes:
        first: index of the first; a sample's noise depends on its index alone.
        count: how many.
        length: L.
    """

    first: int
    count: int
    length: int


def cuts(
    loaded: LanguageModel, *, count: int, length: int | None = None, batch: int
) -> tuple[list[SampleBatch], list[int]]:
    """How samples are cut into batches of one length each, and the length of every sample.

    Args:
        loaded: the model.
        count: B.
        length: L; None: see `sample`.
        batch: samples drawn together at most.
    """
    lengths = lengths_of_samples(loaded, count, length)
    found = [
        SampleBatch(first, min(batch, stop - first), wide)
        for start, stop, wide in _runs(lengths)
        for first in range(start, stop, batch)
    ]
    return found, lengths


def lengths_of_samples(
    loaded: LanguageModel, count: int, length: int | None, *, documents: bool = True
) -> list[int]:
    """Length of each sample: that asked for or trained for, or those of the training documents.

    The documents' lengths are taken at evenly spaced quantiles, the longest first. Documents in
    which the tokenizer finds no token are left out.

    Args:
        loaded: the model.
        count: how many samples.
        length: asked for, or None.
        documents: take those of the documents, where rows were documents.
    """
    rows = loaded.data.get("row_lengths")  # how many have each length
    if length is not None or rows is None or not documents:
        return [length or loaded.network.length] * count
    below = torch.tensor([0, *rows[1:]], dtype=torch.float64).cumsum(0)
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * below[-1]
    return [int(n) for n in torch.searchsorted(below, quantiles).flip(0)]


def _runs(lengths: list[int]) -> Iterator[tuple[int, int, int]]:
    """Beginning, end and length of each run of equal lengths."""
    start = 0
    for wide, run in groupby(lengths):
        stop = start + len(list(run))
        yield start, stop, wide
        start = stop
