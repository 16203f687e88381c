"""Adaptive: its law by enumeration, what it counts, and that calls are really saved."""

from collections import defaultdict
from collections.abc import Callable
from functools import cache
from itertools import pairwise, product
from math import exp, inf, log, nan, prod
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.exact import TabularModel, World, law, state_id, states, total_variation
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.layers import select_rows
from sddlm.process import HybridProcess, LogLinear, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate
from sddlm.sampling.adaptive import Adaptive
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.condition import Condition
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation

ALL_THE_WAY = LogLinear(eps=1e-12)  # alpha = 1 - t
PROCESSES = [UniformProcess(ALL_THE_WAY), MaskedProcess(ALL_THE_WAY), HybridProcess(ALL_THE_WAY)]
WORLD = World.random(3, 2, seed=1, concentration=0.3)
LOO = Estimate.LEAVE_ONE_OUT
SHARP = Truncation(temperature=0.8, top_p=0.9, tail_cut=0.2)
name_of = lambda value: type(value).__name__  # noqa: E731


# --- the law, by enumeration ---------------------------------------------------------------------


def tells(p: Tensor, z: int, nu: float, by: str) -> tuple[float, float]:
    """What a redrawn token and a drawn one tell, of the two laws of x0 written out."""
    seen = p * (1 + (torch.arange(len(p)) == z) / nu)
    seen = seen / seen.sum()  # p(x0 | x_t)
    if by == "confidence":
        doubt, spread = total_variation(p, seen), 1 - p.max().item()
    else:
        doubt = torch.where(p > 0, p * (p / seen).log(), 0.0).sum().item()
        spread = -torch.xlogy(p, p).sum().item()
    return doubt, doubt + spread


class Enumeration:
    """Every run of an `Adaptive`: when it called, about what, what it heard since, where it is."""

    def __init__(
        self, sampler: Adaptive, process: Process, network: Callable[[float], Tensor]
    ) -> None:
        self.sampler, self.process, self.network = sampler, process, network
        self.alphas = sampler.grid(process.schedule)[1]
        self.V, self.L = WORLD.vocab_size + process.extra_tokens, WORLD.length
        self.tokens = states(self.V, self.L).tolist()
        self.p = [network(alpha.item()) for alpha in self.alphas[:-1]]  # [S, L, V] each
        self.calls = 0.0

    @cache  # noqa: B019
    def bound(self, z: int, at: int, to: int) -> float:
        a, b = self.alphas[at], self.alphas[to]
        return self.process.jump_bound(torch.tensor(z), a, b, vocab_size=self.V).item()

    @cache  # noqa: B019
    def age(self, called: int, step: int) -> float:
        leaves = max(self.bound(z, called - 1, step - 1) for z in range(self.V))
        return leaves if self.sampler.criterion == "confidence" else -log(1 - leaves)

    def keeps(self, called: int, step: int, told: float, changed: bool) -> bool:
        age = self.age(called, step)
        return told + age < self.sampler.budget or (age == 0 and not changed)

    @cache  # noqa: B019
    def outcomes(
        self, called: int, about: int, at: int, z: int, step: int
    ) -> list[tuple[int, float, float]]:
        """Of a position at a step: token, what it tells, probability; the one that stays first."""
        a, b = self.alphas[step - 1], self.alphas[step]
        p = self.p[called - 1][about, at]
        nu = self.process.odds(a, self.V)[z].item()
        if nu == 0:
            return [(z, 0.0, 1.0)]
        last = step == len(self.alphas) - 1
        if last and self.sampler.tail == "greedy":
            best = int(self.process.posterior(p, torch.tensor(z), a, b).argmax())
            return [(z, 0.0, float(best == z)), (best, 0.0, float(best != z))]
        redraw, predict = (
            r.item() for r in self.process.jump(p[z], torch.tensor(z), a, b, vocab_size=self.V)
        )
        noise = self.process.odds(b, self.V)
        noise = noise / noise.sum() if not last else noise
        doubt, drawn = tells(p, z, nu, self.sampler.criterion)
        found = []
        for v in range(self.V):
            if v != z:
                found += [(v, doubt, redraw * noise[v].item()), (v, drawn, predict * p[v].item())]
        found = [one for one in found if one[2] > 0]
        return [(z, 0.0, 1 - sum(one[2] for one in found)), *found]

    def law(self) -> Tensor:
        """Law of the samples ``[S]``; the mean number of calls is left in ``calls``."""
        odds = self.process.odds(self.alphas[0], self.V)
        prior: list[float] = (odds / odds.sum()).tolist()
        now: dict[Any, float] = {
            (0, 0, inf, True, s): prod(prior[z] for z in x) for s, x in enumerate(self.tokens)
        }
        for step in range(1, len(self.alphas)):
            after: dict[Any, float] = defaultdict(float)
            for state, mass in now.items():
                if mass > 0:
                    self._move(state, mass, step, after)
            now = after
        clean = torch.zeros([self.V] * self.L, dtype=torch.float64)
        for (*_, s), mass in now.items():
            clean[tuple(self.tokens[s])] += mass
        return clean[tuple([slice(WORLD.vocab_size)] * self.L)].flatten()

    def _move(self, state: Any, mass: float, step: int, after: dict[Any, float]) -> None:
        called, about, told, changed, s = state
        x = self.tokens[s]
        bounds = [self.bound(z, step - 1, step) for z in x]
        greedy = self.sampler.tail == "greedy" and step == len(self.alphas) - 1
        rest = prod(1 - bound for bound in bounds)  # no cell can change: no visit
        if greedy:
            rest = float(not any(bounds))
        after[state] += mass * rest
        if rest > 1 - 1e-12:
            return
        if called == 0 or not self.keeps(called, step, told, changed):
            called, about, told, changed = step, s, 0.0, False
            self.calls += mass * (1 - rest)
        each = [self.outcomes(called, about, at, z, step) for at, z in enumerate(x)]
        for k, moves in enumerate(product(*each)):
            chance = prod(q for _, _, q in moves) - (rest if k == 0 else 0)
            new = sum(v * self.V ** (self.L - 1 - at) for at, (v, _, _) in enumerate(moves))
            heard = round(told + sum(c for _, c, _ in moves), 9)
            heard = 0.0 if self.sampler.budget == inf else min(heard, self.sampler.budget)
            after[called, about, heard, changed or new != s, new] += mass * chance


def cut(process: Process, truncation: Truncation | None = None) -> Callable[[float], Tensor]:
    """Exact leave-one-out predictions, truncated."""

    def predictions(alpha: float) -> Tensor:
        p = WORLD.leave_one_out(alpha, process)
        return p if truncation is None else truncation(p.clamp(min=1e-300).log())

    return predictions


def scores(process: Process) -> Callable[[float], Tensor]:
    """What the best network of score estimates puts out for uniform noise, exponentiated."""
    return lambda alpha: WORLD.log_score(alpha, process).exp()


def drawn(
    sampler: Ancestral, process: Process, count: int, estimate: Estimate = LOO
) -> tuple[Tensor, Tensor]:
    """Counts of the samples ``[S]`` and calls of each ``[count]``."""
    V = WORLD.vocab_size + process.extra_tokens
    model = TabularModel(
        scores(process) if estimate is Estimate.SCORE else WORLD.optimum(estimate, process),
        vocab_size=V,
        length=WORLD.length,
        num_extra_tokens=process.extra_tokens,
    )
    out = sampler.sample(
        model, process=process, estimate=estimate, batch=count, length=WORLD.length, seed=3
    )
    ids = state_id(out.tokens, WORLD.vocab_size)
    return torch.bincount(ids, minlength=len(WORLD.probabilities)).double(), out.nfe


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "estimate"),
    [
        (Adaptive(4, budget=0.9), LOO),
        (Adaptive(4, budget=1.4), Estimate.DENOISER),
        (Adaptive(4, "greedy", budget=0.9), LOO),
        (Adaptive(4, truncation=SHARP, budget=1.1), LOO),
        (Adaptive(4, budget=0.7, criterion="confidence"), LOO),
    ],
    ids=lambda v: v.value if isinstance(v, Estimate) else f"{v.tail} {v.criterion} {v.budget}",
)
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_samples_have_the_law_that_enumeration_finds(
    process: Process, sampler: Adaptive, estimate: Estimate
) -> None:
    check(process, sampler, estimate)


@pytest.mark.slow
def test_scores_are_read_as_of_the_call() -> None:
    """Not at the very end of noise, where the ratios are 1 and say nothing in 64 bits."""
    check(UniformProcess(LogLinear(eps=1e-2)), Adaptive(4, budget=1.4), Estimate.SCORE)


def check(process: Process, sampler: Adaptive, estimate: Estimate) -> None:
    """Samples and calls against the enumeration."""
    exact = Enumeration(sampler, process, cut(process, sampler.truncation))
    wanted = exact.law()
    assert abs(wanted.sum() - 1) < 1e-9
    count = 20000
    counts, nfe = drawn(sampler, process, count, estimate)
    assert 1 < exact.calls < 4
    spread = nfe.double().std() / count**0.5
    assert abs(nfe.double().mean() - exact.calls) < 4 * spread
    assert counts[wanted < 1e-12].sum() == 0
    live = wanted * count >= 5
    expected = wanted[live] / wanted[live].sum() * counts[live].sum()
    assert stats.chisquare(counts[live].numpy(), expected.numpy()).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_the_law_goes_from_one_step_to_all_of_them(process: Process) -> None:
    """With the budget: nothing kept is `Ancestral`, all kept is one step of it."""
    network = cut(process)
    fine, coarse = (law(Ancestral(steps), process, network) for steps in (3, 1))
    found = {
        budget: Enumeration(Adaptive(3, budget=budget), process, network).law()
        for budget in (0.0, 1e-9, 0.9, inf)
    }
    assert total_variation(found[0.0], fine) < 1e-9
    assert total_variation(found[1e-9], fine) < 1e-9  # time alone is worth a call
    assert total_variation(found[inf], coarse) < 1e-9
    errors = [total_variation(one, WORLD.probabilities) for one in found.values()]
    assert errors[0] - 1e-3 < errors[2] < errors[3]
    assert errors[0] < 0.75 * errors[3]


# --- what is counted -----------------------------------------------------------------------------


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_the_age_bounds_what_a_token_that_stays_tells(process: Process) -> None:
    """P(stays | x_t, x0) of every x_t and x0, by Bayes' rule with x0 certain."""
    clean, V = 4, 4 + process.extra_tokens
    run: Any = type("Run", (), {"process": process, "vocab_size": V, "model": object()})
    for pair in ((0.1, 0.4), (0.3, 0.31), (0.6, 0.95)):
        a, b = torch.tensor(pair, dtype=torch.float64)[:, None]
        age, leaves = (
            Adaptive(criterion=by).drift_bound(run, a, b).item() for by in ("entropy", "confidence")
        )
        assert leaves == pytest.approx(1 - exp(-age))
        told = []
        for z in range(V):
            x_t = torch.full((clean,), z)
            p = torch.eye(clean, V, dtype=torch.float64)
            stays = process.posterior(p, x_t, a, b)[:, z].log()
            told.append((stays.max() - stays.min()).item())
        assert max(told) <= age + 1e-12
        if not process.extra_tokens:
            assert age == pytest.approx(log((1 / pair[0] - 1) / (1 / pair[1] - 1)))
            assert max(told) > 0.3 * age


# --- calls ---------------------------------------------------------------------------------------

V, L = 40, 24


def network(extra: int = 0, *, time_free: bool = False) -> DiT:
    config = DiTConfig(
        vocab_size=V, length=L, width=48, heads=3, blocks=2, head_init=0.6,
        gate_init=0 if time_free else 1, input_conv=5, num_extra_tokens=extra,
        time_input="none" if time_free else "sigma",
    )  # fmt: skip
    return DiT(config, seed=3)


def conditions() -> Condition:
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, V - 1, (5, L), generator=generator)
    known = torch.rand(5, L, generator=generator) < torch.tensor([0, 0.5, 0.9, 0, 0.2])[:, None]
    return Condition(given, known, torch.tensor([L, 20, L, 1, 9]))


def run(sampler: Ancestral, process: Process, **more: Any) -> Any:
    time_free = more.pop("time_free", False)
    return sampler.sample(
        network(process.extra_tokens, time_free=time_free),
        process=process, estimate=LOO, batch=5, length=L, **more,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("time_free", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
@pytest.mark.parametrize(("tail", "truncation"), [("sample", Truncation()), ("greedy", SHARP)])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_no_budget_is_lazy(
    process: Process, tail: Any, truncation: Truncation, conditioned: bool, time_free: bool
) -> None:
    condition = conditions() if conditioned else None
    more = {"seed": 2, "condition": condition, "time_free": time_free}
    lazy = run(Lazy(10, tail, truncation), process, **more)
    full = run(Ancestral(10, tail, truncation), process, **more)
    for by in ("entropy", "confidence"):
        found = run(Adaptive(10, tail, truncation, budget=0.0, criterion=by), process, **more)
        assert torch.equal(found.tokens, full.tokens)
        assert torch.equal(found.nfe, lazy.nfe)
        assert torch.equal(found.rows, lazy.rows)


@pytest.mark.slow
def test_a_denoiser_without_the_time_is_read_at_the_present_level() -> None:
    """Its prediction is kept while no token changes; its meaning changes with the noise level."""
    model = network(time_free=True)
    with torch.no_grad():
        model.head.bias[:3] += 9  # so that many draws leave the token as it is
    estimate = Estimate.DENOISER
    how: Any = {"process": UniformProcess(), "estimate": estimate, "batch": 8, "length": L}
    full, lazy, kept = (
        sampler.sample(model, **how)
        for sampler in (Ancestral(200), Lazy(200), Adaptive(200, budget=0.0))
    )
    assert kept.nfe.tolist() == lazy.nfe.tolist() < full.nfe.tolist()
    assert torch.equal(lazy.tokens, full.tokens)
    assert torch.equal(kept.tokens, full.tokens)


@pytest.mark.slow
@pytest.mark.parametrize("by", ["entropy", "confidence"])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_more_budget_is_fewer_calls(process: Process, by: Any) -> None:
    calls = [
        run(Adaptive(24, budget=budget, criterion=by), process).nfe.double().mean().item()
        for budget in ((0.0, 1.0, 3.0, inf) if by == "entropy" else (0.0, 0.3, 1.0, inf))
    ]
    assert calls[0] > calls[1] > calls[2] > calls[3] == 1


def test_what_is_certain_needs_one_call() -> None:
    """A text that the network knows by heart, from noise and from a few of its own tokens."""
    text = torch.randint(0, V, (3, L), generator=torch.Generator().manual_seed(1))
    process = UniformProcess()

    class Knows(TabularModel):
        def forward(self, x_t: Tensor, sigma: Tensor, *, rows: Tensor | None = None) -> Tensor:
            logits = 200 * torch.nn.functional.one_hot(text[: len(x_t)], V).double()
            return select_rows(logits, rows)

    model = Knows(torch.zeros(1, L, V), vocab_size=V, length=L)
    for by in ("entropy", "confidence"):
        sampler = Adaptive(64, budget=7.0 if by == "entropy" else 1.0, criterion=by)  # type: ignore[arg-type]
        out = sampler.sample(model, process=process, estimate=LOO, batch=3, length=L)
        assert torch.equal(out.tokens, text)
        assert (out.nfe <= 2).all()
    assert Lazy(64).sample(model, process=process, estimate=LOO, batch=3, length=L).nfe.min() > 30


def test_each_sequence_is_shown_step_by_step() -> None:
    seen: list[tuple[int, float, Tensor]] = []
    sampler = Adaptive(12, budget=4.0)
    out = run(sampler, UniformProcess(), on_step=lambda n, t, x: seen.append((n, t, x.clone())))
    assert [n for n, _, _ in seen] == list(range(1, 13))
    assert [t for _, t, _ in seen] == pytest.approx([1 - n / 12 for n in range(1, 13)])
    assert torch.equal(seen[-1][2], out.tokens)
    assert (out.nfe < 12).all()
    changes = [(a[2] != b[2]).any().item() for a, b in pairwise(seen)]
    assert sum(changes) >= 8


@pytest.mark.parametrize(
    ("knob", "value"), [("budget", nan), ("budget", -0.5), ("criterion", "margin"), ("steps", 0)]
)
def test_wrong_settings_are_refused(knob: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"^`{knob}` is .*{value}.*(try `{knob}=|must be )"):
        Adaptive(**{knob: value})
