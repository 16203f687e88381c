"""Below t = 1e-3 a network is read as if t were that: the whole integral stays a bound, and finite.

Everything is enumerated: the integrand is `bound` itself, for all pairs of clean and noisy texts.
"""

from __future__ import annotations

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor

from sddlm.exact import TabularModel, World, law, states
from sddlm.objectives.bound import T_MIN, bound
from sddlm.process import HybridProcess, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.rng import Draw
from sddlm.sampling.ancestral import Ancestral
from sddlm.types import Noisy

C, L = 3, 2  # clean tokens, positions
LOO, DENOISER, SCORE = Estimate.LEAVE_ONE_OUT, Estimate.DENOISER, Estimate.SCORE
CASES = [
    (UniformProcess, DENOISER), (UniformProcess, LOO), (UniformProcess, SCORE),
    (HybridProcess, DENOISER), (HybridProcess, LOO), (MaskedProcess, LOO), (MaskedProcess, SCORE),
]  # fmt: skip
each = pytest.mark.parametrize(
    ("kind", "estimate"), CASES, ids=lambda x: getattr(x, "__name__", None) or x.value
)


def integral(
    model: TabularModel, process: Process, estimate: Estimate, least: float, most: float
) -> Tensor:
    """Of the bound's expectation, over t in [least, most], for every clean text ``[C^L]``."""
    V = C + process.extra_tokens
    clean, noisy = states(C, L), states(V, L)
    x0, x_t = clean.repeat_interleave(len(noisy), 0), noisy.repeat(len(clean), 1)

    def corrupt(x0: Tensor, t: Tensor, draw: Draw, *, vocab_size: int) -> Noisy:
        alpha, slope = process.schedule.alpha(t)[:, None], process.schedule.dalpha(t)[:, None]
        return Noisy(x0, x_t, t, alpha, slope, x_t != x0, vocab_size)

    points, weights = np.polynomial.legendre.leggauss(20)
    spans = np.log([least, most])
    found = torch.zeros(len(clean), dtype=torch.float64)
    process.corrupt = corrupt  # type: ignore[method-assign]
    for point, weight in zip(points, weights, strict=True):
        t = torch.tensor(np.exp(spans.mean() + point * np.ptp(spans) / 2)).expand(len(x0))
        alpha = process.schedule.alpha(t)[:, None]
        q = alpha * ((x_t == x0) + process.odds_at(x_t, alpha, V))  # [pairs, L]
        nats = bound(model, process, estimate, x0, Draw.simple(0, 0, len(x0)), t)
        q = q.prod(1)
        nats = torch.where(q > 0, nats.double().sum(1), 0.0)  # what cannot be weighs nothing
        found += weight * np.ptp(spans) / 2 * t[0] * (q * nats).view(len(clean), -1).sum(1)
    del process.corrupt
    return found


def complete(model: TabularModel, process: Process, estimate: Estimate) -> Tensor:
    """The complete bound of every clean text."""
    parts = [(1e-15, 1e-9), (1e-9, 1e-6), (1e-6, T_MIN), (T_MIN, 0.1), (0.1, 1.0)]
    total = sum(integral(model, process, estimate, *part) for part in parts)
    return total + L * process.prior_kl(model.vocab_size)


def table(process: Process) -> TabularModel:
    """A wrong network, which does not look at the noise level."""
    V = C + process.extra_tokens
    logits = torch.randn(V**L, L, V, generator=torch.Generator().manual_seed(5)).double()
    return TabularModel(logits, vocab_size=V, length=L, num_extra_tokens=process.extra_tokens)


@pytest.mark.slow
@each
def test_the_smallest_times_cost_nothing(kind: type[Process], estimate: Estimate) -> None:
    process = kind()
    model = table(process)
    small = integral(model, process, estimate, 1e-13, 1e-8)
    assert (small >= 0).all()
    assert small.max() < 1e-3


@pytest.mark.slow
@each
def test_it_bounds_whatever_the_network(kind: type[Process], estimate: Estimate) -> None:
    """By the law of the reverse process, and by the sum of all laws, which is 1."""
    process = kind()
    model = table(process)
    nats = complete(model, process, estimate)
    assert (-nats).exp().sum() < 1
    if estimate is SCORE:  # a score that is no ratio of laws has no such process
        return
    V = model.vocab_size
    latest = process.schedule.alpha(torch.tensor(T_MIN).double())

    def predictions(alpha: float) -> Tensor:
        at = torch.tensor(alpha, dtype=torch.float64).clamp(max=latest)
        logits = model.table.detach().clone()
        logits[..., C:] = -torch.inf
        return to_leave_one_out(logits, estimate, process, states(V, L), at).softmax(-1)

    drawn = law(Ancestral(1100), process, predictions)  # the last step is below T_MIN
    assert (nats > -drawn.log() - 0.005).all()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [UniformProcess, HybridProcess])
def test_with_exact_predictions_it_is_nearly_tight(kind: type[Process]) -> None:
    process, world = kind(), World.random(C, L, seed=2, concentration=1.0)
    V = C + process.extra_tokens
    model = TabularModel(
        lambda alpha: world.denoiser(alpha, process), vocab_size=V, length=L,
        num_extra_tokens=process.extra_tokens,
    )  # fmt: skip
    nats = complete(model, process, DENOISER)
    assert 0.99 < (-nats).exp().sum() < 1
    excess = (world.probabilities * nats).sum().item() - world.entropy
    assert 0 < excess < 0.005
    assert world.entropy < log(C**L)
