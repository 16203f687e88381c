"""The score of correction: what is damaged, every figure by a slow count, the verb."""

import json
import math
import struct
from collections import Counter
from dataclasses import replace

import pytest
import torch

from sddlm.cli import main
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.correction import shares_of
from sddlm.eval.correction_score import CorrectionPoint, corrupt, score_correction
from sddlm.eval.pictures import draw_correction
from sddlm.eval.texts import HeldOut
from sddlm.generation.config import CORRECTION
from sddlm.generation.corrector import Corrector
from sddlm.generation.levels import LEVELS
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process import MaskedProcess, UniformProcess
from sddlm.process.estimate import Estimate

LETTERS = "abcdefgh "
SHARES = [0.0, 0.2, 0.6]


def a_model(process=None, estimate=Estimate.LEAVE_ONE_OUT, length=16):
    process = process or UniformProcess()
    tokenizer = Tokenizer.characters([LETTERS])
    config = DiTConfig(
        vocab_size=tokenizer.vocab_size + process.extra_tokens, length=length, width=16, heads=2,
        blocks=1, head_init=1.0, causal=not estimate.diffusion,
        gate_init=1 if estimate.diffusion else 0, num_extra_tokens=process.extra_tokens,
    )  # fmt: skip
    packing = {"packing": {"eos": False}}
    return LanguageModel(DiT(config, seed=2).eval(), process, estimate, tokenizer, {}, packing)


@pytest.fixture(scope="module")
def loaded():
    return a_model()


def held(lengths=None, rows=11, eos=None):
    tokens = torch.randint(0, 5, (rows, 16), generator=torch.Generator().manual_seed(0))
    if eos is not None:
        tokens[::2, 5] = eos
    if lengths is not None:
        lengths = torch.tensor(lengths)
    return HeldOut(tokens, [""] * rows, "some text", lengths)


@pytest.fixture(scope="module")
def found(loaded):
    return score_correction(loaded, held(), SHARES, seed=3, batch=4, job=ResumableJob())


def words(loaded):
    return torch.arange(len(LETTERS))


def test_damage_is_even_and_leaves_the_rest_alone():
    tokens = torch.randint(0, 9, (400, 50), generator=torch.Generator().manual_seed(0))
    tokens[:, 7] = 9  # no word
    lengths = torch.full((400,), 40)
    drawn = {}
    for share in (0.0, 0.1, 0.3, 1.0):
        got = corrupt(
            tokens, lengths, share, seed=1, index=torch.arange(400), words=torch.arange(9)
        )
        assert torch.equal(got.x[:, 40:], tokens[:, 40:])
        assert torch.equal(got.x[:, 7], tokens[:, 7])
        assert torch.equal(got.free.sum(1), torch.full((400,), 39))
        assert not (got.drawn & ~got.free).any()
        assert not (got.wrong & ~got.drawn).any()
        n = 400 * 39
        assert int(got.drawn.sum()) == pytest.approx(share * n, abs=4 * math.sqrt(n / 4))
        assert int(got.wrong.sum()) == pytest.approx(share * n * 8 / 9, abs=4 * math.sqrt(n / 4))
        drawn[share] = got
    seen = drawn[1.0].x[drawn[1.0].free].bincount(minlength=10).double()
    assert seen[9] == 0
    assert (seen[:9] / (400 * 39) - 1 / 9).abs().max() < 0.012
    # those of a smaller share are among those of a larger one, with the same new token
    less, more = drawn[0.1], drawn[0.3]
    assert not (less.drawn & ~more.drawn).any()
    assert torch.equal(less.x[less.drawn], more.x[less.drawn])
    other = corrupt(tokens, lengths, 0.3, seed=2, index=torch.arange(400), words=torch.arange(9))
    assert not torch.equal(other.drawn, more.drawn)
    part = corrupt(
        tokens[30:50], lengths[30:50], 0.3, seed=1, index=torch.arange(30, 50),
        words=torch.arange(9),
    )  # fmt: skip
    assert torch.equal(part.x, more.x[30:50])


def slow(loaded, x0, x, t, seed):
    """Fates of the letters of texts corrected by the verb's own way, its surprise and levels."""
    drafts = [loaded.tokenizer.decode(row) for row in x]
    fates, nats = Counter(), 0.0
    results = Corrector(loaded, t=t, seed=seed).correct(drafts)
    for row0, row, got in zip(x0, x, results, strict=True):
        y = loaded.tokenizer.encode_batch([got.text])[0]
        for a, b, c, (_, _, sure) in zip(row0, row, y, got.confidence, strict=True):
            nats -= math.log(sure if a == b else 1 - sure)
            if a != b and c == a:
                fates["restored"] += 1
            elif a != b and c == b:
                fates["left"] += 1
            elif a != b:
                fates["other"] += 1
            elif c != a:
                fates["damaged"] += 1
    return fates, nats, [got.t for got in results]


@pytest.mark.slow
def test_every_figure_by_a_slow_count_of_what_the_verb_does(loaded, found):
    """The greedy tail draws nothing, so that both must be the same."""
    text = held()
    for share in found.shares:
        rows = corrupt(
            text.tokens, None, share.share, seed=3, index=torch.arange(11), words=words(loaded)
        )
        x0, x = rows.x0.tolist(), rows.x.tolist()
        assert share.wrong == sum(
            a != b for r, s in zip(x0, x, strict=True) for a, b in zip(r, s, strict=True)
        )
        assert (share.tokens, share.drawn) == (176, int(rows.drawn.sum()))
        for point in [*share.points, share.auto]:
            auto = point is share.auto
            fates, nats, levels = slow(loaded, x0, x, None if auto else point.t, 3)
            assert {k: v for k, v in point.counts.items() if v} == dict(fates)
            if auto:
                bits = nats / 176 / math.log(2)
                assert share.confidence_bits == pytest.approx(bits, rel=1e-6)
                assert point.t == pytest.approx(sum(levels) / 11)
                assert point.t_quartiles[1] == pytest.approx(sorted(levels)[5])
        assert [point.t for point in share.points] == list(LEVELS)
        assert {point.nfe for point in share.points} == {1.0}
    last = found.shares[-1]
    assert last.points[-1].counts["other"] > 0 < last.points[-1].counts["damaged"]
    assert sum(last.points[3].counts.values()) >= last.wrong


def test_figures_of_counts():
    own = CorrectionPoint.of([6, 1, 3, 8], tokens=100, wrong=10, t=0.1)
    assert own.restored == 0.6
    assert own.restored_stderr == pytest.approx(math.sqrt(0.6 * 0.4 / 10))
    assert own.other == 0.1
    assert own.damaged == pytest.approx(8 / 90)
    assert own.damaged_stderr == pytest.approx(math.sqrt(8 / 90 * 82 / 90 / 90))
    assert own.wrong_after == pytest.approx(0.12)
    assert own.precision == pytest.approx(7 / 15)
    assert own.recall == pytest.approx(0.7)
    assert math.isnan(CorrectionPoint.of([0, 0, 0, 2], tokens=9, wrong=0, t=0.1).restored)
    assert math.isnan(CorrectionPoint.of([0, 0, 2, 0], tokens=9, wrong=2, t=0.1).precision)


@pytest.mark.slow
def test_ends_of_text_and_padding_are_not_counted(loaded):
    eos = loaded.tokenizer.eos_id
    lengths = [16, 3, 9] + [12] * 8
    text = held(lengths, eos=eos)
    score = score_correction(loaded, text, [1.0], seed=0, batch=4, job=ResumableJob())
    (share,) = score.shares
    ends = sum(length > 5 for length in lengths[::2])
    assert share.tokens == sum(lengths) - ends
    assert share.drawn == share.tokens
    other = HeldOut(text.tokens.clone(), text.texts, text.source, text.lengths)
    for row, length in zip(other.tokens, lengths, strict=True):
        row[length:] = 7
    shares = [0.0, 0.3, 1.0]
    again = score_correction(loaded, other, shares, seed=0, batch=4, job=ResumableJob())
    assert again == score_correction(loaded, text, shares, seed=0, batch=4, job=ResumableJob())
    assert again.shares[-1] == share
    assert 0 < share.confidence_bits < 10


@pytest.mark.slow
def test_an_interrupted_one_goes_on(loaded, found, tmp_path):
    def run(job):
        return score_correction(loaded, held(), SHARES, seed=3, batch=4, job=job)

    job = ResumableJob(tmp_path / "partial")
    calls = []

    def before(module, inputs):
        calls.append(1)
        if len(calls) == 100:
            raise KeyboardInterrupt

    hook = loaded.network.register_forward_pre_hook(before)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    calls.clear()
    calls += [1] * 100  # no more kills
    assert run(job) == found
    again = len(calls) - 100
    hook.remove()
    assert 0 < again < 9 * 2 * len(LEVELS)


@pytest.mark.parametrize("asked", ["", "x", "0.1,", "1.5", "-0.1", "nan", "0.1,0.1", "inf"])
def test_wrong_shares_are_refused(asked):
    with pytest.raises(ConfigError, match="`shares` is"):
        shares_of(asked)


def test_shares_are_sorted():
    assert shares_of("0.2, 0,1,0.05") == [0, 0.05, 0.2, 1]


def test_models_that_cannot_correct_are_refused():
    for model in (a_model(MaskedProcess()), a_model(estimate=Estimate.NEXT_TOKEN)):
        with pytest.raises(ConfigError, match="never changes a token"):
            score_correction(model, held(), [0.1], seed=0, batch=4, job=ResumableJob())


@pytest.mark.slow
def test_the_picture_shows_every_share(found, tmp_path):
    draw_correction(found, tmp_path / "c.png")
    data = (tmp_path / "c.png").read_bytes()
    assert struct.unpack(">II", data[16:24]) == (800, 550)
    assert len(data) < 100_000
    one = replace(found, shares=found.shares[-1:])
    draw_correction(one, tmp_path / "d.png")
    assert (tmp_path / "d.png").read_bytes() != data
    nothing = replace(found, shares=found.shares[:1])
    draw_correction(nothing, tmp_path / "e.png")


@pytest.fixture
def run(tmp_path, loaded, monkeypatch):
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    loaded.save(tmp_path / "run")
    a_model(MaskedProcess()).save(tmp_path / "masked")
    (tmp_path / "text.txt").write_text("a bad hag had beef a cab fed a deaf egg " * 20)
    return tmp_path


@pytest.mark.slow
def test_the_verb_prints_a_table_and_writes_a_file_and_a_picture(run, capsys):
    options = ["--data.path", str(run / "text.txt"), "--rows", "6", "--batch", "4"]
    out = run / "out.json"
    assert (
        main(
            [
                "eval",
                "correction",
                str(run / "run"),
                "--shares",
                "0,0.3",
                *options,
                "--out",
                str(out),
            ]
        )
        == 0
    )
    shown = capsys.readouterr().out
    result = json.loads(out.read_text())
    assert result["question"] == "correction"
    assert result["correction"]["rows"] == 6
    assert result["correction"]["sampler"]["steps"] == CORRECTION.steps
    clean, dirty = result["correction"]["shares"]
    assert clean["auto"]["restored"] is None
    assert f"{dirty['auto']['restored']:.2%}" in shown
    assert f"{dirty['points'][4]['damaged']:.2%}" in shown
    assert out.with_suffix(".png").stat().st_size > 5000
    assert sorted(p.name for p in run.iterdir() if p.name.startswith("out")) == [
        "out.json", "out.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("run", ["--shares", "2"], "is '2', must be different shares"),
        ("run", ["--out", "x.png"], "name it .json"),
        ("masked", ["--shares", "0.1"], "never changes a token"),
    ],
)
def test_wrong_questions_are_one_line(run, model, options, said, capsys):
    before = sorted(run.rglob("*"))
    assert main(["eval", "correction", str(run / model), *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert sorted(run.rglob("*")) == before
