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

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.conventions import CONVENTIONS, Convention, convention_of, tidied
from sddlm.eval.generative import counted, generative_perplexity, scored
from sddlm.eval.judge import Judge, numbering
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.work import ResumableJob

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


def published_bd3(judge, tokenizer, samples, *, context, stride, length):
    """As BD3-LM's: a sliding window over a padded batch, ends of text left out."""
    its, model = parts(judge)
    texts = [tokenizer.decode(row.tolist(), False) for row in samples.rows]
    batch = its(texts, return_tensors="pt", padding=True, truncation=True, max_length=length)
    ids, mask = batch.input_ids, batch.attention_mask
    longest = ids.shape[1]
    nats = torch.zeros(ids.shape, dtype=torch.float64)
    for i in range(max(math.ceil((longest - context + stride) / stride), 1)):
        start, end = i * stride, min(i * stride + context, longest)
        found = nats_of(model, ids[:, start:end], mask[:, start:end])
        fresh = start + 1 if i == 0 else start + context - stride
        nats[:, fresh:end] = found[:, found.shape[1] - (end - fresh) :]
    counts = ids != EOS
    counts[:, 0] = False
    return float(nats[counts].sum() / counts.sum()), int(counts.sum())


def published_gidd(judge, samples, *, context, side, batch):
    """As GIDD's: what follows a token that is no padding counts."""
    its, model = parts(judge)
    its.padding_side = side
    total, count = 0.0, 0
    for k in range(0, len(samples.texts), batch):
        some = samples.texts[k : k + batch]
        read = its(some, padding=True, return_tensors="pt", truncation=True, max_length=context)
        place = (read.attention_mask.cumsum(1) - 1).clamp(min=0)  # GPT-2's places are absolute
        with torch.no_grad():
            logits = model(**read, position_ids=place).logits.double()
        nats = -logits[:, :-1].log_softmax(-1).gather(2, read.input_ids[:, 1:, None])[..., 0]
        counts = read.attention_mask[:, :-1]
        total, count = total + float((nats * counts).sum()), count + int(counts.sum())
    return total / count, count


def agree(found, expected):
    nll, tokens = expected
    assert found.tokens == tokens
    assert found.nll == pytest.approx(nll, rel=1e-6)
    assert found.ppl == pytest.approx(math.exp(nll), rel=1e-5)


@pytest.mark.parametrize("context", [10, 40])
@pytest.mark.parametrize("name", ["duo", "mdlm"])
def test_duo_agrees_with_the_published_way(judge, name, context):
    tokenizer, samples = drawn()
    found = generative_perplexity(judge, samples, name, tokenizer=tokenizer, context=context)
    expected = published_duo(judge, tokenizer, samples, context=context, length=LENGTH, call=8)
    agree(found, expected)
    assert (found.samples, found.dropped, found.convention.name) == (11, 0, "duo")


def test_duo_drawn_in_one_call_leaves_the_last_samples_out(judge):
    tokenizer, samples = drawn(21)
    at_once = replace(CONVENTIONS["duo"], call=None)
    found = generative_perplexity(judge, samples, at_once, tokenizer=tokenizer, context=40)
    agree(found, published_duo(judge, tokenizer, samples, context=40, length=LENGTH, call=21))
    assert (found.samples, found.dropped) == (16, 5)
    in_twelves = replace(at_once, call=12)
    kept = scored(judge, samples, in_twelves.at(40, 64, "it"), tokenizer=tokenizer).kept
    assert kept == [*range(8), *range(12, 20)]
    found = generative_perplexity(judge, samples, in_twelves, tokenizer=tokenizer, context=40)
    agree(found, published_duo(judge, tokenizer, samples, context=40, length=LENGTH, call=12))


@pytest.mark.parametrize("context", [6, 10, 16, 40])
def test_bd3_agrees_with_the_published_way(judge, context):
    tokenizer, samples = drawn(8)
    found = generative_perplexity(judge, samples, "bd3", tokenizer=tokenizer, context=context)
    expected = published_bd3(
        judge, tokenizer, samples, context=context, stride=context // 2, length=LENGTH
    )
    agree(found, expected)
    assert found.convention.stride == context // 2


@pytest.mark.parametrize(("side", "batch"), [("left", 4), ("right", 1)])
def test_gidd_agrees_with_the_published_way(judge, with_bos, side, batch):
    _, samples = drawn()
    samples.texts[3] = "short"
    for one in (judge, with_bos):
        found = generative_perplexity(one, samples.texts, "gidd", context=20)
        agree(found, published_gidd(one, samples, context=20, side=side, batch=batch))
        assert found.samples == 11
        assert found.cut > 5


def test_gidd_scores_the_first_token_where_the_tokenizer_puts_one_in_front(judge, with_bos):
    for one, tokens in ((judge, 4), (with_bos, 5)):
        assert generative_perplexity(one, ["hello"], "gidd", context=20).tokens == tokens


def test_the_golden_rule_of_duo_is_what_scored_uses():
    golden = np.load(GOLDEN)
    chunk = torch.tensor(golden["genppl_chunk"])
    valid = golden["genppl_valid"]
    np.testing.assert_array_equal(counted(chunk, 9, "first").numpy(), valid)

    def places(ids, mask):
        return (2.0 ** torch.arange(ids.shape[1] - 1)).expand(len(ids), -1)

    fixed = Judge(
        "fixed", "1", "", lambda texts, specials: chunk.tolist(), places, places, 9, 9, 1024
    )
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
    for eos, tokens in (("scored", 4), ("first", 3), ("ignored", 2)):
        rules = Convention("mine", special=True, eos=eos)
        assert scored(judge, samples, rules, tokenizer=tokenizer).tokens.tolist() == [tokens]


@pytest.mark.parametrize(("context", "stride"), [(8, 8), (8, 3), (8, 1), (30, 8)])
def test_windows_with_a_start_in_front_score_every_token_once(judge, context, stride):
    rules = Convention("mine", context=context, stride=stride)
    text = "what a long text it is"
    found = scored(judge, [text], rules)
    ids, total, at = row_of(text).tolist(), 0.0, 0
    _, model = parts(judge)
    for start in range(0, len(ids), stride):
        window = torch.tensor([[EOS, *ids[start : start + context]]])
        nats = nats_of(model, window, torch.ones_like(window))[0]
        total += float(nats[at - start :].sum())
        at = max(at, min(start + context, len(ids)))
    assert found.tokens.tolist() == [len(ids)]
    assert found.whole
    assert float(found.nats) == pytest.approx(total, rel=1e-6)


BASE = Convention("base", context=30)
CHANGES = {
    "special": True,
    "tidy": True,
    "front": "tokenizer",
    "own_length": True,
    "context": 8,
    "stride": 15,
    "eos": "ignored",
    "mean": "texts",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_choice_changes_the_figure(judge, name):
    tokenizer, samples = drawn(seed=1, length=24)
    base = replace(BASE, special=True) if name == "eos" else BASE
    before, after = (
        generative_perplexity(judge, samples, rules, tokenizer=tokenizer)
        for rules in (base, replace(base, **{name: CHANGES[name]}))
    )
    assert after.nll != pytest.approx(before.nll, rel=1e-4)
    assert getattr(after.convention, name) == CHANGES[name]


def test_the_fields_tested_are_all_there_are():
    # the three others have tests of their own
    assert {f.name for f in fields(Convention)} == {
        *CHANGES, "name", "retokenise", "call", "multiple"
    }  # fmt: skip


def test_tokens_can_be_scored_directly_where_the_tokenizers_are_one(judge):
    own = Tokenizer.bytes()
    rows = [torch.cat([row_of("é")[:1], row_of(EOS, "é", "b")[:-2]]), row_of("xy")]  # no UTF-8
    direct = replace(CONVENTIONS["sddlm"], retokenise=False)
    found = scored(judge, samples_of(own, rows), direct, tokenizer=own)
    assert found.tokens.tolist() == [3, 2]
    _, model = parts(judge)
    ids = torch.tensor([[EOS, *rows[0].tolist()]])
    nats = nats_of(model, ids, torch.ones_like(ids)).sum()
    assert found.nats[0].item() == pytest.approx(float(nats), rel=1e-6)
    rules = json.loads(own.to_json())
    assert numbering(json.dumps(rules)) == judge.numbering
    for change in ({"id": 99}, {"content": "</s>"}):
        added = [{**rules["added_tokens"][0], **change}]
        assert numbering(json.dumps({**rules, "added_tokens": added})) != judge.numbering
    other, samples = drawn()
    with pytest.raises(ConfigError, match="another tokenizer than the samples"):
        scored(judge, samples, direct, tokenizer=other)


def test_text_is_tidied_as_transformers_did():
    _, samples = drawn()
    its = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.bytes()._hf)
    texts = [*samples.texts, "it ' s ' I 'm we 've you 're he 's do n't a . b ? c ! d , e"]
    assert [tidied(text) for text in texts] == [its.clean_up_tokenization(t) for t in texts]
    assert any(tidied(text) != text for text in samples.texts)


def test_an_unknown_convention_is_refused_with_what_was_meant():
    assert convention_of("mdlm") is CONVENTIONS["duo"]
    with pytest.raises(ConfigError, match=r"--convention Duo: did you mean duo\? allowed are sdd"):
        convention_of("Duo")
    with pytest.raises(ConfigError, match="--convention xyz: allowed are sddlm, duo, bd3, gidd"):
        convention_of("xyz")


def test_what_a_convention_cannot_be_applied_to_is_refused(judge):
    tokenizer, samples = drawn()
    with pytest.raises(ConfigError, match=r"reads 1024 tokens at once .* 64; type --context 64"):
        scored(judge, samples, "duo", tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="reads 512 tokens at once"):
        generative_perplexity(judge, samples.texts, "gidd")
    for name in ("duo", "bd3"):
        with pytest.raises(ConfigError, match=f"convention {name} needs the tokens"):
            generative_perplexity(judge, samples.texts, name, context=40)
        with pytest.raises(ValueError, match="needs the tokenizer of the samples"):
            generative_perplexity(judge, samples, name, context=40)
        with pytest.raises(ConfigError, match=r"judge .* has none; use --convention sddlm"):
            generative_perplexity(
                replace(judge, eos=None), samples, name, context=40, tokenizer=tokenizer
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
    found = scored(judge, samples_of(own, rows), CONVENTIONS["bd3"].at(8, 31, ""), tokenizer=own)
    with torch.no_grad():
        hidden = model(rows[0][None, :-1], torch.zeros(1))[0]
        nats = -model.head.logits(hidden).double().log_softmax(-1).gather(1, rows[0][1:, None])
    assert found.tokens.tolist() == [3]
    assert float(found.nats) == pytest.approx(float(nats[[0, 2, 3]].sum()), rel=1e-5)
    # without specials the end is text like any other
    assert judge.encode(["<|endoftext|>"], False) == [row_of("<|endoftext|>").tolist()]
    assert judge.encode(["a<|endoftext|>"], True) == [row_of("a", EOS).tolist()]
    direct = replace(CONVENTIONS["sddlm"], retokenise=False)
    assert scored(judge, samples_of(own, rows), direct, tokenizer=own).tokens.tolist() == [6]


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
    for mean in ("corpus", "texts"):
        rules = replace(CONVENTIONS["sddlm"], mean=mean)
        found = generative_perplexity(judge, samples.texts, rules)
        each = scored(judge, samples.texts, rules)
        without = []
        for k in range(60):
            rest = torch.arange(60) != k
            nats, tokens = each.nats[rest], each.tokens[rest]
            if mean == "corpus":
                without.append(float(nats.sum() / tokens.sum()))
            else:
                without.append(math.log(float((nats / tokens).exp().mean())))
        jackknife = math.sqrt(59 / 60 * float(((np.array(without) - np.mean(without)) ** 2).sum()))
        assert found.nll_stderr == pytest.approx(jackknife, rel=0.03)
        assert found.ppl_stderr == pytest.approx(found.ppl * found.nll_stderr)
    assert found.ppl == pytest.approx(float((each.nats / each.tokens).exp().mean()), rel=1e-9)
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
    work = ResumableJob(tmp_path / "notes")
    with pytest.raises(KeyboardInterrupt):
        scored(replace(judge, score=score), texts, batch=3, work=work)
    resumed = scored(replace(judge, score=score), texts, batch=3, work=work)
    assert calls == [3, 3, 3, 3, 2]
    assert torch.equal(resumed.nats, scored(judge, texts, batch=3).nats)
    for other in (
        {"judge": replace(judge, score=score, version="2"), "samples": texts},
        {"judge": replace(judge, score=score), "samples": [*texts[:-1], "other"]},
        {"judge": replace(judge, score=score), "samples": texts, "convention": "gidd"},
    ):
        before = len(calls)
        convention = convention_of(other.pop("convention", "sddlm")).at(64, 64, "")
        scored(**other, convention=convention, batch=3, work=work)
        assert len(calls) == before + 4
