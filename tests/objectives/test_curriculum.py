"""Duo's curriculum: golden numbers, its phases, its ends."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sddlm.errors import ConfigError
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.layers import Embedding, select_rows
from sddlm.models.vocab_head import VocabHead
from sddlm.objectives.curriculum import HARD_TAU, DuoCurriculum
from sddlm.objectives.nelbo import NELBO
from sddlm.process.estimate import Estimate
from sddlm.process.gaussian import gaussian_map, log_win
from sddlm.process.latent import dense_latent, latent
from sddlm.rng import Draw
from sddlm.types import Noisy, SoftTokens

GOLDEN = Path(__file__).parent.parent / "golden"
V = 11


def golden():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "curriculum_dcd_V11.npz").items()}


class Table(torch.nn.Module):
    """A network whose logits are given; it remembers what it was shown."""

    def __init__(self, logits):
        super().__init__()
        self.table = torch.nn.Parameter(logits.clone())
        self.vocab_size = logits.shape[-1]
        self.head = VocabHead(self.vocab_size, self.vocab_size).to(logits.dtype)
        self.head.weight.data.copy_(torch.eye(self.vocab_size))
        self.seen = None

    def forward(self, x_t, sigma, rows=None):
        self.seen = x_t
        return select_rows(self.table, rows)


def network(vocab_size):
    return DiT(
        DiTConfig(
            vocab_size=vocab_size, length=6, width=16, blocks=1, heads=2, cond_dim=8,
            gate_init=1.0, head_init=0.5,
        )
    )  # fmt: skip


class Spread(Draw):
    """Times from one end to the other, both included."""

    def times(self, t_min=0.0):
        return torch.linspace(0, 1, self.batch, dtype=torch.float64)


def test_alpha_and_its_slope_equal_duos():
    g = golden()
    alpha, slope = [], []
    for gamma in g["gamma_t"].tolist():
        p = log_win(torch.tensor(gamma, dtype=torch.float64), V).exp()
        alpha.append((V * p - 1) / (V - 1))
    torch.testing.assert_close(torch.stack(alpha), g["alpha"][:, 0], rtol=1e-9, atol=0)
    path = gaussian_map(V, 0.05, 0.9999)
    t = (g["gamma_t"] - path.gamma_min) / (path.gamma_max - path.gamma_min)
    torch.testing.assert_close(path.alpha(t), g["alpha"][:, 0], rtol=0, atol=1e-8)
    slope = path.dalpha(t) / (path.gamma_max - path.gamma_min) * 2.5  # the golden range of gamma
    torch.testing.assert_close(slope, g["dalpha"][:, 0], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("tau", "name"), [(1e-1, "1"), (1e-2, "2"), (1e-3, "3")])
def test_soft_embeddings_equal_duos(tau, name, monkeypatch):
    g = golden()
    monkeypatch.setattr("sddlm.process.latent.normals", lambda *_: g["eps"].clone())
    soft, hard = dense_latent(g["x0"], g["gamma_t"], tau, None, vocab_size=V)
    table = Embedding(V, 5).double()
    table.weight.data.copy_(g["E"])
    torch.testing.assert_close(table(soft), g[f"soft_tau1e{name}"], rtol=0, atol=1e-6)
    assert torch.equal(hard, g["xt"])
    sparse = SoftTokens(soft.weights, torch.arange(V).expand(3, 7, V))
    torch.testing.assert_close(table(sparse), table(soft))


def test_the_loss_equals_duos():
    g = golden()
    objective = DuoCurriculum()
    w = latent(g["x0"], g["gamma_t"], g["eps"].clone())
    z = w.argmax(-1)
    t = torch.zeros(3, dtype=torch.float64)
    noisy = Noisy(g["x0"], z, t, g["alpha"], g["dalpha"], z != g["x0"], V)
    soft = SoftTokens((w / 1e-3).softmax(-1))
    model = Table(g["logits"])
    loss = objective.score(model, noisy, Draw.simple(0, 0, 3), x=soft)
    assert loss.total.item() == pytest.approx(g["nll"].sum().item(), rel=1e-7)
    assert model.seen is soft
    assert loss.count == 21
    everywhere = torch.ones_like(z, dtype=torch.bool)
    rows = model.head(g["logits"].flatten(0, 1), objective.term(noisy, everywhere, None)).rows
    torch.testing.assert_close(rows.view(3, 7), g["nll"], rtol=1e-6, atol=1e-9)


def test_the_temperature_equals_duos():
    g = golden()
    objective = DuoCurriculum(until=200_000, tau_start=0.1, tau_end=0.01, tau_from=100_000)
    tau = torch.tensor([objective.tau(step) for step in g["tau_steps"].tolist()])
    torch.testing.assert_close(1 / tau.double(), g["tau_inverse"], rtol=1e-6, atol=0)
    assert objective.tau(200_000) == HARD_TAU
    published = DuoCurriculum()
    assert [published.tau(step) for step in (0, 250_000, 499_999)] == pytest.approx([1e-3] * 3)


@pytest.mark.parametrize("top_k", [None, 4])
def test_the_phases(top_k):
    torch.manual_seed(0)
    x0 = torch.randint(V, (4, 6))
    objective = DuoCurriculum(until=10, top_k=top_k)
    model = Table(torch.randn(4, 6, V, dtype=torch.float64))

    def losses(step):
        draw = Draw.simple(1, step, 4)
        return objective.loss(model, x0, draw).total, NELBO().loss(model, x0, draw).total

    for step in (0, 9):
        soft, hard = losses(step)
        assert soft != hard
        objective.loss(model, x0, Draw.simple(1, step, 4))
        assert isinstance(model.seen, SoftTokens)
        assert (model.seen.ids is None) == (top_k is None)
    for step in (10, 11, -1):
        assert torch.equal(*losses(step))
    draw = Draw.simple(1, 0, 4)
    assert torch.equal(objective.bound(model, x0, draw), NELBO().bound(model, x0, draw))
    assert objective.estimate is Estimate.LEAVE_ONE_OUT
    never = DuoCurriculum(until=0)
    assert never.loss(model, x0, draw).total == NELBO().loss(model, x0, draw).total


@pytest.mark.parametrize("top_k", [None, 4])
def test_noise_depends_on_the_place_in_the_global_batch_alone(top_k):
    x0 = torch.randint(V, (4, 6), generator=torch.Generator().manual_seed(0))
    objective = DuoCurriculum(top_k=top_k)
    whole = Draw.simple(1, 2, 4)
    noisy, soft = objective.soften(x0, whole, vocab_size=V)
    part = replace(whole, index=whole.index[2:])
    again, softer = objective.soften(x0[2:], part, vocab_size=V)
    assert torch.equal(noisy.x_t[2:], again.x_t)
    assert torch.equal(soft.weights[2:], softer.weights)
    other, _ = objective.soften(x0, Draw.simple(1, 3, 4), vocab_size=V)
    assert not torch.equal(noisy.x_t, other.x_t)


@pytest.mark.parametrize("tau", [1e-10, 1e-3, 1.0])
@pytest.mark.parametrize(
    ("size", "top_k"), [(2, None), (2, 1), (11, None), (11, 1), (11, 10), (5000, 10)]
)
def test_loss_and_gradients_are_finite_at_both_ends(size, top_k, tau):
    objective = DuoCurriculum(
        tau_start=tau, tau_end=tau, top_k=top_k, alpha_min=1e-4, alpha_max=0.9999
    )
    model = network(size)
    x0 = torch.randint(size, (8, 6), generator=torch.Generator().manual_seed(0))
    draw = Spread(3, 0, torch.arange(8), 8)
    noisy, soft = objective.soften(x0, draw, vocab_size=size)
    assert noisy.alpha_t[[0, -1], 0].tolist() == pytest.approx([0.9999, 1e-4], abs=1e-7)
    assert torch.isfinite(noisy.sigma).all()
    assert torch.isfinite(soft.weights).all()
    loss = objective.loss(model, x0, draw)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert model.embedding.weight.grad.abs().sum() > 0


def test_the_hard_limit_shows_the_network_the_hard_tokens():
    objective = DuoCurriculum(tau_start=HARD_TAU, tau_end=HARD_TAU, top_k=3)
    x0 = torch.randint(V, (4, 6), generator=torch.Generator().manual_seed(0))
    noisy, soft = objective.soften(x0, Draw.simple(1, 2, 4), vocab_size=V)
    model = network(V)
    torch.testing.assert_close(model(soft, noisy.sigma), model(noisy.x_t, noisy.sigma))


def test_masked_positions_do_not_count():
    g = golden()
    mask = torch.ones_like(g["x0"], dtype=torch.bool)
    mask[:, 4:] = False
    model = Table(g["logits"])
    loss = DuoCurriculum().loss(model, g["x0"], Draw.simple(0, 0, 3), mask)
    loss.total.backward()
    assert loss.count == mask.sum()
    assert not model.table.grad[:, 4:].any()


def test_the_efficient_form_builds_nothing_of_the_size_of_the_vocabulary(monkeypatch):
    asked = []
    uniform = Draw.uniform

    def record(self, name, *shape):
        asked.append(shape)
        return uniform(self, name, *shape)

    monkeypatch.setattr(Draw, "uniform", record)
    size = 200_000
    x0 = torch.randint(size, (2, 6), generator=torch.Generator().manual_seed(0))
    _, soft = DuoCurriculum(top_k=7).soften(x0, Draw.simple(0, 0, 2), vocab_size=size)
    assert soft.weights.shape == soft.ids.shape == (2, 6, 8)
    assert set(asked) == {(), (6,), (6, 7)}


@pytest.mark.parametrize(
    ("knobs", "named"),
    [
        ({"until": -1}, "`until`"),
        ({"tau_from": -1}, "`tau_from`"),
        ({"tau_from": 11, "until": 10}, "`tau_from`"),
        ({"tau_start": 0.0}, "`tau_start`"),
        ({"tau_end": float("nan")}, "`tau_end`"),
        ({"alpha_min": 0.0}, "`alpha_min`"),
        ({"alpha_max": 1.0}, "`alpha_max`"),
        ({"alpha_min": 0.9, "alpha_max": 0.1}, "`alpha_min`"),
        ({"top_k": 0}, "`top_k`"),
    ],
)
def test_wrong_knobs_are_named(knobs, named):
    with pytest.raises(ConfigError, match=named):
        DuoCurriculum(**knobs)


def test_top_k_must_fit_the_vocabulary():
    model = network(V)
    x0 = torch.zeros(2, 6, dtype=torch.int64)
    with pytest.raises(ConfigError, match=r"`top_k` is 11, allowed is 1 to 10"):
        DuoCurriculum(top_k=V).loss(model, x0, Draw.simple(0, 0, 2))
    DuoCurriculum(top_k=V - 1).loss(model, x0, Draw.simple(0, 0, 2))


def test_the_ends_of_alpha_are_the_knobs():
    objective = DuoCurriculum(alpha_min=0.2, alpha_max=0.8)
    x0 = torch.zeros(64, 6, dtype=torch.int64)
    noisy, _ = objective.soften(x0, Draw.simple(0, 0, 64), vocab_size=V)
    assert 0.2 < noisy.alpha_t.min() < 0.22
    assert 0.78 < noisy.alpha_t.max() < 0.8
