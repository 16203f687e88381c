"""A suite that takes seconds: bytes, a network of 32 channels, two losses, two seeds."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from processes import Started
from sddlm.suite import run

BASE = """
data:
  {{path: {place}/text.txt, tokenizer: bytes, length: 16, validation: 0.1, cache: {place}/cache}}
model: {{preset: mini, width: 32, heads: 2, blocks: 1, gate_init: 1.0, head_init: 0.02}}
train:
  {{steps: 12, batch: 8, lr: 0.003, warmup: 2, ema: 0.9, validate_every: 4, validation_rows: 16,
  preview_every: 0, checkpoint_every: 4}}
"""
SUITE = """
title: Two losses <&>
base: {inherit: base.yaml}
seeds: 2
variants:
  sddlm: {}
  nelbo: {objective: NELBO}
evaluations:
  report: {metrics: "likelihood,samples", rows: 16, draws: 1, count: 4, steps: 4}
  samples: {verb: sample, count: 2, steps: 4, only: [sddlm]}
"""


@contextmanager
def forked() -> Iterator[None]:
    """Context in which jobs are processes that need not import everything first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "start", Started)
        yield
