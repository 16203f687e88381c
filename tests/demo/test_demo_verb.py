"""The verb ``sddlm demo``, from the command line to the page."""

import io
import json
import os
import pty
import re
import sys

import pytest
import torch
from rich.console import Console

from sddlm import DiT, DiTConfig, Estimate, LanguageModel, Tokenizer, UniformProcess
from sddlm.cli import main
from sddlm.demo.run import (
    SamplingJob,
    counting,
    demo,
    initial_tokens,
    sampler_label,
    show,
    with_overrides,
)
from sddlm.errors import ConfigError
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.process.masked import MaskedProcess
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.condition import Condition
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.psi import Psi
from sddlm.sampling.truncation import Truncation

L = 12


def untrained(process=None, estimate=Estimate.LEAVE_ONE_OUT):
    torch.manual_seed(0)
    process = process or UniformProcess()
    extra = process.extra_tokens
    config = DiTConfig(
        vocab_size=257 + extra, length=L, width=16, blocks=1, heads=2, num_extra_tokens=extra,
        causal=not estimate.diffusion, head_init=0.5,
    )  # fmt: skip
    return LanguageModel(DiT(config).eval(), process, estimate, Tokenizer.bytes(), {}, {})


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "model"
    untrained().save(path)
    return str(path)


def quiet():
    return Console(file=io.StringIO(), width=80)


def page_data(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'id="data">(.*?)</script>', text)[1]), text


def rows_of(take, sample=0):
    """Every moment of a take on a page, as places in its texts."""
    told = take["samples"][sample]
    rows = [list(told["first"])]
    for change in told["changes"]:
        rows.append(list(rows[-1]))
        for place, token in zip(change[::2], change[1::2], strict=True):
            rows[-1][place] = token
    return rows


def test_it_shows_the_sample_and_writes_the_page(place, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert main(["demo", place, "--steps", "9", "--count", "2", "--html", str(page)]) == 0
    shown = capsys.readouterr().out
    model = LanguageModel.load(place)
    drawn = Lazy(9, truncation=Truncation(top_p=0.9)).sample(
        model.network, process=model.process, estimate=model.estimate, batch=2, length=L, seed=0
    )
    data, text = page_data(page)
    (take,) = data["takes"]
    assert take["label"] == "Lazy, 9 steps"
    assert take["steps"] == list(range(10))
    assert take["times"] == pytest.approx([1 - i / 9 for i in range(10)], abs=1e-6)
    for b in range(2):
        last = [data["texts"][i] for i in rows_of(take, b)[-1]]
        single = [model.tokenizer.decode([i]) for i in drawn.tokens[b].tolist()]
        assert [len(t) for t in last] == [len(t) for t in single]
        printing = [(a, c) for a, c in zip(last, single, strict=True) if c.isprintable()]
        assert all(a == c for a, c in printing)
        assert printing
    low, high = sorted(drawn.nfe.tolist())
    facts = f"nfe {low}" if low == high else f"nfe {low} to {high}"
    assert re.search(rf"Lazy, 9 steps: {facts}, \d+\.\d s\n$", shown)
    assert "12 tokens" in text
    assert "seed 0" in text
    assert "\x1b" not in shown


def test_the_same_seed_is_the_same_page(place, tmp_path):
    pages = []
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        demo(place, steps=4, seed=seed, length=7, html=str(tmp_path / name))
        data, _ = page_data(tmp_path / name)
        pages.append([[data["texts"][i] for i in row] for row in rows_of(data["takes"][0])])
    assert pages[0] == pages[1] != pages[2]
    assert {len(row) for row in pages[0]} == {7}
    assert not list(tmp_path.glob("*.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Lazy(6), Ancestral(6), Psi(6, kappa="cap:0.1")])
@pytest.mark.parametrize("process", [UniformProcess(), MaskedProcess()])
@pytest.mark.parametrize("t", [None, 1.0, 0.4])
def test_it_begins_with_what_the_network_is_shown_first(sampler, process, t):
    model = untrained(process)
    known = torch.zeros(1, L, dtype=torch.bool)
    known[:, 3:5] = True
    given = torch.full((1, L), model.network.vocab_size - 1).where(~known, 65)
    job = SamplingJob((1, L), 7, None if t is None else Condition(given, known, t=t), index=3)
    seen = []
    model.network.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].clone()))
    take, _ = show(model, "it", sampler, job, console=quiet())
    assert take.frames.steps[0] == 0
    assert take.frames.times[0] == (t or 1.0)
    assert torch.equal(take.frames.tokens[0], seen[0])
    if t is not None:
        assert torch.equal(take.known, known)
        assert (take.frames.tokens[:, 0, 3:5] == 65).all()


def test_a_model_from_left_to_right():
    from sddlm.sampling.autoregressive import Autoregressive

    model = untrained(estimate=Estimate.NEXT_TOKEN)
    console = quiet()
    take, _ = show(model, "left to right", Autoregressive(), SamplingJob((1, L)), console=console)
    assert take.frames.steps == list(range(1, L))
    assert console.file.getvalue().endswith("s\n")


def test_calls_of_the_network_are_counted_while_it_runs():
    model, console = untrained(), Console(file=io.StringIO(), width=100)
    take, _ = show(model, "it", Ancestral(8), SamplingJob((1, L)), console=console)
    told = re.findall(r"step (\d)/8 .*? nfe (\d)", console.file.getvalue())
    assert told == [("0", "0"), ("2", "2"), ("4", "4"), ("6", "6")]
    assert take.notes[0].startswith("nfe 8, ")
    with counting(model) as calls:
        pass
    model.network(torch.zeros(1, L, dtype=torch.int64), torch.ones(1))
    assert calls() == 0
    console = quiet()
    show(model, "it", Ancestral(8), SamplingJob((2, L)), console=console)
    assert console.file.getvalue().count("nfe") == 1  # at the end: calls of a batch are no one's


def test_the_start_is_that_of_each_sample():
    model = untrained()
    both, first = (
        initial_tokens(model, SamplingJob((2, L), 3)),
        initial_tokens(model, SamplingJob((1, L), 3)),
    )
    assert torch.equal(both[:1], first)
    assert not torch.equal(both[0], both[1])


def test_a_label_says_which_sampler_and_what_is_not_as_usual():
    assert sampler_label(SamplerConfig(), Lazy(6), L) == "Lazy, 6 steps"
    how = SamplerConfig(sampler="psi", steps=6, kappa="cap:0.1", top_p=0.9)
    assert sampler_label(how, Psi(6), L) == "Psi, 6 steps, top_p 0.9, kappa cap:0.1"


def test_what_is_different_on_the_other_side():
    how = SamplerConfig(sampler="psi", kappa="0.9", steps=32, top_p=0.9)
    assert with_overrides(how, "steps=8") == SamplerConfig("psi", kappa="0.9", steps=8, top_p=0.9)
    assert with_overrides(how, "lazy") == SamplerConfig("lazy", steps=32, top_p=0.9)
    assert with_overrides(
        how, "sampler=psi, kappa=cap:0.1,top_k=3,temperature=.5"
    ) == SamplerConfig("psi", kappa="cap:0.1", steps=32, top_p=0.9, top_k=3, temperature=0.5)


@pytest.mark.parametrize(
    ("against", "message"),
    [
        ("stps=8", "stps is unknown, there are sampler, steps"),
        ("steps=x", "'x' is no number: try steps=8"),
        ("steps=0", "`against` steps=0: `steps` is 0, must be from 1"),
        ("laz", "`against` laz: `sampler` is 'laz'"),
        ("temperature=nan", "temperature` is nan"),
        ("lazy,kappa=0.9", "`against` lazy,kappa=0.9: `kappa` belongs to another sampler"),
        ("", "`sampler` is ''"),
    ],
)
def test_what_cannot_be_different(against, message):
    with pytest.raises(ConfigError, match="`against`") as told:
        with_overrides(SamplerConfig(), against)
    assert message in str(told.value)


def test_two_samplers_side_by_side(place, tmp_path, capsys):
    page = tmp_path / "page.html"
    demo(place, prompt="ab", against="steps=3", html=str(page), steps=6, seed=2)
    shown = capsys.readouterr().out
    data, _ = page_data(page)
    assert [take["label"] for take in data["takes"]] == ["Lazy, 6 steps", "Lazy, 3 steps"]
    assert [take["steps"][-1] for take in data["takes"]] == [6, 3]
    first, second = (rows_of(take) for take in data["takes"])
    assert first[0] == second[0]  # the same noise
    for take, rows in zip(data["takes"], (first, second), strict=True):
        known = take["samples"][0]["known"]
        assert known == [0, 1, 2]  # what stands in front of a text, and the prompt
        assert {"".join(data["texts"][row[i]] for i in known) for row in rows} == {"ab"}
        assert f"\n{take['label']}: {take['notes'][0]}\n" in shown


def test_it_is_the_text_that_sample_writes(place, tmp_path):
    page = tmp_path / "page.html"
    demo(place, prompt="ab", html=str(page), steps=6, seed=2, count=2)
    loaded = LanguageModel.load(place)
    writer = Generator(loaded, [Request(prompt="ab", count=2)], SamplerConfig(steps=6), seed=2)
    data, _ = page_data(page)
    for b, written in enumerate(writer.generate(whole=True)):
        assert written.request == 0
        shown = [data["texts"][i] for i in rows_of(data["takes"][0], b)[-1]]
        single = [loaded.tokenizer.decode([i]) for i in written.tokens]
        pairs = list(zip(shown[-len(single) :], single, strict=True))  # without what is in front
        assert [a for a, c in pairs if c.isprintable()] == [c for a, c in pairs if c.isprintable()]
        assert [a == "" for a, _ in pairs] == [c == "" for _, c in pairs]


def test_padding_is_not_shown(place, tmp_path):
    page = tmp_path / "page.html"
    demo(place, infill="a{2}b", html=str(page), steps=6)  # 5 tokens in a batch of 12 or 32
    data, text = page_data(page)
    rows = rows_of(data["takes"][0])
    assert {len(row) for row in rows} == {5}
    assert data["takes"][0]["samples"][0]["known"] == [0, 1, 4]
    assert "5 tokens" in text


def test_texts_that_are_not_one_block(place, caplog, capsys):
    caplog.set_level("INFO", "sddlm")
    with pytest.raises(ConfigError, match="unequal lengths need a page each: try `count=1`"):
        demo(place, infill="a{9:10}", count=8, steps=2)
    demo(place, length=L, steps=2)
    assert caplog.text == ""
    demo(place, length=2 * L, steps=2)
    assert "first block" in caplog.text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "0"], "--steps is 0"),
        (["--count", "0"], "--count is 0"),
        (["--length", "0"], "--length is 0"),
        (["--infill", "no blank"], "has no blank"),
        (["--against", "laz"], "--against laz"),
        (["--fps", "-1"], "--fps is -1.0, allowed is 0"),
        (["--fps", "nan"], "--fps is 'nan'"),
        (["--html", "no/such/folder/page.html"], "there is no directory no/such/folder"),
    ],
)
def test_wrong_values_are_one_line_and_nothing_is_written(
    place, tmp_path, capsys, monkeypatch, flags, message
):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", place, *flags]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("sddlm demo: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_without_a_model_there_is_no_demo(tmp_path, capsys):
    assert main(["demo", str(tmp_path / "no")]) == 2
    assert "no such directory" in capsys.readouterr().err
    assert main(["demo", str(tmp_path / "no"), "--fps", "-1"]) == 2
    assert "--fps is -1" in capsys.readouterr().err  # before anything is looked for


@pytest.mark.slow
def test_ctrl_c_puts_the_terminal_back(place):
    """In a real terminal, typed while the first picture stands for a quarter of an hour."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm", "COLUMNS": "60", "LINES": "20"}
        os.execv(
            sys.executable,
            [sys.executable, "-m", "sddlm", "demo", place, "--fps", "0.001", "--steps", "64"],
        )
    shown, typed = b"", False
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # the child has gone
            break
        if not part:
            break
        shown += part
        if not typed and b"step 0/64" in shown:
            os.write(terminal, b"\x03")
            typed = True
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 130
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h") == 1  # the cursor
    assert b"Traceback" not in shown
    assert b"step 1/64" not in shown
