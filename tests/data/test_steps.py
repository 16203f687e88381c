from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_token_rows import documents, packed
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from sddlm.data.order import StepSampler, TrainRows, order
from sddlm.data.rows import Ints, Rows
from sddlm.errors import ConfigError


class Numbers(Rows):
    """Row i is i."""

    def __init__(self, n: int) -> None:
        self.n, self.length, self.vocab_size = n, 1, max(2, n)
        self.tokens = self.characters = n

    def __len__(self) -> int:
        return self.n

    def read(self, rows: Ints) -> Tensor:
        return torch.from_numpy(rows)[:, None]

    @property
    def characters_per_token(self) -> float:
        return 1.0


counts = st.integers(1, 100)


@pytest.mark.slow
@given(rows=counts, share=st.integers(1, 8), world=st.integers(1, 4), start=st.integers(0, 6))
def test_sampler_laws(rows: int, share: int, world: int, start: int) -> None:
    batch, stop = share * world, 7

    def places(**kwargs: int) -> list[tuple[int, int, int]]:
        sampler = StepSampler(rows=Numbers(rows), batch=batch, seed=3, stop_step=stop, **kwargs)
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
        StepSampler(rows=Numbers(5), batch=10, seed=0, stop_step=1, world=3)
    with pytest.raises(ConfigError, match=r"0 rows"):
        StepSampler(rows=Numbers(0), batch=10, seed=0, stop_step=1)


def loaded(rows: Rows, size: int, **kwargs: int) -> tuple[list[dict[str, Tensor]], Any]:
    sampler = StepSampler(rows=rows, batch=6, seed=0, start_step=4, stop_step=6, **kwargs)
    micro: Any = BatchSampler(sampler, size, drop_last=False)  # type: ignore[arg-type]
    train = TrainRows(rows, seed=0, batch=6)
    return list(DataLoader(train, batch_size=None, sampler=micro)), micro


def test_a_loader_makes_micro_batches(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    batches, micro = loaded(rows, 3)
    for batch, places in zip(batches, micro, strict=True):
        assert batch["x0"].tolist() == [rows[row].tolist() for _, _, row in places]
        assert set(batch) == {"x0", "step", "slot"}
    assert [batch["step"].tolist() for batch in batches] == [[4] * 3, [4] * 3, [5] * 3, [5] * 3]
    assert [batch["slot"].tolist() for batch in batches] == [[0, 1, 2], [3, 4, 5]] * 2
    assert batches[0]["x0"].shape == (3, 5)
    assert batches[0]["x0"].dtype == batches[0]["slot"].dtype == torch.int64
    assert len(TrainRows(rows, seed=0, batch=6)) == 4


def test_padded_rows_come_with_the_lengths_of_the_whole_step(tmp_path: Path) -> None:
    docs = [list(range(n)) for n in (1, 5, 3, 2, 4)]
    rows = documents(tmp_path, *docs, length=5, eos=False, bos_eos=False)
    whole, _ = loaded(rows, 6)
    for rank in (0, 1):
        shares, micro = loaded(rows, 3, rank=rank, world=2)
        for batch, one, places in zip(whole, shares, micro, strict=True):
            assert one["lengths"].tolist() == [len(docs[row]) for _, _, row in places]
            assert one["step_lengths"].tolist() == batch["lengths"].tolist()
            slots = one["slot"].numpy()
            assert np.array_equal(batch["lengths"].numpy()[slots], one["lengths"].numpy())
