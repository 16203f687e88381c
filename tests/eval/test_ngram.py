import math
import random

import numpy as np
import pytest

from sddlm.errors import ConfigError
from sddlm.eval.ngram import NGram

TEXTS = ["abracadabra", "a cab, a bar", "", "c"]
SEEN = sorted(set("".join(TEXTS)))


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("context", ["", "a", "abra", "zab", "bar", "c", "zzzz", "abracadabra"])
def test_the_probabilities_of_all_characters_sum_to_one(order, context):
    model = NGram(order).fit(TEXTS)

    def p(c):
        return math.exp(-model.nats([context + c])[-1])

    unseen = p("\u4e00")
    assert unseen == pytest.approx(p("Q"))  # all unseen characters alike
    assert sum(map(p, SEEN)) + (0x110000 - len(SEEN)) * unseen == pytest.approx(1, abs=1e-12)


def slow_witten_bell(texts, order, context, c):
    """The recursion as it is written in the textbook."""
    p = 1 / 0x110000
    for k in range(order):
        if k > len(context):
            break
        tail = context[len(context) - k :]
        after = [t[i + k] for t in texts for i in range(len(t) - k) if t[i : i + k] == tail]
        if after:
            kinds = len(set(after))
            p = (after.count(c) + kinds * p) / (len(after) + kinds)
    return p


def test_agrees_with_a_slow_textbook_version():
    rng = random.Random(0)
    texts = ["".join(rng.choices("abc ", k=rng.randrange(30))) for _ in range(8)]
    model = NGram(4).fit(texts)
    for text in ["abcab cab", "ccc", "azb a", ""]:
        own = model.nats([text])
        wanted = [-math.log(slow_witten_bell(texts, 4, text[:i], c)) for i, c in enumerate(text)]
        np.testing.assert_allclose(own, wanted, rtol=1e-12)


def test_texts_do_not_run_into_each_other():
    model = NGram(3).fit(["ab", "ba"])
    np.testing.assert_allclose(
        model.nats(["ab", "ba"]), np.concatenate([model.nats(["ab"]), model.nats(["ba"])])
    )


def test_longer_contexts_help_where_the_text_has_structure():
    rng = random.Random(1)
    words = ["the", "cat", "sat", "mat", "hat", "on"]
    text = " ".join(rng.choices(words, k=4000))
    bits = [NGram(n).fit([text[:8000]]).bits_per_character(text[8000:]) for n in (1, 2, 5)]
    assert bits[0] > bits[1] > bits[2] > 0
    assert bits[0] == pytest.approx(  # the unigram model is near the entropy of the letters
        -sum(text.count(c) / len(text) * math.log2(text.count(c) / len(text)) for c in set(text)),
        abs=0.05,
    )


def test_surrogates_and_wide_characters_have_a_probability():
    assert np.isfinite(NGram(3).fit(["a\ud800\U0001f600"]).nats(["\U0001f600\udfffa"])).all()


def test_misuse_is_an_error():
    with pytest.raises(ConfigError, match="`order` is 0, must be at least 1"):
        NGram(0)
    with pytest.raises(ConfigError, match="needs some text"):
        NGram(2).fit([""])
    with pytest.raises(ConfigError, match="fit"):
        NGram(2).nats(["a"])
    assert math.isnan(NGram(2).fit(["a"]).bits_per_character(""))
