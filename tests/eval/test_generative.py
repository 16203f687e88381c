import copy
import math
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.generative import generative_perplexity
from sddlm.eval.judge import Judge
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

TEXTS = ["the cat sat", "a", "on the mat and the hat, on the mat and on the hat", ""]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny GPT-2 with its tokenizer on disk."""
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("gpt2")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.bytes()._hf, eos_token="<|endoftext|>"
    )
    fast.save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=32, n_embd=16, n_layer=2, n_head=2, eos_token_id=256
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():  # far from uniform predictions
        parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(place)
    return str(place), model.eval(), fast


def by_hand(model, tokenizer, texts, context):
    """One text at a time, one log-softmax at a time."""
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False).input_ids[:context]
        for i, token in enumerate(ids):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[256, *ids[:i]]])).logits[0, -1]
            total -= logits.double().log_softmax(-1)[token].item()
            count += 1
    return total / count, count


def test_agrees_with_a_hand_computed_value(gpt2):
    spec, model, tokenizer = gpt2
    judge = Judge.load(spec)
    result = generative_perplexity(judge, TEXTS, context=20)
    nll, count = by_hand(model, tokenizer, TEXTS, 20)
    assert result.nll == pytest.approx(nll, rel=1e-5)
    assert result.ppl == pytest.approx(math.exp(nll), rel=1e-4)
    assert (result.tokens, result.samples, result.empty, result.cut) == (count, 3, 1, 1)
    assert (result.judge, result.context) == (spec, 20)
    assert math.isnan(result.nats_per_character)  # a text was cut


def test_all_of_the_judges_positions_can_be_used(gpt2):
    spec, model, tokenizer = gpt2
    result = generative_perplexity(Judge.load(spec), ["x" * 40])
    assert result.tokens == result.context == 32
    assert result.nll == pytest.approx(by_hand(model, tokenizer, ["x" * 40], 32)[0], rel=1e-5)


def test_padding_and_batch_change_nothing(gpt2):
    judge = Judge.load(gpt2[0])
    alone = generative_perplexity(judge, TEXTS, batch=1)
    for batch in (2, 4):
        together = generative_perplexity(judge, TEXTS, batch=batch)
        assert together.nll == pytest.approx(alone.nll, rel=1e-6)
        assert together.tokens == alone.tokens


def test_per_character_when_nothing_was_cut(gpt2):
    result = generative_perplexity(Judge.load(gpt2[0]), ["é", "ab"])
    assert result.tokens == 4  # bytes
    assert result.nats_per_character == pytest.approx(result.nll * 4 / 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"context": 33}, r"`context` is .*, must lie in 1\.\.32"),
        ({"context": 0}, r"`context` is .*, must lie in 1\.\.32"),
        ({"batch": 0}, "`batch` is 0, must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(gpt2, wrong, message):
    with pytest.raises(ConfigError, match=message):
        generative_perplexity(Judge.load(gpt2[0]), TEXTS, **wrong)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_nothing_to_score_is_an_error(gpt2, texts):
    with pytest.raises(ConfigError, match="every sample is empty"):
        generative_perplexity(Judge.load(gpt2[0]), texts)


def test_what_is_no_model_is_an_error(tmp_path):
    pytest.importorskip("transformers")
    with pytest.raises(ConfigError, match="neither a directory of ours nor"):
        Judge.load(str(tmp_path))


def test_without_transformers_the_message_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"pip install 'sddlm\[eval\]'"):
        Judge.load("gpt2")


def own(tmp_path, estimate, **data):
    """A small model directory of ours."""
    causal = not estimate.diffusion
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=257, length=16, width=16, blocks=1, heads=2, causal=causal)
    model = DiT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    LanguageModel(model, UniformProcess(), estimate, Tokenizer.bytes(), {}, data).save(
        tmp_path / "judge"
    )
    return str(tmp_path / "judge"), model


def test_an_autoregressive_model_of_ours_is_a_judge(tmp_path):
    spec, model = own(tmp_path, Estimate.NEXT_TOKEN)
    judge = Judge.load(spec)
    assert (judge.limit, judge.start) == (15, 256)
    text = "the cat"
    result = generative_perplexity(judge, [text, "longer than " * 3], batch=2, context=7)
    total = 0.0
    for row in [text, "longer "]:
        ids = torch.tensor([256, *Tokenizer.bytes().encode_batch([row])[0]])
        with torch.no_grad():
            logits = model.head.logits(model(ids[None, :-1], torch.zeros(1))[0])
        total -= logits.double().log_softmax(-1).gather(1, ids[1:, None]).sum().item()
    assert result.nll == pytest.approx(total / 14, rel=1e-5)
    alone = generative_perplexity(judge, [text], batch=1)
    padded = generative_perplexity(judge, [text, "m" * 15], batch=2)
    other = generative_perplexity(judge, ["m" * 15], batch=1)
    assert padded.nll * 22 == pytest.approx(alone.nll * 7 + other.nll * 15, rel=1e-6)


def test_a_judge_without_ends_of_text_reads_none_in_front(tmp_path):
    spec, model = own(tmp_path, Estimate.NEXT_TOKEN, packing={"eos": False})
    judge = Judge.load(spec)
    result = generative_perplexity(judge, ["the cat"])
    ids = torch.tensor(Tokenizer.bytes().encode_batch(["the cat"])[0])
    with torch.no_grad():
        logits = model.head.logits(model(ids[None, :-1], torch.zeros(1))[0])
    nats = -logits.double().log_softmax(-1).gather(1, ids[1:, None]).sum().item()
    assert (judge.start, result.tokens) == (None, 6)  # the first one is context
    assert result.nll == pytest.approx(nats / 6, rel=1e-5)
    assert judge.features(["the cat", "a"]).shape == (2, 16)


def test_a_diffusion_model_is_no_judge(tmp_path):
    spec, _ = own(tmp_path, Estimate.LEAVE_ONE_OUT)
    with pytest.raises(ConfigError, match="is a diffusion model"):
        Judge.load(spec)


def test_a_hub_judge_without_a_start_token_is_refused(monkeypatch):
    transformers = pytest.importorskip("transformers")
    nothing = SimpleNamespace(bos_token_id=None, eos_token_id=None)
    for name, value in (("AutoTokenizer", nothing), ("AutoModelForCausalLM", None)):
        loader = SimpleNamespace(from_pretrained=lambda spec, value=value: value)
        monkeypatch.setattr(transformers, name, loader)
    with pytest.raises(ConfigError, match="neither a begin- nor an end-of-text token"):
        Judge.load("some/model")


def test_a_judge_is_known_by_its_weights(tmp_path, gpt2):
    """Kept results of a judge that was trained on must not pass for those of the new one."""
    spec, model, _ = gpt2
    before = Judge.load(spec).version
    assert Judge.load(spec).version == before
    other = tmp_path / "other"
    shutil.copytree(spec, other)
    assert Judge.load(str(other)).version == before
    weights = model.state_dict()
    weights["transformer.ln_f.bias"] = weights["transformer.ln_f.bias"] + 1
    model.save_pretrained(other, state_dict=weights)
    assert Judge.load(str(other)).version != before
    ours, _ = own(tmp_path, Estimate.NEXT_TOKEN)
    loaded = LanguageModel.load(ours)
    first = Judge.of_model_dir(loaded, "ours").version
    assert Judge.load(ours).version == first
    next(loaded.network.parameters()).data += 1
    assert Judge.of_model_dir(loaded, "ours").version != first


def test_a_judge_computes_in_float32_whatever_its_file_has(tmp_path, gpt2):
    spec, model, tokenizer = gpt2
    shutil.copytree(spec, tmp_path / "half")
    half = copy.deepcopy(model).bfloat16()
    half.save_pretrained(tmp_path / "half")
    found = generative_perplexity(Judge.load(str(tmp_path / "half")), TEXTS, context=20)
    assert found.nll == pytest.approx(by_hand(half.float(), tokenizer, TEXTS, 20)[0], rel=1e-5)
    assert found.nll != pytest.approx(by_hand(model, tokenizer, TEXTS, 20)[0], rel=1e-5)
