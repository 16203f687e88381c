"""How likely is real text? The bound on -log p per token, in the ways the field prints it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.eval.nll import NLLEstimator, nll_estimator, noise_levels
from sddlm.eval.result import plus_minus
from sddlm.eval.texts import HeldOut
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.padding import hide_padding
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.sampling.base import device_of, evaluating, finite

#: how the network's output is read
READINGS = {
    Estimate.LEAVE_ONE_OUT: "leave-one-out prediction",
    Estimate.DENOISER: "denoiser, converted to the leave-one-out prediction (exact)",
    Estimate.WITHOUT_X_T: "leave-one-out prediction without x_t, read as if with it (a bias)",
    Estimate.TRUNCATED: "truncated leave-one-out prediction, read without conversion",
    Estimate.SCORE: "score, converted to the leave-one-out prediction",
    Estimate.NEXT_TOKEN: "next-token prediction: exact, no bound",
}

#: neighbouring strata that share a mean where errors are estimated
_BIN = 16
#: ranges of the noise level in `Likelihood.by_noise`
_RANGES = 8


@dataclass(frozen=True)
class NoiseRange:
    """The part of a bound that a range of noise levels contributes.

    Attributes:
        low: least noise level 1 - alpha_t.
        high: largest one.
        nats: per token of all text; the parts add up to the bound without the prior term.
    """

    low: float
    high: float
    nats: float


@dataclass(frozen=True)
class Likelihood:
    """A likelihood and how sure it is.

    Attributes:
        nll: nats per token as papers report it: for a diffusion model the bound without the prior
            term, its times from 1e-3 to 1, averaged with weight 1; for an autoregressive model the
            exact value, whose first position has no prediction.
        complete_nll: the complete bound: all times in (0, 1), and the prior term. Below 1e-3 the
            network is read as if it were that time, which keeps it a bound and finite.
        stderr: standard error of ``nll``, rows being a sample of text; NaN with one row.
        noise_stderr: the part of it that is due to the noise drawn: how far the same rows would
            come out with another seed; NaN with one draw.
        complete_stderr: as ``stderr``, of ``complete_nll``.
        complete_noise_stderr: as ``noise_stderr``, of ``complete_nll``.
        prior_kl: the prior term: KL of the fully noised token from the prior, nats per token.
        tokens: positions counted, once each.
        characters: what they stand for, by the split's average characters per token.
        rows: sequences scored.
        draws: noise levels per sequence.
        bound: whether ``nll`` is an upper bound; else it is exact.
        reading: how the network's output is read.
        by_noise: the parts of ``complete_nll`` by noise level; they do not depend on the schedule.
    """

    nll: float
    complete_nll: float
    stderr: float
    noise_stderr: float
    complete_stderr: float
    complete_noise_stderr: float
    prior_kl: float
    tokens: int
    characters: float
    rows: int
    draws: int
    bound: bool
    reading: str
    by_noise: tuple[NoiseRange, ...] = ()

    @property
    def ppl(self) -> float:
        """``exp(nll)`` per token."""
        return exp(self.nll)

    @property
    def complete_ppl(self) -> float:
        """``exp(complete_nll)`` per token."""
        return exp(self.complete_nll)

    @property
    def nats_per_character(self) -> float:
        """``nll`` per character: comparable between tokenizers."""
        return self.nll * self.tokens / self.characters

    @property
    def bpc(self) -> float:
        """Bits per character."""
        return self.nats_per_character / math.log(2)

    @property
    def bpc_stderr(self) -> float:
        """Standard error of ``bpc``."""
        return self.stderr * self.tokens / self.characters / math.log(2)

    @property
    def shown_ppl(self) -> str:
        """``ppl`` with its error, for a table."""
        below = "≤ " if self.bound else ""
        return f"{below}{self.ppl:.4g}{plus_minus(self.stderr * self.ppl)}"

    def as_dict(self) -> dict[str, Any]:
        """All figures, measured and derived."""
        derived = ("ppl", "complete_ppl", "nats_per_character", "bpc", "bpc_stderr")
        parts = [asdict(part) for part in self.by_noise]
        return {**vars(self), "by_noise": parts, **{name: getattr(self, name) for name in derived}}


def exp(nats: float) -> float:
    """``exp``, infinite instead of an overflow."""
    return math.exp(nats) if nats < 700 else math.inf


def likelihood(
    lm: LanguageModel,
    rows: HeldOut,
    *,
    seed: int = 0,
    batch: int = 32,
    draws: int = 1,
    estimator: NLLEstimator | None = None,
    job: ResumableJob | None = None,
) -> Likelihood:
    """The bound (or exact value) of -log p per token over ``rows``, one noise level per draw.

    Times are stratified over the *whole* evaluated set, not the batch, and dealt to the rows by a
    random permutation per draw: with strata in the order of the rows, rows that differ
    systematically along the file would each see one noise level only, a bias. Sums are float64.
    The result depends on ``batch`` within float rounding, on the number of processes not at all.

    ``stderr`` takes rows as independent draws of text (a ratio estimate over rows),
    ``noise_stderr`` the draws within a row as independent; both of what a row's time does not
    explain. The published figure and the complete bound each have their own.

    Args:
        lm: the model.
        rows: what is scored.
        seed: of the noise.
        batch: sequences per network call.
        draws: noise levels per sequence; an autoregressive model needs one and gets one.
        estimator: gives the nats; None is the model's own (`nll_estimator`).
        job: does the batches, and its key must name the rows; None keeps nothing.

    Raises:
        ConfigError: no rows, or ``batch`` or ``draws`` below 1.
        FloatingPointError: the network's output is not finite.
    """
    for name, value in (("batch", batch), ("draws", draws), ("rows", len(rows))):
        if value < 1:
            raise ConfigError(f"likelihood: `{name}` must be at least 1, not {value}")
    draws = draws if lm.estimate.diffusion else 1
    estimator = estimator or nll_estimator(lm)
    prior_kl = estimator.prior_kl(lm.network)
    sums, counts, strata, real = _row_sums(
        lm.network, estimator, rows, seed, batch, draws, job or ResumableJob()
    )
    tokens = float(counts.sum())
    # a first token that is not scored takes its share of the text with it, if it stands for any
    covered = float(real) if rows.ends else tokens
    published, complete = sums.mean(1).sum(1).tolist()
    errors = [_stderrs(each, counts, strata) for each in sums]
    return Likelihood(
        nll=published / tokens,
        complete_nll=complete / tokens + prior_kl,
        stderr=errors[0][0],
        noise_stderr=errors[0][1],
        complete_stderr=errors[1][0],
        complete_noise_stderr=errors[1][1],
        prior_kl=prior_kl,
        tokens=int(tokens),
        characters=covered * rows.characters_per_token,
        rows=len(rows),
        draws=draws,
        bound=lm.estimate.diffusion,
        reading=READINGS[lm.estimate],
        by_noise=_by_noise(lm.process, sums[1], strata, tokens) if lm.estimate.diffusion else (),
    )


def _by_noise(
    process: Process, sums: Tensor, strata: Tensor, tokens: float
) -> tuple[NoiseRange, ...]:
    """Parts of the bound by noise level; each stratum of times belongs to one range.

    Args:
        process: of the noise.
        sums: complete nats of each draw and row ``[draws, n]`` float64.
        strata: of each draw and row ``[draws, n]`` int64.
        tokens: counted in all rows.
    """
    draws, n = sums.shape
    count = min(_RANGES, n)
    first = [-(-k * n // count) for k in range(count + 1)]  # stratum s is in range s * count // n
    levels = noise_levels(process, torch.tensor(first, dtype=torch.float64) / n).tolist()
    each = torch.zeros(count, dtype=torch.float64)
    each.index_add_(0, strata.flatten() * count // n, sums.flatten())
    nats = (each / (draws * tokens)).tolist()
    return tuple(map(NoiseRange, levels[:-1], levels[1:], nats))


def _stderrs(sums: Tensor, counts: Tensor, strata: Tensor) -> tuple[float, float]:
    """Standard errors of ``sums.mean(0).sum() / counts.sum()``: all of it, and of the noise.

    What a row's time explains is no error, since the times are stratified: from each sum is taken
    what its neighbours in time have per token.

    Args:
        sums: of each draw and row ``[draws, n]`` float64.
        counts: tokens of each row ``[n]`` float64.
        strata: of each draw and row ``[draws, n]`` int64.
    """
    draws, n = sums.shape
    tokens = float(counts.sum())
    if n == 1:
        return math.nan, math.nan
    bins = (strata // min(_BIN, n)).flatten()
    each = counts.repeat(draws)  # [draws * n]
    empty = torch.zeros(int(bins.max()) + 1, dtype=torch.float64)
    total, weight, size = (
        empty.scatter_add(0, bins, x) for x in (sums.flatten(), each, torch.ones_like(each))
    )
    bias = (size / (size - 1).clamp(min=1)).sqrt()  # the mean was estimated from the bin itself
    residuals = (sums.flatten() - each * (total / weight)[bins]) * bias[bins]
    residuals = residuals.view(draws, n)
    stderr = math.sqrt(float((residuals.mean(0) ** 2).sum())) / tokens
    if draws == 1:
        return stderr, math.nan
    return stderr, math.sqrt(float(residuals.var(0).sum()) / draws) / tokens


def _row_sums(
    model: Any,
    estimator: NLLEstimator,
    rows: HeldOut,
    seed: int,
    batch: int,
    draws: int,
    job: ResumableJob,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Nats of each row, published and complete ``[2, draws, n]``, positions counted, strata."""
    n, device = len(rows), device_of(model)
    cuts = [slice(i, min(i + batch, n)) for i in range(0, n, batch)]
    index = torch.arange(n)
    strata = torch.stack(
        [Draw(seed, d, index, n).uniform("strata").argsort() for d in range(draws)]
    )

    def one(number: int) -> list[list[float]]:
        d, part = number // len(cuts), cuts[number % len(cuts)]
        x0 = rows.tokens[part].to(device)  # [b, L]
        lengths = None if rows.lengths is None else rows.lengths[part]
        prompts = None if rows.prompts is None else rows.prompts[part]
        seen, real = hide_padding(model, lengths, x0, prompts)
        with evaluating(model):
            nats = estimator.nats(seen, x0, Draw(seed, d, strata[d, part].to(device), n))
        counted = estimator.loss_positions(x0, real)  # [b, L]
        given = torch.ones_like(counted) if real is None else real
        sums = [finite(x.where(counted, x.new_zeros(())).sum(1)).tolist() for x in nats]
        return [*sums, counted.sum(1).tolist(), given.sum(1).tolist()]

    cache_key = {"seed": seed, "draws": draws, "batch": batch, "rows": n}
    found = job.run("likelihood", draws * len(cuts), one, cache_key)
    columns = [[x for shard in found for x in shard[k]] for k in range(4)]
    sums = torch.tensor(columns[:2], dtype=torch.float64).reshape(2, draws, n)
    counts = torch.tensor(columns[2][:n], dtype=torch.float64)
    return sums, counts, strata, sum(columns[3][:n])
