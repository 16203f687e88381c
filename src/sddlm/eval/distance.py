"""Energy distance: how far a set of samples is from a set of real texts, without a package.

As in MAUVE a judge turns each text into a vector, so variety that is missing counts, which a
judge's perplexity does not see. There are no buckets, so it needs fewer texts than MAUVE, and the
vector is the mean over a text's tokens: the last one alone shows a small judge no difference
between real text and random words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.eval.judge import Judge
from sddlm.jobs import ResumableJob


@dataclass(frozen=True)
class Distance:
    """Samples against real texts.

    Attributes:
        distance: of the samples and the real texts.
        real: of two halves of the real texts, every other one.
        count: samples.
        real_count: real texts.
        judge: whose vectors.
    """

    distance: float
    real: float
    count: int
    real_count: int
    judge: str


def energy_distance(x: Tensor, y: Tensor) -> float:
    """Energy distance of two laws as a share of the distance between their draws.

    ``1 - (E|X - X'| + E|Y - Y'|) / (2 E|X - Y|)``, 0 if and only if the laws are equal, at most 1
    (Székely and Rizzo 2013). Estimated without bias but for the ratio, so it can be below 0.

    Args:
        x: draws of one law ``[n, D]``, at least 2.
        y: draws of the other ``[m, D]``, at least 2.
    """
    x, y = x.double(), y.double()
    within = [torch.cdist(z, z).sum() / (len(z) * (len(z) - 1)) for z in (x, y)]
    return 1 - float((within[0] + within[1]) / (2 * torch.cdist(x, y).mean()))


def distance(
    judge: Judge,
    samples: Sequence[str],
    real: Sequence[str],
    *,
    context: int | None = None,
    job: ResumableJob | None = None,
) -> Distance:
    """Energy distance of samples and real texts in a judge's vectors (`Judge.features`).

    Texts without a token are left out.

    Args:
        judge: gives the vectors.
        samples: texts, at least 2.
        real: texts of their length, at least 4.
        context: most tokens read per text; None for the judge's limit.
        job: does the batches.

    Raises:
        ConfigError: too few texts.
    """
    drawn, true = ([text for text in texts if text] for texts in (samples, real))
    if len(drawn) < 2 or len(true) < 4:
        raise ConfigError(
            f"the distance of {len(drawn)} samples and {len(true)} real texts is undefined; it "
            "needs at least 2 and 4: set `count` to 128"
        )
    vectors = judge.features([*drawn, *true], context=context, mean=True, job=job)  # [n, D]
    x, y = vectors[: len(drawn)], vectors[len(drawn) :]
    own, halves = energy_distance(x, y), energy_distance(y[::2], y[1::2])
    return Distance(own, halves, len(x), len(y), judge.name)
