import math
from pathlib import Path

import numpy as np
import pytest
import torch

from sddlm.eval.diversity import distinct_n, known_words, repeated_ngrams
from sddlm.eval.texts import words
from sddlm.sampling.entropy import entropies, entropy

GOLDEN = Path(__file__).parents[1] / "golden" / "misc.npz"


def test_entropy_agrees_with_the_reference_values():
    golden = np.load(GOLDEN)
    own = entropies(torch.tensor(golden["entropy_ids"]))
    np.testing.assert_allclose(own.numpy(), golden["entropy_nats"], atol=2e-6)
    assert entropy(torch.tensor(golden["entropy_ids"])) == pytest.approx(
        golden["entropy_nats"].mean(), abs=2e-6
    )


def test_entropy_of_one_repeated_token_is_zero_and_of_different_ones_log_length():
    assert entropy(torch.zeros(3, 8, dtype=torch.int64)) == 0.0
    assert entropy(torch.arange(16)[None]) == pytest.approx(math.log(16))


def test_entropy_does_not_care_about_order_or_names():
    x = torch.randint(0, 9, (4, 50), generator=torch.Generator().manual_seed(0))
    assert entropy(x.flip(1) * 7 + 3) == pytest.approx(entropy(x), abs=1e-12)


def test_distinct_and_repeated_ngrams_by_hand():
    x = torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]])
    # bigrams: 12 21 12 21 | 12 23 34 45: five different of eight
    assert distinct_n(x, 2) == 5 / 8
    assert distinct_n(x, 1) == 5 / 10
    assert repeated_ngrams(x, 2) == pytest.approx((1 / 2 + 0) / 2)


@pytest.mark.parametrize("n", [0, 6])
def test_ngrams_longer_than_the_text_are_refused(n):
    with pytest.raises(ValueError, match=r"n must lie in 1\.\.5"):
        distinct_n(torch.zeros(2, 5, dtype=torch.int64), n)


def test_known_words():
    assert words("Don't panic, 42 pänic_s!") == ["don't", "panic", "pänic", "s"]
    assert known_words(["The cat sat", "the dgo"], {"the", "cat", "sat"}) == 4 / 5
    assert math.isnan(known_words(["42"], {"the"}))
