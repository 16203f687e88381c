from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_steps import Numbers
from test_token_rows import documents

from sddlm.data.mixture import Mixture


def shares(mixture: Mixture, seed: int, places: range) -> Counter[int]:
    rows = mixture.row_indices(seed, np.array(places))
    return Counter((np.searchsorted(mixture.starts, rows, side="right") - 1).tolist())


@pytest.mark.slow
@given(weights=st.lists(st.floats(0.01, 100), min_size=2, max_size=5), seed=st.integers(0, 9))
def test_every_cycle_has_the_shares(weights: list[float], seed: int) -> None:
    mixture = Mixture([Numbers(10 + k) for k in range(len(weights))], weights)
    exact = np.array(weights) / sum(weights) * 1000
    for first in (0, 5000):
        found = shares(mixture, seed, range(first, first + 1000))
        for k, share in enumerate(exact):
            assert abs(found[k] - max(share, 1)) < 1 + len(weights)
    assert sum(shares(mixture, seed, range(1000)).values()) == 1000


def test_each_part_goes_through_all_its_rows_before_it_repeats_one() -> None:
    mixture = Mixture([Numbers(70), Numbers(30)], [1, 3])
    rows = mixture.row_indices(5, np.arange(4000))
    for k, part in enumerate(mixture.parts):
        mine = rows[(rows >= mixture.starts[k]) & (rows < mixture.starts[k + 1])]
        alone = part.row_indices(5 + k, np.arange(len(mine)))
        assert (mine - mixture.starts[k]).tolist() == alone.tolist()
    # a place does not depend on which others are asked for with it
    places = np.array([3999, 17, 17, 1000, 0])
    assert mixture.row_indices(5, places).tolist() == rows[places].tolist()
    assert mixture.row_indices(6, places).tolist() != rows[places].tolist()


def test_which_part_lies_where_changes_from_cycle_to_cycle() -> None:
    """Else a part would always meet the same noise levels, which are dealt by place."""
    mixture = Mixture([Numbers(5000), Numbers(5000)], [1, 1])
    first, second = (mixture.row_indices(0, np.arange(c, c + 1000)) < 5000 for c in (0, 1000))
    assert 400 < int((first == second).sum()) < 600
    other = mixture.row_indices(1, np.arange(1000)) < 5000  # and from seed to seed
    assert 400 < int((first == other).sum()) < 600


def test_rows_and_figures_are_those_of_the_parts(tmp_path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    shape = {"length": 6, "eos": True, "bos_eos": False}
    a = documents(tmp_path / "a", [1], [2, 3], **shape)
    b = documents(tmp_path / "b", [4, 5, 6, 7, 8, 9], [10], [11], **shape)
    mixture = Mixture([a, b], [1, 4])
    assert len(mixture) == 5
    rows = [*(a[i].tolist() for i in range(2)), *(b[i].tolist() for i in range(3))]
    assert [mixture[i].tolist() for i in range(5)] == rows
    assert mixture.read(np.array([4, 0, 2])).tolist() == [rows[4], rows[0], rows[2]]
    assert mixture.lengths(np.array([4, 0, 2])).tolist() == [2, 2, 6]
    assert mixture.padded
    assert mixture.mean_length == pytest.approx(0.2 * a.mean_length + 0.8 * b.mean_length, rel=1e-4)
    text = [part.characters_per_token * part.mean_length for part in (a, b)]
    both = (0.2 * text[0] + 0.8 * text[1]) / mixture.mean_length
    assert mixture.characters_per_token == pytest.approx(both, rel=1e-4)
    assert mixture.counts().tolist() == (a.counts() + b.counts()).tolist()


def test_an_evaluation_has_the_shares_too() -> None:
    mixture = Mixture([Numbers(100), Numbers(100)], [1, 3])
    chosen = mixture.subsample(40)
    assert (int((chosen < 100).sum()), len(set(chosen.tolist()))) == (10, 40)
    assert mixture.subsample(None).tolist() == list(range(200))
