"""The library as a Python user meets it: a loaded model writes, fills, corrects and scores."""

import re
import shutil

import pytest
import torch

import sddlm
from hub_server import hub
from sddlm import train
from sddlm.data.tokenizer import Tokenizer
from sddlm.generation.correct import correct
from sddlm.generation.sample import sample
from sddlm.process.estimate import Estimate

PROMPT = "The function"


def save(path, estimate):
    config = sddlm.DiTConfig(
        vocab_size=257, length=24, width=16, blocks=1, heads=2, causal=not estimate.diffusion
    )
    network = sddlm.DiT(config)
    network.init(3)
    with torch.no_grad():  # an untrained network predicts uniformly
        network.head.weight.normal_(0, 0.3, generator=torch.Generator().manual_seed(1))
    parts = (network.eval(), sddlm.UniformProcess(), estimate, Tokenizer.bytes(), {}, {})
    sddlm.LanguageModel(*parts).save(path)
    return path


@pytest.fixture
def lm(tmp_path):
    return sddlm.load(str(save(tmp_path / "model", Estimate.DENOISER)), device="cpu")


def test_texts_are_those_of_the_command_line(lm, tmp_path):
    how = {"steps": 6, "top_p": 0.8}
    found = lm.generate(PROMPT, n=3, length=20, seed=4, **how)
    assert all(each.text.startswith(PROMPT) for each in found)
    place = str(tmp_path / "model")
    assert [each.text for each in found] == sample(
        place, prompt=PROMPT, count=3, length=20, seed=4, **how
    )
    text = "The {3} fox {1:4}."
    (filled,) = lm.infill(text, seed=4, **how)
    assert filled.text.startswith("The ")
    assert [filled.text] == sample(place, infill=text, count=1, seed=4, **how)
    draft = "The quick brown dog jumps."
    ours, theirs = lm.correct(draft, t=0.3), correct(place, draft, t=0.3)
    assert (ours.text, ours.changes, ours.t) == (theirs.text, theirs.changes, 0.3)


def test_a_library_call_writes_and_prints_nothing(lm, tmp_path, capfd):
    before = sorted(tmp_path.rglob("*"))
    lm.generate(steps=2)
    lm.infill("a{2}b", steps=2)
    lm.correct("abc")
    lm.nll("abc", draws=32)
    assert sorted(tmp_path.rglob("*")) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_likelihoods_come_with_their_errors(lm, tmp_path):
    few, many = (lm.nll(["some text", "x"], draws=draws, seed=1) for draws in (64, 1024))
    assert [each.tokens for each in few] == [9, 1]
    for a, b in zip(few, many, strict=True):
        assert 0 < b.stderr < a.stderr
        assert abs(a.nats - b.nats) < 4 * (a.stderr**2 + b.stderr**2) ** 0.5
    exact = sddlm.load(str(save(tmp_path / "ar", Estimate.NEXT_TOKEN)), device="cpu")
    (found,) = exact.nll("abc")
    tokens = torch.tensor([[exact.tokenizer.eos_id, *exact.tokenizer.encode_batch(["abc"])[0]]])
    nats = sddlm.Autoregressive().bound(exact.network, tokens, sddlm.Draw.simple(0, 0, 1))[0, 1:]
    assert found.nats == pytest.approx(nats.sum().item(), rel=1e-5)
    assert found.stderr == 0


def test_predictions_are_of_a_token_given_all_others(lm):
    x_t = torch.randint(257, (2, 24), generator=torch.Generator().manual_seed(0))
    log_p = lm.predict(x_t, 0.4)
    assert log_p.shape == (2, 24, 257)
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(2, 24, dtype=torch.float64))
    # by Bayes' rule from what the network says of x0 given all of x_t (math.md 1.4)
    alpha = lm.process.schedule.alpha(torch.tensor(0.4, dtype=torch.float64))
    with torch.no_grad():
        hidden = lm.network(x_t, -alpha.log().float().expand(2))
        given_all = lm.network.head.logits(hidden.flatten(0, 1)).double().softmax(-1)
    own = torch.nn.functional.one_hot(x_t.flatten(), 257)
    likelihood = (1 - alpha) / 257 + alpha * own  # of x_t given each x0
    expected = given_all / likelihood
    expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(log_p.exp().flatten(0, 1), expected, rtol=1e-6, atol=1e-9)
    for t in (0.0, 1.5):
        with pytest.raises(sddlm.ConfigError, match=r"`t` is"):
            lm.predict(x_t, t)


def test_an_autoregressive_model_has_no_such_prediction(tmp_path):
    lm = sddlm.load(str(save(tmp_path / "ar", Estimate.NEXT_TOKEN)), device="cpu")
    with pytest.raises(sddlm.ConfigError, match="only from the tokens before"):
        lm.predict(torch.zeros(1, 24, dtype=torch.int64), 0.5)
    assert lm.generate("ab", n=2, length=10)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda lm: lm.generate(n="x"), "`n` is 'x', must be a whole number"),
        (lambda lm: lm.generate("a", n=0), "`n` is 0, must be at least 1"),
        (lambda lm: lm.generate(7), "`prompt` is 7, must be text"),
        (lambda lm: lm.infill("{1}", n=-1), "`n` is -1, must be at least 1"),
        (lambda lm: lm.infill("{1}", batch=1.5), "`batch` is 1.5, must be a whole number"),
        (lambda lm: lm.correct(["abc"]), "`text` is .*, must be text"),
        (lambda lm: lm.correct("abc", t="much"), "`t` is 'much', must be a number"),
        (lambda lm: lm.generate(steps="x"), "`steps` is 'x', must be a whole number"),
        (lambda lm: sddlm.Lazy(2).sample(lm, batch="x"), "`batch` is 'x', must be a whole number"),
        (lambda lm: sddlm.Lazy(2).sample(lm, seed=0.5), "`seed` is 0.5, must be a whole number"),
    ],
)
def test_wrong_arguments_are_named(lm, call, named):
    with pytest.raises(sddlm.ConfigError, match=f"^{named}"):
        call(lm)


def test_samplers_take_the_model(lm):
    sampler = sddlm.Lazy(steps=4)
    drawn = sampler.sample(lm, batch=3, length=12, seed=2)
    assert drawn.tokens.shape == (3, 12)
    parts = {"process": lm.process, "estimate": lm.estimate}
    same = sampler.sample(lm.network, batch=3, length=12, seed=2, **parts)
    assert torch.equal(drawn.tokens, same.tokens)
    assert sampler.sample(lm).tokens.shape == (1, 24)
    known = torch.arange(9).expand(2, 9) < 4
    condition = sddlm.Condition(drawn.tokens[:2, :9], known)
    again = sampler.sample(lm, condition=condition)
    assert torch.equal(again.tokens[known], condition.given[known])
    with pytest.raises(sddlm.ConfigError, match="has its own process and estimate"):
        sampler.sample(lm, **parts)
    with pytest.raises(sddlm.ConfigError, match="give process and estimate"):
        sampler.sample(lm.network)
    with pytest.raises(sddlm.ConfigError, match="`batch` is 0"):
        sampler.sample(lm, batch=0)
    with pytest.raises(ValueError, match="the condition is"):
        sampler.sample(lm, batch=3, condition=condition)


@pytest.mark.slow
def test_the_hub_takes_a_model_and_gives_it_back(lm, tmp_path, monkeypatch):
    with hub(monkeypatch, str(tmp_path / "cache")) as repositories:
        address = lm.push_to_hub("me/my-lm", token="t")
        assert address.endswith("/me/my-lm")
        files = repositories["me/my-lm"]
        names = ["README.md", "config.json", "model.safetensors", "modeling_sddlm.py"]
        assert sorted(files) == [*names, "tokenizer.json"]
        assert 'sddlm.load("me/my-lm")' in files["README.md"].decode()
        files["README.md"] = b"mine"
        lm.push_to_hub("me/my-lm", token="t")
        assert files["README.md"] == b"mine"
        again = sddlm.load("me/my-lm", device="cpu")
        assert again.generate(seed=1, steps=4)[0].text == lm.generate(seed=1, steps=4)[0].text
        with pytest.raises(sddlm.ConfigError, match="no directory me/other here, and none from"):
            sddlm.load("me/other")
        files["model.safetensors"] = files["model.safetensors"][:-1] + b"?"
        shutil.rmtree(tmp_path / "cache")
        with pytest.raises(sddlm.ConfigError, match="damaged"):
            sddlm.load("me/my-lm", device="cpu")
    (tmp_path / "me" / "my-lm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sddlm.ConfigError, match="no model directory"):
        sddlm.load("me/my-lm")  # what is here comes first


TEXT = "\n".join("the quick brown fox jumps over the lazy dog" for _ in range(400))
TINY = {
    "tokenizer": "bytes", "length": 16, "preset": "mini", "width": 16, "heads": 2, "blocks": 1,
    "steps": 3, "batch": 4, "accelerator": "cpu",
}  # fmt: skip


@pytest.mark.slow
def test_a_model_is_trained_in_one_line(tmp_path, capfd):
    text = tmp_path / "my.txt"
    text.write_text(TEXT)
    alone = train(text, **TINY, objective=sddlm.SDDLMV1(), seed=3)
    assert list(tmp_path.iterdir()) == [text]
    assert alone.objective["class_path"].endswith("SDDLMV1")
    assert alone.network.length == 16
    assert capfd.readouterr() == ("", "")
    cache = str(tmp_path / "cache")
    kept = train(text, **TINY, objective=sddlm.SDDLMV1(), seed=3, out=tmp_path / "r", cache=cache)
    assert (tmp_path / "r" / "model" / "config.json").is_file()
    ours, theirs = alone.network.state_dict(), kept.network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"lenght": 3}, "`lenght` is no option; did you mean `length`?"),
        ({"workers": 1}, "`workers` is an option of data and of train; use train_model"),
        ({"resume": True}, "`resume` needs `out`"),
    ],
)
def test_what_cannot_be_trained_is_one_line(options, line):
    with pytest.raises(sddlm.ConfigError, match=re.escape(line)):
        train(**options)
