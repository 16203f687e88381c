import json
import math
import random

import pytest
import torch
import yaml

from sddlm.cli import main
from sddlm.data.args import trained_on
from sddlm.data.prepare import DataArgs
from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval import report
from sddlm.eval import run as eval_run
from sddlm.eval.ngram import NGram
from sddlm.eval.run import evaluate
from sddlm.eval.texts import END, read_samples, with_ends
from sddlm.generation.config import SamplerConfig
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from test_files import small_files


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
        return found["samples"]["origin"]

    usual = SamplerConfig()
    assert (origin()["steps"], origin()["top_p"]) == (usual.steps, usual.truncation().top_p)
    psi = origin(sampler="psi", steps=4, kappa="0.5", top_k=5)
    assert (psi["sampler"], psi["kappa"], psi["top_k"]) == ("Psi", "0.5", 5)
    assert origin(steps=4, precision="float32")["sampler"] == "Float32"


def test_everything_at_once(trained, tmp_path, capsys):
    make_run(tmp_path / "judge", Estimate.NEXT_TOKEN)
    result = evaluate(str(trained), judge=str(tmp_path / "judge"), count=3, steps=4, batch=2)
    names = ["likelihood", "baselines", "samples", "copying", "generative"]
    assert result["metrics"] == names
    # an untrained network predicts uniformly: its bound is log V a token, a token is a character
    own = result["likelihood"]
    assert own["nll"] == pytest.approx(math.log(257), abs=6 * own["stderr"] + 0.05)
    assert own["bpc"] == pytest.approx(own["nll"] / math.log(2), rel=0.01)
    assert own["complete_nll"] == pytest.approx(own["nll"], abs=0.2)
    assert own["prior_kl"] > 0
    bpc = result["baselines"]["bpc"]
    assert 0 < bpc["5-gram"] < bpc["unigram"] < 5
    drawn, real = result["samples"]["generated"], result["samples"]["real"]
    assert drawn["entropy"] > real["entropy"]
    assert real["known_words"] > 0.5 > drawn["known_words"]
    assert real["bpc_5gram"] < 3 < drawn["bpc_5gram"]
    assert result["copying"]["samples"]["overlap"] < result["copying"]["real"]["overlap"]
    assert result["copying"]["real"]["longest_max"] >= 8
    verdict = result["generative"]["real"]
    assert (verdict["samples"], verdict["context"]) == (3, 23)
    assert verdict["ppl"] == pytest.approx(257, rel=0.01)
    written = json.loads((trained / "evaluation.json").read_text())
    assert written["likelihood"] == own
    assert written["generative"]["real"]["nats_per_character"] is None  # a text was cut
    shown = " ".join(capsys.readouterr().out.split())
    for word in (
        "perplexity per token", "complete bound", "bits per character", "unigram entropy",
        "real", "longest copy", "convention sddlm", "drawn in float64", "leave-one-out",
    ):  # fmt: skip
        assert word in shown
    left = sorted(p.name for p in trained.iterdir())
    assert left == ["config.yaml", "evaluation.json", "model"]  # nothing half done


def test_the_same_again_whatever_the_batch(trained):
    a, b = (evaluate(str(trained), count=5, steps=4, batch=n) for n in (2, 5))
    assert a["samples"]["generated"] == b["samples"]["generated"]
    assert a["likelihood"]["nll"] == pytest.approx(b["likelihood"]["nll"], rel=1e-5)


def test_an_autoregressive_model_is_exact(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    make_run(tmp_path / "run", Estimate.NEXT_TOKEN, path=str(text), validation=0.2)
    own = evaluate(str(tmp_path / "run"), metrics="likelihood", batch=64)["likelihood"]
    assert own["nll"] == pytest.approx(math.log(257), rel=1e-5)
    assert own["prior_kl"] == 0
    assert not own["bound"]
    assert own["tokens"] == own["rows"] * 23  # the first token has no prediction


def test_another_text_is_scored_as_a_whole(trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("a very short other text " * 4)
    result = evaluate(str(trained), data=DataArgs(path=str(other)), metrics="likelihood,baselines")
    assert result["likelihood"]["rows"] == 4
    assert result["baselines"]["learnt_from"] > 1000  # still of the training text


def test_the_training_text_by_name_is_scored_by_its_held_out_part(trained, tmp_path):
    by_name = DataArgs(path=str(tmp_path / "run" / ".." / "text.txt"))
    a = evaluate(str(trained), data=by_name, metrics="likelihood", rows=0)
    b = evaluate(str(trained), metrics="likelihood", rows=0)
    assert a["likelihood"] == b["likelihood"]
    elsewhere = DataArgs(cache=str(tmp_path / "another cache"))  # says where, not what
    c = evaluate(str(trained), data=elsewhere, metrics="likelihood", rows=0)
    assert c["likelihood"] == b["likelihood"]


def test_without_the_training_text_baselines_are_left_out_or_refused(tmp_path):
    make_run(tmp_path / "run")
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    data = DataArgs(path=str(text))
    result = evaluate(str(tmp_path / "run" / "model"), data=data, rows=8, count=2, steps=2)
    assert result["metrics"] == ["likelihood", "samples"]
    assert "known_words" not in result["samples"]["generated"]
    with pytest.raises(ConfigError, match="needs the training text"):
        evaluate(str(tmp_path / "run"), data=data, metrics="baselines")
    with pytest.raises(ConfigError, match=r"give a text to evaluate on: --data\.path FILE"):
        evaluate(str(tmp_path / "run"))


def test_a_training_text_that_changed_is_said(trained, tmp_path, caplog):
    loaded = LanguageModel.load(trained)
    data = {"key": "another"}
    args = (loaded.network, loaded.process, loaded.estimate, loaded.tokenizer, {}, data)
    LanguageModel(*args).save(trained / "model")
    evaluate(str(trained), metrics="likelihood", rows=4)
    assert "is not what the model was trained on any more" in caplog.text


def test_samples_from_a_file(trained, tmp_path):
    lines = [{"text": "the cat saw", "tokens": [5, 6, 7, 8]}, {"text": "", "tokens": [5, 5, 5]}]
    path = tmp_path / "samples.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    read = read_samples(path, Tokenizer.bytes())
    assert [row.tolist() for row in read.rows] == [[5, 6, 7, 8], [5, 5, 5]]
    result = evaluate(str(trained), metrics="samples", samples=str(path))["samples"]
    assert (result["count"], result["length"]) == (2, 4)
    assert result["generated"]["entropy"] == pytest.approx(math.log(4) / 2)
    assert result["origin"] == {"file": str(path)}


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
    ("wrong", "message"),
    [
        ({"metrics": "ppl,likelihood"}, "ppl is unknown; allowed: likelihood, baselines, samples"),
        ({"metrics": "likelihod"}, "likelihod is unknown; .*; did you mean likelihood"),
        ({"metrics": ""}, r"\(empty\) is unknown; allowed"),
        ({"metrics": ["generative"]}, "needs a judge"),
        ({"metrics": "mauve"}, "needs a judge"),
        ({"metrics": "likelihood", "judge": "gpt2"}, "used by metrics generative and mauve"),
        ({"count": 0}, "--count is 0, must be at least 1"),
        ({"rows": -1}, "--rows is -1, must be at least 0"),
        ({"draws": 0}, "--draws is 0, must be at least 1"),
        ({"context": 0}, "--context is 0, must be at least 1"),
        ({"steps": 0}, "steps"),
        ({"temperature": math.nan}, "temperature"),
        ({"precision": "float16"}, "--precision is 'float16', must be float64 or float32"),
        ({"precision": "float32", "sampler": "psi"}, "float32 draws ancestral steps"),
        ({"kappa": "1"}, "--kappa belongs to another sampler"),
        ({"convention": "dou"}, "did you mean duo"),
        ({"zero_shot": "ptp"}, "--zero_shot ptp is unknown; .*; did you mean ptb"),
        ({"zero_shot": "all", "data": DataArgs(path="x")}, "names its own texts"),
        ({"zero_shot": "all", "metrics": "samples"}, "--metrics and --zero_shot are different"),
        ({"frontier": True}, "--frontier needs a judge"),
        ({"frontier": True, "judge": "gpt2", "against": "x"}, "x is no model directory"),
        ({"against": "x"}, "--against belongs to --frontier"),
        ({"limit": 3}, "--limit belongs to --tasks"),
        ({"task_files": "x"}, "--task_files belongs to --tasks"),
        ({"tasks": ""}, "--tasks needs names"),
        ({"tasks": "piqa", "draws": 40}, "try --draws 32"),
        ({"zero_shot": ""}, r"\(empty\) is unknown"),
        ({"tasks": "piqa,piqa"}, "--tasks names piqa twice"),
        ({"tasks": "piqa", "task_files": "/no/such"}, "/no/such"),
        ({"out": "/no/such/folder/x.json"}, "cannot write"),
    ],
)
def test_wrong_choices_are_refused_before_anything_is_loaded(trained, monkeypatch, wrong, message):
    monkeypatch.setattr(eval_run, "LanguageModel", None)
    with pytest.raises(ConfigError, match=message):
        evaluate(str(trained), **wrong)


def test_no_such_directory(tmp_path):
    with pytest.raises(ConfigError, match="no such directory"):
        evaluate(str(tmp_path / "nothing"))


def test_what_is_no_number_becomes_null(trained):
    # one row: no standard error
    result = evaluate(str(trained), metrics="likelihood", rows=1)
    assert math.isnan(result["likelihood"]["stderr"])
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
    assert len(rows) == result["likelihood"]["rows"]
    by_hand = NGram(5).fit([text[:cut]]).bits_per_character(rows)
    assert result["baselines"]["bpc"]["5-gram"] == pytest.approx(by_hand, rel=0.02)
    assert torch.tensor(by_hand) < 2


# ---------------------------------------------------------------- what is written, and where


def test_another_result_does_not_replace_the_first(trained, caplog):
    """At 7bd1212 any second evaluation overwrote ``evaluation.json`` without a word."""
    caplog.set_level("INFO")
    file = trained / "evaluation.json"
    evaluate(str(trained), metrics="likelihood", rows=4)
    first = file.read_text()
    evaluate(str(trained), metrics="likelihood", rows=4)  # the same: nothing is lost
    assert sorted(p.name for p in trained.glob("*.json")) == ["evaluation.json"]
    for number, seed in ((1, 5), (2, 6)):
        evaluate(str(trained), metrics="likelihood", rows=4, seed=seed)
        assert f"kept as evaluation-{number}.json" in caplog.text
    kept = [json.loads((trained / f"evaluation-{n}.json").read_text()) for n in (1, 2)]
    assert [each["seed"] for each in kept] == [0, 5]
    assert kept[0]["likelihood"] == json.loads(first)["likelihood"]
    assert json.loads(file.read_text())["seed"] == 6


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\x00", b"[" * 100_000, b"[1, 2]"])
def test_a_damaged_result_is_kept_and_no_obstacle(trained, damage):
    (trained / "evaluation.json").write_bytes(damage)
    evaluate(str(trained), metrics="likelihood", rows=4)
    assert json.loads((trained / "evaluation.json").read_text())["seed"] == 0
    assert (trained / "evaluation-1.json").read_bytes() == damage


def test_a_picture_is_kept_with_its_figures(tmp_path):
    path = tmp_path / "frontier.json"
    for value in (1, 2):
        report.write_results(
            path, {"value": value}, lambda found, to: to.write_text(str(found["value"]))
        )
    assert [p.read_text() for p in sorted(tmp_path.glob("*.png"))] == ["1", "2"]
    assert json.loads((tmp_path / "frontier-1.json").read_text()) == {"value": 1}


def test_what_is_no_number_is_named(tmp_path, caplog):
    result = {"a": [{"nll": math.nan, "nll_stderr": math.nan}], "b": math.inf, "c": 1.0}
    report.write_results(tmp_path / "x.json", result)
    assert caplog.text.strip().endswith("no number: a.0.nll, b")
    assert json.loads((tmp_path / "x.json").read_text())["a"] == [{"nll": None, "nll_stderr": None}]


def test_a_directory_whose_name_looks_like_markup(trained, capsys):
    """At 7bd1212 the table was a MarkupError, after all the work."""
    place = trained.parent / "[bold]:cat:[" / "red]"
    place.parent.mkdir()
    evaluate(str(trained.rename(place)), metrics="likelihood", rows=4)
    assert "/[bold]:cat:[/red]" in " ".join(capsys.readouterr().out.split())


def test_one_row_has_no_error(trained, capsys):
    evaluate(str(trained), metrics="likelihood", rows=1)
    shown = " ".join(capsys.readouterr().out.split())
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
