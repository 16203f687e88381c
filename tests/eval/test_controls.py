"""Controls and energy distance: the laws that they claim, and figures that give controls away."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from test_run import a_text, make_run

from sddlm.eval.controls import _Transitions, control_samples
from sddlm.eval.distance import energy_distance
from sddlm.eval.report import evaluate
from sddlm.eval.samples import SampleSet
from sddlm.eval.texts import TrainingText
from sddlm.process.estimate import Estimate
from sddlm.sampling.entropy import entropy


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_transitions_are_drawn_by_their_counts_to_the_power_of_the_inverse_temperature(temperature):
    counts = torch.tensor([[0, 8, 1], [4, 0, 5], [1, 1000, 0]])  # of context, token
    pairs = torch.tensor([(a, b) for a in range(3) for b in range(3) for _ in range(counts[a, b])])
    law = _Transitions(pairs[:, 0], pairs[:, 1])
    texts = law.draw((400, 50), temperature, seed=3)
    seen = torch.zeros(3, 3, dtype=torch.float64)
    before, after = texts[:, :-1].flatten(), texts[:, 1:].flatten()
    seen.index_put_((before, after), torch.ones(len(before), dtype=torch.float64), accumulate=True)
    p = counts.double() ** (1 / temperature) * (counts > 0)
    p /= p.sum(1, keepdim=True)
    n = seen.sum(1, keepdim=True)
    assert ((seen - n * p).abs() <= 5 * (n * p * (1 - p)).sqrt() + 1e-9).all()
    assert torch.equal(texts[:9], law.draw((400, 50), temperature, seed=3)[:9])


def test_a_frequent_context_hides_no_rare_one():
    context = torch.tensor([0] * 100_000 + [1] * 3)
    tokens = torch.tensor([1] * 100_000 + [0, 0, 2])
    texts = _Transitions(context, tokens).draw((2000, 1), 0.25, seed=0)  # behind a 1, but for one
    assert (texts == 2).double().mean().item() == pytest.approx(1 / 17, abs=0.02)


class SomeRows:
    """Rows of tokens ``[n, L]`` in memory."""

    def __init__(self, tokens):
        self.tokens, self.length = tokens, tokens.shape[1]

    def __len__(self):
        return len(self.tokens)

    def read(self, rows):
        return self.tokens[rows]

    def lengths(self, rows):
        return torch.full((len(rows),), self.length)


class Words:
    """A tokenizer that writes numbers."""

    def decode_batch(self, rows):
        return [" ".join(map(str, row)) for row in rows]


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_controls_have_the_entropy_of_real_text(spread):
    draws = np.random.default_rng(0).normal(0, 4, (300, 32)).round().astype(np.int64)
    rows = torch.tensor(draws - draws.min())
    training = TrainingText(SomeRows(rows), Words(), "")
    middle = int(rows.float().mean())
    real = middle + ((rows[:40] - middle) * spread).round().long()  # more or less diverse
    found = control_samples(training, SampleSet([*real], [], {}), seed=0)
    assert list(found) == ["unigram", "bigram"]
    pairs = {(a, b) for row in rows.tolist() for a, b in pairwise(row)}
    pairs |= {(int(a[-1]), int(b[0])) for a, b in zip(rows, rows.roll(-1, 0), strict=True)}
    for control in found.values():
        assert len(control.rows) == len(control.texts) == 40
        assert entropy(control.rows) == pytest.approx(entropy([*real]), abs=0.02)
        assert control.texts[0] == " ".join(map(str, control.rows[0].tolist()))
    drawn = {
        pair
        for row in found["bigram"].rows
        for pair in zip(*(row[k:].tolist() for k in (0, 1)), strict=False)
    }
    assert drawn <= pairs


def test_energy_distance_is_that_of_all_pairs_and_zero_for_equal_laws():
    x, y = torch.randn(2, 60, 3, generator=torch.Generator().manual_seed(0))
    pairs = [(i, j) for i in range(60) for j in range(60)]
    within = [np.mean([(z[i] - z[j]).norm() for i, j in pairs if i != j]) for z in (x, y)]
    between = np.mean([(x[i] - y[j]).norm() for i, j in pairs])
    found = [energy_distance(x, z) for z in (y, 1.3 * y + 0.5, y + 9)]
    assert found[0] == pytest.approx(1 - sum(within) / 2 / between, abs=1e-5)
    assert abs(found[0]) < 0.03 < found[1] < found[2] < 1


@pytest.mark.slow
def test_a_report_shows_what_gives_the_controls_away(tmp_path, monkeypatch):
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    text = tmp_path / "text.txt"
    text.write_text(a_text(0))
    make_run(tmp_path / "run", path=str(text), validation=0.2)
    make_run(tmp_path / "judge", Estimate.NEXT_TOKEN)
    options = {"judge": str(tmp_path / "judge"), "count": 8, "steps": 2}
    metrics = "samples,copying,generative,distance,controls"
    found = evaluate(str(tmp_path / "run"), metrics=metrics, **options)
    real = found.samples.real
    for name in ("unigram", "bigram"):
        own = found.controls[name]
        assert own.samples.generated.entropy == pytest.approx(real.entropy, abs=0.05)
        assert own.samples.real == real
        assert own.samples.generated.known_words < 0.8 < real.known_words
        assert own.copying.samples.overlap < 0.5 * own.copying.real.overlap
        assert own.generative.samples.ppl == pytest.approx(257, rel=0.01)  # an untrained judge
        assert own.distance.count == 8
        assert f"{name} control" in str(found)
    written = found.as_dict()["controls"]["bigram"]
    assert list(written) == ["samples", "copying", "generative", "distance"]
    alone = evaluate(str(tmp_path / "run"), metrics="controls,samples", count=8, steps=2)
    assert alone.controls["bigram"].samples.generated == found.controls["bigram"].samples.generated
