"""A run that takes a second: real text, bytes, a network of 32 channels."""

import textwrap

import pytest

SETTINGS = textwrap.dedent("""
    data: {{path: {text}, tokenizer: bytes, length: 16, validation: 0.1, cache: {cache}}}
    model: {{preset: mini, width: 32, heads: 2, blocks: 1, gate_init: 1.0, head_init: 0.02}}
    objective: SDDLM
    train:
      steps: 12
      batch: 8
      lr: 0.003
      warmup: 2
      ema: 0.9
      curriculum: 0.5
      validate_every: 4
      validation_rows: 16
      preview_every: 6
      checkpoint_every: 5
    seed: 3
    """)


@pytest.fixture
def pictures():
    """For a test that looks at ``curves.png``."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """A picture takes as long as a hundred steps: elsewhere none is drawn."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("sddlm.training.monitor.draw_curves", lambda runs, path: None)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Path of a YAML file."""
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\nAnd then it sleeps.\n" * 40)
    path = tmp_path / "tiny.yaml"
    path.write_text(SETTINGS.format(text=text, cache=tmp_path / "cache"))
    return path
