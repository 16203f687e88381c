"""A dataset of the user's own as training rows: in `sddlm.train`, and in a loop of one's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import sddlm
from sddlm.data.config import DataArgs
from sddlm.data.dataset_rows import prepare_dataset
from sddlm.errors import ConfigError

TEXT = torch.tensor(list(b"the quick brown fox jumps over the lazy dog. " * 40))
TINY: dict[str, Any] = {
    "tokenizer": "bytes", "preset": "mini", "width": 16, "heads": 1, "blocks": 1, "batch": 4,
    "steps": 6, "validate_every": 3, "checkpoint_every": 3, "preview_every": 0,
}  # fmt: skip


class Ids(Dataset[Any]):
    """Rows of 20 ids, of any kind of sequence."""

    def __init__(self, kind: Any = list, n: int = 60, change: dict[int, Any] | None = None) -> None:
        self.kind, self.n, self.change = kind, n, change or {}

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> Any:
        return self.change.get(i, self.kind(TEXT[20 * i : 20 * (i + 1)].tolist()))


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(Ids())


def args(**options: Any) -> DataArgs:
    return DataArgs(tokenizer="bytes", length=20, path="dataset:Ids", **options)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_rows_are_the_items_and_the_last_ones_are_held_out(kind: Any) -> None:
    for held_out, n in ((None, 3), (0.2, 12), (7, 7)):
        prepared = prepare_dataset(Ids(kind), args(validation=held_out))
        assert prepared.train is not None
        assert (len(prepared.train), len(prepared.validation)) == (60 - n, n)
        both = torch.cat([r.read(np.arange(len(r))) for r in (prepared.train, prepared.validation)])
        assert both.flatten().tolist() == TEXT[: 60 * 20].tolist()
        assert both.dtype == torch.int64
        assert prepared.validation.characters_per_token == 1.0
        assert prepared.meta["splits"]["train"]["tokens"] == (60 - n) * 20
    assert prepare_dataset(Ids(), args()).key == prepare_dataset(Ids(kind), args()).key


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Ids(change={59: [1] * 19}), {}, r"item 59 .* has shape \[19\], must be \[20\]"),
        (Ids(change={59: [1.0] * 20}), {}, r"item 59 .* is torch.float32, must be integer"),
        (Ids(change={59: [257] * 20}), {}, r"ids from 257 to 257, must be from 0 to 256: `token"),
        (Ids(change={59: [-1] * 20}), {}, r"ids from -1 to -1"),
        (Ids(change={0: 5}), {}, r"item 0 of Ids is 5, must be a row of token ids"),
        (Ids(n=1), {}, "Ids must be a map-style Dataset .* of 2 rows or more"),
        (Stream(), {}, "Stream must be a map-style Dataset"),
        (Ids(), {"tokenizer": "bpe"}, "`tokenizer` is 'bpe', which learns from text"),
        (Ids(), {"validation": 60}, "`validation` 60 holds out all 60 rows"),
        (Ids(), {"packing": "document"}, "`packing` is for texts"),
        (Ids(), {"length": 10}, r"has shape \[20\], must be \[10\]"),
    ],
)
def test_what_cannot_be_trained_on(
    tmp_path: Path, dataset: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        sddlm.train(dataset, **(TINY | options), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def weights(lm: sddlm.LanguageModel) -> list[torch.Tensor]:
    return [p.detach() for p in lm.network.parameters()]


class Counted(Ids):
    """Raises an error after some readings of training rows."""

    read, most = 0, 10**6

    def __getitem__(self, i: int) -> Any:
        self.read += i < 57
        if self.read > self.most:
            raise RuntimeError("the disk is gone")
        return super().__getitem__(i)


@pytest.mark.slow
def test_training_on_a_dataset_resumes_exactly(tmp_path: Path) -> None:
    rows = Counted()
    whole = sddlm.train(rows, **TINY, seed=3)
    assert whole.network.length == 20
    assert len(whole.generate(n=1, steps=2)[0].text) <= 20
    run, broken = tmp_path / "run", Counted()
    broken.most = rows.read - 8  # the last two steps of six; a checkpoint is made at three
    with pytest.raises(RuntimeError, match="disk is gone"):
        sddlm.train(broken, **TINY, seed=3, out=run)
    with pytest.raises(ConfigError, match=r"rows of dataset:Counted are not those that .*was tra"):
        sddlm.train(Counted(n=59), **TINY, seed=3, out=run, resume=True)
    resumed = sddlm.train(Counted(), **TINY, seed=3, out=run, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    with pytest.raises(ConfigError, match=r"dataset:Counted: .*give a text: `data.path='FILE'`"):
        sddlm.evaluate(str(run))


def test_a_loop_of_ones_own() -> None:
    network = sddlm.DiT(sddlm.DiTConfig(vocab_size=257, length=20, width=16, blocks=1, heads=1))
    loader = DataLoader(TensorDataset(TEXT[:240].view(12, 20)), batch_size=4)
    for step, (x0,) in enumerate(loader):
        loss = sddlm.SDDLM().loss(network, x0, sddlm.Draw.simple(0, step, len(x0)))
        loss.mean.backward()
    assert all(p.grad is not None for p in network.parameters())
