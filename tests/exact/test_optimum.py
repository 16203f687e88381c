"""What every objective is minimised by, found by minimising it, is what it says it estimates."""

import pytest
import torch
from torch import Tensor

from sddlm import objectives
from sddlm.exact import TabularModel, World, elbo, minimise, noisy_batch, states
from sddlm.exact.exact import _every, _expected, nelbo_integrand
from sddlm.objectives import (
    D3PM,
    MDLM,
    NELBO,
    SDDLM,
    SDDLMV1,
    SDDLMV2,
    SEDD,
    CalibratedDenoising,
    DuoCurriculum,
    NaiveDenoising,
)
from sddlm.objectives.base import DiffusionObjective
from sddlm.objectives.negatives import NoisyToken, UniformNegatives, UnigramNegatives
from sddlm.process import HybridProcess, MaskedProcess, MixtureProcess, UniformProcess
from sddlm.process.estimate import Estimate, log_score
from sddlm.rng import Draw

WORLD = World.random(4, 2, seed=1, concentration=0.5)
EXACT = [
    NELBO(),
    NELBO(MaskedProcess()),
    NELBO(HybridProcess()),
    NELBO(MixtureProcess(uniform=0.4)),
    MDLM(),
    MDLM(weighting="constant"),
    SDDLM(),
    SDDLM(positions="changed"),
    NaiveDenoising(),
    CalibratedDenoising(),
    D3PM(steps=10),
    D3PM(MaskedProcess(), steps=10),
    D3PM(HybridProcess(), steps=10),
    DuoCurriculum(until=0),
]


def name(objective: DiffusionObjective) -> str:
    return f"{type(objective).__name__}-{type(objective.process).__name__}"


def alpha(objective: DiffusionObjective, t: float) -> float:
    return objective.process.schedule.alpha(torch.tensor(t)).item()


def off(found: Tensor, wanted: Tensor, objective: DiffusionObjective) -> float:
    """Largest total variation at a position that the loss looks at."""
    V = found.shape[-1]
    seen = ~objective.process.certain(states(V, WORLD.length), vocab_size=V)
    return (found - wanted).abs().sum(-1)[seen].max().item() / 2


def test_every_objective_is_here() -> None:
    tested = {type(objective) for objective in [*EXACT, SEDD(), SDDLMV1(), SDDLMV2()]}
    leaves = {getattr(objectives, name) for name in objectives.__all__}
    assert {kind for kind in leaves if issubclass(kind, DiffusionObjective)} <= tested


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.3, 0.9])
@pytest.mark.parametrize("objective", EXACT, ids=name)
def test_the_minimiser_is_the_declared_estimate(objective: DiffusionObjective, t: float) -> None:
    table = minimise(objective, WORLD, t)
    extra = objective.process.extra_tokens
    if extra:
        table[..., -extra:] = -torch.inf
    a = alpha(objective, t)
    wanted = WORLD.optimum(objective.estimate, objective.process)(a)
    assert off(table.softmax(-1), wanted, objective) < 2e-5
    if type(objective.process) is UniformProcess:  # and no other one
        others = {Estimate.LEAVE_ONE_OUT, Estimate.DENOISER, Estimate.WITHOUT_X_T}
        for other in others - {objective.estimate}:
            assert off(table.softmax(-1), WORLD.optimum(other)(a), objective) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("t", [0.3, 0.9])
@pytest.mark.parametrize("process", [UniformProcess(), MaskedProcess()])
def test_score_entropy_is_minimised_by_the_score(process, t: float) -> None:
    objective = SEDD(process)
    table = minimise(objective, WORLD, t)
    V = table.shape[-1]
    x = states(V, 2)
    a = torch.tensor(alpha(objective, t), dtype=torch.float64)
    found = log_score(table, process, x, a)[..., :4].exp()
    wanted = WORLD.log_score(a.item(), process)[..., :4].exp()
    seen = ~process.certain(x, vocab_size=V)
    torch.testing.assert_close(found[seen], wanted[seen], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.4, 1.0])
@pytest.mark.parametrize(("eps", "exact"), [(1e-6, 1e-5), (1e-4, 1e-3), (1e-3, 1e-2)])
def test_v1_cuts_the_tail(weight: float, eps: float, exact: float) -> None:
    objective = SDDLMV1(weight=weight, eps=eps, negatives=UniformNegatives("exact"))
    for t in (0.3, 0.9):
        found = minimise(objective, WORLD, t).softmax(-1)
        a = alpha(objective, t)
        wanted = WORLD.truncated(a, weight=weight)
        assert off(found, wanted, objective) < exact
        assert off(found, WORLD.leave_one_out(a), objective) > 0.05
        assert off(found, WORLD.truncated(a, weight=weight / 2), objective) > 0.02


def test_v1_cuts_by_the_law_of_its_negatives() -> None:
    counts = torch.tensor([8, 1, 4, 3])
    negatives = UnigramNegatives("exact")
    negatives.learn(counts)
    objective = SDDLMV1(weight=0.8, negatives=negatives)
    found = minimise(objective, WORLD, 0.5).softmax(-1)
    p = WORLD.leave_one_out(alpha(objective, 0.5))
    cut = (p - 0.8 * counts / 16).clamp(min=0)
    assert off(found, cut / cut.sum(-1, keepdim=True), objective) < 1e-3


@pytest.mark.parametrize("objective", [SDDLMV2(), SDDLMV1(negatives=NoisyToken())], ids=name)
def test_v2_forgets_the_noisy_token(objective: DiffusionObjective) -> None:
    assert objective.estimate is Estimate.WITHOUT_X_T
    found = minimise(objective, WORLD, 0.6).softmax(-1)
    assert off(found, WORLD.without_x_t(alpha(objective, 0.6)), objective) < 1e-3


@pytest.mark.parametrize(
    "process", [UniformProcess(), MaskedProcess(), HybridProcess()], ids=lambda p: type(p).__name__
)
def test_expected_losses_are_the_enumerated_bounds(process) -> None:
    """The network's loss over every corruption, and the bounds computed from laws alone."""
    V = 4 + process.extra_tokens
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(V**2, 2, V, generator=g).double()
    model = TabularModel(logits, vocab_size=V, length=2, num_extra_tokens=process.extra_tokens)
    logits[..., 4:] = -torch.inf
    p, steps, k = logits.softmax(-1), 10, 4
    noisy, weight = noisy_batch(WORLD, process, k / steps)
    assert weight.sum().item() == pytest.approx(1)
    draw = Draw.simple(0, 0, len(weight))
    discrete = D3PM(process, steps).score(model, noisy, draw, weight=weight).total
    column = elbo(process, lambda alpha: p, steps)[:, k - 1]
    assert discrete.item() == pytest.approx(steps * (WORLD.probabilities @ column).item(), rel=1e-9)
    t = torch.tensor(k / steps, dtype=torch.float64)
    a, slope = process.schedule.alpha(t), process.schedule.dalpha(t)
    x_t, x0 = _every(p, process)
    plain = _expected(nelbo_integrand(process, p[:, :, None], x0, x_t, a, slope), process, a)
    expected = (WORLD.probabilities @ plain).item()
    continuous = NELBO(process).score(model, noisy, draw, weight=weight).total
    assert continuous.item() == pytest.approx(expected, rel=1e-6)
    if process.extra_tokens == 0 or type(process) is MaskedProcess:
        # a network that gives the score of p: the score entropy is the same number
        nu = process.odds(a, V)
        own = states(V, 2)[..., None]
        guess = (nu + torch.arange(V).lt(4) / 4).log()
        scores = (p + nu).log() - guess
        scores -= (p + nu).log().gather(-1, own) - guess.expand_as(p).gather(-1, own)
        table = TabularModel(scores.clamp(min=-1e3), vocab_size=V, length=2)
        entropy = SEDD(process).score(table, noisy, draw, weight=weight).total
        assert entropy.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("t", [0.3, 0.9])
def test_a_hollow_network_learns_leave_one_out_from_all_positions(t: float) -> None:
    # its table has one cell for all tokens that its own position can have
    objective = SDDLM(positions="all")
    noisy, weight = noisy_batch(WORLD, objective.process, t)
    V, L = WORLD.vocab_size, WORLD.length

    def slope(predictions: Tensor) -> Tensor:
        model = TabularModel(predictions.log(), vocab_size=V, length=L)
        model.hollow = True
        loss = objective.score(model, noisy, Draw.simple(0, 0, len(weight)), weight=weight)
        (gradient,) = torch.autograd.grad(loss.total, model.table)
        cells = gradient.view(V, V, L, V)  # one axis for the token of each of the two positions
        return torch.stack([cells.sum(i)[:, i] for i in range(L)])

    optimum = WORLD.leave_one_out(alpha(objective, t))
    torch.testing.assert_close(slope(optimum), torch.zeros(L, V, V).double(), atol=1e-8, rtol=0)
    assert slope(WORLD.leave_one_out(0.5 * alpha(objective, t))).abs().max() > 1e-4
