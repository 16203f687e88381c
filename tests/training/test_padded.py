"""Training on one document a row: padding counts nowhere, and rows weigh by their tokens."""

import random
from dataclasses import asdict, replace

import pytest
import torch
from test_training import SEVENTH_STEP, assert_same, steps, train, weights
from torch.utils.data import BatchSampler

from networks import randomised
from processes import Command, several
from sddlm.data.config import DataArgs
from sddlm.data.order import StepSampler, TrainRows
from sddlm.data.prepare import prepare
from sddlm.data.rows import DocumentRows
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import MDLM, NELBO, SDDLM, Autoregressive, NaiveDenoising
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.fit import fit
from sddlm.training.module import TrainModule
from sddlm.training.monitor import SPENT, read_metrics

L, BATCH = 16, 8
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "it"]


def some_documents(count, seed):
    """Of 1 word to 6, so that some are cut and the others are padded."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.choice([1, 1, 2, 6]))) for _ in range(count)]


DOCS, HELD_OUT = some_documents(41, 0), some_documents(13, 1)


@pytest.fixture
def text(tmp_path, monkeypatch):
    """How the documents are named, all of ``DOCS`` for training."""
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    for name, docs in (("docs.txt", DOCS), ("held_out.txt", HELD_OUT)):
        (tmp_path / name).write_text("<|endoftext|>".join(docs))
    return DataArgs(
        path=str(tmp_path / "docs.txt"),
        validation_path=str(tmp_path / "held_out.txt"),
        tokenizer="bytes",
        length=L,
        packing="document",
    )


@pytest.fixture
def padded(config, text):
    """The configuration of a small run on them; validations see every held-out row."""
    settings = config.read_text().splitlines()
    data = ", ".join(f"{k}: {v}" for k, v in asdict(text).items() if v not in (None, True, False))
    settings[1] = f"data: {{{data}}}"
    config.write_text("\n".join(settings) + "\n")
    return config


def by_hand(docs, tokenizer):
    """Rows cut to their own lengths ``[l]``."""
    return [torch.tensor([*ids, tokenizer.eos_id][:L]) for ids in tokenizer.encode_batch(docs)]


def network(objective, vocab_size=257, **changes):
    """Every parameter random, float64."""
    extra = objective.process.extra_tokens
    values = {"length": L, "width": 16, "blocks": 2, "heads": 2, "cond_dim": 8, "input_conv": 3}
    values |= {
        "vocab_size": vocab_size + extra,
        "num_extra_tokens": extra,
        "causal": objective.causal,
    }
    return randomised(DiT(DiTConfig(**values | changes)).double(), 0.2)


def micro_batches(rows, step, size, rank, world):
    """What the loader gives a process for one step."""
    places = StepSampler(rows=rows, batch=BATCH, seed=5, start_step=step, stop_step=step + 1,
                         rank=rank, world=world)  # fmt: skip
    data = TrainRows(rows, seed=5, batch=BATCH)
    return [data[micro] for micro in BatchSampler(places, size, drop_last=False)]


def step_of(objective, rows, *, size=BATCH, world=1, step=2):
    """Loss and gradient of one optimiser step: the mean over processes and micro-batches."""
    model = network(objective)
    module = TrainModule(model, objective, TrainArgs(batch=BATCH), seed=7)
    parts = [micro for rank in range(world)
             for micro in micro_batches(rows, step, size, rank, world)]  # fmt: skip
    assert len(parts) == BATCH // size
    loss = sum(module(micro) for micro in parts) / len(parts)
    return loss.detach(), gradient(loss, model)


def gradient(loss, model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


OBJECTIVES = [SDDLM(), NELBO(), Autoregressive(), NaiveDenoising(), MDLM()]
named = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)


@pytest.mark.slow
@named
@pytest.mark.parametrize(("size", "world"), [(BATCH, 1), (2, 1), (1, 1), (2, 2)])
def test_the_loss_is_the_sum_over_the_real_tokens_of_the_whole_batch(text, objective, size, world):
    prepared = prepare(text)
    model = network(objective)
    mine = by_hand(DOCS, prepared.tokenizer)
    assert {len(row) for row in mine} > {4, L}
    total, count = 0.0, 0
    slots = 2 * BATCH + torch.arange(BATCH).numpy()
    for slot, i in enumerate(prepared.train.row_indices(5, slots)):
        draw = Draw(7, 2, torch.tensor([slot]), BATCH)
        total = total + objective.loss(model, mine[i][None], draw).total
        count += len(mine[i]) - objective.causal  # nothing predicts the first token
    assert count < BATCH * (L - objective.causal)
    expected = total / count
    loss, grad = step_of(objective, prepared.train, size=size, world=world)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(grad, gradient(expected, model), rtol=1e-8, atol=1e-12)


@named
def test_steps_without_a_position_to_count_are_harmless(text, objective, tmp_path):
    """Documents of one token: an autoregressive model has nothing to predict."""
    (tmp_path / "docs.txt").write_text("<|endoftext|>".join("abcdefghij"))
    rows = prepare(replace(text, eos=False)).train
    assert rows.lengths(torch.arange(10).numpy()).tolist() == [1] * 10
    for size in (BATCH, 1):
        loss, grad = step_of(objective, rows, size=size)
        assert loss.isfinite()
        assert grad.isfinite().all()
        assert (loss == 0) == objective.causal


def test_a_figure_of_nothing_is_not_recorded(text, tmp_path):
    for name in ("docs.txt", "held_out.txt"):
        (tmp_path / name).write_text("<|endoftext|>".join("abcdefghij" * 4))
    prepared = prepare(replace(text, eos=False))
    args = TrainArgs(steps=2, batch=BATCH, validate_every=1, preview_every=0, accelerator="cpu")
    (run := tmp_path / "run").mkdir()
    fit(run, args, 7, 0, network(Autoregressive()).float(), Autoregressive(), prepared)
    rows = read_metrics(run)
    assert [row["step"] for row in rows] == [1, 2]
    for row in rows:
        assert "gradient_norm" in row
        assert not {"loss", "val_loss", "val_nelbo", "val_bpc"} & row.keys()


@pytest.mark.slow
@pytest.mark.parametrize("objective", [SDDLM(), Autoregressive()], ids=lambda o: type(o).__name__)
def test_what_fills_up_a_row_changes_no_bit(text, objective, tmp_path):
    """Neither of training nor of validation; through the whole loop."""
    prepared = prepare(text)
    args = TrainArgs(
        steps=3, batch=BATCH, micro_batch=4, warmup=0, lr=0.01, accelerator="cpu",
        validate_every=1, preview_every=0, precision="32",
    )  # fmt: skip
    tables = []
    for pad in (prepared.tokenizer.pad_id, 3):
        for rows in (prepared.train, prepared.validation):
            assert isinstance(rows, DocumentRows)
            rows.pad = pad
        assert (prepared.train.read(torch.arange(41).numpy()) == pad).any()
        model = network(objective).float()
        (run := tmp_path / f"run {pad}").mkdir()
        fit(run, args, 7, 0, model, objective, prepared)
        tables.append([row | dict.fromkeys(SPENT, 0) for row in read_metrics(run)])
    assert len(tables[0]) == 3
    assert tables[0] == tables[1]
    assert_same(weights(tmp_path / f"run {prepared.tokenizer.pad_id}"), weights(tmp_path / "run 3"))


def test_val_nelbo_is_the_mean_over_real_tokens(padded, tmp_path):
    """Of a model whose value is exact."""
    run = tmp_path / "run"
    more = ["--objective", "Autoregressive", "--model.gate_init", "0", "--data.bos_eos", "true"]
    assert train(padded, run, *more) == 0
    loaded = LanguageModel.load(run)
    nats, count, characters = 0.0, 0, 0
    end = torch.tensor([loaded.tokenizer.eos_id])
    documents = [row[: L - 2] for row in by_hand(HELD_OUT, loaded.tokenizer)]
    rows = [torch.cat([end, row[row != end], end]) for row in documents]
    with torch.inference_mode():
        for row in rows:
            hidden = loaded.network(row[None, :-1], torch.zeros(1))
            log_p = loaded.network.head.logits(hidden[0]).double().log_softmax(-1)
            nats -= float(log_p.gather(1, row[1:, None]).sum())
            count += len(row) - 1
            characters += int((row != loaded.tokenizer.eos_id).sum())
    found = read_metrics(run)[-1]
    assert found["val_nelbo"] == pytest.approx(nats / count, rel=1e-5)
    bpc = nats / characters / torch.tensor(2.0).log().item()
    assert found["val_bpc"] == pytest.approx(bpc, rel=0.02)  # those of the whole documents


HOLLOW = "SDDLM --objective.positions all --model.architecture hollow"
FEW = ["--train.steps", "4", "--train.validate_every", "2", "--train.preview_every", "0"]


def compare(one, other):
    """Runs that differ by rounding."""
    a, b = weights(one), weights(other)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-4)
    for a, b in zip(read_metrics(one), read_metrics(other), strict=True):
        assert a.keys() == b.keys()
        for name in a.keys() & {"val_nelbo", "val_loss", "gradient_norm", "loss", "loss_per_row"}:
            assert a[name] == pytest.approx(b[name], rel=1e-3), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "objective",
    ["SDDLM", "NELBO", HOLLOW, "Autoregressive --model.gate_init 0 --data.bos_eos true"],
)
def test_micro_batches_of_padded_rows_train_what_one_batch_does(padded, tmp_path, objective):
    more = ["--objective", *objective.split(), *FEW]
    assert train(padded, tmp_path / "whole", *more) == 0
    assert train(padded, tmp_path / "parts", "--train.micro_batch", "1", *more) == 0
    compare(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["SDDLM", HOLLOW])
def test_two_processes_train_on_padded_rows_what_one_does(padded, tmp_path, objective):
    more = ["--objective", *objective.split(), *FEW]
    assert train(padded, tmp_path / "one", *more) == 0
    two = ["--train.devices", "2", "--train.accelerator", "cpu", "--train.micro_batch", "2"]
    for code, _, said in several(
        2, "train", "--config", padded, "--out", tmp_path / "two", *more, *two
    ):
        assert code == 0, said
    compare(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_killed_run_on_padded_rows_resumes_bit_for_bit(padded, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Command("train", "--config", padded, "--out", cut, hold=SEVENTH_STEP).kill()
    assert newest_checkpoint(cut)["global_step"] == 5
    assert train(padded, cut, "--resume", "true") == 0
    assert train(padded, whole) == 0
    assert_same(weights(whole), weights(cut))
    assert steps(cut) == steps(whole)
