import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader

from sddlm.data.packed import PackedTokens, StepSampler, TrainRows, token_dtype
from sddlm.data.shuffle import order
from sddlm.errors import ConfigError


def packed(folder: Path, n: int = 23, *, length: int = 5, vocab_size: int = 100) -> PackedTokens:
    path = folder / f"{vocab_size}.bin"
    (np.arange(n) + vocab_size - n).astype(token_dtype(vocab_size)).tofile(path)
    return PackedTokens(path, length=length, vocab_size=vocab_size, characters=3 * n)


@pytest.mark.parametrize(("vocab_size", "width"), [(100, 2), (65536, 2), (65537, 4), (1 << 20, 4)])
def test_every_id_fits(tmp_path: Path, vocab_size: int, width: int) -> None:
    rows = packed(tmp_path, vocab_size=vocab_size, length=23)
    assert token_dtype(vocab_size).itemsize == width
    assert rows.row_tokens(0).dtype.itemsize == width
    assert rows[0].dtype == torch.int64
    assert rows[0].tolist() == list(range(vocab_size - 23, vocab_size))


def test_rows_drop_the_rest_and_counts_do_not(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    assert (len(rows), rows.length, rows.tokens, rows.characters) == (4, 5, 23, 69)
    assert rows.characters_per_token == 3
    assert [rows[i].tolist() for i in range(4)] == torch.arange(77, 97).reshape(4, 5).tolist()
    for i in (-1, 4):
        with pytest.raises(IndexError):
            rows[i]
    with pytest.raises(ConfigError, match=r"--data.length 0"):
        packed(tmp_path, length=0)


def test_rows_cannot_be_written_to(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    rows[0][:] = 0  # a copy
    assert rows[0].tolist() == [77, 78, 79, 80, 81]
    with pytest.raises(ValueError, match="read-only"):
        rows.row_tokens(0)[0] = 1


def test_rows_are_gathered(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    gathered = rows.gather(np.array([2, 0, 2]))
    assert gathered.dtype == torch.int64
    assert gathered.tolist() == [rows[i].tolist() for i in (2, 0, 2)]
    with pytest.raises(OSError, match="ends before row 5"):
        rows.gather(np.array([5]))


def test_pickles_are_small(tmp_path: Path) -> None:
    rows = packed(tmp_path, 60_000, vocab_size=65_000)
    assert rows[3].tolist() == pickle.loads(pickle.dumps(rows))[3].tolist()
    assert len(pickle.dumps(rows)) < 1000


counts = st.integers(1, 100)


@given(rows=counts, share=st.integers(1, 8), world=st.integers(1, 4), start=st.integers(0, 6))
def test_sampler_laws(rows: int, share: int, world: int, start: int) -> None:
    batch, stop = share * world, 7

    def places(**kwargs: int) -> list[tuple[int, int, int]]:
        sampler = StepSampler(rows=rows, batch=batch, seed=3, stop_step=stop, **kwargs)
        found = list(sampler)
        assert len(found) == len(sampler)
        return found

    whole = places()
    assert [(step, slot) for step, slot, _ in whole] == [
        (step, slot) for step in range(stop) for slot in range(batch)
    ]
    # the rows are the epochs' permutations, one behind the other
    stream = [row for _, _, row in whole]
    for epoch in range(len(stream) // rows):
        assert stream[epoch * rows : (epoch + 1) * rows] == order(3, epoch, rows).tolist()
    # ranks share each step; a resumed run goes on where the other stopped
    ranks = [places(rank=rank, world=world) for rank in range(world)]
    assert sorted(chain(*ranks)) == sorted(whole)
    assert all(slot // share == rank for rank in range(world) for _, slot, _ in ranks[rank])
    assert places(start_step=start) == whole[start * batch :]


def test_shares_must_be_whole() -> None:
    with pytest.raises(ConfigError, match=r"global batch of 10 .* such as 12"):
        StepSampler(rows=5, batch=10, seed=0, stop_step=1, world=3)
    with pytest.raises(ConfigError, match=r"0 rows"):
        StepSampler(rows=0, batch=10, seed=0, stop_step=1)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        StepSampler(rows=5, batch=10, seed=0, stop_step=1, rank=2, world=2)


def test_a_loader_makes_micro_batches(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    sampler = StepSampler(rows=len(rows), batch=6, seed=0, start_step=4, stop_step=6)
    micro: Any = BatchSampler(sampler, 3, drop_last=False)  # type: ignore[arg-type]
    batches = list(DataLoader(TrainRows(rows), batch_size=None, sampler=micro))
    for batch, places in zip(batches, micro, strict=True):
        assert batch["x0"].tolist() == [rows[row].tolist() for _, _, row in places]
    assert [batch["step"].tolist() for batch in batches] == [[4] * 3, [4] * 3, [5] * 3, [5] * 3]
    assert [batch["slot"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]] * 2
    assert batches[0]["x0"].shape == (3, 5)
    assert batches[0]["x0"].dtype == batches[0]["slot"].dtype == torch.int64
    assert len(TrainRows(rows)) == 4
