"""A judge reads no real text that it was trained on, or the result states that it did."""

import json
import random
from dataclasses import asdict

import numpy as np
import pytest
import torch
import yaml

from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.data.tokenizer import Tokenizer
from sddlm.eval import report
from sddlm.eval.report import evaluate
from sddlm.eval.result import SeenByJudge
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

#: every document has words of its own, so that a piece of one is found again
MANY = [f"<{i:03d}>" * 12 for i in range(60)]
ONE = ["".join(f"{n} " for n in range(1000, 2000))]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path_factory.mktemp("cache")))


def a_run(place, estimate=Estimate.NEXT_TOKEN, start=None, **data):
    """A run directory with an untrained model; its path."""
    config = DiTConfig(
        vocab_size=257, length=32, width=16, blocks=1, heads=2, causal=not estimate.diffusion
    )
    model = DiT(config)
    model.init(0)
    LanguageModel(model.eval(), UniformProcess(), estimate, Tokenizer.bytes(), {}, {}).save(
        place / "model"
    )
    if data:
        (place / "config.yaml").write_text(yaml.safe_dump({"data": data, "start": start}))
    return place
    return place


def put(path, documents):
    random.Random(0).shuffle(documents := [*documents])
    path.write_text("\n==\n".join(documents), encoding="utf-8")
    return str(path)


def learnt_by(judge):
    """The training text of a run."""
    own = yaml.safe_load((judge / "config.yaml").read_text())["data"]
    rows = prepare(DataArgs(**own, length=1), Tokenizer.bytes()).train
    return Tokenizer.bytes().decode(rows.read(np.arange(len(rows))).flatten().tolist())


def judged(monkeypatch, run, judge, **more):
    """Results, and the real text that the judge was given."""
    read = []
    ask = report.generative_perplexity

    def asking(judge, samples, *rest, **how):
        read.append(samples.texts)
        return ask(judge, samples, *rest, **how)

    monkeypatch.setattr(report, "generative_perplexity", asking)
    samples = run.parent / "samples.jsonl"
    samples.write_text((json.dumps({"text": "some", "tokens": [5] * 32}) + "\n") * 99)
    result = evaluate(
        str(run), judge=str(judge), metrics="generative", samples=str(samples), **more
    )
    return result.real_text, read[1]


def parts(rows):
    """What is long enough to be of one document and no chance."""
    return [row[i : i + 8] for row in rows for i in range(0, len(row) - 8, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("documents", [MANY, ONE], ids=["many", "one"])
@pytest.mark.parametrize("shares", [(0.3, 0.1), (0.1, 0.3), (0.3, 0.3), (12, 6)])
def test_rows_that_the_judge_was_trained_on_are_left_out(monkeypatch, tmp_path, documents, shares):
    """README's own commands, at 7bd1212: half of the real text was the judge's training text."""
    if documents is ONE and shares[0] > 1:
        shares = (0.5, 0.2)
    data = {"path": put(tmp_path / "t.txt", documents), "separator": "\n==\n"}
    run = a_run(tmp_path / "run", Estimate.LEAVE_ONE_OUT, **data, validation=shares[0])
    judge = a_run(tmp_path / "judge", **data, validation=shares[1])
    learnt = learnt_by(judge)
    seen, read = judged(monkeypatch, run, judge, out=str(run / "evaluation.json"))
    assert read
    assert not [part for part in parts(read) if part in learnt]
    assert seen.seen_by_judge == "no"
    stored = json.loads((run / "evaluation.json").read_text())
    assert stored["real_text"] == asdict(seen)
    # the rows of the model's own figures are the same whoever judges
    held = evaluate(str(run), metrics="likelihood").likelihood
    assert (held.rows == len(read)) == (shares[0] <= shares[1])


def test_another_text_is_read_as_far_as_the_judge_held_it_out(monkeypatch, tmp_path):
    other = put(tmp_path / "other.txt", MANY)
    own = put(tmp_path / "own.txt", ONE)
    run = a_run(tmp_path / "run", Estimate.LEAVE_ONE_OUT, path=own, validation=0.1)
    judge = a_run(tmp_path / "judge", path=other, separator="\n==\n", validation=0.2)
    data = DataArgs(path=other, separator="\n==\n")
    seen, read = judged(monkeypatch, run, judge, data=data)
    learnt = learnt_by(judge)
    assert not [part for part in parts(read) if part in learnt]
    assert seen.seen_by_judge == "no"
    # the model's own text is another one
    seen, read = judged(monkeypatch, run, judge)
    assert seen == SeenByJudge("no", f"judge {judge} was trained on other text")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trained", "seen", "reason"),
    [
        ({"validation": 0.1, "separator": "="}, "maybe", "split otherwise"),
        ({"validation": 5, "separator": "\n==\n"}, "maybe", "split otherwise"),
        ({"validation": 0.02, "separator": "\n==\n", "limit": 30}, "maybe", "split otherwise"),
        ({"validation_path": "own.txt", "separator": "\n==\n"}, "yes", "all of this text"),
        ({}, "unknown", "no run states"),
    ],
)
def test_where_that_cannot_be_it_is_stated(monkeypatch, tmp_path, caplog, trained, seen, reason):
    put(tmp_path / "own.txt", ONE)
    monkeypatch.chdir(tmp_path)
    data = {"path": put(tmp_path / "t.txt", MANY), "separator": "\n==\n"}
    run = a_run(tmp_path / "run", Estimate.LEAVE_ONE_OUT, **data, validation=0.3)
    judge = a_run(tmp_path / "judge", **({"path": data["path"]} | trained if trained else {}))
    found, read = judged(monkeypatch, run, judge)
    assert read
    assert found.seen_by_judge == seen
    assert reason in found.reason
    assert str(found).startswith(f"real text seen by the judge: {seen}")
    warned = [record for record in caplog.records if "is too low to compare" in record.message]
    assert len(warned) == (seen != "unknown")


def test_what_a_judge_was_started_from_counts(monkeypatch, tmp_path):
    data = {"path": put(tmp_path / "t.txt", MANY), "separator": "\n==\n"}
    run = a_run(tmp_path / "run", Estimate.LEAVE_ONE_OUT, **data, validation=0.4)
    first = a_run(tmp_path / "first", **data, validation=0.2)
    own = put(tmp_path / "own.txt", ONE)
    judge = a_run(tmp_path / "judge", start=str(first), path=own)
    seen, read = judged(monkeypatch, run, judge)
    assert seen.seen_by_judge == "no"
    learnt = learnt_by(first)
    assert not [part for part in parts(read) if part in learnt]
    (first / "config.yaml").unlink()
    assert judged(monkeypatch, run, judge)[0].seen_by_judge == "unknown"


def test_a_mixture_and_a_text_of_it(monkeypatch, tmp_path):
    one, two = put(tmp_path / "a.txt", MANY[:30]), put(tmp_path / "b.txt", MANY[30:])
    mixture = {"mixture": {one: 1.0, two: 1.0}, "separator": "\n==\n"}
    run = a_run(tmp_path / "run", Estimate.LEAVE_ONE_OUT, **mixture, validation=0.5)
    judge = a_run(tmp_path / "judge", path=two, separator="\n==\n", validation=0.2)
    seen, read = judged(monkeypatch, run, judge)
    assert seen.seen_by_judge == "no"
    learnt = learnt_by(judge)
    assert not [part for part in parts(read) if part in learnt]


def test_the_smaller_part_is_that_of_the_text_itself(tmp_path):
    """Without the training part, and the same rows as with it."""
    data = DataArgs(path=put(tmp_path / "t.txt", MANY), separator="\n==\n", length=32)
    whole, alone = (prepare(data, Tokenizer.bytes(), split=s) for s in ("both", "validation"))
    assert alone.train is None
    rows = [each.validation.read(np.arange(len(each.validation))) for each in (whole, alone)]
    assert torch.equal(*rows)
