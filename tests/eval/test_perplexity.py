import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from sddlm import worlds
from sddlm.draw import Draw
from sddlm.errors import ConfigError
from sddlm.eval.perplexity import bounded, likelihood, spread
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives.nelbo import NELBO
from sddlm.process.estimate import Estimate
from sddlm.process.hybrid import HybridProcess
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess


class Rows:
    """Rows of a tensor, two characters a token."""

    characters_per_token = 2.0
    lengths = None
    ends = False

    def __init__(self, tokens):
        self.tokens = tokens

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, i):
        return self.tokens[i]


@dataclass
class TimesValue:
    """An objective whose bound is known: the token times the time; even tokens count."""

    def bound(self, model, x0, draw):
        return x0 * draw.times()[:, None]

    def counted(self, x0, loss_mask=None):
        return x0 % 2 == 0


def test_sorted_rows_do_not_bias_the_estimate():
    rows = Rows(torch.arange(0, 80, 2)[:, None].expand(40, 3))  # sorted: row i is only i
    result = likelihood(nn.Identity(), TimesValue(), rows, draws=300, batch=64)
    exact = rows.tokens.double().mean() * (1e-3 + 0.999 / 2)
    # strata in the order of the rows would give 2/3 of the largest value instead of 1/2: 26
    assert result.nll == pytest.approx(float(exact), rel=0.01)
    assert result.tokens == 120
    assert result.characters == 240


def test_standard_error_is_that_of_the_mean_over_rows():
    class Value(TimesValue):
        def bound(self, model, x0, draw):
            return x0.double()

    tokens = torch.randint(0, 50, (200, 4), generator=torch.Generator().manual_seed(0)) * 2
    result = likelihood(nn.Identity(), Value(), Rows(tokens))
    means = tokens.double().mean(1)
    assert result.nll == pytest.approx(float(means.mean()))
    assert result.stderr == pytest.approx(float(means.std() / math.sqrt(200)))


def test_positions_that_do_not_count_are_left_out_even_when_not_a_number():
    class Holes(TimesValue):
        def bound(self, model, x0, draw):
            return torch.where(x0 % 2 == 0, x0.double(), torch.nan)

    tokens = torch.tensor([[2, 1, 4], [3, 5, 6]])
    result = likelihood(nn.Identity(), Holes(), Rows(tokens))
    assert (result.nll, result.tokens) == (pytest.approx(4.0), 3)


WORLD = worlds.World.random(4, 2, seed=1)
PROCESS = UniformProcess()


def test_unbiased_for_the_exact_bound_of_an_enumerable_world():
    exact = worlds.nelbo(PROCESS, WORLD.leave_one_out)  # [S] with the prior term
    prior_kl = PROCESS.prior_kl(4)
    rows = Rows(WORLD.tokens(512, seed=3))
    model = worlds.TabularModel(WORLD.leave_one_out, vocab_size=4, length=2)
    objective = bounded(PROCESS, Estimate.LEAVE_ONE_OUT)
    result = likelihood(model, objective, rows, draws=4, batch=512, prior_kl=prior_kl)
    of_rows = exact[worlds.state_id(rows.tokens, 4)].mean() / 2  # nats a token
    noise = result.stderr  # includes how rows differ, so it is on the safe side
    assert result.nll + prior_kl == pytest.approx(float(of_rows), abs=4 * noise + 0.01)
    assert noise < 0.05
    assert result.complete_ppl == pytest.approx(math.exp(result.nll + prior_kl))


def test_does_not_depend_on_the_batch():
    rows = Rows(WORLD.tokens(37, seed=0))
    model = worlds.TabularModel(WORLD.leave_one_out, vocab_size=4, length=2)
    results = [likelihood(model, NELBO(PROCESS), rows, batch=b, draws=2) for b in (1, 8, 37, 99)]
    for result in results[1:]:
        assert result.nll == pytest.approx(results[0].nll, rel=1e-12)
        assert result.stderr == pytest.approx(results[0].stderr, rel=1e-9)


def test_units():
    rows = Rows(torch.full((8, 5), 4))
    result = likelihood(nn.Identity(), TimesValue(), rows)
    assert result.ppl == pytest.approx(math.exp(result.nll))
    assert result.bpc == pytest.approx(result.nll / 2 / math.log(2))
    assert result.as_dict()["bpc"] == result.bpc


def test_the_model_is_put_back_into_training():
    model = nn.Dropout()
    likelihood(model, TimesValue(), Rows(torch.full((4, 2), 2)))
    assert model.training


def test_evenly_spread_rows():
    assert spread(10, None) == spread(10, 99) == list(range(10))
    assert spread(10, 3) == [0, 3, 6]
    rows = Rows(torch.full((9, 2), 2))
    assert likelihood(nn.Identity(), TimesValue(), rows, max_rows=4).rows == 4


@pytest.mark.parametrize("wrong", [{"batch": 0}, {"draws": 0}, {"max_rows": 0}])
def test_impossible_amounts_are_refused(wrong):
    with pytest.raises(ConfigError, match="must be at least 1"):
        likelihood(nn.Identity(), TimesValue(), Rows(torch.ones(3, 2).long()), **wrong)


def test_no_rows_are_refused():
    with pytest.raises(ConfigError, match="number of rows must be at least 1"):
        likelihood(nn.Identity(), TimesValue(), Rows(torch.ones(0, 2).long()))


def test_every_process_has_a_bound():
    x0 = torch.randint(11, (8, 5), generator=torch.Generator().manual_seed(0))
    draw = Draw.simple(0, 0, 8)
    for process in (UniformProcess(), MaskedProcess(), HybridProcess()):
        config = ModelArgs(preset="mini", blocks=1).build(
            vocab_size=12, length=5, input_only=process.extra_tokens
        )
        nats = bounded(process, Estimate.LEAVE_ONE_OUT).bound(DiT(config), x0, draw)
        assert nats.shape == x0.shape
        assert (nats >= 0).all()
        assert 0 < nats.mean() < 20
