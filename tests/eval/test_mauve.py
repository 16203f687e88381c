"""MAUVE by the package, with features of a tiny judge."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.judge import Judge
from sddlm.eval.mauve import FEWEST, SCALING, mauve
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

#: of the bindings of faiss, at import under Python 3.12 and later
pytestmark = pytest.mark.filterwarnings("ignore:builtin type [sS]wig:DeprecationWarning")
needs_package = pytest.mark.skipif(find_spec("mauve") is None, reason="needs mauve-text")


def judge_of_ours(place):
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=257, length=16, width=16, blocks=1, heads=2, causal=True)
    model = DiT(config).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    own = Tokenizer.bytes()
    LanguageModel(model, UniformProcess(), Estimate.NEXT_TOKEN, own, {}, {}).save(place)
    return Judge.load(str(place)), model


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    return judge_of_ours(tmp_path_factory.mktemp("ours") / "judge")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    place = tmp_path_factory.mktemp("gpt2")  # the package asks for gpt2 in the name
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.bytes()._hf, eos_token="<|endoftext|>"
    )
    fast.save_pretrained(place)
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=257, n_positions=16, n_embd=16, n_layer=1, n_head=2, eos_token_id=256
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    model.save_pretrained(place)
    return Judge.load(str(place)), model.eval()


def texts(count, letters, seed):
    rng = np.random.default_rng(seed)
    return ["".join(rng.choice(list(letters), rng.integers(3, 24))) for _ in range(count)]


def test_features_of_our_judge_are_its_last_hidden_states(ours):
    judge, model = ours
    some = ["a", "longer text", "bc", "much longer than the context"]
    found = judge.features(some, context=12, batch=3)
    for text, vector in zip(some, found, strict=True):
        ids = torch.tensor(Tokenizer.bytes().encode_batch([text])[0][:12])
        with torch.no_grad():
            hidden = model(ids[None], torch.zeros(1))[0, -1]
        torch.testing.assert_close(vector, hidden, rtol=1e-4, atol=1e-5)


def test_mean_features_leave_out_the_filling(ours):
    judge, model = ours
    some = ["a", "longer text", "bc"]
    for text, vector in zip(some, judge.features(some, mean=True), strict=True):
        with torch.no_grad():
            hidden = model(torch.tensor(Tokenizer.bytes().encode_batch([text])), torch.zeros(1))[0]
        torch.testing.assert_close(vector, hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_features_of_a_hub_judge_are_its_last_hidden_states(gpt2):
    judge, model = gpt2
    some = ["a", "longer text", "bc", "much longer than the context"]
    found = judge.features(some, context=12, batch=3)
    for text, vector in zip(some, found, strict=True):
        ids = torch.tensor(Tokenizer.bytes().encode_batch([text])[0][:12])
        with torch.no_grad():
            states = model(input_ids=ids[None], output_hidden_states=True).hidden_states
        torch.testing.assert_close(vector, states[-1][0, -1], rtol=1e-4, atol=1e-5)


def test_features_go_on_where_they_stopped(ours, tmp_path):
    judge, _ = ours
    some = texts(7, "abc", 0)
    job = ResumableJob(tmp_path / "notes")
    first = judge.features(some, batch=3, job=job)
    assert next((tmp_path / "notes").glob("*")).read_text().strip().count("\n") == 2  # 3 shards

    def never(ids, mask):
        raise AssertionError("computed again")

    broken = Judge(**{**vars(judge), "hidden": never})
    assert torch.equal(broken.features(some, batch=3, job=job), first)
    with pytest.raises(AssertionError, match="computed again"):
        broken.features(["other", *some[1:]], batch=3, job=job)


def test_what_cannot_be_described_is_refused(ours):
    judge, _ = ours
    for some in ([], ["a", ""]):
        with pytest.raises(ConfigError, match="no text without a token"):
            judge.features(some)
    with pytest.raises(ConfigError, match=r"`context` is 16, must lie in 1\.\.15"):
        judge.features(["a"], context=16)


def test_without_the_package_the_message_says_what_to_type(monkeypatch, ours):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ConfigError, match=r"pip install 'sddlm\[mauve\]'"):
        mauve(ours[0], ["a"], ["a"])


@pytest.mark.slow
@needs_package
def test_near_sets_score_higher_than_far_ones(ours):
    judge, _ = ours
    real = texts(120, "abcdefgh", 0)
    near = mauve(judge, [*texts(60, "abcdefgh", 1), ""], real)
    far = mauve(judge, texts(60, "ijklmnop", 2), real)
    assert near.mauve > 0.7 > 0.3 > far.mauve
    assert near.real == far.real > 0.7
    assert (near.count, near.real_count, near.left_out, near.buckets) == (60, 60, 1, 6)
    assert (near.judge, near.context, near.scaling, near.seed) == (judge.name, 15, SCALING, 25)


@needs_package
def test_the_same_seed_gives_the_same_number(ours):
    judge, _ = ours
    sets = texts(60, "abcdefgh", 1), texts(60, "abcdexyz", 0)
    first, again, other = (mauve(judge, *sets, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.mauve != other.mauve
    assert (first.count, first.real_count, first.left_out) == (60, 30, 0)


@needs_package
def test_it_is_the_packages_own_number(gpt2):
    from mauve import compute_mauve

    judge, _ = gpt2
    drawn, real = texts(40, "abcdef", 1), texts(40, "abcxyz", 2)
    its = compute_mauve(
        p_text=real, q_text=drawn, featurize_model_name=judge.name, max_text_length=16
    )
    assert mauve(judge, drawn, real).mauve == pytest.approx(its.mauve, rel=1e-5)


@needs_package
def test_the_real_texts_are_halved_alternately_and_cut_to_the_samples(ours):
    judge, _ = ours
    real = [
        text for pair in zip(texts(30, "abc", 1), texts(30, "xyz", 2), strict=True) for text in pair
    ]
    found = mauve(judge, texts(20, "abc", 3), real)
    assert (found.count, found.real_count) == (20, 20)
    assert found.real < 0.3  # every other one is of other letters
    assert mauve(judge, real, real[: 2 * FEWEST]).left_out == 60 - 2 * FEWEST


@needs_package
def test_too_few_texts_are_refused(ours):
    judge, _ = ours
    some = texts(2 * FEWEST, "abc", 0)
    for drawn, real in ((some[: FEWEST - 1], some), (some, some[:-1]), ([], some)):
        with pytest.raises(ConfigError, match="means nothing; it needs at least"):
            mauve(judge, drawn, real)
    assert mauve(judge, some[:FEWEST], some).count == FEWEST
