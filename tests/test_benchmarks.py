"""The benchmarks: their textbook computes what the library does, and every script runs."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sddlm.cli import main as cli
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
V, B, L = 13, 3, 8
SCRIPTS = {
    "head": ["--rounds", "1", "--rows", "8"],
    "step": ["--rounds", "1", "--length", "16", "--batch", "2"],
    "sampling": ["--rounds", "1", "--length", "8", "--batch", "2", "--steps", "4,20",
                 "--seconds", "0.02"],
    "gpu": ["--rounds", "1", "--length", "16", "--batch", "2", "--device", "cpu",
            "--sampling_steps", "4", "--sampling_batch", "2", "--timed", "1"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import each other by name; their names are those of other things elsewhere."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(BENCHMARKS)
    yield
    for name in set(sys.modules) - before:
        if str(BENCHMARKS) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def textbook() -> ModuleType:
    return importlib.import_module("textbook")


@pytest.fixture
def step() -> ModuleType:
    return importlib.import_module("step")


def network(causal: bool = False, dtype: torch.dtype = torch.float64) -> DiT:
    """All its parameters random."""
    config = DiTConfig(
        vocab_size=V, length=L, width=16, blocks=2, heads=2, cond_dim=8, causal=causal
    )
    model = DiT(config).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def tokens() -> Tensor:
    return torch.randint(V, (B, L), generator=torch.Generator().manual_seed(2))


def plain(textbook: ModuleType, model: DiT) -> nn.Module:
    """The textbook's network with weights of its own."""
    twin: nn.Module = textbook.TextbookDiT(model.config).to(next(model.parameters()).dtype)
    twin.load_state_dict(model.state_dict())
    return twin


def gap(one: Tensor, other: Tensor) -> float:
    """Relative difference by norm."""
    return ((one - other).norm() / other.norm().clamp(min=1e-300)).item()


@pytest.mark.parametrize("causal", [False, True])
def test_same_weights_same_logits(textbook: ModuleType, causal: bool) -> None:
    model = network(causal, torch.float32)
    sigma = torch.tensor([0.01, 0.7, 4.2])
    expected = model.head.logits(model(tokens(), sigma))
    for twin in (plain(textbook, model), textbook.TextbookDiT.around(model)):
        assert (twin(tokens(), sigma) - expected).abs().max() < 1e-5


def textbook_loss(textbook: ModuleType, name: str, twin: nn.Module, draw: Draw) -> Tensor:
    """The textbook's loss with the library's noise."""
    x0 = tokens()
    if name == "AR":
        loss: Tensor = textbook.autoregressive(twin, x0)
        return loss
    noisy = UniformProcess().corrupt(x0, draw.times(), draw, vocab_size=V)
    logits = twin(noisy.x_t, noisy.sigma)
    more = [draw.integers("negatives", L, 1, high=V)[..., 0]] if name == "V1 sampled" else []
    mean: Tensor = textbook.LOSSES[name](logits, noisy, *more).mean()
    return mean


@pytest.mark.parametrize("name", ["NELBO", "SDDLM", "V1 sampled", "V1 exact", "AR"])
def test_same_noise_same_loss_gradients_and_step(
    textbook: ModuleType, step: ModuleType, name: str
) -> None:
    model = network(name == "AR")
    twin = plain(textbook, model)
    args = TrainArgs(warmup=0, schedule="constant", lr=1e-2, batch=B)
    ours, theirs = step.LibraryTrainer(model, args), textbook.TextbookTrainer(twin, args)
    grads: dict[Tensor, Tensor] = {}
    for p in (*model.parameters(), *twin.parameters()):  # ours are freed behind the step
        p.register_post_accumulate_grad_hook(lambda p: grads.update({p: p.grad.clone()}))
    for number in range(2):
        loss = ours.loss(name, tokens())
        other = textbook_loss(textbook, name, twin, Draw.simple(0, number, B))
        assert abs(loss.item() / other.item() - 1) < 1e-9
        ours.update(loss)
        theirs.update(other)
        for name_of, p in model.named_parameters():
            q = twin.get_parameter(name_of)
            assert gap(grads[p], grads[q]) < 1e-9
            assert gap(p, q) < 1e-9
    for average, p in zip(ours.ema.average, theirs.average, strict=True):
        assert gap(average, p) < 1e-9
    assert not torch.equal(ours.ema.average[0], next(model.parameters()))


def test_same_posterior(textbook: ModuleType) -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(B, L, V, generator=generator, dtype=torch.float64) ** 8
    p = p / p.sum(-1, keepdim=True)
    for t, s in ((0.001, 0.3), (0.4, 0.5), (0.99, 1.0)):
        alphas = [torch.tensor(a, dtype=torch.float64) for a in (t, s)]
        expected = UniformProcess().posterior(p, tokens(), *alphas)
        assert (textbook.posterior(p, tokens(), *alphas) - expected).abs().max() < 1e-12


def test_the_draw_has_the_law(textbook: ModuleType) -> None:
    torch.manual_seed(0)
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    share = textbook.categorical(p.expand(20_000, 4)).bincount(minlength=4) / 20_000
    assert (share - p).abs().max() < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_run(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    importlib.import_module(script).main(["--shape", "toy", *SCRIPTS[script]])
    printed = capsys.readouterr().out
    assert "|---|" in printed
    assert "nan" not in printed


def test_memory_of_each_arm(
    step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(script: str, *arguments: object) -> Any:  # a process takes seconds to import torch
        step.main([str(argument) for argument in arguments])
        peaks.append(json.loads(capsys.readouterr().out)["peak"] + len(peaks))
        return {"peak": peaks[-1]}

    peaks: list[float] = []
    monkeypatch.setattr(step, "fresh", here)
    cell = ["--shape", "toy", "--length", "16", "--batch", "2"]
    step.main([*cell, "--memory", "--arms", "textbook NELBO,sddlm SDDLM,sddlm AR"])
    printed = capsys.readouterr().out
    assert all(f"| {arm} |" in printed for arm in ("setup NELBO", "setup AR", "sddlm AR"))
    assert "1.00x" in printed


@pytest.mark.slow
def test_plans_beside_real_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("plan")

    def here(_: str, *arguments: object) -> Any:  # a process takes seconds to import torch
        script.main([str(argument) for argument in arguments])
        return json.loads(capsys.readouterr().out)

    monkeypatch.setattr(script, "fresh", here)
    script.main(["--cells", "toy:300:8:2", "--rounds", "1"])
    (row,) = re.findall(r"^\| toy:300:8:2 \| (.*) \|$", capsys.readouterr().out, re.MULTILINE)
    assert len(row.split(" | ")) == 7
    (tmp_path / "base.yaml").write_text(
        "model: {preset: mini, blocks: 1}\ntrain: {steps: 10, batch: 8}\n"
    )
    (tmp_path / "a.yaml").write_text("inherit: base.yaml\ndata: {tokenizer: bytes, length: 8}\n")
    script.main(["--recipes", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| recipe", "| ---", "| a"]  # no base


@pytest.mark.slow
def test_waiting_for_verbs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = importlib.import_module("startup")
    processes = script.wait
    codes: list[int] = []

    def here(command: list[str]) -> tuple[float, float]:  # as there, a process takes seconds
        if command[:3] == script.SDDLM:
            try:
                codes.append(cli(command[3:]))
            except SystemExit as done:
                codes.append(int(done.code or 0))
        capsys.readouterr()
        return 1.0, 2.0

    monkeypatch.setattr(script, "wait", here)
    script.main(["--tiny"])
    found = capsys.readouterr().out
    assert codes == [0, 0, 2, 0, 2, 0]  # training; help, no verb; its help, no option, a sample
    assert "| sample | tiny model | 2.00 |" in found
    assert "| sample | its first sample is there | 1.00 |" in found
    first, total = processes([sys.executable, "-S", "-c", "print(1)"])
    assert 0 < first <= total
    with pytest.raises(SystemExit, match="failed with code 3"):
        processes([sys.executable, "-S", "-c", "raise SystemExit(3)"])


@pytest.mark.slow
def test_the_data_path_is_measured(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("ERROR", logger="sddlm"), warnings.catch_warnings():
        importlib.import_module("data").main(["--tiny"])  # it silences both for good
    found = capsys.readouterr().out
    assert found.count("|---|\n") == 4
    assert "load, 2 workers" in found


@pytest.mark.slow
def test_growth_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "growth.png"
    importlib.import_module("growth").main(["--tiny", "--out", str(out)])
    assert "SDDLM step" in capsys.readouterr().out
    assert out.stat().st_size > 1000


def test_fresh_reads_the_last_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint('noise')\nprint('{\"peak\": ' + sys.argv[1] + '}')\n")
    measure = importlib.import_module("measure")
    assert measure.fresh(str(script), 3) == {"peak": 3}
    with pytest.raises(SystemExit, match="failed"):
        measure.fresh(str(script))


def test_objectives_race(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog.\n\n" * 200)
    importlib.import_module("equal_time").main([
        "--path", str(tmp_path / "text.txt"), "--cache", str(tmp_path / "cache"),
        "--seconds", "0.05", "--vocab_size", "270", "--length", "8", "--batch", "2",
        "--measures", "16,1,2", "--count", "2", "--arms", "SDDLM;AR",
        "--out", str(tmp_path / "found.json"),
    ])  # fmt: skip
    printed = capsys.readouterr().out
    assert "| SDDLM |" in printed
    assert "nan" not in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert len(found["AR"]["curve"]) == 4


@pytest.mark.slow
def test_learning_trains_what_is_missing_and_pairs_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    learning = importlib.import_module("learning")
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    monkeypatch.setitem(learning.DATA, "vocab_size", 300)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"The {n} foxes saw the other {n + 1}." for n in range(400)))
    monkeypatch.chdir(tmp_path)
    typed = ["learning", "--text", f"foxes={text}", "--steps", "2", "--seeds", "2", "--batch", "4"]
    monkeypatch.setattr(sys, "argv", [*typed, "--recipes", "muon,hollow"])
    learning.main()
    first = capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("learning.json")}
    assert len(before) == 4
    learning.main()
    assert capsys.readouterr().out == first
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = {path.parent.name: json.loads(path.read_text())["bits"]["2"] for path in before}
    less = [found[f"hollow-2-{seed}"] - found[f"muon-2-{seed}"] for seed in (0, 1)]
    assert f"{sum(less) / 2:.3f} ± " in first
