"""Exact laws of samplers, exact bounds, and golden chains."""

import re
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from sddlm.exact import (
    Predictions,
    World,
    elbo,
    entropy,
    law,
    nelbo,
    state_id,
    states,
    table,
    total_variation,
)
from sddlm.exact.exact import nelbo_integrand
from sddlm.process import (
    Cosine,
    HybridProcess,
    LogLinear,
    MaskedProcess,
    MixtureProcess,
    Process,
    Schedule,
    UniformProcess,
)
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.psi import Psi
from sddlm.sampling.truncation import Truncation

GOLDEN = Path(__file__).parents[1] / "golden"
ALL_THE_WAY = LogLinear(eps=1e-12)  # alpha = 1 - t
PROCESS = UniformProcess(ALL_THE_WAY)
PROCESSES = [PROCESS, MaskedProcess(ALL_THE_WAY), HybridProcess(ALL_THE_WAY)]
PROCESSES += [MixtureProcess(ALL_THE_WAY)]
RANDOM = World.random(8, 3, seed=0)
SMALL = World.random(3, 3, seed=1, concentration=0.5)


@cache
def known_of(kind: type[Process]) -> Predictions:
    """Leave-one-out predictions of SMALL, the same at the same level for every sampler."""
    return cache(lambda alpha: SMALL.leave_one_out(alpha, kind(ALL_THE_WAY)))


def distance(predictions: Predictions, steps: int, sampler: Ancestral | None = None) -> float:
    exact = law(sampler or Ancestral(steps), PROCESS, predictions)
    return total_variation(exact, RANDOM.probabilities)


def read(estimate: Estimate, process: Process, world: World) -> Predictions:
    """A network's output read as samplers do."""

    def predictions(alpha: float) -> Tensor:
        if estimate is Estimate.SCORE:
            p = world.leave_one_out(alpha, process)
            nu = process.odds(torch.tensor(alpha).double(), p.shape[-1])
            clean = world.vocab_size
            guess = nu + torch.arange(p.shape[-1]).lt(clean) / clean
            own = states(p.shape[-1], world.length)[..., None]
            logits = world.log_score(alpha, process) - guess.log()
            logits += guess.log().expand(logits.shape).gather(-1, own)
        else:
            logits = world.optimum(estimate, process)(alpha).clamp(min=1e-300).log()
        x_t = states(logits.shape[-1], world.length)
        a = torch.tensor(alpha, dtype=torch.float64)
        return to_leave_one_out(logits, estimate, process, x_t, a).softmax(-1)

    return predictions


@dataclass
class Marginal(Ancestral):
    """Steps written for a denoiser."""

    def kernel(self, number, process, p, x_t, alpha_t, alpha_s):
        return process.marginal_posterior(p, x_t, alpha_t, alpha_s)


@pytest.mark.slow
def test_the_right_reading_samples_the_data() -> None:
    right = distance(RANDOM.leave_one_out, 128)
    assert right < 0.012
    converted = read(Estimate.DENOISER, PROCESS, RANDOM)
    assert distance(converted, 128) == pytest.approx(right, abs=1e-9)
    assert distance(RANDOM.denoiser, 128, Marginal(128)) == pytest.approx(right, abs=1e-9)
    score = distance(read(Estimate.SCORE, PROCESS, RANDOM), 128)
    assert score == pytest.approx(right, abs=1e-7)  # a ratio near 1 loses digits at t = 1


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_error_of_a_step_is_that_of_factorised_positions(process: Process) -> None:
    """It halves with each doubling of the steps, whatever the noise."""

    def predictions(alpha: float) -> Tensor:
        return SMALL.leave_one_out(alpha, process)

    errors = [
        total_variation(law(Ancestral(steps), process, predictions), SMALL.probabilities)
        for steps in (32, 64, 128)
    ]
    for coarse, fine in pairwise(errors):
        assert 1.7 < coarse / fine < 2.3
    assert errors[-1] < 0.01


@pytest.mark.slow
def test_the_wrong_reading_does_not() -> None:
    raw = law(Ancestral(128), PROCESS, RANDOM.denoiser)
    assert total_variation(raw, RANDOM.probabilities) > 0.3
    assert entropy(raw) > RANDOM.entropy + 1  # noise is kept
    assert distance(RANDOM.denoiser, 256) > 0.3  # and more steps do not help
    assert distance(RANDOM.without_x_t, 128) > 0.5
    # a mask has seen nothing, so that the two readings are one
    masked = MaskedProcess(ALL_THE_WAY)
    both = [
        law(Ancestral(16), masked, lambda alpha, e=e: SMALL.optimum(e, masked)(alpha))
        for e in (Estimate.LEAVE_ONE_OUT, Estimate.DENOISER)
    ]
    assert total_variation(*both) < 1e-12


def test_without_x_t_is_harmless_in_a_large_vocabulary() -> None:
    errors = []
    for V in (8, 64, 512):
        world = World.zipf(V, 1)
        right, wrong = (
            total_variation(law(Ancestral(32), PROCESS, p), world.probabilities)
            for p in (world.leave_one_out, world.without_x_t)
        )
        assert right < 1e-9
        errors.append(wrong)
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.03


@dataclass
class Mixture(Ancestral):
    """What `Lazy` does, integrated over u: no candidate stays without having been looked at."""

    def kernel(self, number, process, p, x_t, alpha_t, alpha_s):
        V = p.shape[-1]
        p_own = p.gather(-1, x_t[..., None])
        own, odds = one_hot(x_t, V), process.odds(alpha_s, V)
        noise = odds / odds.sum() if alpha_s < 1 else torch.zeros(V).double()
        at = x_t[..., None]
        redraw, predict = process.jump(p_own, at, alpha_t, alpha_s, vocab_size=V)
        bound = process.jump_bound(at, alpha_t, alpha_s, vocab_size=V)
        assert (redraw + predict <= bound).all()
        seen = redraw * noise + predict * p + (bound - redraw - predict) * own
        return seen + (1 - bound) * own


@pytest.mark.slow
@pytest.mark.parametrize(
    "truncation", [Truncation(), Truncation(0.7), Truncation(top_p=0.8), Truncation(tail_cut=0.5)]
)
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("kind", [UniformProcess, MaskedProcess, HybridProcess])
def test_the_lazy_mixture_has_the_law_of_the_posterior(
    kind: type, schedule: Schedule, truncation: Truncation
) -> None:
    process = kind(schedule)

    def predictions(alpha: float) -> Tensor:
        p = SMALL.leave_one_out(alpha, process)
        return truncation(p.clamp(min=1e-300).log())

    for steps in (1, 2, 12):
        full = law(Ancestral(steps), process, predictions)
        assert total_variation(full, law(Mixture(steps), process, predictions)) < 1e-12
        assert full.sum().item() == pytest.approx(1, abs=1e-12)


def golden_chain(name: str) -> tuple[dict[str, Tensor], Process, Predictions, int]:
    golden = {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / f"{name}.npz").items()}
    steps = len(golden["alphas"]) - 1
    absorbing = "absorb" in name  # its alpha ends at 0
    process = MaskedProcess(LogLinear(1e-15)) if absorbing else UniformProcess()
    _, alphas = process.schedule.grid(steps)
    torch.testing.assert_close(alphas.flip(0), golden["alphas"], rtol=0, atol=2e-15)
    table = dict(zip(alphas[:-1].flip(0).tolist(), golden["xtheta"], strict=True))
    return golden, process, table.__getitem__, steps


CHAINS = [
    f"tiny_{kind}_L{L}_T{T}" for kind in ("uniform", "absorb") for L in (1, 2) for T in (2, 4, 8)
]


@pytest.mark.parametrize("name", CHAINS)
def test_golden_chains(name: str) -> None:
    golden, process, predictions, steps = golden_chain(name)
    known = golden["elbo"].isfinite()  # not those with a mask in them
    model = law(Ancestral(steps), process, predictions)
    torch.testing.assert_close(model, golden["p_model"][known], rtol=0, atol=1e-13)
    torch.testing.assert_close(-model.log(), golden["nll"][known], rtol=1e-11, atol=1e-13)
    terms = elbo(process, predictions, steps)
    torch.testing.assert_close(terms, golden["elbo_terms"][known], rtol=1e-9, atol=1e-12)
    bound = terms.sum(1)
    torch.testing.assert_close(bound, golden["elbo"][known], rtol=1e-9, atol=1e-12)
    assert (bound >= -model.log()).all()  # a bound of the law of the sampler


def test_greedy_tail_is_the_argmax_of_leave_one_out() -> None:
    one = law(Ancestral(1, "greedy"), PROCESS, SMALL.leave_one_out)
    best = state_id(SMALL.leave_one_out(1e-12).argmax(-1), 3)
    expected = torch.bincount(best, minlength=27) / 27
    torch.testing.assert_close(one, expected.double())


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()])
@pytest.mark.parametrize("kind", [UniformProcess, HybridProcess])
def test_the_bound_is_tight_for_the_right_predictions(kind: type, schedule: Schedule) -> None:
    process = kind(schedule)
    world = World.random(3, 2, seed=2, concentration=1.0)
    bound = nelbo(process, lambda alpha: world.leave_one_out(alpha, process))
    last = schedule.alpha(torch.ones((), dtype=torch.float64)).item()
    V = 3 + process.extra_tokens
    alike = World(torch.full((9,), 1 / 9, dtype=torch.float64), 3, 2).noisy(last, process)
    noise = world.noisy(last, process)
    assert len(noise) == V**2
    gap = (noise * (noise / alike).log()).sum().item()  # KL(law of x_1 || p(x_1))
    mean = (world.probabilities * bound).sum().item()
    # the odds of the hybrid have a root at t = 0, which the quadrature sees less sharply
    exact = 1e-6 if kind is UniformProcess else 2e-5
    assert mean == pytest.approx(world.entropy + gap, abs=exact)
    assert (bound - world.nll).abs().max() < 2e-3
    assert mean > world.entropy - exact
    for wrong in (world.denoiser, world.without_x_t):
        loss = nelbo(process, lambda alpha, wrong=wrong: wrong(alpha, process))
        assert (world.probabilities * loss).sum().item() > mean + 0.05


def test_the_masked_bound_is_the_entropy() -> None:
    """The conditional entropies in every order average to it; and alpha(1) is paid for."""
    world = World.random(3, 3, seed=2, concentration=0.5)
    for schedule in (LogLinear(1e-9), Cosine(1e-5)):
        process = MaskedProcess(schedule)
        bound = nelbo(process, lambda alpha, p=process: world.leave_one_out(alpha, p))
        mean = (world.probabilities * bound).sum().item()
        assert mean == pytest.approx(world.entropy, abs=1e-6)


def test_the_bound_does_not_depend_on_how_time_runs() -> None:
    for kind in (UniformProcess, HybridProcess):
        values = []
        for schedule in (LogLinear(1e-3), Cosine(eps=0.0284733)):  # the same alpha at t = 1
            process = kind(schedule)
            values.append(nelbo(process, lambda a, p=process: SMALL.denoiser(a, p).clamp(1e-9)))
        torch.testing.assert_close(*values, rtol=2e-3, atol=0)


@pytest.mark.parametrize("process", [UniformProcess(), MaskedProcess(), HybridProcess()])
def test_the_discrete_bound_tends_to_the_continuous_one(process: Process) -> None:
    g = torch.Generator().manual_seed(0)
    V = 5 + process.extra_tokens
    p = torch.randn(V, generator=g).double()
    p[5:] = -torch.inf
    p = p.softmax(-1)
    t = torch.tensor(0.4, dtype=torch.float64)
    a_t, slope = process.schedule.alpha(t), process.schedule.dalpha(t)
    errors = []
    for steps in (10**3, 10**4):
        a_s = process.schedule.alpha(t - 1 / steps)
        worst = 0.0
        for x0 in range(5):
            clean = one_hot(torch.tensor(x0), V).double()
            for x_t in map(torch.tensor, range(V)):
                if process.certain(x_t, vocab_size=V) and x_t != x0:
                    continue
                true = process.posterior(clean, x_t, a_t, a_s)
                mine = process.posterior(p, x_t, a_t, a_s)
                step = steps * torch.where(true > 0, true * (true / mine).log(), 0.0).sum()
                limit = nelbo_integrand(process, p, torch.tensor(x0), x_t, a_t, slope)
                worst = max(worst, abs(step.item() - limit.item()))
        errors.append(worst)
    assert errors[1] < 0.02
    if type(process) is not MaskedProcess:  # of which every step is exact
        assert errors[0] / errors[1] == pytest.approx(10, rel=0.05)


def test_a_world_of_twenty_thousand_sequences() -> None:
    world = World.random(27, 3, seed=0, concentration=0.02)
    exact = law(Ancestral(2), PROCESS, world.leave_one_out)
    assert exact.sum().item() == pytest.approx(1, abs=1e-9)
    rough = total_variation(exact, world.probabilities)
    assert rough < total_variation(torch.full_like(exact, 1 / len(exact)), world.probabilities)


def psi(kappa: str, steps: int, **more) -> Psi:
    """A Psi sampler whose share of corrector steps may fall with the number of steps."""
    return Psi(steps, kappa=kappa.format(gentle=1 - 2 / steps, eta=2 / steps), **more)


FIXED = ["1", "0.8", "0", "cap:0.05", "rescale:0.3", "remdm:0.05", "1+remdm:0.05+1"]
FALLING = ["{gentle}", "cap:{eta}", "rescale:{eta}", "remdm:{eta}", "1+remdm:{eta}+1"]


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kappa", [*FIXED, "hold"])
def test_a_psi_step_is_exact_at_a_single_position(kappa: str, process: Process) -> None:
    """Whatever kappa: posterior and corrector both lead from the law of x_t to that of x_s."""
    world = World.zipf(8, 1)
    hold = {"kappa": "1+0.7+1", "hold": 0.2} if kappa == "hold" else {"kappa": kappa}
    for steps in (8, 32):
        exact = law(Psi(steps, **hold), process, lambda a: world.leave_one_out(a, process))
        assert total_variation(exact, world.probabilities) < 1e-8


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("kappa", ["greedy", *FALLING])
def test_psi_and_the_greedy_tail_converge(kappa: str, process: Process) -> None:
    """If the share of corrected tokens falls as 1 / steps, so does the error."""
    errors = []
    for steps in (64, 128):
        sampler = Ancestral(steps, "greedy") if kappa == "greedy" else psi(kappa, steps)
        exact = law(sampler, process, known_of(type(process)))
        errors.append(total_variation(exact, SMALL.probabilities))
    assert errors[1] < 0.02
    assert 1.55 < errors[0] / errors[1] < 2.4


@pytest.mark.slow
def test_a_fixed_share_of_corrected_tokens_leaves_an_error() -> None:
    """They are redrawn at once, each given the others as they were: the pairs are lost."""
    for kappa, least in (("0", 0.05), ("cap:0.05", 0.03)):
        errors = [
            total_variation(law(Psi(n, kappa=kappa), PROCESS, SMALL.leave_one_out), p)
            for n, p in ((48, SMALL.probabilities), (144, SMALL.probabilities))
        ]
        assert min(errors) > least
        assert errors[0] / errors[1] < 1.2
    # of a mask, which says that it is noise, less is lost: the error falls, but slowly
    masked = MaskedProcess(ALL_THE_WAY)
    errors = [
        total_variation(
            law(Psi(n, kappa="0"), masked, lambda a: SMALL.leave_one_out(a, masked)),
            SMALL.probabilities,
        )
        for n in (32, 128)
    ]
    assert 1.6 < errors[0] / errors[1] < 2.2


def test_the_greedy_tail_of_public_code_forgets_the_token_that_is_there() -> None:
    @dataclass
    class Forgetful(Ancestral):
        def kernel(self, number, process, p, x_t, alpha_t, alpha_s):
            if number == self.steps:
                return one_hot(p.argmax(-1), p.shape[-1]).double()
            return process.posterior(p, x_t, alpha_t, alpha_s)

    assert distance(RANDOM.leave_one_out, 128, Forgetful(128)) > 0.4
    assert distance(RANDOM.leave_one_out, 128, Ancestral(128, "greedy")) < 0.03


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "exact.md"
    number = re.compile(r"\d+\.\d+")
    kept, found = page.read_text(), table.page()
    again = "python -m sddlm.exact > docs/exact.md"
    assert number.sub("", kept) == number.sub("", found), again
    values = [[float(x) for x in number.findall(text)] for text in (kept, found)]
    assert values[0] == pytest.approx(values[1], abs=0.011), again  # another torch may round anew
