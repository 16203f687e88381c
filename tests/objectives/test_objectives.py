"""Objectives against golden numbers and against what they say they estimate."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from sddlm.errors import ConfigError
from sddlm.models.layers import select_rows
from sddlm.models.vocab_head import VocabHead
from sddlm.objectives.autoregressive import Autoregressive
from sddlm.objectives.bound import bound_term
from sddlm.objectives.contrastive import SDDLMV1, SDDLMV2
from sddlm.objectives.denoising import SDDLM, CalibratedDenoising, NaiveDenoising
from sddlm.objectives.negatives import UniformNegatives
from sddlm.objectives.nelbo import NELBO
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Noisy

GOLDEN = Path(__file__).parent.parent / "golden"
ALL = [
    NaiveDenoising(),
    CalibratedDenoising(),
    SDDLM(),
    SDDLM(positions="changed"),
    SDDLMV1(),
    SDDLMV1(negatives=UniformNegatives("exact")),
    SDDLMV2(),
    NELBO(),
]


class Table(torch.nn.Module):
    """A network whose logits are given: they are the hidden state, and the head is the identity."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(logits.clone())
        self.vocab_size = logits.shape[-1]
        self.head = VocabHead(self.vocab_size, self.vocab_size).to(logits.dtype)
        self.head.weight.data.copy_(torch.eye(self.vocab_size))

    def forward(self, x_t, sigma, rows=None):
        return select_rows(self.table[:, : x_t.shape[1]], rows)


@dataclass
class Fixed:
    """A process that returns the noise it was given."""

    noisy: Noisy

    def corrupt(self, x0, t, draw, *, vocab_size):
        return self.noisy

    def certain(self, x_t, *, vocab_size):
        return UniformProcess().certain(x_t, vocab_size=vocab_size)

    def own_token_logit(self, x_t, alpha_t, vocab_size):
        return UniformProcess().own_token_logit(x_t, alpha_t, vocab_size)


def golden(name):
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}


def noisy_of(g, i, alpha, dalpha):
    B = g["x0"].shape[0]
    column = torch.ones(B, 1, dtype=torch.float64)
    changed = g["xt"][i] != g["x0"]
    return Noisy(
        g["x0"],
        g["xt"][i],
        g["t"][i] * column[:, 0] if "t" in g else column[:, 0],
        alpha * column,
        dalpha * column,
        changed,
        11,
    )


def value(objective, g, noisy):
    objective.process = Fixed(noisy)
    model = Table(g["logits"])
    draw = Draw.simple(0, 0, len(g["x0"]))
    return objective.loss(model, g["x0"], draw).total.item()


@pytest.mark.parametrize("i", range(9))
@pytest.mark.parametrize("schedule", ["loglinear", "cosine"])
def test_nelbo_equals_duo(i, schedule):
    g = golden("loss_uniform_V11")
    noisy = noisy_of(g, i, g[f"alpha_{schedule}"][i], g[f"dalpha_{schedule}"][i])
    everywhere = torch.ones_like(noisy.resampled)
    model = Table(g["logits"])
    rows = model.head(
        g["logits"].flatten(0, 1),
        bound_term(UniformProcess(), noisy, everywhere, Estimate.LEAVE_ONE_OUT),
    ).rows
    expected = g[f"duo_nll_{schedule}"][i]
    torch.testing.assert_close(rows.view_as(expected), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("i", range(9))
def test_nelbo_equals_udlm_when_alpha_is_one_minus_t(i):
    g = golden("loss_uniform_V11")
    alpha = 1 - g["t"][i]
    if alpha <= 0:
        assert not torch.isfinite(g["udlm_nll"][i]).all()
        return
    noisy = noisy_of(g, i, alpha, -1.0)
    everywhere = torch.ones_like(noisy.resampled)
    rows = (
        Table(g["logits"])
        .head(
            g["logits"].flatten(0, 1),
            bound_term(UniformProcess(), noisy, everywhere, Estimate.LEAVE_ONE_OUT),
        )
        .rows
    )
    torch.testing.assert_close(rows.view(3, 7), g["udlm_nll"][i], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("i", range(9))
def test_sddlm_and_its_variants_equal_their_equations(i):
    g = golden("sddlm_V11")
    noisy = noisy_of(g, i, 0.5, -1.0)
    assert value(NaiveDenoising(), g, noisy) == pytest.approx(g["naive_ce"].sum().item(), rel=1e-10)
    changed = SDDLM(positions="changed")
    assert value(changed, g, noisy) == pytest.approx(g["sddlm"][i].sum().item(), rel=1e-10)
    for eps in (1e-8, 1e-5, 1e-3):
        v1 = SDDLMV1(positions="changed", eps=eps, negatives=UniformNegatives("exact"))
        v2 = SDDLMV2(positions="changed", eps=eps)
        name = np.format_float_scientific(eps, trim="-", exp_digits=2) if eps < 1e-3 else "0.001"
        assert value(v1, g, noisy) == pytest.approx(g[f"v1_eps{name}"][i].sum().item(), rel=1e-9)
        assert value(v2, g, noisy) == pytest.approx(g[f"v2_eps{name}"][i].sum().item(), rel=1e-9)


def test_loss_is_divided_by_all_counted_positions():
    g = golden("sddlm_V11")
    objective = SDDLM(positions="changed")
    objective.process = Fixed(noisy_of(g, 4, 0.5, -1.0))
    loss = objective.loss(Table(g["logits"]), g["x0"], Draw.simple(0, 0, 3))
    assert loss.count == g["x0"].numel()
    assert loss.mean.item() == pytest.approx(g["sddlm_mean_over_all"][4].item(), rel=1e-10)


def test_masked_positions_do_not_count():
    g = golden("sddlm_V11")
    objective = NaiveDenoising()
    objective.process = Fixed(noisy_of(g, 4, 0.5, -1.0))
    mask = torch.ones_like(g["x0"], dtype=torch.bool)
    mask[1:, 3:] = False
    loss = objective.loss(Table(g["logits"]), g["x0"], Draw.simple(0, 0, 3), mask)
    assert loss.count == mask.sum()
    assert loss.total.item() == pytest.approx((g["naive_ce"] * mask).sum().item(), rel=1e-10)


def test_calibrated_is_naive_of_the_shifted_logits():
    g = golden("sddlm_V11")
    noisy = noisy_of(g, 5, 0.3, -1.0)
    shift = UniformProcess().own_token_logit(noisy.x_t, noisy.alpha_t, 11)[..., None]
    onehot = torch.nn.functional.one_hot(noisy.x_t, 11)
    moved = {**g, "logits": g["logits"] + shift * onehot}
    assert value(CalibratedDenoising(), g, noisy) == pytest.approx(
        value(NaiveDenoising(), moved, noisy), rel=1e-12
    )


def test_autoregressive_loss_is_the_next_token_cross_entropy():
    g = golden("loss_ar_V11")
    logits = g["logits"].clone()
    logits[..., -1] = -1e6  # the reference never predicts the mask token
    objective = Autoregressive()
    loss = objective.loss(Table(logits), g["tokens"], Draw.simple(0, 0, 3))
    assert loss.total.item() == pytest.approx(g["nll"].sum().item(), rel=1e-9)
    bound = objective.bound(Table(logits), g["tokens"], Draw.simple(0, 0, 3))
    torch.testing.assert_close(bound[:, 1:], g["nll"], rtol=1e-9, atol=1e-12)
    assert not objective.loss_positions(g["tokens"])[:, 0].any()


@pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)
def test_every_objective_trains_from_real_noise_and_gives_a_bound(objective):
    torch.manual_seed(0)
    logits = torch.randn(4, 6, 13, dtype=torch.float64)
    x0 = torch.randint(13, (4, 6))
    model = Table(logits)
    before = x0.clone()
    draw = Draw.simple(1, 2, 4)
    loss = objective.loss(model, x0, draw)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert model.table.grad.abs().sum() > 0
    assert torch.equal(x0, before)
    bound = objective.bound(model, x0, draw)
    assert bound.shape == x0.shape
    assert (bound >= 0).all()
    again = objective.loss(model, x0, draw)
    assert again.total.item() == loss.total.item()


def test_the_bound_of_a_denoiser_is_that_of_its_conversion():
    """A denoiser's logits and the same logits converted by hand give the same bound."""
    torch.manual_seed(0)
    x0 = torch.randint(13, (4, 6))
    logits = torch.randn(4, 6, 13, dtype=torch.float64)
    draw = Draw.simple(1, 2, 4)
    naive = NaiveDenoising()
    noisy = naive.process.corrupt(x0, draw.times(), draw, vocab_size=13)
    shift = naive.process.own_token_logit(noisy.x_t, noisy.alpha_t, 13)[..., None]
    converted = logits - shift * torch.nn.functional.one_hot(noisy.x_t, 13)
    torch.testing.assert_close(
        naive.bound(Table(logits), x0, draw),
        NELBO().bound(Table(converted), x0, draw),
        rtol=1e-9,
        atol=1e-12,
    )


def test_what_each_objective_declares():
    declared = [
        (NaiveDenoising(), Estimate.DENOISER),
        (CalibratedDenoising(), Estimate.LEAVE_ONE_OUT),
        (SDDLM(), Estimate.LEAVE_ONE_OUT),
        (SDDLM(positions="changed"), Estimate.WITHOUT_X_T),
        (SDDLMV1(), Estimate.TRUNCATED),
        (SDDLMV2(), Estimate.WITHOUT_X_T),
        (NELBO(), Estimate.LEAVE_ONE_OUT),
        (Autoregressive(), Estimate.NEXT_TOKEN),
    ]
    for objective, estimate in declared:
        assert objective.estimate is estimate


@pytest.mark.parametrize(
    ("knob", "named"),
    [
        ({"weight": -1.0}, "`weight`"),
        ({"eps": 0.0}, "`eps`"),
        ({"eps": 1e-50}, "`eps`"),
        ({"weight": float("inf")}, "`weight`"),
        ({"negatives": 0}, "`negatives`"),
    ],
)
def test_wrong_knobs_are_named(knob, named):
    with pytest.raises(ConfigError, match=named):
        SDDLMV1(**knob)
