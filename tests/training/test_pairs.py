"""Training on prompts with their texts: what a prompt asks is learnt, and only texts are scored."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_padded import BATCH, gradient, micro_batches, network

import sddlm
from sddlm import Polynomial, UniformProcess
from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.models.padding import hide_padding
from sddlm.objectives import NELBO, SDDLM, Autoregressive
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.training.module import TrainModule
from sddlm.training.monitor import read_metrics

WORDS = ["red", "blue", "green", "pink"]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Data options of pairs whose text is the word of the prompt in capitals."""
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    rng = random.Random(0)
    with open(tmp_path / "pairs.jsonl", "w") as file:
        for _ in range(200):
            word = rng.choice(WORDS)
            filler = rng.choice("xyz") * rng.randrange(1, 4)
            file.write(json.dumps({"question": f"{filler} {word}=", "text": word.upper()}) + "\n")
    return {
        "path": str(tmp_path / "pairs.jsonl"), "prompt_field": "question", "packing": "document",
        "tokenizer": "characters", "length": 16, "validation": 40,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("objective", [SDDLM(), NELBO(), Autoregressive()], ids=str)
@pytest.mark.parametrize(("size", "world"), [(BATCH, 1), (2, 2)])
def test_the_loss_is_the_sum_over_the_scored_tokens_of_the_whole_batch(
    pairs: dict[str, Any], objective: Any, size: int, world: int
) -> None:
    prepared = prepare(DataArgs(**pairs))
    rows, model = prepared.train, network(objective, prepared.tokenizer.vocab_size)
    assert rows is not None
    module = TrainModule(model, objective, TrainArgs(batch=BATCH), seed=7)
    parts = [m for rank in range(world) for m in micro_batches(rows, 2, size, rank, world)]
    loss = sum(module(part) for part in parts) / len(parts)
    total, count = torch.zeros(()), 0
    for slot, i in enumerate(rows.row_indices(5, 2 * BATCH + np.arange(BATCH))):
        x0, prompts = rows.read(np.array([i])), rows.prompts(np.array([i]))
        seen, scored = hide_padding(model, None, x0, prompts)
        draw = Draw(7, 2, torch.tensor([slot]), BATCH)
        total = total + objective.loss(seen, x0, draw, scored).total
        count += 16 - 1 - prepared.tokenizer.decode(x0[0].tolist()).index("=")
    torch.testing.assert_close(loss, total / count, rtol=1e-10, atol=0)
    torch.testing.assert_close(
        gradient(loss, model), gradient(total / count, model), rtol=1e-8, atol=1e-12
    )


@pytest.mark.slow
def test_a_model_learns_what_its_prompts_ask(pairs: dict[str, Any], tmp_path: Path) -> None:
    lm = sddlm.train(
        **pairs, out=tmp_path / "run", steps=120, batch=32, lr=5e-3, warmup=10, ema=0.95,
        validate_every=120, preview_every=0, preset="mini", width=32, blocks=2, heads=2,
        gate_init=1.0, optimizer=sddlm.Muon(lr=1e-2), architecture="hollow",
        objective=SDDLM(UniformProcess(Polynomial(power=2.0)), positions="all"),
    )  # fmt: skip
    (bound,) = [row["val_nelbo"] for row in read_metrics(tmp_path / "run") if "val_nelbo" in row]
    assert bound < 0.05, bound  # nats; without the prompts at least log(4) / 9 = .15
    for word in WORDS:
        texts = [each.text for each in lm.generate(f"xx {word}=", n=8, steps=16)]
        assert texts.count(f"xx {word}={word.upper()}") >= 6, texts
