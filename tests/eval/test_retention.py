"""Retention: the two predictions by hand, and what an untrained network cannot hide."""

from itertools import pairwise

import pytest
import torch
from test_run import a_text, make_run

from sddlm.errors import ConfigError
from sddlm.eval.retention import evaluate_retention, grid_of, most_likely_tokens
from sddlm.generation.config import SamplerConfig
from sddlm.lm import LanguageModel
from sddlm.process.estimate import Estimate


@pytest.fixture
def trained(tmp_path, monkeypatch):
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(a_text(0))
    make_run(tmp_path / "run", path=str(tmp_path / "text.txt"), validation=0.2)
    return tmp_path / "run"


@pytest.mark.parametrize("estimate", [Estimate.LEAVE_ONE_OUT, Estimate.DENOISER])
def test_the_predictions_are_one_logit_apart(trained, estimate):
    lm = LanguageModel.load(trained)
    torch.manual_seed(0)
    for parameter in lm.network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    lm = LanguageModel(lm.network, lm.process, estimate, lm.tokenizer, {}, {})
    x_t, V = torch.randint(257, (3, 24)), 257
    differ = 0
    for t in (0.1, 0.9, 0.999):
        alpha = lm.process.schedule.alpha(torch.tensor([t], dtype=torch.float64))
        with torch.no_grad():
            hidden = lm.network(x_t, -alpha.log().float().expand(3)).flatten(0, 1)
            logits = lm.network.head.logits(hidden).double().view(3, 24, V)
        own = torch.nn.functional.one_hot(x_t, V) * torch.log1p(V * alpha / (1 - alpha))
        loo = logits if estimate is Estimate.LEAVE_ONE_OUT else logits - own
        found = most_likely_tokens(lm, x_t, t)
        assert torch.equal(found[0], loo.argmax(-1))
        assert torch.equal(found[1], (loo + own).argmax(-1))
        differ += int((found[0] != found[1]).sum())
    assert differ > 0 or estimate is Estimate.DENOISER  # whose logits are not those of x_t here


def test_an_untrained_network_retains_all_by_one_prediction_and_nothing_by_the_other(trained):
    found = evaluate_retention(str(trained), grid="4,8", rows=40, count=3, batch=2)
    assert [point.steps for point in found.points] == [4, 8]
    for point in found.points:
        loo, denoiser = point.tails["leave_one_out"], point.tails["denoiser"]
        assert (denoiser.retained, denoiser.restored, denoiser.revised) == (1, 0, 0)
        assert loo.retained < 0.01  # always the first token of the vocabulary
        assert loo.revised > 23
        error = point.corrupted - 1 / point.steps  # t is the noise level of the schedule
        assert abs(error) < 5 * (1 / point.steps / (found.rows * 24)) ** 0.5
    lm = LanguageModel.load(trained)
    seen = []
    sampler = SamplerConfig(steps=8).build(lm)
    sampler.sample(lm, batch=3, seed=0, on_step=lambda _, __, x: seen.append(x.clone()))
    changes = sum(int((a != b).sum()) for a, b in pairwise(seen))
    assert found.points[1].revised == pytest.approx(changes / 7 / 3)
    assert "8 steps" in str(found)


def test_a_judge_reads_the_texts_behind_each_tail(trained, tmp_path):
    make_run(tmp_path / "judge", Estimate.NEXT_TOKEN)
    options = {"grid": [4], "rows": 8, "count": 2, "judge": str(tmp_path / "judge")}
    (point,) = evaluate_retention(str(trained), **options).points
    assert point.tails["denoiser"].ppl == pytest.approx(257, rel=0.01)  # an untrained judge
    with pytest.raises(ConfigError, match="an autoregressive model has no steps"):
        evaluate_retention(str(tmp_path / "judge"), data=None, grid=[4])
    for wrong in ("1,4", "4,4", "", "a"):
        with pytest.raises(ConfigError, match="must be different numbers above 1"):
            grid_of(wrong)
