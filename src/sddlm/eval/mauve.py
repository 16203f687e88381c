"""MAUVE: how near a set of samples is to a set of real texts, as sets (arXiv:2102.01454).

The judge turns each text into a vector, both sets are sorted into the same buckets (k-means), and
the two histograms are compared by the area under their divergence curve: 1 for equal ones, towards
0 the farther they are. A judge's perplexity asks whether each text is likely; this also sees
variety that is missing. What is known about it:

- it needs thousands of texts a side: with few it says more about their number than about them;
- two figures are comparable only at equal counts, with one judge, one context, one scaling factor
  and one seed;
- so a figure of real text against real text stands beside it: what could be reached at best.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sddlm.errors import ConfigError
from sddlm.eval.judge import Judge
from sddlm.work import ResumableJob

#: the constant c of the paper, as the package has it
SCALING = 5.0
#: fewest texts a side: of less there would not be two buckets of ten
FEWEST = 20


@dataclass(frozen=True)
class Mauve:
    """Samples against real texts.

    Attributes:
        mauve: of the samples and the real texts, in (0, 1]; higher is nearer.
        real: of two halves of the real texts, every other one, at ``real_count`` a side.
            It is the ceiling only where this is ``count``: for that give twice as many real texts
            as samples.
        count: texts on each side.
        real_count: the same for ``real``.
        left_out: samples without a token, and those beyond ``count``.
        buckets: of the histograms, a tenth of ``count``.
        scaling: constant c of the divergence curve.
        seed: of k-means.
        judge: whose vectors.
        context: most tokens that it saw of a text.
    """

    mauve: float
    real: float
    count: int
    real_count: int
    left_out: int
    buckets: int
    scaling: float
    seed: int
    judge: str
    context: int


def mauve(
    judge: Judge,
    samples: Sequence[str],
    real: Sequence[str],
    *,
    context: int | None = None,
    batch: int = 8,
    seed: int = 25,
    work: ResumableJob | None = None,
) -> Mauve:
    """MAUVE of ``samples`` against ``real``, by the package ``mauve-text``.

    Both sets are cut to the smaller number. Texts without a token are left out.

    Args:
        judge: gives the vectors: `Judge.features`.
        samples: texts.
        real: texts, best twice as many as samples, and of their length.
        context: most tokens read per text; None for the judge's limit.
        batch: texts per call of the judge; changes nothing but time and memory.
        seed: of k-means; the same seed gives the same number.
        work: does the batches.

    Raises:
        ConfigError: the package is missing, or there are fewer than `FEWEST` samples or twice
            that many real texts.
    """
    compute = _package()
    context = judge.checked_context(context, batch)
    total = len(samples)
    samples, real = ([text for text in texts if text] for texts in (samples, real))
    if len(samples) < FEWEST or len(real) < 2 * FEWEST:
        raise ConfigError(
            f"mauve of {len(samples)} samples and {len(real)} real texts says nothing; it needs "
            f"at least {FEWEST} and {2 * FEWEST}, and thousands to be believed: --count 2000"
        )
    count = min(len(samples), len(real))
    both = [*samples[:count], *real]
    vectors = judge.features(both, context=context, batch=batch, work=work).numpy()
    drawn, true = vectors[:count], vectors[count:]
    half = min(len(true) // 2, count)
    score, buckets = _compare(compute, true[:count], drawn, seed)
    ceiling, _ = _compare(compute, true[::2][:half], true[1::2][:half], seed)
    return Mauve(
        mauve=score,
        real=ceiling,
        count=count,
        real_count=half,
        left_out=total - count,
        buckets=buckets,
        scaling=SCALING,
        seed=seed,
        judge=judge.name,
        context=context,
    )


def _package() -> Any:
    """The function of the package ``mauve-text``."""
    try:
        with warnings.catch_warnings():
            # of the bindings of faiss, at import under Python 3.12 and later
            warnings.filterwarnings("ignore", "builtin type [sS]wig", DeprecationWarning)
            from mauve import compute_mauve
    except ImportError as error:
        raise ConfigError("mauve needs mauve-text; type: pip install 'sddlm[mauve]'") from error
    return compute_mauve


def _compare(
    compute: Any, real: NDArray[np.float32], drawn: NDArray[np.float32], seed: int
) -> tuple[float, int]:
    """MAUVE of two sets of vectors ``[n, D]``, and the number of buckets."""
    with _silent_stderr():
        found = compute(p_features=real, q_features=drawn, seed=seed, mauve_scaling_factor=SCALING)
    return min(float(found.mauve), 1.0), int(found.num_buckets)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hide what faiss, which is C++, writes to stderr: that ten texts a bucket are few.

    The package itself chooses so many buckets, and faiss has no other way to be told.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
