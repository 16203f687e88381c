"""Schedules: derivative, inverse, golden values of Duo and MDLM, errors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sddlm.errors import ConfigError
from sddlm.process.schedule import (
    Cosine,
    CosinePower,
    Geometric,
    LogLinear,
    Polynomial,
    Schedule,
    below_one,
)

GOLDEN = Path(__file__).parents[1] / "golden"
ALL = [
    LogLinear(),
    LogLinear(eps=0.3),
    Cosine(),
    Cosine(eps=1e-6),
    CosinePower(),
    CosinePower(power=1.0),
    CosinePower(eps=0.1, power=3.7),
    Polynomial(),
    Polynomial(power=1.0),
    Polynomial(eps=0.2, power=5.5),
    Geometric(),
    Geometric(sigma_min=1e-3, sigma_max=1.0),
    Geometric(sigma_min=0.5, sigma_max=100.0),
]
each = pytest.mark.parametrize("schedule", ALL, ids=str)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.slow
@each
@given(t=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_derivative_and_inverse(schedule: Schedule, t: float) -> None:
    time = float64(t).requires_grad_()
    alpha = schedule.alpha(time)
    assert alpha.dtype == torch.float64
    assert 0 < alpha.item() <= 1
    slope = schedule.dalpha(time).item()
    assert slope <= 0
    if 1e-3 < t < 1 - 1e-3:
        (by_autograd,) = torch.autograd.grad(alpha.sum(), time)
        assert slope == pytest.approx(by_autograd.item(), rel=1e-11, abs=1e-14)
        h = 1e-5
        before, after = schedule.alpha(float64(t - h, t + h)).tolist()
        # the error is h^2 / 6 of the third derivative, at most 3e4 here
        assert slope == pytest.approx((after - before) / (2 * h), rel=1e-6, abs=1e-6)
    again = schedule.t_of_alpha(alpha.detach())
    assert 0 <= again.item() <= 1 + 1e-12
    # alpha comes back; t itself as exactly as a float64 alpha knows it
    assert schedule.alpha(again).item() == pytest.approx(alpha.item(), rel=1e-12, abs=1e-15)
    if slope < -1e-2:
        assert again.item() == pytest.approx(t, abs=1e-12)


@each
def test_ends_shapes_and_grid(schedule: Schedule) -> None:
    t = torch.linspace(0, 1, 12).reshape(3, 4)  # float32 in, float64 out
    assert schedule.alpha(t).shape == schedule.dalpha(t).shape == (3, 4)
    assert schedule.dalpha(t).dtype == torch.float64
    assert (schedule.dalpha(t)[1] < 0).all()
    start, end = schedule.alpha(float64(0, 1)).tolist()
    if isinstance(schedule, Geometric):
        assert start == pytest.approx(np.exp(-schedule.sigma_min), rel=1e-15)
        assert end == pytest.approx(np.exp(-schedule.sigma_max), rel=1e-12)
        assert schedule.t_of_alpha(float64(1.0)) == 0
    else:
        assert start == pytest.approx(1, abs=3e-16 if isinstance(schedule, Cosine) else 0)
        assert schedule.t_of_alpha(float64(1.0)).item() == pytest.approx(0, abs=1e-15)
    if isinstance(schedule, (LogLinear, CosinePower, Polynomial)):
        assert end == pytest.approx(schedule.eps, rel=1e-12)
    times, alphas = schedule.grid(7)
    assert times[0] == 1
    assert times[-1] == 0
    assert alphas[-1] == 1
    assert (alphas.diff() > 0).all()


def test_the_inverse_does_not_cancel_at_t_0() -> None:
    """acos would lose half of the digits."""
    t = float64(1e-6, 1e-4)
    again = CosinePower().t_of_alpha(CosinePower().alpha(t))
    # alpha itself knows 1 - alpha = (pi t / 2)^2 to 1e-16 only
    assert ((again - t).abs() * t < 1e-16).all()


def golden() -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "schedules.npz").items()}


def test_duo_curves() -> None:
    g = golden()
    t = g["t"]
    same = {"rtol": 0, "atol": 1e-15}
    torch.testing.assert_close(LogLinear().alpha(t), g["duo_loglinear_alpha"], **same)
    torch.testing.assert_close(LogLinear().dalpha(t), g["duo_loglinear_dalpha"], **same)
    torch.testing.assert_close(Cosine().alpha(t), g["duo_cosine_alpha"], **same)
    # Duo's code returns -(pi/2) sin(theta): the inner derivative 1 - eps is missing there
    torch.testing.assert_close(
        Cosine().dalpha(t), g["duo_cosine_dalpha"] * (1 - 1e-3), rtol=0, atol=1e-14
    )


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("loglinear", LogLinear()),
        ("loglinear", Polynomial(power=1.0)),
        ("cosine", CosinePower(power=1.0)),
        ("cosinesqr", CosinePower(power=2.0)),
        ("geometric", Geometric(sigma_min=1e-3, sigma_max=1.0)),
    ],
)
def test_mdlm_curves(name: str, schedule: Schedule) -> None:
    g = golden()
    t = g["t"]
    sigma = -schedule.alpha(t).log()
    torch.testing.assert_close(sigma, g[f"mdlm_{name}_sigma"], rtol=1e-11, atol=1e-14)
    dsigma = -schedule.dalpha(t) / schedule.alpha(t)
    torch.testing.assert_close(dsigma, g[f"mdlm_{name}_dsigma"], rtol=1e-11, atol=1e-12)


def test_below_one_changes_nothing_but_one() -> None:
    alpha = float64(0, 0.5, 1 - 2**-53, 1)
    assert torch.equal(below_one(alpha), float64(0, 0.5, 1 - 2**-53, 1 - 2**-53))


@pytest.mark.parametrize("kind", [LogLinear, Cosine, CosinePower, Polynomial])
@pytest.mark.parametrize("eps", [0.0, 1.0, -0.1, float("nan")])
def test_eps_is_checked(kind: type[Schedule], eps: float) -> None:
    with pytest.raises(ConfigError, match=r"^`eps` is"):
        kind(eps=eps)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [CosinePower, Polynomial])
@pytest.mark.parametrize("power", [0.0, 0.5, 101.0, float("nan")])
def test_power_is_checked(kind: type[Schedule], power: float) -> None:
    with pytest.raises(ConfigError, match=r"^`power` is"):
        kind(power=power)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "knobs",
    [
        {"sigma_min": 0.0},
        {"sigma_min": 2.0, "sigma_max": 1.0},
        {"sigma_max": 101.0},
        {"sigma_min": float("nan")},
    ],
)
def test_sigmas_are_checked(knobs: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"^`sigma_min` is"):
        Geometric(**knobs)
