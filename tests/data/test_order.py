"""The order of the rows: a permutation, as random as one needs, and free however many rows."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import chi2

from processes import together
from sddlm.data.order import order, shuffled
from sddlm.data.rows import PackedTokens
from sddlm.training.args import TrainArgs
from sddlm.training.batches import train_batches

SEEDS = 20_000


def places(n: int, place: int, seeds: int = SEEDS) -> np.ndarray:
    """Row at one place in many epochs, which are keys just as seeds are."""
    return shuffled(3, np.arange(seeds), np.full(seeds, place), n)


def unlikely(counts: np.ndarray, expected: float) -> bool:
    """Whether a fair order would be this uneven less than once in 10,000 times."""
    statistic = ((counts - expected) ** 2 / expected).sum()
    return bool(chi2.sf(statistic, len(counts) - 1) < 1e-4)


@pytest.mark.slow
def test_it_is_a_permutation() -> None:
    for n in [*range(1, 301), 1023, 1024, 1025, 4099, 65_536, 100_003]:
        found = order(5, n % 7, n)
        assert found.dtype == np.int64
        assert (np.sort(found) == np.arange(n)).all(), n


def test_it_never_changes() -> None:
    """A resumed run must meet the same rows, whatever was installed since."""
    assert order(1, 0, 10).tolist() == [1, 8, 9, 5, 4, 2, 7, 3, 6, 0]
    assert order(-1, 3, 10).tolist() == order(2**64 - 1, 3, 10).tolist()
    assert order(-1, 3, 10).tolist() == [4, 1, 3, 2, 5, 0, 7, 9, 6, 8]
    assert order(2**63, 5, 10_000)[:8].tolist() == [6051, 4034, 130, 1609, 4573, 4844, 7765, 8224]
    many = shuffled(7, np.array([0, 1, 0, 1]), np.array([0, 0, 77_999_999, 77_999_999]), 78_000_000)
    assert many.tolist() == [22753705, 41900085, 32124139, 77003613]


@pytest.mark.parametrize("n", [10, 64, 65, 300])
def test_any_places_of_any_epochs_at_once(n: int) -> None:
    rng = np.random.default_rng(0)
    epoch, place = rng.integers(0, 5, 200), rng.integers(0, n, 200)
    orders = [order(11, e, n) for e in range(5)]
    assert [orders[e][p] for e, p in zip(epoch, place, strict=True)] == shuffled(
        11, epoch, place, n
    ).tolist()


@pytest.mark.parametrize("n", [10, 1000])
def test_seeds_and_epochs_differ(n: int) -> None:
    orders = {tuple(order(seed, epoch, n)) for seed in range(9) for epoch in range(9)}
    assert len(orders) == 81


@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_few_rows_come_in_every_order_equally_often(n: int) -> None:
    code = sum(places(n, place) * n**place for place in range(n))
    counts = np.unique(code, return_counts=True)[1]
    assert len(counts) == math.factorial(n)
    assert not unlikely(counts, SEEDS / len(counts))


@pytest.mark.parametrize("n", [65, 100, 256, 1000])
@pytest.mark.parametrize("place", [0, 1, 64])
def test_a_place_gets_every_row_equally_often(n: int, place: int) -> None:
    assert not unlikely(np.bincount(places(n, place), minlength=n), SEEDS / n)


@pytest.mark.parametrize("n", [64, 65, 100, 1000])
@pytest.mark.parametrize("apart", [1, 2, 32])
def test_two_places_know_nothing_of_each_other(n: int, apart: int) -> None:
    """Their rows' distance, modulo n, is anything but 0 equally often."""
    distance = (places(n, 7 + apart) - places(n, 7)) % n
    assert not unlikely(np.bincount(distance, minlength=n)[1:], SEEDS / (n - 1))


@pytest.mark.parametrize("n", [65, 300])
def test_two_epochs_know_nothing_of_each_other(n: int) -> None:
    """A place's rows in two epochs are equal once in n, on average."""
    row = places(n, 7)
    distance = (row[1::2] - row[::2]) % n
    assert not unlikely(np.bincount(distance, minlength=n), SEEDS / 2 / n)


def test_neighbours_are_not_correlated() -> None:
    n = 100_000
    found = order(0, 0, n)
    assert abs(np.corrcoef(found[1:], found[:-1])[0, 1]) < 4 / math.sqrt(n)
    assert abs(np.corrcoef(found, np.arange(n))[0, 1]) < 4 / math.sqrt(n)
    fixed = int((found == np.arange(n)).sum())
    assert fixed <= 8  # Poisson, mean 1


def read_both(small: Path, large: Path) -> None:
    """Leaves ``large.json``: length, rows, shapes of batches and MB used, of two row lengths."""

    def peak() -> float:  # not ru_maxrss, which begins with the parent's
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024

    few = PackedTokens(small, length=8, vocab_size=50258, characters=1)
    args = TrainArgs(steps=1000, batch=32)
    next(iter(train_batches(few, args, seed=0, start_step=0)))  # all is loaded
    before, found = peak(), []
    for length in (128, 1024):
        rows = PackedTokens(large, length=length, vocab_size=50258, characters=4 * 10**10)
        batches = iter(train_batches(rows, args, seed=0, start_step=300))
        shapes = {tuple(next(batches)["x0"].shape) for _ in range(100)}
        found.append([length, len(rows), sorted(shapes), peak() - before])
    large.with_suffix(".json").write_text(json.dumps(found))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
def test_ten_billion_tokens_need_no_memory(tmp_path: Path) -> None:
    """An index of 20 GB (a sparse file) opens, and gives 100 batches, within 16 MB.

    An array of the order would take 8 bytes a row, 625 MB for rows of 128; the pages of a map 200.
    """
    large, small = tmp_path / "large.bin", tmp_path / "small.bin"
    with large.open("wb") as file:
        file.truncate(2 * 10**10)
    small.write_bytes(bytes(4096))
    together(read_both, (small, large))
    for length, rows, shapes, megabytes in json.loads(large.with_suffix(".json").read_text()):
        assert rows == 10**10 // length
        assert shapes == [[32, length]]
        assert megabytes < 16
