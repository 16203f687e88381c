"""Counter-based randomness: uniform, independent, and blind to how the batch is cut."""

import pytest
import torch
from scipy import stats

from sddlm.rng import CellDraw, Draw


def test_uniform_is_uniform() -> None:
    u = Draw.simple(0, 0, 64).uniform("u", 1000)
    assert u.dtype == torch.float64
    assert u.min() >= 0
    assert u.max() < 1
    counts = torch.histc(u, 256, 0, 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    # also the low bits, which a histogram does not see
    low = (u * 2**53).long().flatten() & 255
    assert stats.chisquare(torch.bincount(low, minlength=256).numpy()).pvalue > 1e-4


@pytest.mark.parametrize("high", [1, 3, 27, 50257])
def test_integers(high: int) -> None:
    x = Draw.simple(1, 2, 50).integers("x", 400, high=high)
    assert x.dtype == torch.int64
    if high == 1:
        assert not x.any()
        return
    bins = min(high, 16)
    counts = torch.bincount(x.flatten() * bins // high, minlength=bins).double()
    share = torch.bincount(torch.arange(high) * bins // high, minlength=bins).double() / high
    assert stats.chisquare(counts.numpy(), (share * x.numel()).numpy()).pvalue > 1e-4


def test_independent_across_names_steps_seeds_indices_and_places() -> None:
    def numbers(seed: int = 0, step: int = 0, name: str = "a", first: int = 0) -> torch.Tensor:
        return Draw(seed, step, first + torch.arange(100), 100).uniform(name, 200)

    base = numbers()
    others = [
        numbers(name="b"),
        numbers(step=1),
        numbers(seed=1),
        numbers(first=100),
        base.roll(1, 0),  # a sequence and its neighbour
        base.roll(1, 1),  # a place and its neighbour
        numbers(step=1).roll(1, 0),
        numbers(seed=1, first=1),
    ]
    for other in others:
        r = torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1]
        assert abs(r) < 4 / base.numel() ** 0.5
        # correlation is not everything: the pairs fill the square
        cells = (base * 8).long() * 8 + (other * 8).long()
        counts = torch.bincount(cells.flatten(), minlength=64)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-4


def test_no_two_numbers_are_equal() -> None:
    draws = [
        Draw(seed, step, torch.arange(20), 20).uniform(name, 50)
        for seed in (0, 1, 2)
        for step in (0, 1, 2)
        for name in ("a", "b")
    ]
    numbers = torch.stack(draws).flatten()
    assert len(numbers.unique()) == len(numbers)


def test_the_same_however_the_batch_is_cut() -> None:
    whole = Draw.simple(3, 7, 12)
    for cuts in ([12], [5, 7], [1] * 12):
        parts = [Draw(3, 7, index, 12) for index in torch.arange(12).split(cuts)]
        assert torch.equal(torch.cat([d.uniform("u", 5) for d in parts]), whole.uniform("u", 5))
        assert torch.equal(torch.cat([d.times() for d in parts]), whole.times())
    # a longer request begins with the shorter one
    assert torch.equal(whole.uniform("u", 9)[:, :5], whole.uniform("u", 5))
    # shapes are only a view of the places
    assert torch.equal(whole.uniform("u", 2, 3).flatten(1), whole.uniform("u", 6))


def test_times_are_stratified() -> None:
    B = 64
    for step in range(5):
        t = Draw.simple(0, step, B).times(1e-3)
        assert t.dtype == torch.float64
        part = ((t - 1e-3) / (1 - 1e-3) * B).long()
        assert torch.equal(part, torch.arange(B))
    late = Draw(0, 0, torch.arange(B), B, t_max=0.25).times()
    assert late.max() <= 0.25
    many = torch.stack([Draw.simple(0, step, B).times(0.0) for step in range(200)])
    assert stats.kstest((many * B % 1).flatten().numpy(), "uniform").pvalue > 1e-4


def test_cells_have_the_numbers_of_their_step_and_place() -> None:
    index = torch.tensor([4, 9])
    grids = torch.stack([Draw(5, step, index, 2).uniform("u", 6) for step in range(3)])  # [3, 2, 6]
    step, row, place = torch.tensor([[2, 0, 2], [1, 0, 0], [5, 3, 0]])
    cells = CellDraw.of(5, step, index[row], place)
    assert torch.equal(cells.uniform("u", 1)[:, 0], grids[step, row, place])
    assert torch.equal(cells.uniform("u", 2)[1], grids[0, 0, 3:5])
    assert cells.integers("x", 1, high=7).shape == (3, 1)
