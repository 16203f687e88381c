"""Schedules: derivative, inverse, golden values of Duo, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sddlm.errors import ConfigError
from sddlm.process.schedule import Cosine, LogLinear, Schedule

GOLDEN = Path(__file__).parents[1] / "golden"
BOTH = [LogLinear, Cosine]


@pytest.mark.parametrize("kind", BOTH)
@given(eps=st.floats(1e-6, 0.5), t=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_derivative_and_inverse(kind: type[Schedule], eps: float, t: float) -> None:
    schedule = kind(eps=eps)  # type: ignore[call-arg]
    time = torch.tensor([t], dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(time)
    assert alpha.dtype == torch.float64
    assert 0 < alpha.item() <= 1
    inside = 1e-3 < t < 1 - 1e-3
    if inside:
        (slope,) = torch.autograd.grad(alpha.sum(), time)
        torch.testing.assert_close(schedule.dalpha(time), slope, rtol=1e-12, atol=1e-12)
        h = 1e-5
        ends = schedule.alpha(torch.tensor([t - h, t + h], dtype=torch.float64))
        central = (ends[1] - ends[0]) / (2 * h)
        assert schedule.dalpha(time).item() == pytest.approx(central.item(), abs=1e-8)
    # where the curve is flat or steep the inverse is as well conditioned as alpha itself
    again = schedule.t_of_alpha(alpha.detach())
    assert again.item() == pytest.approx(t, abs=1e-12)


@pytest.mark.parametrize("kind", BOTH)
def test_ends_shapes_and_grid(kind: type[Schedule]) -> None:
    schedule = kind()
    t = torch.linspace(0, 1, 12).reshape(3, 4)  # float32 in, float64 out
    assert schedule.alpha(t).shape == schedule.dalpha(t).shape == (3, 4)
    assert schedule.dalpha(t).dtype == torch.float64
    assert (schedule.dalpha(t) < 0).all()
    times, alphas = schedule.grid(7)
    assert times[0] == 1
    assert times[-1] == 0
    assert alphas[-1] == 1
    assert (alphas.diff() > 0).all()


def test_duo_curves() -> None:
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "schedules.npz").items()}
    t = golden["t"]
    same = {"rtol": 0, "atol": 1e-15}
    torch.testing.assert_close(LogLinear().alpha(t), golden["duo_loglinear_alpha"], **same)
    torch.testing.assert_close(LogLinear().dalpha(t), golden["duo_loglinear_dalpha"], **same)
    torch.testing.assert_close(Cosine().alpha(t), golden["duo_cosine_alpha"], **same)
    # Duo's code returns -(pi/2) sin(theta): the inner derivative 1 - eps is missing there
    torch.testing.assert_close(
        Cosine().dalpha(t), golden["duo_cosine_dalpha"] * (1 - 1e-3), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize("eps", [0.0, 1.0, -0.1, float("nan")])
def test_eps_is_checked(kind: type[Schedule], eps: float) -> None:
    with pytest.raises(ConfigError, match=r"schedule\.eps"):
        kind(eps=eps)  # type: ignore[call-arg]
