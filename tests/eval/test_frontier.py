"""The sweep, what is refused before anything is loaded, a whole frontier, and its picture."""

import json
import re
import struct
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from sddlm.cli import _parse
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval import sweep
from sddlm.eval.conventions import CONVENTIONS
from sddlm.eval.frontier import FrontierConfig, comparable, sweep_models
from sddlm.eval.generative import generative_perplexity
from sddlm.eval.judge import Judge
from sddlm.eval.resampling import Interval
from sddlm.eval.samples import SampleSet, draw_samples
from sddlm.eval.sweep import Scoring, settings, settings_of
from sddlm.generation.config import SamplerConfig
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.entropy import entropy

ALPHABET = "abcdefgh "
HOW = SamplerConfig(steps=6, top_p=1.0)
SAMPLES = {"count": 12, "seed": 3, "batch": 8}
SWEEP = {"temperature": [0.5, 1.4], "top_p": [], "tail_cut": [1.0], "steps": [3]}


def draw(model, how=HOW):
    return draw_samples(model, how, job=ResumableJob(), **SAMPLES)


#: nothing of what is swept by default
NOTHING = {knob: [] for knob in sweep.SWEEP}


def a_model(seed, estimate=Estimate.LEAVE_ONE_OUT, alphabet=ALPHABET, length=16, **data):
    """An untrained model whose predictions are far from uniform."""
    tokenizer = Tokenizer.characters([alphabet])
    config = DiTConfig(
        vocab_size=tokenizer.vocab_size, length=length, width=16, blocks=1, heads=2,
        causal=not estimate.diffusion,
    )  # fmt: skip
    model = DiT(config)
    model.init(seed)
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=random)
    return LanguageModel(model.eval(), UniformProcess(), estimate, tokenizer, {}, data)


@pytest.fixture(scope="module")
def models():
    return {
        "one": a_model(1),
        "two": a_model(2),
        "left": a_model(3, Estimate.NEXT_TOKEN),
    }


@pytest.fixture(scope="module")
def judge():
    return Judge.of_model_dir(a_model(4, Estimate.NEXT_TOKEN), "the judge")


@pytest.fixture(scope="module")
def real(models):
    """Text of few letters."""
    rows = torch.randint(0, 5, (12, 16), generator=torch.Generator().manual_seed(0))
    texts = models["one"].tokenizer.decode_batch(rows.tolist())
    return SampleSet(list(rows), texts, {"text": "some"})


def run(models, judge, real, path, job=None, rules=CONVENTIONS["sddlm"], turned=SWEEP):
    config = FrontierConfig(judge="j", sweep=turned, steps=HOW.steps, **SAMPLES)
    found = sweep_models(models, judge, rules, real, config, job or ResumableJob())
    found.plot(path / "f.png")
    return found


@pytest.fixture(scope="module")
def whole(models, judge, real, tmp_path_factory):
    place = tmp_path_factory.mktemp("whole")
    return run(models, judge, real, place), place / "f.png"


# ---------------------------------------------------------------- the sweep


def test_one_knob_moves_at_a_time_and_neutral_has_its_place():
    turned = {"temperature": [1.2, 0.8, 1], "top_p": [0.9], "top_k": [3], "steps": [8, 2]}
    curves = settings({**turned, "tail_cut": [0.5], "tail": ["greedy"], "min_p": [0.0]}, HOW)
    assert {knob: [getattr(how, knob) for how in hows] for knob, hows in curves.items()} == {
        "temperature": [0.8, 1, 1.2],
        "top_p": [0.9, 1],
        "top_k": [3, None],
        "tail_cut": [0, 0.5],
        "steps": [2, 6, 8],
        "tail": ["sample", "greedy"],
    }
    for knob, along in curves.items():
        assert along.count(HOW) == 1
        for one in along:
            assert replace(one, **{knob: getattr(HOW, knob)}) == HOW


def test_steps_are_not_for_every_model_and_knobs_can_be_left_alone(models):
    some = {"temperature": [1.0], "tail_cut": [], "sampler": ["ancestral"]}
    assert list(settings_of(models["one"], some, HOW)[1]) == ["top_p", "steps", "sampler"]
    how, along = settings_of(models["left"], some, replace(HOW, sampler="psi", min_p=0.1))
    assert (list(along), how) == (["top_p"], SamplerConfig(top_p=1.0, min_p=0.1))
    assert min(sweep.SWEEP["temperature"]) < 1 < max(sweep.SWEEP["temperature"])


@pytest.mark.parametrize(
    ("knob", "value"),
    [
        ("temperature", 0), ("temperature", float("nan")), ("temperature", float("inf")),
        ("top_p", 0), ("top_p", 1.01), ("tail_cut", -0.1), ("steps", 0), ("steps", 2.0),
        ("top_k", 0), ("top_k", [1]), ("min_p", 2), ("kappa", "0.5"), ("budget", 1.0),
        ("sampler", "lasy"), ("precision", "half"), ("tail", None),
    ],
)  # fmt: skip
def test_impossible_settings_name_their_option(knob, value):
    wrong = rf"`sweep` turns {knob} to {re.escape(repr(value))}, but .*{knob}"
    with pytest.raises(ConfigError, match=wrong):
        settings({knob: [value]}, HOW)


#: values of every option of the sampler, with the sampler that has them
EVERY = {
    "sampler": ({}, ["ancestral", "psi", "adaptive"]),
    "steps": ({}, [2]),
    "tail": ({}, ["greedy"]),
    "temperature": ({}, [0.5]),
    "top_p": ({}, [0.8]),
    "top_k": ({}, [2]),
    "min_p": ({}, [0.2]),
    "tail_cut": ({}, [1.0]),
    "preset": ({"sampler": "psi"}, ["rescale", "loop"]),
    "kappa": ({"sampler": "psi"}, ["0.5", 1]),
    "hold": ({"sampler": "psi"}, [0.5]),
    "budget": ({"sampler": "adaptive"}, [20.0]),
    "criterion": ({"sampler": "adaptive"}, ["confidence"]),
    "precision": ({}, ["float32"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("knob", [each.name for each in fields(SamplerConfig)])
def test_any_option_of_the_sampler_is_swept(models, judge, real, tmp_path, knob):
    """Each point is what drawing with that setting gives, and is in the picture and the table."""
    base, values = EVERY[knob]
    one, neutral = {"one": models["one"]}, replace(HOW, **base)
    config = FrontierConfig(
        judge="j", sweep=NOTHING | {knob: values}, steps=HOW.steps, **base, **SAMPLES
    )
    found = sweep_models(one, judge, CONVENTIONS["sddlm"], real, config, ResumableJob())
    assert list(found.models["one"].curves) == [knob]
    curve = found.models["one"].curves[knob]
    assert len(curve) == len(values) + 1
    for value in values:
        drawn = draw(
            models["one"], replace(neutral, **{knob: str(value) if knob == "kappa" else value})
        )
        like = [point for point in curve if point.setting.get(knob) == drawn.origin[knob]]
        assert [point.nfe for point in like] == [drawn.origin["nfe"]]
        assert like[0].entropy.value == pytest.approx(entropy(drawn.rows), rel=1e-12)
    assert len({(each.entropy.value, each.gen_ppl.value) for each in curve}) > 1
    found.plot(tmp_path / "f.png")
    shown = str(found)
    for point in curve:
        value = point.setting.get(knob, "by default")
        assert (f"one: {knob} {value}" in shown) == (knob not in sweep.SHARPNESS)


def test_another_sampler_drops_the_options_of_its_own():
    psi = replace(HOW, sampler="psi", kappa="0.5", hold=0.5)
    other = settings({"sampler": ["lazy"]}, psi)["sampler"][1]
    assert other == replace(HOW, sampler="lazy")


def test_a_setting_with_the_law_of_the_neutral_one_is_not_drawn_again(models):
    """No sampler is lazy, and the default criterion is entropy."""
    assert settings_of(models["one"], NOTHING | {"sampler": ["lazy"]}, HOW)[1] == {}
    adaptive = replace(HOW, sampler="adaptive")
    turned = {"criterion": ["entropy", "confidence"]}
    along = settings_of(models["one"], NOTHING | turned, adaptive)[1]["criterion"]
    assert [each.criterion for each in along] == [None, "confidence"]


def test_a_sampler_that_a_model_does_not_have_is_refused_before_the_work(models, real):
    config = FrontierConfig(judge="j", sweep={"sampler": ["first_hitting"]}, steps=6, count=2)
    with pytest.raises(ConfigError, match="first_hitting, which is for MaskedProcess"):
        sweep_models(models, None, CONVENTIONS["sddlm"], real, config, ResumableJob())


def test_values_from_the_command_line_and_a_file(tmp_path):
    (tmp_path / "s.yaml").write_text("sweep: {top_k: [5, 9], steps: []}\n")
    flags = ["--sweep.kappa", "[.5, cap:0.1]", "--sweep.steps=[4]", "--sweep.sampler", "[lazy]"]
    chosen = _parse("eval frontier", ["RUN", "--config", str(tmp_path / "s.yaml"), *flags])[1]
    assert chosen["sweep"] == {
        "top_k": [5, 9], "steps": [4], "kappa": [0.5, "cap:0.1"], "sampler": ["lazy"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"--sweep is \{'top_k': '3'\}, must be names with val"):
        _parse("eval frontier", ["RUN", "--sweep.top_k", "3"])


# ---------------------------------------------------------------- refused at once


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 1}, "`count` is 1"),
        ({"sweep": NOTHING | {"steps": [6], "top_p": [1.0]}}, "`sweep` has no setting beside"),
        ({"sweep": {"topk": [3]}}, "`sweep` turns topk, must turn .*; did you mean top_k?"),
        ({"sweep": {"top_k": 3}}, "`sweep` is {'top_k': 3}, must be names with values"),
        ({"judge": None}, "`judge` is missing"),
        ({"against": "no"}, "no is no model directory"),
        ({"against": ["one", "one"]}, "has one twice"),
        ({"sweep": {"temperature": [0.0]}}, "`sweep` turns temperature to 0"),
    ],
)
def test_refused_before_loading(models, tmp_path, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    models["one"].save("one")
    with pytest.raises(ConfigError, match=message):
        FrontierConfig(**{"judge": "j", "steps": 6} | change)


def test_what_is_right_passes():
    config = FrontierConfig(judge="j", steps=7)
    assert config.how == SamplerConfig(steps=7, top_p=1.0)
    config = FrontierConfig(judge="j", temperature=0.8, top_p=0.9, top_k=3)
    assert config.how == SamplerConfig(temperature=0.8, top_p=0.9, top_k=3)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (a_model(1, alphabet="abcdefghi"), "one and two have different tokenizers"),
        (a_model(1, length=8), "one writes 16 tokens and two 8"),
        (a_model(1, row_lengths=[0, 3, 4]), "documents of other lengths"),
    ],
)
def test_what_cannot_be_compared(models, other, message):
    with pytest.raises(ConfigError, match=message):
        comparable({"one": models["one"], "two": other})
    comparable({"two": other})


# ---------------------------------------------------------------- the whole


@pytest.mark.slow
def test_points_are_what_drawing_and_judging_by_hand_give(whole, models, judge, real):
    result, _ = whole
    for name, knob, at, how in [
        ("one", "temperature", 0, replace(HOW, temperature=0.5)),
        ("two", "tail_cut", 1, replace(HOW, tail_cut=1.0)),
        ("two", "steps", 0, replace(HOW, steps=3)),
        ("left", "temperature", 2, replace(HOW, temperature=1.4)),
        ("one", "temperature", 1, HOW),
    ]:
        point = result.models[name].curves[knob][at]
        drawn = draw(models[name], how)
        verdict = generative_perplexity(judge, drawn.texts)
        assert point.entropy.value == pytest.approx(entropy(drawn.rows), rel=1e-12)
        assert point.gen_ppl.value == pytest.approx(verdict.ppl, rel=1e-6)
        assert point.nfe == drawn.origin["nfe"] > 0
        assert (point.count, point.length) == (12, 16)
        setting = {k: getattr(how, k) for k in ("temperature", "top_p", "min_p", "tail_cut")}
        if name != "left":
            setting |= {k: getattr(how, k) for k in ("steps", "tail", "precision")}
            setting |= {"sampler": "Lazy"}
        assert point.setting == setting
        for figure in (point.entropy, point.gen_ppl):
            assert figure.low < figure.value < figure.high
    assert result.real.entropy.value == pytest.approx(entropy(real.rows))
    beside = generative_perplexity(judge, real.texts).ppl
    assert result.real.gen_ppl.value == pytest.approx(beside, rel=1e-6)
    assert list(result.models["left"].curves) == ["temperature", "tail_cut"]


def test_the_interval_is_that_of_the_corpus_ratio(whole, judge, real):
    """Near the delta method's, and not of the mean of texts."""
    interval = whole[0].real.gen_ppl
    verdict = generative_perplexity(judge, real.texts)
    width = np.log(interval.high / interval.low) / (2 * 1.96)
    assert width == pytest.approx(verdict.nll_stderr, rel=0.25)


def test_the_result_is_a_record(whole):
    result = whole[0].as_dict()
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["judge"] == "the judge"
    assert result["convention"]["name"] == "sddlm"
    assert result["convention"]["context"] == 15  # what was used, not None
    assert (result["precision"], result["resamples"]) == ("float64", 1000)
    assert {(d["model"], d["against"]) for d in result["differences"]} == {
        ("one", "two"), ("one", "left"),
    }  # fmt: skip


@pytest.mark.slow
def test_models_share_their_noise_and_their_resamples(models, judge, real, tmp_path):
    twins = {"one": models["one"], "twin": models["one"]}
    found = run(twins, judge, real, tmp_path).differences
    some = [d for d in found if d.nats.value is not None and d.knob == "temperature"]
    same = [d for d in some if d.at == "real text"] or some
    assert same
    for one in same:
        assert one.nats == Interval(0, 0, 0)


def test_real_text_is_resampled_by_itself(models, judge, real):
    scoring = Scoring(judge, CONVENTIONS["sddlm"], models["one"].tokenizer, 8, ResumableJob())
    text, samples = (scoring.point(real, "x", setting) for setting in (None, {"steps": 6}))
    assert text.entropy[0] == samples.entropy[0]
    assert abs(np.corrcoef(text.entropy[1:], samples.entropy[1:])[0, 1]) < 0.2


@pytest.mark.slow
def test_another_model_of_the_same_name_is_drawn_anew(models, judge, real, tmp_path):
    job, few = ResumableJob(tmp_path / "shards"), NOTHING | {"temperature": [0.5]}
    first, second = (
        run({"same": models[name]}, judge, real, tmp_path, job, turned=few).models["same"]
        for name in ("one", "two")
    )
    assert first.neutral.entropy != second.neutral.entropy


def test_a_point_has_the_perplexity_of_its_texts(judge, models, real):
    some = SampleSet([*real.rows, real.rows[0]], [*real.texts[:-1], "a", ""], {})
    tokenizer = models["one"].tokenizer
    scoring = Scoring(judge, CONVENTIONS["sddlm"], tokenizer, 8, ResumableJob())
    point = scoring.point(some, "x")
    assert point.nll[0] == pytest.approx(generative_perplexity(judge, some.texts).nll)
    assert np.isfinite(point.nll).all()


def network_calls(model, job):
    """How often the network is called during work, and what the work gives."""
    calls = []
    hook = model.network.register_forward_hook(lambda *_: calls.append(1))
    found = job()
    hook.remove()
    return len(calls), found


@pytest.mark.slow
def test_an_interrupted_frontier_goes_on(models, judge, real, tmp_path, whole):
    """Nothing that was finished is done again, and the end is the same."""
    done, again = [], []

    def ending(ids, mask):
        if len(done) == 9:  # each set of 12 texts takes two calls
            raise KeyboardInterrupt
        done.append(len(ids))
        return judge.score(ids, mask)

    def counting(ids, mask):
        again.append(len(ids))
        return judge.score(ids, mask)

    job = ResumableJob(tmp_path / "shards", {"eval": 1})
    with pytest.raises(KeyboardInterrupt):
        run(models, replace(judge, score=ending), real, tmp_path, job)
    assert not (tmp_path / "f.png").exists()
    last = replace(HOW, steps=3)
    missing, _ = network_calls(models["one"], lambda: draw(models["one"], last))
    calls, result = network_calls(
        models["one"],
        lambda: run(models, replace(judge, score=counting), real, tmp_path, job),
    )
    assert calls == missing > 0
    assert sum(done) + sum(again) == 12 * (1 + 5 + 5 + 4)
    assert result == whole[0]
    assert (tmp_path / "f.png").exists()


# ---------------------------------------------------------------- the picture


def size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:])


def pixels(result, path):
    from matplotlib.image import imread

    result.plot(path)
    return imread(path)[..., :3]


def rows_of(image, color):
    """Rows of the pixels of a colour."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.nonzero(np.abs(image - wanted).max(-1) < 0.02)[0]


def test_a_picture_is_drawn(whole):
    pytest.importorskip("matplotlib")
    assert size(whole[1]) == (900, 650)


def test_names_are_no_formulas(whole, tmp_path):
    """At 7bd1212 a directory with dollars in its name was a traceback after all the work."""
    pytest.importorskip("matplotlib")
    name = "a$\\nothing{$"
    models = {f"{name}{i}": model for i, model in enumerate(whole[0].models.values())}
    replace(whole[0], models=models, judge=name).plot(tmp_path / "f.png")
    assert size(tmp_path / "f.png") == (900, 650)


@pytest.mark.slow
def test_the_picture_shows_every_model_real_text_and_the_intervals(whole, tmp_path):
    pytest.importorskip("matplotlib")
    result, _ = whole
    image = pixels(result, tmp_path / "a.png")
    for color in ("#0072B2", "#D55E00", "#009E73"):
        assert len(rows_of(image, color)) > 200
    assert len(rows_of(image, "#CC79A7")) == 0
    fewer = replace(result, models={n: m for n, m in result.models.items() if n != "two"})
    assert len(rows_of(pixels(fewer, tmp_path / "b.png"), "#009E73")) == 0
    one, real = result.models["one"], result.real
    *first, last = one.curves["temperature"]

    def with_last(**change):
        return with_curves(one.curves | {"temperature": [*first, replace(last, **change)]})

    def with_curves(curves):
        return replace(result, models=result.models | {"one": replace(one, curves=curves)})

    bars = replace(last.gen_ppl, low=None, high=None)
    high = replace(last.entropy, high=last.entropy.high + 0.1)
    moved = replace(real.entropy, value=real.entropy.value + 0.02)
    changes = {
        "curves": with_curves({k: v for k, v in one.curves.items() if k != "steps"}),
        "bars": with_last(gen_ppl=bars),
        "high": with_last(entropy=high),
        "real": replace(result, real=replace(real, entropy=moved)),
        "steps": replace(result, steps=7),  # in the caption
    }
    for name, other in changes.items():
        assert (pixels(other, tmp_path / "c.png") != image).any(), name


@pytest.mark.slow
def test_real_text_far_away_does_not_squeeze_the_curves(whole, tmp_path):
    """A star at the edge, with its figure, and curves as large as without it."""
    pytest.importorskip("matplotlib")
    images, ppl = [], [1e-4, 1e-5, 1e8]
    for value in ppl:
        real = replace(whole[0].real, gen_ppl=Interval(value, value, value))
        images.append(pixels(replace(whole[0], real=real), tmp_path / "a.png"))
    for image in images:
        below_the_legend = image[100:]
        models = [rows_of(below_the_legend, color) for color in ("#0072B2", "#D55E00", "#009E73")]
        assert np.ptp(np.concatenate(models)) > 350
    assert (images[0] != images[1]).any()  # the figure is written
    stars = [np.nonzero((i < 0.02).all(-1).sum(1) > 8)[0] for i in images]
    assert not np.array_equal(stars[0], stars[2])


def test_no_picture_without_matplotlib(whole, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    whole[0].plot(tmp_path / "f.png")
    assert "pip install 'sddlm[plots]'" in caplog.text
    assert not list(tmp_path.iterdir())
