"""The Gaussian view: its map to alpha, and the law of its soft and hard tokens."""

from math import erf, factorial, pi, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch

from sddlm.process.gaussian import gaussian_map, log_win
from sddlm.process.latent import (
    _log_rest,
    dense_latent,
    distinct_from,
    largest_normals,
    latent,
    normals,
    top_latent,
)
from sddlm.rng import Draw

GOLDEN = Path(__file__).parent.parent / "golden"
GAMMA = -2.7
SIZES = [2, 3, 27, 256, 50257, 200_000]
RANGES = [(0.05, 0.945), (1e-3, 0.999), (1e-4, 0.9999)]


def golden(name):
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}


def alpha_of(log_p, V):
    return (V * log_p.exp() - 1) / (V - 1)


def p_of(gamma, V):
    return log_win(torch.tensor(gamma, dtype=torch.float64), V).exp().item()


def p_slope(gamma, V):
    """dP / d gamma by its own integral, the trapezoid rule on 2,000 points."""
    x = torch.linspace(-10, 10, 2_001, dtype=torch.float64)
    mu = torch.exp(-gamma / 2)[:, None]
    phi = torch.exp(-(x**2) / 2) / sqrt(2 * pi)
    inner = -mu / 2 * x * phi * torch.exp((V - 1) * torch.special.log_ndtr(mu + x))
    return inner.sum(-1) * (x[1] - x[0])


@pytest.mark.parametrize("V", [11, 97, 256])
def test_the_quadrature_equals_duos_on_the_infinite_line(V):
    g = golden("gauss_to_discrete")
    p = log_win(g["gamma"], V).exp()
    torch.testing.assert_close(p, g[f"p_V{V}"], rtol=0, atol=2e-8)
    torch.testing.assert_close(p_slope(g["gamma"], V), g[f"dp_dgamma_V{V}"], rtol=0, atol=2e-8)


def test_of_two_tokens_the_larger_is_known_in_closed_form():
    for gamma in (-4.0, 0.0, 3.0):
        mu = np.exp(-gamma / 2)
        assert p_of(gamma, 2) == pytest.approx((1 + erf(mu / 2)) / 2, rel=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("span", RANGES)
@pytest.mark.parametrize("V", SIZES)
def test_alpha_and_its_slope_at_1000_points(V, span):
    path = gaussian_map(V, *span)
    t = torch.linspace(0, 1, 1000, dtype=torch.float64)
    direct = alpha_of(log_win(path.gamma(t), V), V)
    torch.testing.assert_close(path.alpha(t), direct, rtol=0, atol=1e-7)
    width = path.gamma_max - path.gamma_min
    slope = V / (V - 1) * width * p_slope(path.gamma(t), V)
    torch.testing.assert_close(path.dalpha(t), slope, rtol=0, atol=1e-5 * width)
    assert (path.dalpha(t) < 0).all()
    assert path.alpha(t)[[0, -1]].tolist() == pytest.approx([span[1], span[0]], abs=1e-7)


def test_the_range_of_gamma_is_duos_for_its_vocabularies():
    for V, alphas, gammas in (
        (50257, (0.04932, 0.94547), (-3.55, -1.85)),
        (30522, (0.04868, 0.94171), (-3.5, -1.75)),
    ):
        path = gaussian_map(V, *alphas)
        assert (path.gamma_min, path.gamma_max) == pytest.approx(gammas, abs=1e-3)
    assert gaussian_map(27, 0.05, 0.945) is gaussian_map(27, 0.05, 0.945)


def test_latent_equals_duos():
    g = golden("curriculum_dcd_V11")
    w = latent(g["x0"], g["gamma_t"], g["eps"].clone())
    torch.testing.assert_close(w, g["w_t"], rtol=1e-12, atol=1e-14)
    assert torch.equal(w.argmax(-1), g["xt"])


def test_normals_are_finite_at_both_ends_of_the_uniform_numbers():
    class Ends(Draw):
        def uniform(self, name, *shape):
            return torch.tensor([[0.0, 1 - 2.0**-53]], dtype=torch.float64)

    draw = Ends.simple(0, 0, 1)
    assert normals(draw, "x", 2).abs().max() < 9
    assert torch.isfinite(largest_normals(draw, "x", 1, k=2, of=2)).all()


def draw_of(rows, step=0):
    return Draw.simple(5, step, rows)


def tokens(rows, length, V):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(0))


def soft_and_hard(V, k, rows=64, length=512, gamma=GAMMA, tau=1e-3, step=0):
    x0 = tokens(rows, length, V)
    gamma = torch.full((rows,), gamma, dtype=torch.float64)
    draw = draw_of(rows, step)
    if k is None:
        return x0, *dense_latent(x0, gamma, tau, draw, vocab_size=V)
    return x0, *top_latent(x0, gamma, tau, draw, vocab_size=V, top_k=k)


@pytest.mark.parametrize(
    ("V", "k", "gamma"),
    [
        *((50257, k, GAMMA) for k in (1, 2, 3, 5, 10)),
        (50257, 3, -3.5),
        (11, None, -1.0),
        (11, 1, -1.0),
        (11, 10, -1.0),
        (2, None, 0.5),
        (2, 1, 0.5),
    ],
)
def test_x0_is_kept_with_the_probability_of_the_map_within_four_sigma(V, k, gamma):
    """The published efficient form keeps it whenever it is among the k: 0.44 to 0.62, not 0.36."""
    x0, _, hard = soft_and_hard(V, k, gamma=gamma)
    p = p_of(gamma, V)
    assert abs((hard == x0).double().mean() - p) < 4 * sqrt(p * (1 - p) / x0.numel())
    if (V, gamma) == (50257, GAMMA):
        assert p == pytest.approx(0.360, abs=5e-4)


@pytest.mark.parametrize("k", [None, 1, 4, 10])
def test_another_token_is_uniform_over_the_others(k):
    V = 11
    x0, _, hard = soft_and_hard(V, k, gamma=0.5)
    shift = (hard - x0)[hard != x0] % V  # 1 .. V - 1
    counts = torch.bincount(shift, minlength=V)[1:].double()
    mean = counts.sum() / (V - 1)
    chi2 = ((counts - mean) ** 2 / mean).sum()
    assert chi2 < (V - 2) + 4 * sqrt(2 * (V - 2))


def test_the_hard_token_is_the_one_with_the_largest_weight():
    for k in (None, 7):
        _, soft, hard = soft_and_hard(200, k, rows=4, length=64)
        top = soft.weights.argmax(-1, keepdim=True)
        top = top if soft.ids is None else soft.ids.gather(-1, top)
        assert torch.equal(top[..., 0], hard)


@pytest.mark.slow
def test_the_largest_have_the_joint_law_of_all():
    """Weight of the largest and weight of x0, two samples of 65,536, each event within 4 sigma."""
    V, tau = 200, 0.03
    samples = []
    for k in (None, 60):
        x0, soft, _ = soft_and_hard(V, k, rows=128, tau=tau, step=7 if k else 3)
        own = soft.weights.gather(-1, x0[..., None]) if k is None else soft.weights[..., :1]
        top2 = soft.weights.topk(2, -1).values
        samples.append(torch.cat([own, top2], -1).double().flatten(0, 1))  # [n, 3]
    dense, top = samples
    n = len(dense)

    def close(a, b):
        gap, sigma = a.mean(0) - b.mean(0), ((a.var(0) + b.var(0)) / n).sqrt()
        assert (gap.abs() <= 4 * sigma).all(), (gap / sigma).tolist()

    close(dense, top)
    close(dense * dense.roll(1, 1), top * top.roll(1, 1))
    for q in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95):
        cut = dense.quantile(q, 0)
        below = dense < cut, top < cut
        close(*(b.double() for b in below))
        close(*((b & b.roll(1, 1)).double() for b in below))


@pytest.mark.parametrize("of", [10, 50256, 199_999])
def test_order_statistics_are_exact_transforms_of_their_uniform_numbers(of):
    draw = draw_of(8)
    top = largest_normals(draw, "x", 64, k=10, of=of)
    log_u = draw.uniform("x", 64, 10).add(2.0**-54).log()
    log_cdf = torch.special.log_ndtr(top)
    assert (top.diff(dim=-1) < 0).all()
    left = of - torch.arange(10)
    found = log_cdf.diff(dim=-1, prepend=torch.zeros(8, 64, 1)) * left
    torch.testing.assert_close(found, log_u, rtol=1e-6, atol=1e-9)


def test_all_of_three_normals_have_their_moments():
    x = largest_normals(draw_of(64), "x", 1024, k=3, of=3).flatten(0, 1)
    n = len(x)
    assert abs(x[:, 0].mean() - 1.5 / sqrt(pi)) < 4 * x[:, 0].std() / sqrt(n)
    assert abs(x[:, 1].mean()) < 4 * x[:, 1].std() / sqrt(n)
    assert abs(x.sum(1).var() - 3) < 4 * 3 * sqrt(2 / n)


def test_ids_are_distinct_and_every_order_is_equally_likely():
    V, k = 5, 3
    x0 = tokens(64, 512, V)
    ids = distinct_from(x0, draw_of(64), "ids", k=k, vocab_size=V)
    assert torch.equal(ids[..., 0], x0)
    assert (ids.sort(-1).values.diff(dim=-1) > 0).all()
    assert ids.min() >= 0
    assert ids.max() < V
    code = (((ids[..., 1:] - x0[..., None]) % V) * torch.tensor([25, 5, 1])).sum(-1)
    counts = code.unique(return_counts=True)[1].double()
    orders = factorial(V - 1) // factorial(V - 1 - k)
    assert len(counts) == orders
    mean = x0.numel() / orders
    chi2 = ((counts - mean) ** 2 / mean).sum()
    assert chi2 < orders - 1 + 4 * sqrt(2 * (orders - 1))


def test_all_ids_are_a_permutation():
    ids = distinct_from(tokens(3, 4, 9), draw_of(3), "ids", k=8, vocab_size=9)
    assert torch.equal(ids.sort(-1).values, torch.arange(9).expand(3, 4, 9))


@pytest.mark.slow
@pytest.mark.parametrize("last", [-3.0, 0.0, 3.5, 8.0])
@pytest.mark.parametrize("s", [0.01, 1.0, 25.0, 250.0])
def test_the_expected_mass_of_the_rest_equals_its_integral(s, last):
    x = last - torch.linspace(0, 60, 2_000_001, dtype=torch.float64)
    log_phi = -(x**2) / 2 - torch.special.log_ndtr(torch.tensor(last, dtype=torch.float64))
    log_mean = (s * (x - last) + log_phi).logsumexp(0) + np.log(60 / 2e6 / sqrt(2 * pi))
    one = torch.tensor([last, s], dtype=torch.float64)
    assert _log_rest(one[0], one[1], 7) == pytest.approx(np.log(7) + log_mean.item(), abs=5e-3)


@pytest.mark.slow
def test_weights_sum_to_one_less_the_rest():
    for V, k in ((50257, 10), (200_000, 10), (50257, 200), (200, 199)):
        _, soft, _ = soft_and_hard(V, k, rows=2, length=256)
        assert soft.weights.shape == (2, 256, k + 1)
        total = soft.weights.sum(-1)
        assert (total <= 1 + 1e-5).all()
        assert total.mean() > 0.999
    assert total.min() > 1 - 1e-5  # no rest
    _, dense, _ = soft_and_hard(200, None, rows=2, length=256)
    torch.testing.assert_close(dense.weights.sum(-1), torch.ones(2, 256))


@pytest.mark.parametrize(("V", "k"), [(11, None), (11, 3), (50257, 1), (50257, 10), (2, 1)])
def test_the_hard_limit_is_one_hot(V, k):
    _, soft, hard = soft_and_hard(V, k, rows=4, length=256, tau=1e-10)
    assert ((soft.weights == 0) | (soft.weights == 1)).all()
    assert (soft.weights.sum(-1) == 1).all()
    top = soft.weights.argmax(-1, keepdim=True)
    assert torch.equal((top if soft.ids is None else soft.ids.gather(-1, top))[..., 0], hard)


def test_a_huge_temperature_spreads_the_mass_over_the_rest():
    _, soft, _ = soft_and_hard(1000, 9, rows=2, length=8, tau=1e6)
    torch.testing.assert_close(soft.weights, torch.full_like(soft.weights, 1e-3), rtol=1e-4, atol=0)
