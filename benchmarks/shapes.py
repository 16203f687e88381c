"""What is measured at: networks by name, the same in every script, and the settings of a step."""

from __future__ import annotations

import argparse
from typing import Any

from sddlm.models.config import PRESETS, DiTConfig
from sddlm.models.dit import DiT
from sddlm.training.args import TrainArgs

SHAPES: dict[str, dict[str, int]] = {
    "small": {**PRESETS["small"], "vocab_size": 50258},  # GPT-2's vocabulary
    "tiny": {**PRESETS["tiny"], "vocab_size": 4096},
    "char": {"width": 256, "blocks": 6, "heads": 8, "vocab_size": 27},  # text8
    "1b": {**PRESETS["1b"], "vocab_size": 50258},
    "toy": {"width": 32, "blocks": 2, "heads": 2, "vocab_size": 61},  # seconds: for the tests
}

ARGS = TrainArgs(warmup=0, schedule="constant")
"""A long run's optimiser, at its full learning rate."""


def network(shape: str, length: int, **changes: Any) -> DiT:
    """A network of a shape that does something from the start."""
    gate = (
        0.0 if changes.get("causal") or changes.get("time_input") == "none" else 1.0
    )  # else it has gates
    config = DiTConfig(**SHAPES[shape], length=length, gate_init=gate, head_init=0.02, **changes)
    return DiT(config)


def parser(description: str | None, shapes: str, rounds: int) -> argparse.ArgumentParser:
    """The options that every script has.

    Args:
        description: the script's docstring.
        shapes: names of the shapes measured if none are given, separated by commas.
        rounds: default number of rounds.
    """
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--shape", default=shapes, help=f"separated by commas, of {', '.join(SHAPES)} [%(default)s]"
    )
    made.add_argument("--rounds", type=int, default=rounds, help="[%(default)s]")
    return made


def numbers(text: str) -> list[int]:
    """``8,32`` as a list."""
    return [int(part) for part in text.split(",")]


def names(text: str) -> list[str]:
    """``small,tiny`` as a list."""
    return text.split(",")
