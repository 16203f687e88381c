"""Presets against the published way of computing them, and every field of a convention."""

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.conventions import CONVENTIONS, Convention, clean_up_spaces, convention_of, counted
from sddlm.eval.generative import generative_perplexity, scored
from sddlm.eval.judge import Judge
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

transformers = pytest.importorskip("transformers")

GOLDEN = Path(__file__).parents[1] / "golden" / "misc.npz"
EOS = 256
TEXT = "the cat sat on a mat , and it 's fine . is n't that so ? yes , it is !"
WORDS = TEXT.split()
LENGTH = 16  # tokens of a sample


def gpt2(place, bos=False):
    """A tiny GPT-2 on disk that reads bytes; with ``bos`` its tokenizer puts one in front."""
    backend = Tokenizer.bytes()._hf
    if bos:
        backend.post_processor = TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", EOS)]
        )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    fast.save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=EOS
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():  # far from uniform predictions
        parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(place)
    return Judge.load(str(place))


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    return gpt2(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def with_bos(tmp_path_factory):
    return gpt2(tmp_path_factory.mktemp("bos"), bos=True)


def parts(judge):
    """The judge as public code has it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(judge.name)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer, transformers.AutoModelForCausalLM.from_pretrained(judge.name).eval()


def row_of(*pieces):
    """Tokens of a sampler of bytes."""
    encode = Tokenizer.bytes().encode_batch
    return torch.tensor([i for p in pieces for i in ([EOS] if p == EOS else encode([p])[0])])


def drawn(count=11, seed=0, length=LENGTH):
    """Samples of a sampler with pairs of letters for tokens, some with ends of text."""
    rng = np.random.default_rng(seed)
    tokenizer = Tokenizer.train_bpe([TEXT] * 4, 290)
    rows = []
    for k in range(count):
        ids = tokenizer.encode_batch([" ".join(rng.choice(WORDS, 24))])[0][:length]
        for place in rng.choice(length, k % 4, replace=False):
            ids[place] = tokenizer.eos_id
        rows.append(torch.tensor(ids))
    return tokenizer, samples_of(tokenizer, rows)


def samples_of(tokenizer, rows):
    texts = tokenizer.decode_batch([row.tolist() for row in rows])
    return SimpleNamespace(rows=rows, texts=texts)


def nats_of(model, ids, mask):
    """Nats of ``ids[:, 1:]`` of a padded batch, all at once."""
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits.double()
    log_p = logits[:, :-1].log_softmax(-1)
    return -log_p.gather(2, ids[:, 1:, None])[..., 0]


def published_duo(judge, tokenizer, samples, *, context, length, call):
    """As Duo's: calls of the sampler, batches of 8 in them, pieces of the context."""
    its, model = parts(judge)
    total, count = 0.0, 0
    texts = [its.clean_up_tokenization(tokenizer.decode(r.tolist(), False)) for r in samples.rows]
    for begin in range(0, len(texts), call):
        some = texts[begin : begin + call]
        batch = its(some, return_tensors="pt", padding=True, truncation=True, max_length=length)
        size = min(8, len(some))
        for k in range(len(some) // size):
            of = slice(k * size, (k + 1) * size)
            pieces = zip(
                batch.input_ids[of].split(context, -1),
                batch.attention_mask[of].split(context, -1),
                strict=True,
            )
            for ids, mask in pieces:
                nats = nats_of(model, ids, mask)
                for row, values in zip(ids.tolist(), nats.tolist(), strict=True):
                    for place in range(1, len(row)):
                        first = row[: place + 1].count(EOS) == 1
                        if row[place] != EOS or first:
                            total, count = total + values[place - 1], count + 1
    return total / count, count


def agree(found, expected):
    nll, tokens = expected
    assert found.tokens == tokens
    assert found.nll == pytest.approx(nll, rel=1e-6)
    assert found.ppl == pytest.approx(math.exp(nll), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("context", [10, 40])
@pytest.mark.parametrize("name", ["duo", "mdlm"])
def test_duo_agrees_with_the_published_way(judge, name, context):
    tokenizer, samples = drawn()
    found = generative_perplexity(judge, samples, name, tokenizer=tokenizer, context=context)
    expected = published_duo(judge, tokenizer, samples, context=context, length=LENGTH, call=8)
    agree(found, expected)
    assert (found.samples, found.convention.name) == (11, "duo")


def test_the_first_token_is_scored_where_the_tokenizer_puts_one_in_front(judge, with_bos):
    rules = Convention("mine", bos="tokenizer", context=20)
    for one, tokens in ((judge, 4), (with_bos, 5)):
        assert generative_perplexity(one, ["hello"], rules).tokens == tokens


def test_the_golden_rule_of_duo_is_what_scored_uses():
    golden = np.load(GOLDEN)
    chunk = torch.tensor(golden["genppl_chunk"])
    valid = golden["genppl_valid"]
    np.testing.assert_array_equal(counted(chunk, 9, "first").numpy(), valid)

    def places(ids, mask):
        return (2.0 ** torch.arange(ids.shape[1] - 1)).expand(len(ids), -1)

    fixed = Judge("fixed", "1", lambda texts, specials: chunk.tolist(), places, places, 9, 9, 1024)
    samples = SimpleNamespace(rows=list(chunk), texts=[""] * 4)
    found = scored(fixed, samples, "duo", tokenizer=Tokenizer.bytes())
    assert found.tokens.tolist() == valid.sum(1).tolist()
    assert found.nats.tolist() == (valid * 2.0 ** np.arange(7)).sum(1).tolist()


def test_duo_counts_one_padding_of_a_short_text_without_an_end(judge):
    tokenizer = Tokenizer.bytes()
    rows = [row_of("longest"), row_of("abcd"), row_of("ab", EOS, "c")]
    found = scored(
        judge, samples_of(tokenizer, rows), CONVENTIONS["duo"].at(40, 64, ""), tokenizer=tokenizer
    )
    # of 7, 4 and 4 tokens the first is no target; the second text gets its padding counted
    assert found.tokens.tolist() == [6, 4, 3]
    alone = scored(judge, samples_of(tokenizer, rows[1:2]), found.convention, tokenizer=tokenizer)
    assert alone.tokens.tolist() == [3]


def test_what_stands_in_front_is_no_end_of_the_text(judge):
    tokenizer = Tokenizer.bytes()
    samples = samples_of(tokenizer, [row_of("a", EOS, "b", EOS)])
    for eos, tokens in (("scored", 4), ("first", 3)):
        rules = Convention("mine", special_tokens=True, eos=eos)
        assert scored(judge, samples, rules, tokenizer=tokenizer).tokens.tolist() == [tokens]


@pytest.mark.parametrize("context", [8, 11, 30])
def test_chunks_with_a_token_in_front_score_every_token_once(judge, context):
    rules = Convention("mine", context=context, chunked=True)
    text = "what a long text it is"
    found = scored(judge, [text], rules)
    ids, total = row_of(text).tolist(), 0.0
    _, model = parts(judge)
    for start in range(0, len(ids), context):
        window = torch.tensor([[EOS, *ids[start : start + context]]])
        total += float(nats_of(model, window, torch.ones_like(window)).sum())
    assert found.tokens.tolist() == [len(ids)]
    assert found.whole
    assert float(found.nats) == pytest.approx(total, rel=1e-6)


BASE = Convention("base", context=30)
CHANGES = {
    "special_tokens": True,
    "clean_up_spaces": True,
    "bos": "tokenizer",
    "sample_length": True,
    "context": 8,
    "chunked": True,
    "eos": "first",
    "batch_size": 1,
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_choice_changes_the_figure(judge, name):
    tokenizer, samples = drawn(seed=1, length=12 if name == "batch_size" else 24)
    base = BASE
    if name == "chunked":
        base = replace(BASE, context=15)
    if name in ("eos", "batch_size"):  # of ends of text, and of padding that counts
        first = "first" if name == "batch_size" else "scored"
        base = replace(BASE, special_tokens=True, context=60, eos=first)
    before, after = (
        generative_perplexity(judge, samples, rules, tokenizer=tokenizer)
        for rules in (base, replace(base, **{name: CHANGES[name]}))
    )
    assert after.nll != pytest.approx(before.nll, rel=1e-4)
    assert getattr(after.convention, name) == CHANGES[name]


def test_the_fields_tested_are_all_there_are():
    assert {f.name for f in fields(Convention)} == {*CHANGES, "name"}


def test_spaces_are_cleaned_up_as_by_transformers():
    _, samples = drawn()
    its = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.bytes()._hf)
    texts = [*samples.texts, "it ' s ' I 'm we 've you 're he 's do n't a . b ? c ! d , e"]
    assert [clean_up_spaces(text) for text in texts] == [
        its.clean_up_tokenization(t) for t in texts
    ]
    assert any(clean_up_spaces(text) != text for text in samples.texts)


def test_an_unknown_convention_is_refused_with_what_was_meant():
    assert convention_of("mdlm") is CONVENTIONS["duo"]
    with pytest.raises(ConfigError, match=r"`convention` is 'Duo', .*; did you mean duo\?"):
        convention_of("Duo")
    for removed in ("bd3", "gidd"):
        with pytest.raises(ConfigError, match=f"^`convention` is '{removed}', must be sddlm, duo,"):
            convention_of(removed)


def test_what_a_convention_cannot_be_applied_to_is_refused(judge):
    tokenizer, samples = drawn()
    with pytest.raises(ConfigError, match=r"reads 1024 tokens at once .* 64: set `context` to 64"):
        scored(judge, samples, "duo", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="`convention` duo needs the tokens"):
        generative_perplexity(judge, samples.texts, "duo", context=40)
    with pytest.raises(ValueError, match="needs the tokenizer of the samples"):
        generative_perplexity(judge, samples, "duo", context=40)
    with pytest.raises(ConfigError, match=r"judge .* has none"):
        generative_perplexity(
            replace(judge, eos=None), samples, "duo", context=40, tokenizer=tokenizer
        )


def test_a_judge_of_ours_finds_the_ends_that_are_written(tmp_path):
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=257, length=32, width=16, blocks=1, heads=2, causal=True)
    model = DiT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    own = Tokenizer.bytes()
    directory = LanguageModel(model, UniformProcess(), Estimate.NEXT_TOKEN, own, {}, {})
    directory.save(tmp_path / "judge")
    judge = Judge.load(str(tmp_path / "judge"))
    rows = [row_of("ab", EOS, "cd", EOS)]
    found = scored(judge, samples_of(own, rows), CONVENTIONS["duo"].at(8, 31, ""), tokenizer=own)
    with torch.no_grad():
        hidden = model(rows[0][None, :-1], torch.zeros(1))[0]
        nats = -model.head.logits(hidden).double().log_softmax(-1).gather(1, rows[0][1:, None])
    assert found.tokens.tolist() == [4]  # the first end of text counts
    assert float(found.nats) == pytest.approx(float(nats[:4].sum()), rel=1e-5)
    # without specials the end is text like any other
    assert judge.encode(["<|endoftext|>"], False) == [row_of("<|endoftext|>").tolist()]
    assert judge.encode(["a<|endoftext|>"], True) == [row_of("a", EOS).tolist()]


@pytest.mark.parametrize("name", CONVENTIONS)
def test_the_batch_changes_nothing(judge, name):
    tokenizer, samples = drawn()
    rules = CONVENTIONS[name].at(12, 64, "")
    one, four = (scored(judge, samples, rules, b, tokenizer=tokenizer) for b in (1, 4))
    assert torch.equal(one.tokens, four.tokens)
    torch.testing.assert_close(one.nats, four.nats, rtol=1e-5, atol=0)


def test_the_standard_error_is_that_of_leaving_one_out(judge):
    _, samples = drawn(60)
    samples.texts = [text[: 3 + k % 20] for k, text in enumerate(samples.texts)]
    found = generative_perplexity(judge, samples.texts)
    each = scored(judge, samples.texts)
    without = []
    for k in range(60):
        rest = torch.arange(60) != k
        without.append(float(each.nats[rest].sum() / each.tokens[rest].sum()))
    jackknife = math.sqrt(59 / 60 * float(((np.array(without) - np.mean(without)) ** 2).sum()))
    assert found.nll_stderr == pytest.approx(jackknife, rel=0.03)
    assert found.ppl_stderr == pytest.approx(found.ppl * found.nll_stderr)
    assert math.isnan(generative_perplexity(judge, ["ab"]).nll_stderr)


def test_a_result_says_how_it_was_reached(judge):
    tokenizer, samples = drawn()
    found = generative_perplexity(
        judge, samples, "duo", tokenizer=tokenizer, context=40, precision="float32"
    )
    written = json.loads(json.dumps(asdict(found)))
    assert written["convention"] == asdict(CONVENTIONS["duo"].at(40, 64, ""))
    assert (written["precision"], written["context"]) == ("float32", 40)
    assert generative_perplexity(judge, ["ab"]).precision == "unknown"


def test_scoring_goes_on_where_it_stopped(judge, tmp_path):
    calls = []

    def score(ids, mask):
        calls.append(len(ids))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return judge.score(ids, mask)

    texts = drawn()[1].texts
    job = ResumableJob(tmp_path / "notes")
    with pytest.raises(KeyboardInterrupt):
        scored(replace(judge, score=score), texts, batch=3, job=job)
    resumed = scored(replace(judge, score=score), texts, batch=3, job=job)
    assert calls == [3, 3, 3, 3, 2]
    assert torch.equal(resumed.nats, scored(judge, texts, batch=3).nats)
    for other in (
        {"judge": replace(judge, score=score, version="2"), "samples": texts},
        {"judge": replace(judge, score=score), "samples": [*texts[:-1], "other"]},
        {"judge": replace(judge, score=score), "samples": texts, "convention": "clean"},
    ):
        before = len(calls)
        convention = Convention("sddlm", clean_up_spaces="convention" in other)
        other.pop("convention", None)
        scored(**other, convention=convention, batch=3, job=job)
        assert len(calls) == before + 4
