"""What all processes share: Bayes' rule, mixture, corruption; and what tells them apart."""

import warnings
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from sddlm.errors import ConfigError
from sddlm.process import (
    Cosine,
    HybridProcess,
    LogLinear,
    MaskedProcess,
    MixtureProcess,
    Process,
    UniformProcess,
)
from sddlm.process.estimate import Estimate, to_leave_one_out, warn_of_bias
from sddlm.rng import Draw
from sddlm.sampling.ancestral import Ancestral

GOLDEN = Path(__file__).parents[1] / "golden"
PROCESSES = [
    UniformProcess(), MaskedProcess(), HybridProcess(), HybridProcess(uniform=0.7),
    MixtureProcess(), MixtureProcess(uniform=0.7),
]  # fmt: skip
each = pytest.mark.parametrize("process", PROCESSES, ids=repr)


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def forward(process: Process, alpha: Tensor, V: int) -> Tensor:
    """q(x_t = column | x0 = row) [V, V]; rows of tokens that are noise only are never data."""
    return alpha * (torch.eye(V, dtype=torch.float64) + process.odds(alpha, V))


def step(process: Process, a_t: Tensor, a_s: Tensor, V: int) -> Tensor:
    """q(x_t = column | x_s = row) [V, V]."""
    arrive = a_t * (process.odds(a_t, V) - process.odds(a_s, V))
    return a_t / a_s * torch.eye(V, dtype=torch.float64) + arrive


ALPHAS = [(1e-3, 0.2), (0.3, 0.31), (0.4, 1.0), (0.9, 0.97)]


@each
@pytest.mark.parametrize(("a_t", "a_s"), ALPHAS)
def test_steps_compose(process: Process, a_t: float, a_s: float) -> None:
    V, t, s = 6, scalar(a_t), scalar(a_s)
    one = step(process, t, s, V)
    assert (one >= -1e-15).all()
    torch.testing.assert_close(one.sum(1), torch.ones(V).double())
    torch.testing.assert_close(forward(process, s, V) @ one, forward(process, t, V))
    # the rate of arrival is the limit of the step
    near = step(process, t, t + 1e-7, V)[0, 1:] / 1e-7
    rate = t * process.odds_slope(t, V)[1:]  # per unit of alpha
    torch.testing.assert_close(near, rate.expand_as(near), rtol=1e-3, atol=1e-6)


@pytest.mark.slow
@given(st.integers(0, 10_000), st.sampled_from(ALPHAS), st.sampled_from(PROCESSES))
@settings(max_examples=60, deadline=None)
def test_posterior_is_bayes_rule(seed: int, alphas: tuple[float, float], process: Process) -> None:
    a_t, a_s = map(scalar, alphas)
    g = torch.Generator().manual_seed(seed)
    V = int(torch.randint(2, 7, (), generator=g)) + process.extra_tokens
    logits = 3 * torch.randn(V, generator=g).double()
    if process.extra_tokens:
        logits[-1] = -torch.inf
    p = logits.softmax(-1)
    every, x_t = p.expand(V, V), torch.arange(V)
    joint = (p @ forward(process, a_s, V))[:, None] * step(process, a_t, a_s, V)  # [x_s, x_t]
    bayes = (joint / joint.sum(0)).T  # [x_t, x_s]
    kernel = process.posterior(every, x_t, a_t, a_s)
    torch.testing.assert_close(kernel, bayes, rtol=1e-8, atol=1e-12)
    torch.testing.assert_close(kernel.sum(-1), torch.ones(V).double())
    # the same as the marginal of x0 ~ denoiser, and as the mixture that samplers draw from
    denoiser = p * forward(process, a_t, V).T
    denoiser = denoiser / denoiser.sum(-1, keepdim=True)
    marginal = process.marginal_posterior(denoiser, x_t, a_t, a_s)
    torch.testing.assert_close(marginal, kernel, rtol=1e-8, atol=1e-12)
    redraw, predict = process.jump(p, x_t, a_t, a_s, vocab_size=V)
    bound = process.jump_bound(x_t, a_t, a_s, vocab_size=V)
    assert (redraw + predict <= bound).all()
    assert (bound <= 1 + 1e-15).all()
    noise = process.odds(a_s, V)
    noise = noise / noise.sum() if a_s < 1 else torch.zeros(V).double()
    mixture = redraw[:, None] * noise + predict[:, None] * p + torch.diag(1 - redraw - predict)
    torch.testing.assert_close(mixture, kernel, rtol=1e-8, atol=1e-12)
    # a denoiser converted
    back = to_leave_one_out(denoiser.log(), Estimate.DENOISER, process, x_t, a_t)
    seen = ~process.certain(x_t, vocab_size=V)
    torch.testing.assert_close(back.softmax(-1)[seen], every[seen], rtol=1e-8, atol=1e-12)


@pytest.mark.slow
@each
def test_corruption_has_the_law(process: Process) -> None:
    V, rows = 4 + process.extra_tokens, 200_000
    x0 = torch.arange(4).expand(rows, 4)
    draw = Draw.simple(3, 0, rows)
    for t in (0.2, 0.8):
        noisy = process.corrupt(x0, torch.full((rows,), t), draw, vocab_size=V)
        alpha = noisy.alpha_t[0, 0]
        expected = forward(process, alpha, V)[:4]
        found = torch.stack([torch.bincount(noisy.x_t[:, i], minlength=V) / rows for i in range(4)])
        spread = (expected * (1 - expected) / rows).sqrt()
        assert ((found - expected).abs() <= 4.5 * spread + 1e-12).all()
        share = noisy.resampled.double().mean()
        assert abs(share - (1 - alpha)) < 4.5 * (alpha * (1 - alpha) / rows / 4).sqrt()
        assert torch.equal(noisy.x_t[~noisy.resampled], x0[~noisy.resampled])


def test_what_is_certain() -> None:
    x = torch.arange(5)
    assert not UniformProcess().certain(x, vocab_size=5).any()
    assert not HybridProcess().certain(x, vocab_size=5).any()
    assert not MixtureProcess().certain(x, vocab_size=5).any()
    assert torch.equal(MaskedProcess().certain(x, vocab_size=5), x != 4)


def test_priors_and_what_a_bound_leaves_out() -> None:
    draw = Draw.simple(0, 0, 50_000)
    assert (MaskedProcess().prior(draw, 3, vocab_size=7) == 6).all()
    hybrid = HybridProcess().prior(draw, 1, vocab_size=7)
    odds = HybridProcess().odds(scalar(1e-3), 7)
    share = (odds[-1] / odds.sum()).item()
    assert abs((hybrid == 6).double().mean().item() - share) < 0.005
    # a token not yet masked at t = 1 is paid with log(V - 1)
    assert MaskedProcess().prior_kl(50258) == pytest.approx(1e-3 * log(50257), rel=1e-9)
    for process in PROCESSES:
        V = 9 + process.extra_tokens
        q = forward(process, scalar(1e-3), V)[:9]
        alike = q.mean(0)
        kl = torch.where(q[4] > 0, q[4] * (q[4] / alike).log(), 0.0).sum()
        assert process.prior_kl(V) == pytest.approx(kl.item(), rel=1e-9)


def test_the_hybrid_runs_from_uniform_noise_to_masks() -> None:
    """GIDD: kept : masked : uniform = 1 - r : r : 2 k sqrt(r (1 - r)), uniform at most half-way."""
    process, V = HybridProcess(uniform=0.3), 11
    k = 0.3 / 0.7
    for r in (0.01, 0.3, 0.5, 0.9, 0.999):
        parts = torch.tensor([1 - r, r, 2 * k * (r * (1 - r)) ** 0.5], dtype=torch.float64)
        kept, mask, uniform = parts / parts.sum()
        odds = process.odds(kept, V)
        assert (kept * odds[-1]).item() == pytest.approx(mask.item())
        assert (kept * odds[:-1].sum()).item() == pytest.approx(uniform.item())
    half = 0.5 / (1 + k)
    assert (half * process.odds(scalar(half), V)[:-1].sum()).item() == pytest.approx(0.3)
    for wrong in (0.0, 1.0):
        with pytest.raises(ConfigError, match="uniform"):
            HybridProcess(uniform=wrong)


def test_the_mixture_has_one_proportion_and_two_ends() -> None:
    """XDLM: of the noise a share k is uniform over all V tokens, the rest masks."""
    V, alpha = 7, torch.tensor([0.001, 0.3, 0.9]).double()
    noise = MixtureProcess(uniform=0.3).odds(alpha, V)
    noise = noise / noise.sum(-1, keepdim=True)
    expected = torch.full((V,), 0.3 / V).double()
    expected[-1] += 0.7
    torch.testing.assert_close(noise, expected.expand_as(noise))
    for end, uniform in ((MaskedProcess(), 1e-12), (UniformProcess(), 1 - 1e-12)):
        odds = MixtureProcess(uniform=uniform).odds(alpha, V)
        torch.testing.assert_close(odds, end.odds(alpha, V), rtol=1e-9, atol=1e-9)
    for wrong in (0.0, 1.0):
        with pytest.raises(ConfigError, match="uniform"):
            MixtureProcess(uniform=wrong)


@each
def test_slopes_of_the_odds(process: Process) -> None:
    alpha = torch.linspace(0.001, 0.99, 50, dtype=torch.float64, requires_grad=True)
    odds = process.odds(alpha, 5)
    for v in range(5):
        (slope,) = torch.autograd.grad(odds[:, v].sum(), alpha, retain_graph=True)
        torch.testing.assert_close(process.odds_slope(alpha, 5)[:, v], -slope)


@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_golden_masked_posterior(schedule: str) -> None:
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "posterior_V11.npz").items()}
    logits = golden["logits"].clone()
    logits[..., -1] = -torch.inf
    process = MaskedProcess(LogLinear() if schedule == "loglinear" else Cosine())
    for i in range(len(golden["ts"])):
        kernel = process.posterior(
            logits.softmax(-1),
            golden["x_absorb"],
            golden[f"alpha_t_{schedule}"][i],
            golden[f"alpha_s_{schedule}"][i],
        )
        expected = golden[f"absorb_posterior_{schedule}"][i]
        torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-12)


def test_a_score_is_read_as_the_prediction_it_comes_from() -> None:
    V, alpha = 6, scalar(0.3)
    for process in (UniformProcess(), MaskedProcess()):
        x_t = torch.arange(V)
        p = torch.randn(V, generator=torch.Generator().manual_seed(0)).double()
        p[V - process.extra_tokens :] = -torch.inf
        p = p.softmax(-1).expand(V, V)
        marginal = p + process.odds(alpha, V)
        guess = process.odds(alpha, V) + torch.arange(V).lt(V - process.extra_tokens) / (
            V - process.extra_tokens
        )
        logits = (marginal / guess).log()
        logits = logits - logits.gather(1, x_t[:, None])
        back = to_leave_one_out(logits, Estimate.SCORE, process, x_t, alpha).softmax(-1)
        seen = ~process.certain(x_t, vocab_size=V)
        torch.testing.assert_close(back[seen], p[seen], rtol=1e-9, atol=1e-12)
    # a score that no law has is cut, not passed on
    wild = torch.full((1, V), 30.0).double() * one_hot(torch.tensor([2]), V)
    cut = to_leave_one_out(wild, Estimate.SCORE, UniformProcess(), torch.tensor([0]), alpha)
    assert cut.softmax(-1).isfinite().all()
    assert cut.argmax() == 2


def test_leaving_x_t_out_is_warned_of_where_it_matters() -> None:
    with pytest.warns(UserWarning, match="27 tokens samples and bound are biased"):
        warn_of_bias(Estimate.WITHOUT_X_T, 27)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_bias(Estimate.WITHOUT_X_T, 50_000)
        warn_of_bias(Estimate.LEAVE_ONE_OUT, 27)


def test_the_golden_greedy_tail_of_a_denoiser() -> None:
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "posterior_V11.npz").items()}
    alpha, x_t, process = scalar(0.9), golden["xt"], UniformProcess()
    p = to_leave_one_out(golden["logits"].clone(), Estimate.DENOISER, process, x_t, alpha)
    kernel = Ancestral(1, "greedy").kernel(1, process, p.softmax(-1), x_t, alpha, scalar(1.0))
    assert torch.equal(kernel.argmax(-1), golden["greedy"])


def test_a_next_token_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="Autoregressive"):
        to_leave_one_out(
            torch.zeros(1, 3),
            Estimate.NEXT_TOKEN,
            UniformProcess(),
            torch.zeros(1).long(),
            scalar(0.5),
        )
