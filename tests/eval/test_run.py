import importlib
import json
import math
import random
import re
import sys
from dataclasses import dataclass

import pytest
import torch
import yaml

from sddlm.cli import _parse, _subcommand, main
from sddlm.data.config import trained_on
from sddlm.data.prepare import DataArgs
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.ngram import NGram
from sddlm.eval.report import evaluate
from sddlm.eval.result import Plotted, Result
from sddlm.eval.samples import read_samples
from sddlm.eval.texts import END, with_ends
from sddlm.generation.config import SamplerConfig
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.verbs import VERBS
from test_io import small_files


def a_text(seed, sentences=600):
    rng = random.Random(seed)
    names, verbs = ["the cat", "a dog", "my bird"], ["saw", "ate", "liked"]
    return " ".join(
        f"{rng.choice(names)} {rng.choice(verbs)} {rng.choice(names)}." for _ in range(sentences)
    )


def make_run(place, estimate=Estimate.LEAVE_ONE_OUT, **data):
    """A run directory with an untrained model."""
    tokenizer = Tokenizer.bytes()
    config = DiTConfig(
        vocab_size=257, length=24, width=16, blocks=1, heads=2, causal=not estimate.diffusion
    )
    model = DiT(config)
    model.init(0)
    LanguageModel(model.eval(), UniformProcess(), estimate, tokenizer, {}, {}).save(place / "model")
    if data:
        (place / "config.yaml").write_text(yaml.safe_dump({"data": data}))


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def trained(tmp_path):
    """A run trained on a text."""
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    make_run(tmp_path / "run", path=str(text), validation=0.2)
    return tmp_path / "run"


def test_samples_are_drawn_as_the_verb_sample_draws_them(trained):
    def origin(**how):
        found = evaluate(str(trained), metrics="samples", rows=4, count=2, **how)
        return found.samples.origin

    usual = SamplerConfig()
    assert (origin()["steps"], origin()["top_p"]) == (usual.steps, usual.truncation().top_p)
    psi = origin(sampler="psi", steps=4, kappa="0.5", top_k=5)
    assert (psi["sampler"], psi["kappa"], psi["top_k"]) == ("Psi", "0.5", 5)
    assert origin(steps=4, precision="float32")["sampler"] == "Float32"


@pytest.mark.slow
def test_everything_at_once(trained, tmp_path, capsys):
    make_run(tmp_path / "judge", Estimate.NEXT_TOKEN)
    options = {"judge": str(tmp_path / "judge"), "count": 3, "steps": 4, "batch": 2}
    result = evaluate(str(trained), **options)
    assert sorted(p.name for p in trained.iterdir()) == ["config.yaml", "model"]  # writes nothing
    assert capsys.readouterr().out == ""
    names = ["likelihood", "baselines", "samples", "copying", "generative"]
    assert result.metrics == names
    # an untrained network predicts uniformly: its bound is log V a token, a token is a character
    own = result.likelihood
    assert own.nll == pytest.approx(math.log(257), abs=6 * own.stderr + 0.05)
    assert own.bpc == pytest.approx(own.nll / math.log(2), rel=0.01)
    assert own.complete_nll == pytest.approx(own.nll, abs=0.2)
    assert own.prior_kl > 0
    bpc = result.baselines.bpc
    assert 0 < bpc["5-gram"] < bpc["unigram"] < 5
    drawn, real = result.samples.generated, result.samples.real
    assert drawn.entropy > real.entropy
    assert real.known_words > 0.5 > drawn.known_words
    assert real.bpc_5gram < 3 < drawn.bpc_5gram
    assert result.copying.samples.overlap < result.copying.real.overlap
    assert result.copying.real.longest_max >= 8
    verdict = result.generative.real
    assert (verdict.samples, verdict.context) == (3, 23)
    assert verdict.ppl == pytest.approx(257, rel=0.01)
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert main(["eval", str(trained), *flags]) == 0
    written = json.loads((trained / "evaluation.json").read_text())
    assert written["likelihood"] == own.as_dict()
    assert written["generative"]["real"]["nats_per_character"] is None  # a text was cut
    shown = " ".join(capsys.readouterr().out.split())
    for word in (
        "perplexity per token", "complete bound", "bits per character", "unigram entropy",
        "real", "longest copy", "convention sddlm", "drawn in float64", "leave-one-out",
    ):  # fmt: skip
        assert word in shown
        assert word in " ".join(str(result).split())
    left = sorted(p.name for p in trained.iterdir())
    assert left == ["config.yaml", "evaluation.json", "model"]  # nothing half done


@pytest.mark.slow
def test_a_loaded_model_is_evaluated_as_its_directory(trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(a_text(1))
    options = {"data": DataArgs(path=str(other)), "metrics": "likelihood,samples", "count": 2}
    lm = LanguageModel.load(trained)
    by_name, loaded = (evaluate(model, steps=4, **options) for model in (str(trained), lm))
    assert loaded.likelihood == by_name.likelihood
    assert loaded.samples.generated.entropy == by_name.samples.generated.entropy
    assert loaded.provenance.model_fingerprint == by_name.provenance.model_fingerprint
    with pytest.raises(ConfigError, match="a loaded model does not state what it was trained on"):
        evaluate(lm, metrics="likelihood")


@pytest.mark.slow
def test_the_same_again_whatever_the_batch(trained):
    a, b = (evaluate(str(trained), count=5, steps=4, batch=n) for n in (2, 5))
    assert a.samples.generated == b.samples.generated
    assert a.likelihood.nll == pytest.approx(b.likelihood.nll, rel=1e-5)


def test_an_autoregressive_model_is_exact(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    make_run(tmp_path / "run", Estimate.NEXT_TOKEN, path=str(text), validation=0.2)
    own = evaluate(str(tmp_path / "run"), metrics="likelihood", batch=64).likelihood
    assert own.nll == pytest.approx(math.log(257), rel=1e-5)
    assert own.prior_kl == 0
    assert not own.bound
    assert own.tokens == own.rows * 23  # the first token has no prediction


def test_another_text_is_scored_as_a_whole(trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("a very short other text " * 4)
    result = evaluate(str(trained), data=DataArgs(path=str(other)), metrics="likelihood,baselines")
    assert result.likelihood.rows == 4
    assert result.baselines.learnt_from > 1000  # still of the training text


def test_the_training_text_by_name_is_scored_by_its_held_out_part(trained, tmp_path):
    by_name = DataArgs(path=str(tmp_path / "run" / ".." / "text.txt"))
    a = evaluate(str(trained), data=by_name, metrics="likelihood", rows=0)
    b = evaluate(str(trained), metrics="likelihood", rows=0)
    assert a.likelihood == b.likelihood
    elsewhere = DataArgs(cache=str(tmp_path / "another cache"))  # says where, not what
    c = evaluate(str(trained), data=elsewhere, metrics="likelihood", rows=0)
    assert c.likelihood == b.likelihood


def test_without_the_training_text_baselines_are_left_out_or_refused(tmp_path):
    make_run(tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    data = DataArgs(path=str(text))
    result = evaluate(str(tmp_path / "run" / "model"), data=data, rows=8, count=2, steps=2)
    assert result.metrics == ["likelihood", "samples"]
    assert "known_words" not in result.as_dict()["samples"]["generated"]
    with pytest.raises(ConfigError, match="needs the training text"):
        evaluate(str(tmp_path / "run"), data=data, metrics="baselines")
    with pytest.raises(ConfigError, match=r"give a text to evaluate on: `data\.path`"):
        evaluate(str(tmp_path / "run"))


def test_a_training_text_that_changed_is_said(trained, tmp_path, caplog):
    loaded = LanguageModel.load(trained)
    data = {"key": "another"}
    args = (loaded.network, loaded.process, loaded.estimate, loaded.tokenizer, {}, data)
    LanguageModel(*args).save(trained / "model")
    evaluate(str(trained), metrics="likelihood", rows=4)
    assert "is not what the model was trained on any more" in caplog.text


def test_a_network_is_read_as_the_user_asks(tmp_path):
    """A denoiser read as leave-one-out scores as a leave-one-out network with its weights."""
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    for name, estimate in (("naive", Estimate.DENOISER), ("other", Estimate.LEAVE_ONE_OUT)):
        make_run(tmp_path / name, estimate, path=str(text), validation=0.2)
    make_run(tmp_path / "ar", Estimate.NEXT_TOKEN, path=str(text), validation=0.2)

    def nll(name, **options):
        return evaluate(
            str(tmp_path / name), metrics="likelihood", rows=8, **options
        ).likelihood.nll

    assert nll("naive", estimate="leave_one_out") == nll("other") != nll("naive")
    assert nll("naive", estimate="denoiser") == nll("naive")
    with pytest.raises(ConfigError, match="`estimate` is for diffusion models"):
        nll("ar", estimate="denoiser")


def test_samples_from_a_file(trained, tmp_path):
    lines = [{"text": "the cat saw", "tokens": [5, 6, 7, 8]}, {"text": "", "tokens": [5, 5, 5]}]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    read = read_samples(path, Tokenizer.bytes())
    assert [row.tolist() for row in read.rows] == [[5, 6, 7, 8], [5, 5, 5]]
    result = evaluate(str(trained), metrics="samples", samples=str(path)).samples
    assert (result.count, result.length) == (2, 4)
    assert result.generated.entropy == pytest.approx(math.log(4) / 2)
    assert result.origin == {"file": str(path)}


def test_samples_without_tokens_are_encoded(tmp_path):
    path = tmp_path / "samples.jsonl"
    path.write_text('{"text": "abcd"}\n{"text": "abc"}\n')
    assert [len(row) for row in read_samples(path, Tokenizer.bytes()).rows] == [3, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ('{"text": "a"}\n[1]', "line 2 is no sample"),
        ("not json", "line 1 is no sample"),
        ('{"text": ""}', "a sample without a token"),
        (None, "cannot be read"),
    ],
)
def test_files_that_are_no_samples(tmp_path, content, message):
    path = tmp_path / "samples.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_samples(path, Tokenizer.bytes())


@pytest.mark.parametrize(
    ("verb", "wrong", "message"),
    [
        (
            "report",
            {"metrics": "ppl,likelihood"},
            "ppl is unknown; allowed: likelihood, baselines",
        ),
        (
            "report",
            {"metrics": "likelihod"},
            "likelihod is unknown; .*; did you mean likelihood",
        ),
        ("report", {"metrics": ""}, r"\(empty\) is unknown; allowed"),
        ("report", {"metrics": ["generative"]}, "needs a judge"),
        ("report", {"metrics": "mauve"}, "needs a judge"),
        (
            "report",
            {"metrics": "likelihood", "judge": "gpt2"},
            "used by metrics generative, mauve",
        ),
        ("report", {"count": 0}, "`count` is 0, must be at least 1"),
        ("report", {"rows": -1}, "`rows` is -1, must be at least 0"),
        ("report", {"draws": 0}, "`draws` is 0, must be at least 1"),
        ("report", {"context": 0}, "`context` is 0, must be at least 1"),
        ("report", {"steps": 0}, "steps"),
        ("report", {"temperature": math.nan}, "temperature"),
        (
            "report",
            {"precision": "float16"},
            "precision.* is 'float16', must be float64 or float32",
        ),
        (
            "report",
            {"precision": "float32", "sampler": "psi"},
            "float32 draws ancestral steps",
        ),
        ("report", {"kappa": "1"}, "kappa.* belongs to another sampler"),
        ("report", {"convention": "dou"}, "did you mean duo"),
        ("zero-shot", {"sets": "ptp"}, "`sets` ptp is unknown; .*; did you mean ptb"),
        ("zero-shot", {"sets": ""}, r"\(empty\) is unknown"),
        ("frontier", {}, "`judge` is missing"),
        ("frontier", {"judge": "gpt2", "against": "x"}, "x is no model directory"),
        ("frontier", {"judge": "gpt2", "against": "RUN"}, "RUN.* twice|the model itself"),
        ("tasks", {}, "`tasks` is empty"),
        ("tasks", {"tasks": "piqa", "draws": 40}, "draws.* 32"),
        ("tasks", {"tasks": "piqa,piqa"}, "tasks.* names piqa twice"),
        ("tasks", {"tasks": "/no/such.yaml"}, "/no/such"),
        ("correction", {"shares": "2"}, "`shares` is '2'"),
        ("correction", {"out": "x.png"}, "name it .json"),
        ("report", {"out": "/no/such/folder/x.json"}, "cannot write"),
        ("frontier", {"judge": "gpt2", "out": "/no/such/f.json"}, "cannot write"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_loaded(
    trained, monkeypatch, verb, wrong, message
):
    monkeypatch.setattr(LanguageModel, "load", None)
    if wrong.get("against") == "RUN":
        wrong, message = wrong | {"against": str(trained)}, message.replace("RUN", str(trained))
    module, function, *_ = VERBS[f"eval {verb}"]
    with pytest.raises(ConfigError, match=message):
        getattr(importlib.import_module(module), function)(str(trained), **wrong)


def test_the_report_is_the_default(trained):
    assert _subcommand("eval", ["report", "RUN"]) == ("eval report", ["RUN"])
    assert _subcommand("eval", ["RUN"]) == ("eval", ["RUN"])
    functions = {_parse(verb, ["RUN"])[0] for verb in ("eval", "eval report")}
    assert functions == {evaluate}


def test_no_such_directory(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        evaluate(str(tmp_path / "nothing"))


def test_what_is_no_number_becomes_null(trained):
    # one row: no standard error
    result = evaluate(
        str(trained), metrics="likelihood", rows=1, out=str(trained / "evaluation.json")
    )
    assert math.isnan(result.likelihood.stderr)
    written = json.loads((trained / "evaluation.json").read_text())
    assert written["likelihood"]["stderr"] is None


def test_ends_of_documents_are_paid_for_and_not_counted():
    tokenizer = Tokenizer.bytes()
    ids = [*tokenizer.encode_batch(["ab"])[0], tokenizer.eos_id, *tokenizer.encode_batch(["é"])[0]]
    assert with_ends(tokenizer, ids) == f"ab{END}é"
    assert with_ends(tokenizer, []) == ""


def test_trained_on_reads_the_runs_config_from_either_directory(trained):
    assert trained_on(trained) == trained_on(trained / "model")
    assert trained_on(trained).validation == 0.2


def test_baseline_is_that_of_the_scored_rows(trained):
    result = evaluate(str(trained), metrics="likelihood,baselines")
    # the same by hand: the last fifth of the text, in rows of 24 bytes
    text = (trained.parent / "text.txt").read_text()
    cut = text.rfind(" ", 0, round(len(text) * 0.8)) + 1
    rows = [text[cut:][i : i + 24] for i in range(0, len(text) - cut - 23, 24)]
    assert len(rows) == result.likelihood.rows
    by_hand = NGram(5).fit([text[:cut]]).bits_per_character(rows)
    assert result.baselines.bpc["5-gram"] == pytest.approx(by_hand, rel=0.02)
    assert torch.tensor(by_hand) < 2


# ---------------------------------------------------------------- what is written, and where


def test_another_result_does_not_replace_the_first(trained, caplog):
    """At 7bd1212 any second evaluation overwrote ``evaluation.json`` without a word."""
    caplog.set_level("INFO")
    file = trained / "evaluation.json"
    options = {"metrics": "likelihood", "rows": 4, "out": str(file)}
    evaluate(str(trained), **options)
    first = file.read_text()
    evaluate(str(trained), **options)  # the same: nothing is lost
    assert sorted(p.name for p in trained.glob("*.json")) == ["evaluation.json"]
    for number, seed in ((1, 5), (2, 6)):
        evaluate(str(trained), **options, seed=seed)
        assert f"kept as evaluation-{number}.json" in caplog.text
    kept = [json.loads((trained / f"evaluation-{n}.json").read_text()) for n in (1, 2)]
    assert [each["seed"] for each in kept] == [0, 5]
    assert kept[0]["likelihood"] == json.loads(first)["likelihood"]
    assert json.loads(file.read_text())["seed"] == 6


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b"[" * 100_000, b"[1, 2]"])
def test_a_damaged_result_is_kept_and_no_obstacle(trained, damage):
    (trained / "evaluation.json").write_bytes(damage)
    out = str(trained / "evaluation.json")
    evaluate(str(trained), metrics="likelihood", rows=4, out=out)
    assert json.loads((trained / "evaluation.json").read_text())["seed"] == 0
    assert (trained / "evaluation-1.json").read_bytes() == damage


@dataclass(frozen=True, kw_only=True)
class Found(Result):
    """A result with figures of any kind."""

    figures: object

    def fill(self, table):
        return []


class Drawn(Found, Plotted):
    """And with a picture."""

    def plot(self, path):
        path.write_text(str(self.figures))


def test_a_picture_is_kept_with_its_figures(tmp_path):
    for value in (1, 2):
        Drawn(figures=value).save(tmp_path / "frontier.json")
    assert [p.read_text() for p in sorted(tmp_path.glob("*.png"))] == ["1", "2"]
    assert json.loads((tmp_path / "frontier-1.json").read_text()) == {"figures": 1}


def test_undefined_figures_are_named(tmp_path, caplog):
    figures = {"a": [{"nll": math.nan, "nll_stderr": math.nan}], "b": math.inf, "c": 1.0}
    Found(figures=figures).save(tmp_path / "x.json")
    assert caplog.text.strip().endswith("undefined figures: figures.a.0.nll, figures.b")
    written = json.loads((tmp_path / "x.json").read_text())["figures"]
    assert written["a"] == [{"nll": None, "nll_stderr": None}]


def test_a_directory_whose_name_looks_like_markup(trained, capsys):
    """At 7bd1212 the table was a MarkupError, after all the work."""
    place = trained.parent / "[bold]:cat:[" / "red]"
    place.parent.mkdir()
    command = ["eval", str(trained.rename(place)), "--metrics", "likelihood", "--rows", "4"]
    assert main(command) == 0
    assert "/[bold]:cat:[/red]" in " ".join(capsys.readouterr().out.split())


def test_a_table_is_styled_on_a_terminal_alone(trained, capsys, monkeypatch):
    for name, value in {"COLUMNS": "90", "TERM": "xterm-256color", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, value)
    shown = []
    for terminal in (False, True):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        assert main(["eval", str(trained), "--metrics", "likelihood", "--rows", "4"]) == 0
        shown.append(capsys.readouterr().out)
    plain, styled = shown
    bold, code = "\x1b[1;36m", re.compile(r"\x1b\[[\d;]*m")
    assert "\x1b" not in plain
    assert re.search(rf"{re.escape(bold)} *≤ \d", styled)
    assert code.sub("", styled).split() == plain.split()


def test_one_row_has_no_error(trained):
    shown = " ".join(str(evaluate(str(trained), metrics="likelihood", rows=1)).split())
    assert "nan" not in shown
    assert "1 row, too few for an error" in shown


@pytest.mark.parametrize(
    ("size", "rows", "where"),
    [(600, "64", "evaluation.json.partial/likelihood"), (900, "4", "evaluation.json'")],
)
def test_a_full_disk_is_one_line_and_leaves_what_was_there(trained, capsys, size, rows, where):
    command = ["eval", str(trained), "--metrics", "likelihood", "--rows", rows, "--seed"]
    assert main([*command, "1"]) == 0
    before = {path: path.read_bytes() for path in trained.glob("*.*") if path.is_file()}
    capsys.readouterr()
    with small_files(size):
        assert main([*command, "2"]) == 1
    hint, error = capsys.readouterr().err.splitlines()
    assert hint.startswith("prepared tokens reused")
    assert f"{trained}/{where}" in error
    assert {path: path.read_bytes() for path in trained.glob("*.*") if path.is_file()} == before
    assert main([*command, "2"]) == 0
    assert sorted(p.name for p in trained.glob("*.*")) == [
        "config.yaml", "evaluation-1.json", "evaluation.json",
    ]  # fmt: skip
