"""What a repository of the hub states of a model, and that `transformers` reads it."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sddlm
from sddlm.card import card
from sddlm.data.tokenizer import Tokenizer
from sddlm.hub import write_repository
from sddlm.process.estimate import Estimate
from sddlm.training.monitor import read_metrics

NAME = "me/my-lm"


def untrained(**options: bool) -> sddlm.LanguageModel:
    config = sddlm.DiTConfig(vocab_size=257, length=8, width=16, blocks=1, heads=2, **options)
    estimate = Estimate.NEXT_TOKEN if options.get("causal") else Estimate.DENOISER
    network = sddlm.DiT(config).eval()
    with torch.no_grad():  # else it predicts uniformly
        network.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    return sddlm.LanguageModel(network, sddlm.UniformProcess(), estimate, Tokenizer.bytes(), {}, {})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps with an evaluation of its likelihood."""
    place = tmp_path_factory.mktemp("card")
    (place / "a|b.txt").write_text("The quick brown fox jumps over the lazy dog.\n" * 60)
    sddlm.train(
        place / "a|b.txt", out=place / "run", cache=str(place / "cache"), tokenizer="bytes",
        length=16, validation=0.1, width=16, heads=2, blocks=1, steps=20, batch=4,
        validate_every=10, preview_every=0, accelerator="cpu",
    )  # fmt: skip
    out = str(place / "run" / "evaluation.json")
    sddlm.evaluate(str(place / "run"), metrics="likelihood", device="cpu", out=out)
    return place / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def rows(page: str) -> dict[str, list[str]]:
    """Rows of the tables: the first cell, and all values beside it."""
    found: dict[str, list[str]] = {}
    for name, rest in re.findall(r"^\| ([^|]+) \| (.+) \|$", page, re.MULTILINE):
        found.setdefault(name, []).append(rest)
    return found


def test_the_card_of_a_run_states_what_its_files_hold(run: Path) -> None:
    lm = sddlm.load(run, "cpu")
    page = card(lm, NAME)
    assert page.startswith("---\nlibrary_name: sddlm\n")
    assert "\n- uniform-state\n- diffusion\n" in page
    parameters = sum(each.numel() for each in lm.network.parameters())
    assert f"A uniform-state diffusion language model of {parameters:,} parameters" in page
    assert "not recorded" not in page
    found = rows(page)
    assert found["training text"][0].endswith(r"a\|b.txt")
    assert found["trained on"] == ["2,431 tokens, 1 documents, 2,430 characters"]
    assert found["training"] == ["20 steps of 4 rows, 1,280 tokens"]
    assert found["tokenizer"] == ["bytes, 257 tokens"]
    assert found["network"] == ["dit, 1 blocks, width 16, 2 heads, rows of 16 tokens"]
    assert found["objective"] == ["SDDLM(positions=resampled)"]
    assert found["process"] == ["UniformProcess(schedule=LogLinear(eps=0.001))"]
    assert found["read as"] == ["leave-one-out prediction"]
    during, after = found["bits per character"]
    bits = read_metrics(run)[-1]["val_bpc"]
    assert during == (f"≤ {bits:.3f} | upper bound on held-out rows, after step 20 of the training")
    own = json.loads((run / "evaluation.json").read_text())["likelihood"]
    assert after.startswith(f"≤ {own['bpc']:.3f} ± {own['bpc_stderr']:.2g} | upper bound on ")
    assert "noise levels a row, without the prior term" in after
    assert found["perplexity per token"][1].startswith(f"≤ {own['ppl']:.4g} ± ")
    assert f'sddlm.load("{NAME}")' in page
    assert f"hf download {NAME} --local-dir my-lm\nsddlm sample my-lm\n" in page
    assert f'AutoModel.from_pretrained("{NAME}", trust_remote_code=True)' in page
    assert "continued from" not in found


def test_figures_are_those_of_the_weights(run: Path) -> None:
    lm = sddlm.load(run / "model", "cpu")
    assert len(rows(card(lm, NAME))["bits per character"]) == 2
    lm.data["training"]["steps"] = 15  # it was stopped there, and what followed was killed
    assert "after step 10 of the training" in card(lm, NAME)
    other = replace(lm, estimate=Estimate.DENOISER)
    object.__setattr__(other, "path", lm.path)
    assert "## Figures" not in card(other, NAME)
    evaluation = run / "evaluation.json"
    found = json.loads(evaluation.read_text())
    for content in ("{", "[]", json.dumps({**found, "model_fingerprint": "another"})):
        evaluation.write_text(content)
        assert len(rows(card(lm, NAME))["bits per character"]) == 1
    with torch.no_grad():
        lm.network.head.bias.add_(1)
    assert "## Figures" not in card(lm, NAME)
    assert "## Figures" not in card(sddlm.load("stories", "cpu"), NAME)


def test_a_run_that_continues_another_model_states_so(run: Path) -> None:
    options = run / "config.yaml"
    options.write_text(options.read_text().replace("start: null", "start: runs/base"))
    assert rows(card(sddlm.load(run, "cpu"), NAME))["continued from"] == ["runs/base"]


def test_the_card_of_a_model_without_a_history_invents_none(tmp_path: Path) -> None:
    untrained(causal=True).save(tmp_path / "model")
    (tmp_path / "metrics.csv").write_text("step\n")
    page = card(sddlm.load(tmp_path, "cpu"), NAME)
    assert "An autoregressive language model of" in page
    assert "What it was trained on, and how, is not recorded." in page
    assert [*rows(page)] == ["tokenizer", "network", "read as"]
    assert "## Figures" not in page


#: arguments: repositories; each gets a file ``logits``
READ = """
import sys, torch
from transformers import AutoModel

class Missing:
    def find_spec(self, name, *_):
        if name == "sddlm":
            raise ModuleNotFoundError("No module named 'sddlm'")

def load(place, **options):
    try:
        return AutoModel.from_pretrained(place, trust_remote_code=True, **options)
    except (ImportError, TypeError) as error:
        print(error)

sys.meta_path.insert(0, Missing())
load(sys.argv[1])
del sys.meta_path[0]
load(sys.argv[1], dtype=torch.bfloat16)
tokens = torch.arange(12).view(2, 6)
for place in sys.argv[1:]:
    model = load(place)
    assert not model.training
    clean, noisy = model(tokens).logits, model(tokens, t=0.5).logits
    model.save_pretrained(place + "/again")
    assert torch.equal(load(place + "/again")(tokens).logits, clean)
    torch.save([clean, noisy], place + "/logits")
"""


@pytest.mark.slow
def test_transformers_reads_a_repository(tmp_path: Path) -> None:
    models = {str(tmp_path / name): untrained(causal=name == "ar") for name in ("loo", "ar")}
    for place, lm in models.items():
        write_repository(lm, Path(place))
        again = sddlm.load(place, "cpu")  # not taken for a public checkpoint
        assert again.generate(seed=1, steps=2)[0].text == lm.generate(seed=1, steps=2)[0].text
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", READ, *models]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing, unknown = done.stdout.splitlines()
    assert missing.endswith("not found in your environment: sddlm. Run `pip install sddlm`")
    assert unknown == "sddlm has no option dtype: leave it out, then use model.to()"
    tokens = torch.arange(12).view(2, 6)
    loo, ar = models.values()
    for t, logits in zip((1e-3, 0.5), torch.load(tmp_path / "loo" / "logits"), strict=True):
        torch.testing.assert_close(logits, loo.predict(tokens, t).float())
    with torch.no_grad():
        hidden = ar.network(tokens, torch.zeros(2)).flatten(0, 1)
        expected = ar.network.head.logits(hidden).log_softmax(-1).view(2, 6, -1)
    for logits in torch.load(tmp_path / "ar" / "logits"):
        torch.testing.assert_close(logits, expected)
