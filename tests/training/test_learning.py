"""Tiny trainings learn: fixed work, a real bound, and what a regression of learning would do."""

import csv
import random

import pytest

from sddlm import train

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]


def chain() -> str:
    """Words that follow each other by a rule: 0.12 nats a character in the long run."""
    chance, lines = random.Random(0), []
    for _ in range(400):
        at, line = chance.randrange(len(WORDS)), []
        for _ in range(12):
            line.append(WORDS[at])
            at = (at + chance.choice((1, 1, 1, 3))) % len(WORDS)
        lines.append(" ".join(line))
    return "\n".join(lines)


def pairs() -> str:
    """Lines of two letters of eight in any order, so that all of a line tells which: 0.83 nats."""
    chance, lines = random.Random(0), []
    for _ in range(600):
        two = chance.sample("abcdefgh", 2)
        lines.append("".join(chance.choice(two) for _ in range(24)))
    return "\n".join(lines)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "input_conv", "steps", "worst"),
    [
        # five seeds: 0.99 to 1.16, standard deviation 0.06; a third of the steps gives 1.30, no
        # input convolution 2.05
        pytest.param(chain, 5, 200, 1.25, id="neighbours"),
        # five seeds: 1.36 to 1.64, standard deviation 0.11; no attention gives 2.22
        pytest.param(pairs, 0, 120, 1.87, id="attention"),
    ],
)
def test_a_tiny_training_reaches_its_quality(tmp_path, text, input_conv, steps, worst):
    """Held-out nats a character; at most 3 standard deviations above the mean of the seeds."""
    (tmp_path / "text.txt").write_text(text())
    train(
        tmp_path / "text.txt", out=tmp_path / "run", cache=str(tmp_path / "cache"), seed=0,
        tokenizer="characters", length=24, validation=0.1,
        preset="mini", width=48, heads=2, blocks=1, gate_init=1.0, head_init=0.02,
        input_conv=input_conv, steps=steps, batch=24, lr=5e-3, warmup=20, curriculum=0.5, ema=0.98,
        validate_every=steps, preview_every=0, checkpoint_every=steps, accelerator="cpu",
    )  # fmt: skip
    with (tmp_path / "run" / "metrics.csv").open() as file:
        bounds = [float(row["val_nelbo"]) for row in csv.DictReader(file) if row["val_nelbo"]]
    assert 0.5 < bounds[-1] < worst
