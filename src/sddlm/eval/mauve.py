"""MAUVE: how near a set of samples is to a set of real texts (arXiv:2102.01454).

The judge turns each text into a vector, both sets are sorted into the same buckets (k-means), and
the two histograms are compared by the area under their divergence curve: 1 for equal ones, towards
0 the farther they are. A judge's perplexity asks whether each text is likely; MAUVE also sees
variety that is missing. It needs thousands of texts a side, and two figures are comparable only at
equal counts, with one judge, context, scaling factor and seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from sddlm.errors import ConfigError
from sddlm.eval.judge import Judge
from sddlm.jobs import ResumableJob

#: the constant c of the paper, as the package has it
SCALING = 5.0
#: fewest texts a side: fewer would not make two buckets of ten
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
    job: ResumableJob | None = None,
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
        job: does the batches.

    Raises:
        ConfigError: the package is missing, or there are fewer than `FEWEST` samples or twice
            that many real texts.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise ConfigError("mauve needs mauve-text; type: pip install 'sddlm[mauve]'") from error
    context = judge.checked_context(context, batch)
    drawn, true = ([text for text in texts if text] for texts in (samples, real))
    if len(drawn) < FEWEST or len(true) < 2 * FEWEST:
        raise ConfigError(
            f"mauve of {len(drawn)} samples and {len(true)} real texts means nothing; it needs at "
            f"least {FEWEST} and {2 * FEWEST}, and thousands to be believed: set `count` to 2000"
        )
    count = min(len(drawn), len(true))
    half = min(len(true) // 2, count)
    both = [*drawn[:count], *true]
    vectors = judge.features(both, context=context, batch=batch, job=job).numpy()  # [n, D]
    p, q = vectors[count:], vectors[:count]
    compare = partial(compute_mauve, seed=seed, mauve_scaling_factor=SCALING)
    found = compare(p_features=p[:count], q_features=q)
    ceiling = compare(p_features=p[::2][:half], q_features=p[1::2][:half])
    return Mauve(
        mauve=min(float(found.mauve), 1.0),
        real=min(float(ceiling.mauve), 1.0),
        count=count,
        real_count=half,
        left_out=len(samples) - count,
        buckets=int(found.num_buckets),
        scaling=SCALING,
        seed=seed,
        judge=judge.name,
        context=context,
    )
