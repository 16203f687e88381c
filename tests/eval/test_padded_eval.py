"""Models of documents: scored as if every row ended with its document."""

import logging
import math
import random
from dataclasses import asdict, replace

import pytest
import torch
import yaml

from networks import randomised
from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.data.tokenizer import Tokenizer
from sddlm.eval.diversity import Diversity
from sddlm.eval.nll import nll_estimator
from sddlm.eval.perplexity import likelihood
from sddlm.eval.report import evaluate
from sddlm.eval.texts import END, held_out
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import sample_lengths
from sddlm.generation.request import Request
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.hybrid import HybridProcess
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import before_padding

L = 24
TOKENIZER = Tokenizer.bytes()
END_ID = TOKENIZER.eos_id  # the beginning of a text as well
PACKINGS = [
    {"packing": "document"},
    {"packing": "document", "bos_eos": True},
    {"packing": "document", "eos": False},
    {"packing": "document", "bos_eos": True, "eos": False},
    {"packing": "wrap", "bos_eos": True},
    {"packing": "wrap", "bos_eos": True, "eos": False},
    {"packing": "wrap"},
]


def some_documents(count, seed):
    rng = random.Random(seed)
    words = ["the cat", "a dog", "saw", "ate", "my bird", "it"]
    return [" ".join(rng.choices(words, k=rng.choice([1, 1, 2, 5, 9]))) for _ in range(count)]


def write(path, docs):
    path.write_text("<|endoftext|>".join(docs))
    return str(path)


def random_model(estimate, process):
    """Every parameter random, so that what it sees matters."""
    extra = process.extra_tokens
    config = DiTConfig(
        vocab_size=257 + extra, length=L, width=16, blocks=1, heads=2, num_extra_tokens=extra,
        causal=not estimate.diffusion,
    )  # fmt: skip
    return randomised(DiT(config)).eval()


def make_run(place, docs, held, estimate=Estimate.NEXT_TOKEN, process=None, **packing):
    """A run directory whose model was not trained, with the record of a real one."""
    place.mkdir()
    data = DataArgs(
        path=write(place / "docs.txt", docs), validation_path=write(place / "held.txt", held),
        tokenizer="bytes", length=L, **packing,
    )  # fmt: skip
    prepared, process = prepare(data), process or UniformProcess()
    model = random_model(estimate, process)
    LanguageModel(model, process, estimate, TOKENIZER, {}, prepared.meta).save(place / "model")
    (place / "config.yaml").write_text(yaml.safe_dump({"data": asdict(data)}))
    return place


def rows_by_hand(docs, packing, bos_eos=False, eos=True):
    """Rows without padding, as `DataArgs` describes them."""
    ids = TOKENIZER.encode_batch(docs)
    if packing == "wrap":
        stream = [token for doc in ids for token in [*doc, END_ID][: None if eos else -1]]
        inner = L - 2 * bos_eos
        rows = [stream[i : i + inner] for i in range(0, len(stream) - inner + 1, inner)]
    else:
        rows = [
            doc[: L - 2] if bos_eos else [*doc, END_ID][: None if eos else -1][:L] for doc in ids
        ]
    return [torch.tensor([END_ID, *row, END_ID] if bos_eos else row) for row in rows]


def exact_nats(model, rows):
    """Of an autoregressive model, each row alone."""
    total = 0.0
    with torch.inference_mode():
        for row in rows:
            logits = model.head.logits(model(row[None, :-1], torch.zeros(1))[0])
            total -= float(logits.double().log_softmax(-1).gather(1, row[1:, None]).sum())
    return total


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path_factory.mktemp("cache")))


DOCS, HELD, OTHER = some_documents(30, 0), some_documents(17, 1), some_documents(11, 2)


@pytest.mark.slow
@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("other", [False, True])
def test_the_exact_value_of_real_rows(tmp_path, packing, other):
    """Also of another text, which is packed as the model's own was, whatever the options say."""
    run = make_run(tmp_path / "run", DOCS, HELD, **packing)
    data = DataArgs(path=write(tmp_path / "other.txt", OTHER)) if other else None
    found = evaluate(str(run), data=data, metrics="likelihood,baselines", rows=0, batch=4)
    rows = rows_by_hand(OTHER if other else HELD, **packing)
    own = found.likelihood
    nats, tokens = exact_nats(LanguageModel.load(run).network, rows), sum(map(len, rows))
    assert (own.rows, own.tokens) == (len(rows), tokens - len(rows))
    assert own.nll == pytest.approx(nats / own.tokens, rel=1e-5)
    characters = sum(int((row != END_ID).sum()) for row in rows)
    # the first token is not scored; where it is text, what it stands for does not count either
    covered = tokens - len(rows) if packing.get("bos_eos") else tokens
    assert own.bpc == pytest.approx(own.nll * covered / characters / math.log(2), rel=1e-9)
    assert found.baselines.characters == characters


KINDS = [
    (Estimate.LEAVE_ONE_OUT, UniformProcess()),
    (Estimate.DENOISER, UniformProcess()),
    (Estimate.LEAVE_ONE_OUT, MaskedProcess()),
    (Estimate.LEAVE_ONE_OUT, HybridProcess()),
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*denoiser")
@pytest.mark.parametrize(("estimate", "process"), KINDS, ids=str)
def test_the_bound_is_that_of_rows_cut_to_their_documents(tmp_path, estimate, process):
    """With the same noise, which depends on a sequence's index and the position alone."""
    run = make_run(tmp_path / "run", DOCS, HELD, estimate, process, packing="document")
    loaded = LanguageModel.load(run)
    text, _ = held_out(run, loaded, None, None)
    objective, n, draws = nll_estimator(loaded), len(HELD), 2
    total, count, rows = 0.0, 0, rows_by_hand(HELD, "document")
    assert text.lengths.tolist() == [len(row) for row in rows]
    with torch.inference_mode():
        for d in range(draws):
            deal = Draw(5, d, torch.arange(n), n).uniform("strata").argsort()
            for i, row in enumerate(rows):
                draw = Draw(5, d, deal[i : i + 1], n)
                nats = objective.nats(loaded.network, row[None], draw).published
                total, count = total + float(nats.double().sum()), count + len(row)
    found = likelihood(loaded, text, seed=5, batch=4, draws=draws)
    assert found.nll == pytest.approx(total / count, rel=1e-5)
    assert found.tokens == count // draws
    # whatever stands behind the documents
    other = torch.where(before_padding(text.lengths, L), text.tokens, 7)
    assert not torch.equal(other, text.tokens)
    again = replace(text, tokens=other)
    assert likelihood(loaded, again, seed=5, batch=4, draws=draws) == found


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [Estimate.NEXT_TOKEN, Estimate.LEAVE_ONE_OUT])
@pytest.mark.parametrize("packing", PACKINGS[:2], ids=str)
def test_figures_of_samples_are_those_of_rows_without_padding(tmp_path, estimate, packing):
    run = make_run(tmp_path / "run", DOCS, HELD, estimate, **packing)
    make_run(tmp_path / "judge", DOCS, HELD)
    judge = str(tmp_path / "judge")
    result = evaluate(str(run), judge=judge, count=9, steps=4, batch=4, seed=3, top_p=1.0)
    found, loaded = result.samples, LanguageModel.load(run)
    _, training = held_out(run, loaded, None, None)
    sampler = SamplerConfig(steps=4, top_p=1.0).build(loaded)
    drawn = [
        sampler.sample(loaded, length=length, seed=3, index=i).tokens[0]
        for i, length in enumerate(sample_lengths(loaded, Request(count=9)))
    ]
    assert len({len(row) for row in drawn}) > 2
    texts = TOKENIZER.decode_batch([row.tolist() for row in drawn])
    expected = Diversity.of(drawn, texts, training).as_dict()
    assert found.generated.as_dict() == pytest.approx(expected, nan_ok=True)
    assert found.length == max(map(len, drawn))
    assert found.origin.get("steps") == (4 if estimate.diffusion else None)
    real = [rows_by_hand(HELD, **packing)[i * len(HELD) // 9] for i in range(9)]
    texts = TOKENIZER.decode_batch([row.tolist() for row in real])
    real = [row[: found.length] for row in real]
    expected = Diversity.of(real, texts, training).as_dict()
    assert found.real.as_dict() == pytest.approx(expected)
    assert result.generative.real.samples == 9


def test_texts_of_rows_end_with_their_documents(tmp_path):
    run = make_run(tmp_path / "run", DOCS, HELD, packing="document")
    text, training = held_out(run, LanguageModel.load(run), None, None)
    held, docs = ([doc + END if len(doc) < L else doc[:L] for doc in t] for t in (HELD, DOCS))
    assert text.texts == held
    assert "".join(training.texts) == "".join(docs)
    assert text.characters == sum(min(len(doc), L) for doc in HELD)


#: what older versions wrote of the data
OLD = {"source", "vocab_size", "tokenizer", "key", "splits"}


def make_old(run):
    """The directory of a run as an older version left it."""
    loaded = LanguageModel.load(run)
    data = {name: value for name, value in loaded.data.items() if name in OLD}
    assert data.keys() == OLD < loaded.data.keys()
    replace(loaded, data=data | {"format": 1, "key": "59ca777c6ae64111"}).save(run / "model")
    config = yaml.safe_load((run / "config.yaml").read_text())
    known = ("path", "corpus", "validation_path", "tokenizer", "vocab_size", "length", "field",
             "separator", "cache")  # fmt: skip
    old = {name: config["data"][name] for name in known} | {"validation": 0.05}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": old}))


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [Estimate.NEXT_TOKEN, Estimate.LEAVE_ONE_OUT])
def test_models_of_older_versions_are_evaluated_as_they_were(tmp_path, estimate):
    run = make_run(tmp_path / "run", DOCS, DOCS[:9], estimate)
    data = DataArgs(path=write(tmp_path / "other.txt", OTHER))
    options = [{}, {"data": data}]
    before = [evaluate(str(run), count=3, steps=2, **more) for more in options]
    make_old(run)
    after = [evaluate(str(run), count=3, steps=2, **more) for more in options]
    for a, b in zip(before, after, strict=True):
        for result in (a, b):
            del result.samples.origin["seconds"]
        # as text: without a word, the share of known ones is NaN
        assert repr(replace(a, provenance=None)) == repr(replace(b, provenance=None))
        assert a.likelihood.rows > 1


@pytest.mark.parametrize("changed", [False, True])
def test_a_text_is_not_said_to_have_changed_because_versions_did(tmp_path, caplog, changed):
    """The sums of the prepared files tell, where the older record has them."""
    run = make_run(tmp_path / "run", DOCS, HELD)
    make_old(run)
    if changed:
        write(run / "docs.txt", DOCS[1:])
    caplog.set_level(logging.WARNING)
    evaluate(str(run), metrics="likelihood")
    assert ("is not what the model was trained on" in caplog.text) == changed


def test_a_text_that_is_gone_is_found_in_the_cache(tmp_path):
    run = make_run(tmp_path / "run", DOCS, HELD, packing="document")
    before = evaluate(str(run), metrics="likelihood,baselines")
    (run / "docs.txt").unlink()
    (run / "held.txt").unlink()
    after = evaluate(str(run), metrics="likelihood,baselines")
    assert before == after
