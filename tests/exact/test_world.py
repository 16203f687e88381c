"""Worlds: laws, and exact predictions by brute force."""

from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot, pad

from sddlm.exact import TabularModel, World, state_id, states, total_variation
from sddlm.process import HybridProcess, MaskedProcess, MixtureProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate

GOLDEN = Path(__file__).parents[1] / "golden"
RANDOM = World.random(8, 3, seed=0)
SMALL = World.random(3, 3, seed=1, concentration=0.5)
PROCESSES = [UniformProcess(), MaskedProcess(), HybridProcess(), MixtureProcess()]


def test_states() -> None:
    x = states(3, 4)
    assert torch.equal(state_id(x, 3), torch.arange(81))
    golden = np.load(GOLDEN / "tiny_uniform_L2_T2.npz")
    assert torch.equal(states(3, 2), torch.from_numpy(golden["states"]))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("alpha", [1e-9, 0.05, 0.6, 0.95])
@pytest.mark.parametrize(
    "world", [SMALL, World.zipf(4, 2), World.correlated(3, 3), World.random(5, 1)]
)
def test_predictions_by_brute_force(world: World, alpha: float, process: Process) -> None:
    clean, L = world.vocab_size, world.length
    V = clean + process.extra_tokens
    x0, x_t = states(clean, L), states(V, L)
    a = torch.tensor(alpha, dtype=torch.float64)
    kept = (x0[:, None] == x_t[None]).double()  # [S of x0, S of x_t, L]
    q = a * (kept + process.odds(a, V)[x_t])
    torch.testing.assert_close(q.prod(-1).sum(1), torch.ones(len(x0)).double())
    torch.testing.assert_close(world.probabilities @ q.prod(-1), world.noisy(alpha, process))
    for own in range(L):
        token = one_hot(x0[:, own], V).double()  # [S of x0, V]
        others = q[..., torch.arange(L) != own].prod(-1)  # [S of x0, S of x_t]
        for chance, mine in ((others, world.leave_one_out), (q.prod(-1), world.denoiser)):
            joint = (world.probabilities[:, None] * chance).T @ token  # [S of x_t, V]
            expected = joint / joint.sum(1, keepdim=True)
            torch.testing.assert_close(mine(alpha, process)[:, own], expected)
        # the score: the noisy law with one token exchanged, by that with the present one
        score = world.log_score(alpha, process)[:, own]
        law = world.noisy(alpha, process)
        for v in range(V):
            other = x_t.clone()
            other[:, own] = v
            there = law > 0
            ratio = (law[state_id(other, V)] / law)[there]
            torch.testing.assert_close(score[there, v].exp(), ratio, rtol=1e-9, atol=1e-12)
    blind = world.without_x_t(alpha, process)
    assert blind.gather(-1, x_t[..., None]).abs().max() == 0


def test_what_an_estimate_names() -> None:
    for estimate in (Estimate.LEAVE_ONE_OUT, Estimate.DENOISER, Estimate.WITHOUT_X_T):
        p = SMALL.optimum(estimate)(0.4)
        torch.testing.assert_close(p.sum(-1), torch.ones(27, 3).double())
    cut = SMALL.optimum(Estimate.TRUNCATED)(0.4)
    whole = SMALL.leave_one_out(0.4)
    assert ((cut == 0) == (whole <= 1 / 3)).all()
    for estimate in (Estimate.NEXT_TOKEN, Estimate.SCORE):
        with pytest.raises(ValueError, match="is no law"):
            SMALL.optimum(estimate)


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


def test_a_mask_is_never_predicted() -> None:
    table = torch.randn(16, 2, 4).double()
    model = TabularModel(table, vocab_size=4, length=2, num_extra_tokens=1)
    logits = model.head.logits(model(states(4, 2), torch.ones(16)))
    torch.testing.assert_close(logits.softmax(-1), pad(table[..., :3].softmax(-1), (0, 1)))
