"""A network whose output is no number ends in one line, whatever is asked of it.

It used to write the noise that it began from, find nothing wrong in a draft, and score as null.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sddlm.cli import main
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.conditional import Choice, conditional_bounds, is_greedy
from sddlm.eval.nll import nll_estimator
from sddlm.eval.perplexity import likelihood
from sddlm.eval.texts import HeldOut
from sddlm.generation.config import SamplerConfig
from sddlm.generation.corrector import Corrector
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process import MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw

L = 12
LOO, NEXT = Estimate.LEAVE_ONE_OUT, Estimate.NEXT_TOKEN


def model_of(process: Process, estimate: Estimate) -> LanguageModel:
    tokenizer = Tokenizer.bytes()
    config = DiTConfig(
        vocab_size=tokenizer.vocab_size + process.extra_tokens, length=L, width=16, heads=2,
        blocks=1, head_init=0.5, num_extra_tokens=process.extra_tokens,
        causal=not estimate.diffusion,
    )  # fmt: skip
    return LanguageModel(DiT(config, seed=1).eval(), process, estimate, tokenizer, {}, {})


def one_token(model: DiT) -> None:
    model.head.weight[100] = torch.nan


def an_infinity(model: DiT) -> None:
    model.head.weight[100, 3] = torch.inf


def everything(model: DiT) -> None:
    model.embedding.weight.fill_(torch.nan)


def overflow(model: DiT) -> None:
    """All weights are finite, and the logits are not."""
    model.head.weight.mul_(1e38)
    model.norm.weight.mul_(1e6)


DAMAGES = [one_token, an_infinity, everything, overflow]
damaged = pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)


def spoilt(
    damage: Callable[[DiT], None], process: Process, estimate: Estimate = LOO
) -> LanguageModel:
    loaded = model_of(process, estimate)
    with torch.no_grad():
        damage(loaded.network)
    return loaded


SAMPLERS = [
    ("lazy", UniformProcess()), ("ancestral", UniformProcess()), ("psi", UniformProcess()),
    ("adaptive", UniformProcess()), ("lazy", MaskedProcess()), ("first_hitting", MaskedProcess()),
]  # fmt: skip


@damaged
@pytest.mark.parametrize(
    ("sampler", "process"), SAMPLERS, ids=lambda x: x if isinstance(x, str) else type(x).__name__
)
def test_no_sampler_writes_noise(
    damage: Callable[[DiT], None], sampler: str, process: Process
) -> None:
    loaded = spoilt(damage, process)
    drawing = SamplerConfig(sampler=sampler, steps=4).build(loaded)  # type: ignore[arg-type]
    with pytest.raises(FloatingPointError, match="output is not finite") as error:
        drawing.sample(loaded.network, process=process, estimate=LOO, batch=2, length=L)
    assert "\n" not in str(error.value)


@damaged
def test_nothing_is_written_from_left_to_right(damage: Callable[[DiT], None]) -> None:
    loaded = spoilt(damage, UniformProcess(), NEXT)
    with pytest.raises(FloatingPointError, match="output is not finite"):
        SamplerConfig().build(loaded).sample(
            loaded.network, process=loaded.process, estimate=NEXT, batch=2, length=L
        )


@damaged
@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER, Estimate.SCORE, NEXT])
def test_nothing_is_scored(damage: Callable[[DiT], None], estimate: Estimate) -> None:
    process = UniformProcess()
    loaded = spoilt(damage, process, estimate)
    prompt, said = [104, 101], [108, 108, 111]

    tokens = torch.randint(256, (4, L), generator=torch.Generator().manual_seed(0))
    rows = HeldOut(tokens, ["a"] * 4, "noise")
    with pytest.raises(FloatingPointError, match="output is not finite"):
        likelihood(loaded, rows)
    with pytest.raises(FloatingPointError, match="output is not finite"):
        conditional_bounds(loaded, [Choice(prompt, said)])
    with pytest.raises(FloatingPointError, match="output is not finite"):
        is_greedy(loaded, prompt, said)


@damaged
@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER, Estimate.SCORE])
def test_nothing_is_predicted(damage: Callable[[DiT], None], estimate: Estimate) -> None:
    x_t = torch.randint(256, (2, L), generator=torch.Generator().manual_seed(0))
    with pytest.raises(FloatingPointError, match="output is not finite"):
        spoilt(damage, UniformProcess(), estimate).predict(x_t, 0.5)


@damaged
def test_nothing_is_corrected(damage: Callable[[DiT], None]) -> None:
    with pytest.raises(FloatingPointError, match="output is not finite"):
        Corrector(spoilt(damage, UniformProcess())).correct(["the quick"])


@pytest.mark.parametrize("damage", DAMAGES[:3], ids=lambda f: f.__name__)
def test_weights_that_are_no_numbers_are_not_loaded(
    damage: Callable[[DiT], None], tmp_path: Path
) -> None:
    model_of(UniformProcess(), LOO).save(tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    state = load_file(path)
    with torch.no_grad():
        damage(DiT.from_state(LanguageModel.load(tmp_path).network.config, state))  # not a copy
    save_file(state, path)
    options = json.loads((path.parent / "config.json").read_text())
    del options["sha256"]  # as in directories of earlier versions, which have no checksums
    (path.parent / "config.json").write_text(json.dumps(options))
    name = "embedding" if damage is everything else "head"
    for load in (LanguageModel.load, lambda place: DiT.from_pretrained(place / "model")):
        with pytest.raises(ConfigError, match=f"{name}.weight is not finite") as error:
            load(tmp_path)
        assert "\n" not in str(error.value)


def test_the_verbs_end_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spoilt(overflow, UniformProcess()).save(tmp_path / "model")
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 20)
    run = str(tmp_path)
    likely = ["--data.path", str(text), "--metrics", "likelihood"]
    for verb, *more in (
        ["sample", run, "--steps", "4", "--out", str(tmp_path / "s.jsonl")],
        ["correct", run, "--text", "the quick"],
        ["eval", run, *likely, "--data.cache", str(tmp_path / "cache")],
    ):
        assert main([verb, *more]) == 1
        out, told = capsys.readouterr()
        assert out == ""
        last = told.strip().splitlines()[-1]
        assert last.startswith((f"sddlm {verb}: ", f"sddlm {verb} report: "))
        assert "output is not finite" in last
    assert not (tmp_path / "evaluation.json").exists()
    assert not (tmp_path / "s.jsonl").exists()


def test_finite_output_is_let_through() -> None:
    loaded = model_of(UniformProcess(), LOO)
    drawn = (
        SamplerConfig(steps=4)
        .build(loaded)
        .sample(loaded.network, process=loaded.process, estimate=LOO, batch=2, length=L)
    )
    assert drawn.tokens.shape == (2, L)
    nats = nll_estimator(loaded).nats(loaded.network, drawn.tokens, Draw.simple(0, 0, 2))
    assert nats.complete.isfinite().all()
