"""Enumerable worlds: exact predictions, exact laws of the sampler, exact bounds."""

from itertools import pairwise
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sddlm.process.schedule import Cosine, LogLinear
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.truncation import Truncation
from sddlm.worlds import (
    Posterior,
    Predictions,
    TabularModel,
    World,
    entropy,
    law,
    nelbo,
    nelbo_integrand,
    state_id,
    states,
    total_variation,
)

GOLDEN = Path(__file__).parent / "golden"
PROCESS = UniformProcess(LogLinear(eps=1e-12))  # alpha = 1 - t
RANDOM = World.random(8, 3, seed=0)
SMALL = World.random(3, 3, seed=1, concentration=0.5)


def distance(predictions: Predictions, steps: int, posterior: Posterior | None = None) -> float:
    return total_variation(
        law(PROCESS, predictions, steps, posterior=posterior), RANDOM.probabilities
    )


def converted(alpha: float) -> Tensor:
    """The denoiser, one logit moved."""
    own = torch.nn.functional.one_hot(states(8, 3), 8)
    shift = -torch.log1p(torch.tensor(8 * alpha / (1 - alpha), dtype=torch.float64))
    return (RANDOM.denoiser(alpha).log() + shift * own).softmax(-1)


def test_states() -> None:
    x = states(3, 4)
    assert torch.equal(state_id(x, 3), torch.arange(81))
    golden = np.load(GOLDEN / "tiny_uniform_L2_T2.npz")
    assert torch.equal(states(3, 2), torch.from_numpy(golden["states"]))


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.6, 0.95])
@pytest.mark.parametrize(
    "world", [SMALL, World.zipf(4, 2), World.correlated(3, 3), World.random(5, 1)]
)
def test_predictions_by_brute_force(world: World, alpha: float) -> None:
    V, L = world.vocab_size, world.length
    x = states(V, L)
    kept = (x[:, None] == x[None]).double()  # [S of x0, S of x_t, L]
    q = alpha * kept + (1 - alpha) / V
    torch.testing.assert_close(world.probabilities @ q.prod(-1), world.noisy(alpha))
    for own in range(L):
        clean = torch.nn.functional.one_hot(x[:, own], V).double()  # [S, V]
        others = q[..., torch.arange(L) != own].prod(-1)  # [S of x0, S of x_t]
        for chance, mine in ((others, world.leave_one_out), (q.prod(-1), world.denoiser)):
            joint = (world.probabilities[:, None] * chance).T @ clean  # [S of x_t, V]
            torch.testing.assert_close(mine(alpha)[:, own], joint / joint.sum(1, keepdim=True))
    blind = world.without_x_t(alpha)
    assert blind.gather(-1, x[..., None]).abs().max() == 0
    torch.testing.assert_close(blind.sum(-1), torch.ones_like(blind[..., 0]))


def test_large_world_in_no_time() -> None:
    world = World.random(27, 3)
    p = world.denoiser(0.3)
    assert p.shape == (27**3, 3, 27)
    torch.testing.assert_close(p.sum(-1), torch.ones_like(p[..., 0]))


def test_worlds_are_laws() -> None:
    for world in (RANDOM, SMALL, World.zipf(5, 3, exponent=1.5), World.correlated(6, 3)):
        assert world.probabilities.sum().item() == pytest.approx(1)
        assert (world.probabilities > 0).all()
        assert 0 < world.entropy <= world.length * log(world.vocab_size)
        assert (world.probabilities * world.nll).sum().item() == pytest.approx(world.entropy)
    x = SMALL.tokens(20_000)
    shares = torch.bincount(state_id(x, 3), minlength=27) / len(x)
    assert total_variation(shares.double(), SMALL.probabilities) < 0.02
    with pytest.raises(ValueError, match="probabilities"):
        World(torch.ones(7) / 7, 2, 3)


def test_the_right_reading_samples_the_data() -> None:
    assert distance(RANDOM.leave_one_out, 128) < 0.012
    assert distance(converted, 128) == pytest.approx(distance(RANDOM.leave_one_out, 128), abs=1e-9)
    by_marginal = distance(RANDOM.denoiser, 128, PROCESS.marginal_posterior)
    assert by_marginal == pytest.approx(distance(RANDOM.leave_one_out, 128), abs=1e-9)
    # the error is of the factorised step, O(1 / steps)
    errors = [distance(RANDOM.leave_one_out, steps) for steps in (16, 32, 64, 128)]
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3


def test_the_wrong_reading_does_not() -> None:
    raw = law(PROCESS, RANDOM.denoiser, 128)
    assert total_variation(raw, RANDOM.probabilities) > 0.3
    assert entropy(raw) > RANDOM.entropy + 1  # noise is kept
    assert distance(RANDOM.denoiser, 256) > 0.3  # and more steps do not help
    assert distance(RANDOM.without_x_t, 128) > 0.5


def test_without_x_t_is_harmless_in_a_large_vocabulary() -> None:
    errors = []
    for V in (8, 64, 512):
        world = World.zipf(V, 1)
        assert total_variation(law(PROCESS, world.leave_one_out, 32), world.probabilities) < 1e-9
        errors.append(total_variation(law(PROCESS, world.without_x_t, 32), world.probabilities))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


@pytest.mark.parametrize(
    "truncation", [Truncation(), Truncation(0.7), Truncation(top_p=0.8), Truncation(tail_cut=0.5)]
)
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
def test_the_lazy_mixture_has_the_law_of_the_posterior(
    truncation: Truncation, schedule: LogLinear | Cosine
) -> None:
    process = UniformProcess(schedule)

    def predictions(alpha: float) -> Tensor:
        return truncation(SMALL.leave_one_out(alpha).log())

    def lazy(p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Integrated over u: what is not a candidate stays without having been looked at."""
        own = torch.nn.functional.one_hot(x_t, 3)
        p_own = p.gather(-1, x_t[..., None])
        redraw, predict = process.jump(p_own, x_t[..., None], alpha_t, alpha_s, vocab_size=3)
        bound = process.jump_bound(x_t[..., None], alpha_t, alpha_s, vocab_size=3)
        seen = redraw / 3 + predict * p + (bound - redraw - predict) * own
        return seen + (1 - bound) * own

    for steps in (1, 2, 8, 32):
        full = law(process, predictions, steps)
        assert total_variation(full, law(process, predictions, steps, posterior=lazy)) < 1e-12
        assert full.sum().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", [f"tiny_uniform_L{L}_T{T}" for L in (1, 2) for T in (2, 4, 8)])
def test_golden_chains(name: str) -> None:
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}
    steps = len(golden["alphas"]) - 1
    _, alphas = LogLinear().grid(steps)
    torch.testing.assert_close(alphas.flip(0), golden["alphas"], rtol=0, atol=1e-15)
    table = dict(zip(alphas[:-1].flip(0).tolist(), golden["xtheta"], strict=True))
    model = law(UniformProcess(), table.__getitem__, steps)
    torch.testing.assert_close(model, golden["p_model"], rtol=0, atol=1e-14)
    torch.testing.assert_close(-model.log(), golden["nll"], rtol=1e-12, atol=1e-13)


def test_greedy_tail_is_the_argmax_of_leave_one_out() -> None:
    one = law(PROCESS, SMALL.leave_one_out, 1, tail="greedy")
    best = state_id(SMALL.leave_one_out(1e-12).argmax(-1), 3)
    expected = torch.bincount(best, minlength=27) / 27
    torch.testing.assert_close(one, expected.double())


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
def test_the_bound_is_tight_for_the_right_predictions(schedule: LogLinear | Cosine) -> None:
    process = UniformProcess(schedule)
    world = World.random(3, 2, seed=2, concentration=1.0)
    bound = nelbo(process, world.leave_one_out)
    last = world.noisy(schedule.alpha(torch.ones((), dtype=torch.float64)).item())
    gap = (last * (last * len(last)).log()).sum().item()  # KL(law of x_1 || uniform)
    mean = (world.probabilities * bound).sum().item()
    assert mean == pytest.approx(world.entropy + gap, abs=1e-6)
    assert (bound - world.nll).abs().max() < 2e-3
    for wrong in (world.denoiser, world.without_x_t):
        assert (world.probabilities * nelbo(process, wrong)).sum().item() > mean + 0.05


def test_the_discrete_bound_tends_to_the_continuous_one() -> None:
    g = torch.Generator().manual_seed(0)
    p = torch.randn(5, generator=g).double().softmax(-1)
    t, process = torch.tensor(0.4, dtype=torch.float64), UniformProcess()
    a_t, slope = process.schedule.alpha(t), process.schedule.dalpha(t)
    errors = []
    for steps in (10**3, 10**4):
        a_s = process.schedule.alpha(t - 1 / steps)
        worst = 0.0
        for x0 in range(5):
            clean = torch.nn.functional.one_hot(torch.tensor(x0), 5).double()
            for x_t in map(torch.tensor, range(5)):
                true = process.posterior(clean, x_t, a_t, a_s)
                mine = process.posterior(p, x_t, a_t, a_s)
                step = steps * (true * (true / mine).log()).sum()
                limit = nelbo_integrand(p, torch.tensor(x0), x_t, a_t, slope)
                worst = max(worst, abs(step.item() - limit.item()))
        errors.append(worst)
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_tabular_model_keeps_the_contract() -> None:
    model = TabularModel(SMALL.leave_one_out, vocab_size=3, length=3)
    x = states(3, 3)
    sigma = torch.full((27,), 0.7)
    sigma[::2] = 0.2  # each sequence at its own level
    hidden = model(x, sigma)
    p = model.head.logits(hidden.flatten(0, 1)).softmax(-1).reshape(27, 3, 3)
    for level, at in ((0.2, slice(0, None, 2)), (0.7, slice(1, None, 2))):
        expected = SMALL.leave_one_out(float(np.exp(-level)))[at]
        torch.testing.assert_close(p[at], expected, rtol=1e-6, atol=1e-8)


def test_tabular_model_learns() -> None:
    model = TabularModel(torch.zeros(27, 3, 3).double(), vocab_size=3, length=3)
    hidden = model(states(3, 3), torch.ones(27))
    model.head.logits(hidden)[..., 0].sum().backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["table"]
    assert model.table.grad is not None
    assert torch.equal(model.table.grad[..., 0], torch.ones(27, 3).double())
