"""The uniform process: Bayes' rule by brute force, golden kernels, statistics of corruption."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.process.schedule import Cosine, LogLinear
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw

GOLDEN = Path(__file__).parents[1] / "golden"
PROCESS = UniformProcess()


def load(name: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / name).items()}


def scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def noising(alpha: Tensor, V: int) -> Tensor:
    """q(row -> column) [V, V]."""
    return alpha * torch.eye(V, dtype=torch.float64) + (1 - alpha) / V


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """A prediction [V] and alpha_t < alpha_s <= 1."""
    V = draw(st.integers(2, 7))
    seed = draw(st.integers(0, 10_000))
    scale = draw(st.floats(0.1, 8))
    logits = scale * torch.randn(V, generator=torch.Generator().manual_seed(seed)).double()
    a_s = draw(st.one_of(st.just(1.0), st.floats(1e-3, 1)))
    a_t = a_s * draw(st.floats(1e-3, 0.999))
    return logits.softmax(-1), scalar(a_t), scalar(a_s)


def every_state(p: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction [V, V] and token [V] for each possible x_t."""
    V = len(p)
    return p.expand(V, V), torch.arange(V)


@given(cases())
@settings(max_examples=60, deadline=None)
def test_posterior_is_bayes_rule(case: tuple[Tensor, Tensor, Tensor]) -> None:
    p, a_t, a_s = case
    V = len(p)
    joint = (p @ noising(a_s, V))[:, None] * noising(a_t / a_s, V)  # [x_s, x_t]
    bayes = (joint / joint.sum(0)).T  # [x_t, x_s]
    kernel = PROCESS.posterior(*every_state(p), a_t, a_s)
    torch.testing.assert_close(kernel, bayes, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(
        kernel.sum(-1), torch.ones(V, dtype=torch.float64), rtol=0, atol=1e-13
    )
    # nothing happens between t and t
    stays = PROCESS.posterior(*every_state(p), a_t, a_t)
    assert torch.equal(stays, torch.eye(V, dtype=torch.float64))


@pytest.mark.slow
@given(cases())
@settings(max_examples=60, deadline=None)
def test_marginal_posterior(case: tuple[Tensor, Tensor, Tensor]) -> None:
    p, a_t, a_s = case
    V = len(p)
    p_all, x_t = every_state(p)
    # q(x_s | x_t, x0) by Bayes' rule with x0 known, then averaged over x0 ~ p
    joint = noising(a_s, V)[:, :, None] * noising(a_t / a_s, V)  # [x0, x_s, x_t]
    known = joint / joint.sum(1, keepdim=True)
    brute = torch.einsum("x,xsz->zs", p, known)
    kernel = PROCESS.marginal_posterior(p_all, x_t, a_t, a_s)
    torch.testing.assert_close(kernel, brute, rtol=1e-10, atol=1e-13)
    # the same as the plug-in kernel of the converted denoiser
    own = torch.eye(V, dtype=torch.float64)
    converted = to_leave_one_out(p_all.log().clone(), Estimate.DENOISER, PROCESS, x_t, a_t).softmax(
        -1
    )
    plug_in = PROCESS.posterior(converted, x_t, a_t, a_s)
    torch.testing.assert_close(plug_in, kernel, rtol=1e-10, atol=1e-14)
    # and what is plugged in as leave-one-out p is the average over x0 ~ p(x0 | everything)
    full = (p_all.log() + PROCESS.own_token_logit(x_t, a_t, V)[:, None] * own).softmax(-1)
    torch.testing.assert_close(
        PROCESS.posterior(p_all, x_t, a_t, a_s),
        torch.einsum("zx,xsz->zs", full, known),
        rtol=1e-10,
        atol=1e-14,
    )


@given(cases())
@settings(max_examples=60, deadline=None)
def test_posterior_is_the_mixture_of_jump(case: tuple[Tensor, Tensor, Tensor]) -> None:
    p, a_t, a_s = case
    V = len(p)
    redraw, predict = PROCESS.jump(p, torch.arange(V), a_t, a_s, vocab_size=V)  # [V]: x_t = 0..V-1
    mixture = redraw[:, None] / V + predict[:, None] * p
    mixture += torch.diag(1 - redraw - predict)
    torch.testing.assert_close(
        mixture, PROCESS.posterior(*every_state(p), a_t, a_s), rtol=0, atol=2e-15
    )
    bound = PROCESS.jump_bound(torch.tensor(0), a_t, a_s, vocab_size=V)
    assert (redraw + predict <= bound).all()  # also in floating point
    assert bound <= 1 + 1e-15
    at_zero = PROCESS.jump(scalar(0), torch.tensor(0), a_t, a_s, vocab_size=V)
    assert at_zero[0] + at_zero[1] == bound


def test_broadcasting() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.rand(4, 3, 5, generator=g).double().softmax(-1)
    x_t = torch.randint(5, (4, 3), generator=g)
    a_t = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)[:, None]
    a_s = a_t + 0.2
    for kernel in (PROCESS.posterior, PROCESS.marginal_posterior):
        rows = [kernel(p[b], x_t[b], a_t[b, 0], a_s[b, 0]) for b in range(4)]
        torch.testing.assert_close(kernel(p, x_t, a_t, a_s), torch.stack(rows))


@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_golden_posterior(schedule: str) -> None:
    golden = load("posterior_V11.npz")
    p = golden["logits"].softmax(-1)
    curve = LogLinear() if schedule == "loglinear" else Cosine()
    for i, (t, s) in enumerate(golden["ts"]):
        a_t = golden[f"alpha_t_{schedule}"][i]
        a_s = golden[f"alpha_s_{schedule}"][i]
        torch.testing.assert_close(curve.alpha(t), a_t, rtol=0, atol=1e-14)
        if s > 0:
            torch.testing.assert_close(curve.alpha(s), a_s, rtol=0, atol=1e-14)
        kernel = PROCESS.posterior(p, golden["xt"], a_t, a_s)
        for source in ("uniform_posterior", "uniform_posterior_udlm"):
            expected = golden[f"{source}_{schedule}"][i]
            torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-12)


def test_golden_marginal_kernel() -> None:
    golden = load("marginal_kernel_V11.npz")
    p = golden["logits"].softmax(-1)
    for a_t, a_s, expected in zip(
        golden["alpha_t"], golden["alpha_s"], golden["kernel"], strict=True
    ):
        kernel = PROCESS.marginal_posterior(p, golden["xt"], a_t, a_s)
        torch.testing.assert_close(kernel, expected, rtol=1e-9, atol=1e-13)


def test_corrupt_statistics() -> None:
    V, B, L = 7, 64, 2000
    x0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(1))
    before = x0.clone()
    t = torch.linspace(0.05, 1, B, dtype=torch.float64)
    noisy = PROCESS.corrupt(x0, t, Draw.simple(0, 3, B), vocab_size=V)
    assert torch.equal(x0, before)
    assert noisy.alpha_t.shape == noisy.dalpha_t.shape == (B, 1)
    a = noisy.alpha_t[:, 0]
    torch.testing.assert_close(a, LogLinear().alpha(t))
    for hits, rate in (
        (noisy.resampled, 1 - a),
        (~noisy.changed, a + (1 - a) / V),
    ):
        sigma = (rate * (1 - rate) / L).sqrt()
        z = (hits.double().mean(1) - rate) / sigma
        assert z.abs().max() < 4
        assert 0.6 < z.pow(2).mean() < 1.5
    assert not (noisy.changed & ~noisy.resampled).any()
    # a replaced token is uniform, whatever it replaced
    counts = torch.zeros(V, V).index_put_(
        (x0[noisy.resampled], noisy.x_t[noisy.resampled]), torch.ones(()), accumulate=True
    )
    expected = counts.sum(1, keepdim=True) / V
    chi2 = ((counts - expected) ** 2 / expected).sum()
    assert chi2 < 42 + 4 * (2 * 42) ** 0.5


def test_corrupt_is_a_function_of_the_sample() -> None:
    x0 = torch.arange(12).reshape(4, 3)
    t = torch.full((4,), 0.7, dtype=torch.float64)
    whole = PROCESS.corrupt(x0, t, Draw.simple(5, 2, 4), vocab_size=12)
    part = PROCESS.corrupt(x0[2:], t[2:], Draw(5, 2, torch.tensor([2, 3]), 4), vocab_size=12)
    assert torch.equal(whole.x_t[2:], part.x_t)
    assert torch.equal(whole.resampled[2:], part.resampled)


@pytest.mark.parametrize(("vocab_size", "nats"), [(50257, 0.00302), (30522, 0.00256), (35, 1.7e-5)])
def test_prior(vocab_size: int, nats: float) -> None:
    assert PROCESS.prior_kl(vocab_size) == pytest.approx(nats, rel=0.03)
    x = PROCESS.prior(Draw.simple(0, 0, 8), 500, vocab_size=vocab_size)
    assert x.shape == (8, 500)
    assert 0 <= x.min() <= x.max() < vocab_size
    spread = vocab_size / 12**0.5 / 4000**0.5
    assert abs(x.double().mean() - (vocab_size - 1) / 2) < 4 * spread
