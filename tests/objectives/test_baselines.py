"""Bounds of MDLM, SEDD and D3PM against golden numbers of their public code."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.models.layers import select_rows
from sddlm.models.vocab_head import VocabHead
from sddlm.objectives import D3PM, MDLM, NELBO, SEDD
from sddlm.objectives.bound import bound_term
from sddlm.process import (
    Cosine,
    HybridProcess,
    LogLinear,
    MaskedProcess,
    MixtureProcess,
    UniformProcess,
)
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.types import Noisy

GOLDEN = Path(__file__).parent.parent / "golden"


def golden(name: str) -> dict[str, Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}


def identity(num_extra_tokens: int) -> VocabHead:
    head = VocabHead(11, 11, bias=False, num_extra_tokens=num_extra_tokens).double()
    head.weight.data.copy_(torch.eye(11))
    return head


def at_time(g: dict[str, Tensor], i: int, process) -> Noisy:
    t = g["t"][i].expand(3)
    return Noisy(
        g["x0"],
        g["xt"][i],
        t,
        process.schedule.alpha(t)[:, None],
        process.schedule.dalpha(t)[:, None],
        g["xt"][i] != g["x0"],
        11,
    )


def rows(
    process, estimate: Estimate, g: dict[str, Tensor], i: int, num_extra_tokens: int
) -> Tensor:
    noisy = at_time(g, i, process)
    at = ~process.certain(noisy.x_t, vocab_size=11)
    term = bound_term(process, noisy, at, estimate)
    values = identity(num_extra_tokens)(g["logits"][at], term).rows
    return torch.zeros(3, 7, dtype=values.dtype).masked_scatter(at, values)


@pytest.mark.parametrize("i", range(9))
def test_mdlm(i: int) -> None:
    g = golden("loss_absorbing_V11")
    loo = Estimate.LEAVE_ONE_OUT
    for name, schedule in (("mdlm_nll_loglinear", LogLinear()), ("mdlmrepo_nll", LogLinear())):
        found = rows(MaskedProcess(schedule), loo, g, i, 1)
        torch.testing.assert_close(found, g[name][i], rtol=1e-9, atol=1e-12)
    # the derivative in the reference lacks the factor 1 - eps
    found = rows(MaskedProcess(Cosine()), loo, g, i, 1) / (1 - 1e-3)
    torch.testing.assert_close(found, g["mdlm_nll_cosine"][i], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("i", range(9))
def test_sedd(i: int) -> None:
    g = golden("loss_absorbing_V11")
    found = rows(MaskedProcess(), Estimate.SCORE, g, i, 0)
    for name in ("sedd_absorb_mdlmrepo", "sedd_absorb_duo"):
        torch.testing.assert_close(found, g[name][i], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("i", range(9))
def test_sedd_with_uniform_noise_of_the_score_of_a_prediction(i: int) -> None:
    """The reference's network is log(V a p_y + 1 - a); the score entropy is the NELBO then."""
    g = golden("loss_uniform_V11")
    process = UniformProcess()
    noisy = at_time(g, i, process)
    alpha = noisy.alpha_t[..., None]
    p = g["logits"].softmax(-1)
    log_b = (11 * alpha * p + 1 - alpha).log()
    g["logits"] = log_b - log_b.gather(-1, noisy.x_t[..., None])
    found = rows(process, Estimate.SCORE, g, i, 0)
    torch.testing.assert_close(found, g["sedd_uniform"][i], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found, g["duo_nll_loglinear"][i], rtol=1e-5, atol=1e-9)


class AllTheWay(LogLinear):
    """alpha = 1 - t, as the references hard-code it."""

    def __init__(self) -> None:
        super().__init__(eps=1e-15)


@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("i", range(9))
def test_d3pm_uniform(i: int, steps: int) -> None:
    g = golden("loss_uniform_V11")
    k = (g["t"][i] * steps).ceil()
    if k == steps:
        return  # the reference cuts t = 1 off at 1 - 1e-4
    g["t"] = (k / steps).expand(9)
    process = UniformProcess(AllTheWay())
    noisy = at_time(g, i, process)
    at = torch.ones_like(noisy.resampled)
    term = D3PM(process, steps).term(noisy, at, Draw.simple(0, 0, 3))
    found = identity(0)(g["logits"].flatten(0, 1), term).rows.view(3, 7)
    # the reference adds 1e-12 inside a logarithm; at k = 1 that is log 0
    if k > 1:
        torch.testing.assert_close(found, g[f"udlm_d3pm_T{steps}"][i], rtol=1e-5, atol=2e-7)


@pytest.mark.parametrize("i", range(9))
def test_d3pm_masked_with_a_mask_in_the_softmax(i: int) -> None:
    g = golden("loss_absorbing_V11")
    k = (g["t"][i] * 1000).ceil()
    process = MaskedProcess(AllTheWay())
    g["t"] = (k / 1000).expand(9)
    noisy = at_time(g, i, process)
    at = noisy.x_t == 10
    term = D3PM(process, 1000).term(noisy, at, Draw.simple(0, 0, 3))
    found = identity(0)(g["logits"][at], term).rows
    assert found.isfinite().all()
    expected = g["d3pm_absorb_T1000_mdlmrepo"][i][at]
    if k == 1:  # 0 * inf in the reference
        assert not expected.isfinite().any()
    else:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    if k not in (1, 1000) and len(found):
        wrong = g["d3pm_absorb_T1000_duo_BUGGY"][i][at]
        assert not torch.allclose(found, wrong, rtol=1e-2)


def test_d3pm_draws_the_steps_of_the_chain() -> None:
    draw = Draw.simple(0, 0, 64)
    for steps in (1, 4, 1000):
        t = D3PM(steps=steps).times(draw)
        k = t * steps
        torch.testing.assert_close(k, k.round(), rtol=0, atol=1e-9)
        assert k.min() >= 1 - 1e-9
        assert k.max() <= steps + 1e-9
    k = (D3PM(steps=4).times(draw) * 4).round().long()
    assert torch.bincount(k).tolist() == [0, 16, 16, 16, 16]
    with pytest.raises(ConfigError, match=r"`steps`"):
        D3PM(steps=0)


def test_mdlm_is_the_nelbo_of_masks_and_its_constant_weight_is_one() -> None:
    torch.manual_seed(0)
    x0 = torch.randint(10, (16, 7))
    draw = Draw.simple(0, 0, 16)

    class Table(torch.nn.Module):
        vocab_size = 11
        head = identity(1)

        def forward(self, x_t, sigma, rows=None):
            return select_rows(torch.ones(*x_t.shape, 11).double() * torch.arange(11), rows)

    model = Table()
    total = MDLM().loss(model, x0, draw).total
    assert total.item() == pytest.approx(
        NELBO(MaskedProcess()).loss(model, x0, draw).total.item(), rel=1e-12
    )
    noisy = MaskedProcess().corrupt(x0, draw.times(), draw, vocab_size=11)
    log_p = torch.arange(10).double().log_softmax(0)
    by_hand = -(log_p[x0] * (noisy.x_t == 10)).sum()
    constant = MDLM(weighting="constant").loss(model, x0, draw).total
    assert constant.item() == pytest.approx(by_hand.item(), rel=1e-9)
    weighted = -(log_p[x0] * (noisy.x_t == 10) / noisy.t[:, None]).sum()
    assert total.item() == pytest.approx(weighted.item(), rel=1e-9)


def test_the_score_of_masks_in_a_hybrid_is_refused() -> None:
    with pytest.raises(ConfigError, match="HybridProcess"):
        SEDD(HybridProcess())
    with pytest.raises(ConfigError, match="MixtureProcess"):
        SEDD(MixtureProcess())
