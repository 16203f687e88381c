"""The verb ``sddlm eval`` as users meet it: killed, started again, and by several processes."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from processes import Command, several
from sddlm.data.tokenizer import Tokenizer
from sddlm.eval.report import evaluate
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

OPTIONS = {"rows": 0, "draws": 3, "batch": 4, "count": 12, "steps": 6, "seed": 5}


def make(place: Path, estimate: Estimate, text: Path) -> Path:
    causal = not estimate.diffusion
    config = DiTConfig(vocab_size=257, length=24, width=16, blocks=1, heads=2, causal=causal)
    model = DiT(config)
    model.init(3)
    with torch.no_grad():  # an untrained network predicts uniformly, so that noise would not matter
        model.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    LanguageModel(model.eval(), UniformProcess(), estimate, Tokenizer.bytes(), {}, {}).save(
        place / "model"
    )
    config_file = {"data": {"path": str(text), "validation": 0.3, "length": 24}}
    (place / "config.yaml").write_text(yaml.safe_dump(config_file))
    return place


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["the", "cat", "saw", "a", "bird", "and", "sang"]
    rng = random.Random(0)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(rng.choice(words) for _ in range(4000)))
    make(tmp_path / "judge", Estimate.NEXT_TOKEN, text)
    return make(tmp_path / "run", Estimate.LEAVE_ONE_OUT, text)


def arguments(run: Path, out: Path) -> list[str]:
    flags = [part for name, value in OPTIONS.items() for part in (f"--{name}", str(value))]
    judge = ["--judge", str(run.parent / "judge"), "--out", str(out)]
    return ["eval", str(run), *flags, *judge]


def figures(path: Path) -> dict[str, Any]:
    """What was written, without what is no figure."""
    found = json.loads(path.read_text())
    for name in ("seconds", "command"):
        del found[name]
    del found["samples"]["origin"]["seconds"]
    return found


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_processes_agree(place):
    whole, killed, shared = (place / f"{name}.json" for name in ("whole", "killed", "shared"))
    evaluate(str(place), judge=str(place.parent / "judge"), out=str(whole), **OPTIONS)

    partial = place / "killed.json.partial"
    # in the fifth batch of the likelihood
    fifth = ("sddlm.eval.nll:DiffusionNLL.nats", 4)
    Command(*arguments(place, killed), hold=fifth).kill()
    assert not killed.exists()
    kept = {file.name: file.read_text() for file in partial.iterdir()}
    assert sum(text.count("\n[") for text in kept.values()) == 4
    evaluate(str(place), judge=str(place.parent / "judge"), out=str(killed), **OPTIONS)
    assert figures(killed) == figures(whole)
    assert not partial.exists()

    said = []
    for code, out, err in several(2, *arguments(place, shared)):
        assert code == 0, err
        said.append("written to" in out)
    assert said == [True, False]  # one process prints
    assert figures(shared) == figures(whole)
