"""Copying from the training text, against a search that is written out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sddlm.data.rows import Ints, Rows
from sddlm.errors import ConfigError
from sddlm.eval import copying as module
from sddlm.eval.copying import Copied, Copying, copying
from sddlm.jobs import ResumableJob


class Texts(Rows):
    """Training rows from lists, padded with zeros, which are a token like others."""

    def __init__(self, rows: list[list[int]], length: int, vocab_size: int = 2002) -> None:
        self.rows, self.length, self.vocab_size = rows, length, vocab_size
        self.padded = any(len(row) < length for row in rows)
        self.tokens = self.characters = sum(map(len, rows))
        self.asked: list[int] = []

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, rows: Ints) -> Tensor:
        self.asked += rows.tolist()
        found = torch.zeros(len(rows), self.length, dtype=torch.int64)
        for own, i in zip(found, rows.tolist(), strict=True):
            own[: len(self.rows[i])] = torch.tensor(self.rows[i])
        return found

    def lengths(self, rows: Ints) -> Tensor:
        return torch.tensor([len(self.rows[i]) for i in rows.tolist()])

    @property
    def row_lengths(self) -> Ints:
        return np.bincount(list(map(len, self.rows)), minlength=self.length + 1).astype(np.int64)

    @property
    def characters_per_token(self) -> float:
        return 1.0


def grams(row: list[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(row[i : i + n]) for i in range(len(row) - n + 1)]


def by_hand(own: list[int], rows: list[list[int]], n: int) -> Copied:
    """The same, slowly: every n-gram and every run is looked for in every row."""
    mine = grams(own, n)
    if not mine:
        return Copied(len(own), None)
    anywhere = {g for row in rows for g in grams(row, n)}
    overlap = sum(g in anywhere for g in mine) / len(mine)
    for k in range(len(own), n - 1, -1):
        for number, row in enumerate(rows):
            known = set(grams(row, k))
            for start, run in enumerate(grams(own, k)):
                if run in known:
                    return Copied(len(own), overlap, k, number, start)
    return Copied(len(own), overlap)


def search(samples: list[list[int]], rows: list[list[int]], n: int, **more: object) -> Copying:
    length = max(map(len, rows))
    return copying([torch.tensor(s, dtype=torch.int64) for s in samples],
                   Texts(rows, length), n=n, **more)  # type: ignore[arg-type]  # fmt: skip


TEXT = st.lists(st.integers(0, 2), min_size=1, max_size=12)
SETS = st.tuples(
    st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=5),
    st.lists(TEXT, min_size=1, max_size=9),
    st.integers(1, 5),
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None, derandomize=True)
@given(SETS, st.sampled_from([1, 20, 1 << 18]), st.sampled_from([1, 30, 1 << 26]))
def test_all_figures_are_those_of_a_search_by_hand(
    texts: tuple[list[list[int]], list[list[int]], int], chunk: int, shard: int
) -> None:
    samples, rows, n = texts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        patch.setattr(module, "SHARD", shard)
        found = search(samples, rows, n)
    assert found.samples == [by_hand(own, rows, n) for own in samples]
    long = [s for s in samples if len(s) >= n]
    assert found.tokens_searched == (sum(map(len, rows)) if long else 0)


def natural(seed: int, count: int, length: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[int]] = torch.randint(0, 2000, (count, length), generator=generator).tolist()
    return rows


def test_a_copy_is_found_whole_and_a_changed_token_cuts_it() -> None:
    rows = natural(0, 300, 40)
    near = [*rows[70]]
    near[25] = 2001  # a token that no row has
    found = search([rows[123], near, natural(1, 1, 40)[0]], rows, 8)
    copied, changed, other = found.samples
    assert (copied.overlap, copied.longest, copied.row, copied.start) == (1, 40, 123, 0)
    # 33 windows of 8, of which 8 hold the changed token
    assert (changed.overlap, changed.longest, changed.row) == (25 / 33, 25, 70)
    assert (other.overlap, other.longest, other.row) == (0, 0, None)
    assert (found.longest_max, found.whole) == (40, 1)
    assert found.longest_mean == pytest.approx(65 / 3)
    assert found.overlap == pytest.approx((1 + 25 / 33) / 3)
    assert found[:2].whole == 1
    assert found[2:].overlap == 0
    assert found[1:2].samples == [changed]


def test_ngrams_do_not_cross_the_ends_of_rows_or_run_into_padding() -> None:
    rows = [[1, 2, 3, 4], [5, 6, 7], [7, 7, 7, 7]]
    assert search([[3, 4, 5, 6]], rows, 3).samples[0].overlap == 0
    assert search([[5, 6, 7, 0]], rows, 3).samples[0].overlap == 1 / 2  # 0 fills up the row
    assert search([[4, 5]], rows, 3).overlap is None
    both = search([[1, 2, 3, 4]], [[1, 2, 3], [2, 3, 4]], 3).samples[0]
    assert (both.overlap, both.longest) == (1, 3)  # one behind the other, but in two rows
    next_to = search([[1, 2, 3, 4]], [[1, 2, 3, 9], [9, 2, 3, 4]], 3).samples[0]
    assert (next_to.overlap, next_to.longest) == (1, 3)


def test_a_part_of_the_training_text_is_spread_and_said() -> None:
    rows = natural(2, 100, 10)
    training = Texts(rows, 10)
    found = copying([torch.tensor(rows[7])], training, n=4, most_tokens=250)
    assert training.asked == list(range(0, 100, 4))
    assert (found.tokens_searched, found.share_searched) == (250, 0.25)
    assert found.samples[0].row is None
    assert search([rows[7]], rows, 4).share_searched == 1


def test_what_is_found_can_be_written_and_read(tmp_path: Path) -> None:
    rows = natural(3, 50, 12)
    words = [f"w{i}" for i in range(2002)]

    def decode(ids: list[list[int]]) -> list[str]:
        return [" ".join(words[i] for i in row) for row in ids]

    found = search([[1999, *rows[9][3:9]]], rows, 4, decode=decode)
    assert found.samples[0].text == " ".join(words[i] for i in rows[9][3:9])
    assert found.samples[0].start == 1
    assert json.loads(json.dumps(asdict(found)))["samples"][0]["row"] == 9


def test_shards_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = natural(4, 60, 10)
    samples = [torch.tensor(rows[5]), torch.tensor(rows[44][:7] + rows[20][:3])]
    whole = copying(samples, Texts(rows, 10), n=3)
    monkeypatch.setattr(module, "SHARD", 100)  # six shards of ten rows
    done = copying(samples, Texts(rows, 10), n=3, job=ResumableJob(tmp_path))
    assert done == whole
    (journal,) = tmp_path.glob("copies-*")
    journal.write_text("".join(journal.read_text().splitlines(keepends=True)[:4]))  # 3 shards
    again = Texts(rows, 10)
    assert copying(samples, again, n=3, job=ResumableJob(tmp_path)) == whole
    assert again.asked == [*range(30, 60)]
    other = Texts(rows, 10)
    copying(samples[:1], other, n=3, job=ResumableJob(tmp_path))
    assert set(other.asked) == set(range(60))  # other samples, other shards


def test_rows_and_samples_of_one_token() -> None:
    """Every row has every n-gram of every sample at every place."""
    found = search([[1] * 20] * 10, [[1] * 20] * 20, 4)
    assert found.whole == 10
    assert {(s.row, s.start) for s in found.samples} == {(0, 0)}


@pytest.mark.slow
def test_hashes_tell_n_grams_apart() -> None:
    """All n-grams of few tokens, and neighbours in every place: no two share a hash."""
    every = np.array(np.meshgrid(*[range(5)] * 6)).reshape(6, -1).T
    near = 50_256 - np.eye(8, dtype=np.int64)[:, None] * np.arange(50_000)[:, None]
    for rows in (every, near.reshape(-1, 8)[50_000 - 1 :]):
        rows = np.unique(rows, axis=0).astype(np.int64)
        assert len(np.unique(module._hashes(rows, rows.shape[1]))) == len(rows)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [({"n": 0}, "`n` is 0"), ({"most_tokens": 0}, "`most_tokens` is 0"),
     ({"samples": []}, r"`len\(samples\)` is 0"), ({"rows": []}, r"`len\(training\)` is 0")],
)  # fmt: skip
def test_wrong_choices(wrong: dict[str, object], said: str) -> None:
    options = {"samples": [torch.zeros(4, dtype=torch.int64)], "rows": [[1, 2, 3]], **wrong}
    samples, rows = options.pop("samples"), options.pop("rows")
    with pytest.raises(ConfigError, match=said):
        copying(samples, Texts(rows, 3), **options)  # type: ignore[arg-type]
