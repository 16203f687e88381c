"""Psi-samplers: Duo's schedules, the kernel, and its special cases."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.exact import World, law, total_variation
from sddlm.process import Cosine, HybridProcess, LogLinear, MaskedProcess, Process, UniformProcess
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.psi import PRESETS, Psi, profile, schedule_of_kappas
from sddlm.sampling.truncation import Truncation

GOLDEN = Path(__file__).parents[1] / "golden"
SCHEDULES = np.load(GOLDEN / "psi_schedules.npz")
#: Duo's names of modes
DUOS = {
    "max-capped-": "cap:",
    "max-rescale-": "rescale:",
    "constant-remdm-": "remdm:",
    "pure-posterior": "1",
    "pure-pc": "0",
    "constant-": "",
}
PROCESSES = [UniformProcess(), MaskedProcess(), HybridProcess()]


def ours(mode: str) -> str:
    """Duo's name of a mode in the words of `Psi.kappa`."""
    for theirs, name in DUOS.items():
        mode = mode.replace(theirs, name)
    return mode


@pytest.mark.parametrize("key", SCHEDULES.files)
def test_schedules_are_duos(key: str) -> None:
    count, shape, modes, shares, what = key.split("|")
    high, middle = map(float, shares.split("-"))
    hold = None
    if shape != "linear":
        number = float(shape.removeprefix("linear-constant-linear-").removesuffix("-inv"))
        hold = 1 - number if shape.endswith("-inv") else number
    points = int(count[1:]) + 1
    times = profile(points, hold=hold, segments=(high, middle), t_end=1e-5)
    expected = torch.from_numpy(SCHEDULES[key])
    if what == "t":
        torch.testing.assert_close(times, expected, rtol=0, atol=1e-7)  # theirs is of float32
    else:
        alphas = LogLinear().alpha(times)
        found = schedule_of_kappas("+".join(map(ours, modes.split("+"))), alphas, (high, middle))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_kernel_is_duos() -> None:
    stored = np.load(GOLDEN / "posterior_V11.npz")
    golden = {key: torch.from_numpy(stored[key]) for key in stored.files}
    p, x_t = golden["logits"].softmax(-1), golden["xt"]
    for i, pair in enumerate(golden["psi_uniform"]):
        for kappa, expected in zip(golden["psi_kappa"].tolist(), pair, strict=True):
            kernel = Psi(kappa=str(kappa)).kernel(
                1,
                UniformProcess(),
                p,
                x_t,
                golden["alpha_t_loglinear"][i],
                golden["alpha_s_loglinear"][i],
            )
            torch.testing.assert_close(kernel, expected, rtol=0, atol=1e-12)


def random_case(process: Process) -> tuple[Tensor, Tensor]:
    """Predictions ``[6, V]`` and every token once ``[6]``."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    if process.extra_tokens:
        logits[:, -process.extra_tokens :] = -torch.inf
    return logits.softmax(-1), torch.arange(6)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kappa", ["0", "0.3", "1", "cap:0.2", "1+remdm:0.1+0"])
def test_kernel_is_a_law(process: Process, kappa: str) -> None:
    p, x_t = random_case(process)
    for tail in ("sample", "greedy"):
        sampler = Psi(steps=6, kappa=kappa, tail=tail)  # type: ignore[arg-type]
        plain = Ancestral(steps=6, tail=tail)  # type: ignore[arg-type]
        _, alphas = sampler.grid(process.schedule)
        for number in range(1, 7):
            at = (number, process, p, x_t, alphas[number - 1], alphas[number])
            kernel = sampler.kernel(*at)
            torch.testing.assert_close(kernel.sum(-1), torch.ones(6, dtype=torch.float64))
            assert (kernel >= 0).all()
            if kappa == "1" or number == 6:
                torch.testing.assert_close(kernel, plain.kernel(*at))


def test_remdm_is_psi_under_a_mask() -> None:
    process, sigma = MaskedProcess(), 0.1
    p, x_t = random_case(process)
    sampler = Psi(steps=8, kappa=f"remdm:{sigma}")
    _, alphas = sampler.grid(process.schedule)
    for number in range(1, 7):
        alpha_t, alpha_s = alphas[number - 1], alphas[number]
        assert sigma < 1 - alpha_s
        # masked again with sigma, revealed with (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)
        expected = (1 - sigma) * torch.eye(6, dtype=torch.float64)
        expected[:, -1] += sigma
        reveal = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
        expected[-1] = reveal * p[-1]
        expected[-1, -1] = 1 - reveal
        kernel = sampler.kernel(number, process, p, x_t, alpha_t, alpha_s)
        torch.testing.assert_close(kernel, expected)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kappa", ["0", "0.6", "cap:0.2"])
def test_no_step_moves_an_exact_law(process: Process, kappa: str) -> None:
    # one position: the prediction does not depend on the noise, and no step is approximate
    world = World.random(4, 1, seed=3, concentration=1.0)
    V = world.vocab_size + process.extra_tokens
    p = torch.nn.functional.pad(world.probabilities, (0, process.extra_tokens))
    made = law(Psi(steps=5, kappa=kappa), process, lambda alpha: p.expand(V, 1, V))
    assert total_variation(made, world.probabilities) < 2e-3  # of what is left at t = 1


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_more_correction_comes_closer(process: Process) -> None:
    # two dependent positions: the corrector mends what factorised steps break
    world = World.random(3, 2, seed=1, concentration=0.3)

    def distance(kappa: str) -> float:
        sampler = Psi(steps=60, kappa=f"1+{kappa}+1", segments=(0.1, 0.8), hold=0.1)
        made = law(sampler, process, lambda alpha: world.leave_one_out(alpha, process))
        return total_variation(made, world.probabilities)

    assert distance("0.9") < 0.6 * distance("1")


def test_the_grid_begins_in_noise_and_ends_clean() -> None:
    for schedule in (LogLinear(), Cosine()):
        for sampler in (
            Psi(steps=7),
            Psi(steps=7, hold=0.1),
            Psi(steps=7, hold=0.1, segments=(0.5, 0.5)),
            Psi.preset("loop", steps=16),
        ):
            times, alphas = sampler.grid(schedule)
            assert len(times) == len(alphas) == sampler.steps + 1
            assert times[0] == 1
            assert times[-1] == 0
            assert alphas[-1] == 1
            assert (times.diff() <= 0).all()
            assert torch.equal(alphas[:-1], schedule.alpha(times[:-1]))
            kappas = sampler.kappas(alphas)
            assert len(kappas) == sampler.steps
            assert ((kappas >= 0) & (kappas <= 1)).all()
    expected = Ancestral(steps=9).grid(LogLinear())
    for ours, theirs in zip(Psi(steps=9).grid(LogLinear()), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_presets() -> None:
    for name in PRESETS:
        sampler = Psi.preset(name)
        assert sampler.steps == 256
        assert sampler.truncation == Truncation(top_p=PRESETS[name][1])
    loop = Psi.preset("loop", steps=16, tail="greedy", truncation=Truncation())
    assert loop == Psi(16, "greedy", Truncation(), "1+remdm:0.01+1", (0.45, 0.5), 0.1)
    times, alphas = loop.grid(LogLinear())
    assert (times[7:16] - 0.1).abs().max() < 1e-15  # 8 points fall, 8 rest, the last is clean
    assert (loop.kappas(alphas)[8:15] < 1).all()
    with pytest.raises(ConfigError, match=r"`preset` is"):
        Psi.preset("other")


WRONG = "x -1 1.5 nan cap cap: cap:2 :0.5 top:0.5 1+0 1+1+1+1 1++1"


@pytest.mark.parametrize("kappa", ["", *WRONG.split()])
def test_wrong_kappa(kappa: str) -> None:
    with pytest.raises(ConfigError, match="`kappa`"):
        Psi(kappa=kappa)


def test_wrong_choices() -> None:
    for shares in ((-0.1, 0.5), (0.6, 0.5), (float("nan"), 0.1)):
        with pytest.raises(ConfigError, match=r"`segments"):
            Psi(segments=shares)
    for shares in ((0.1,), (0.1, "a"), (float("nan"), 0.1)):
        with pytest.raises(ConfigError, match=r"must be \(a number, a number\)"):
            Psi(segments=shares)
    for hold in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"`hold"):
            Psi(hold=hold)
    with pytest.raises(ConfigError, match="pure noise"):
        Psi(hold=0.1, segments=(0.0, 0.0))
    with pytest.raises(ConfigError, match="`steps`"):
        Psi(steps=0)
