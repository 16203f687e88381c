"""The conditional bound against enumeration: what it estimates, how sure it is, what it ranks."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from networks import Trained, randomised
from sddlm.errors import ConfigError
from sddlm.eval import nll
from sddlm.eval.conditional import (
    Choice,
    Conditional,
    Integral,
    conditional_bounds,
    is_greedy,
    stderr,
)
from sddlm.eval.nll import importance_times
from sddlm.eval.windows import Window, all_windows
from sddlm.exact import TabularModel, World, state_id, states
from sddlm.exact.exact import law, nelbo
from sddlm.models.conditioned import Conditioned
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.layers import select_rows
from sddlm.process import (
    Cosine,
    CosinePower,
    Geometric,
    HybridProcess,
    LogLinear,
    MaskedProcess,
    Polynomial,
    Process,
    UniformProcess,
)
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.base import evaluating

V = 4
LOO = Estimate.LEAVE_ONE_OUT
NEXT = Estimate.NEXT_TOKEN
PROCESSES: list[Process] = [UniformProcess(), MaskedProcess(), HybridProcess(uniform=0.4)]
PAIRS = states(V, 2)
name_of = lambda value: type(value).__name__  # noqa: E731


def conditional(world: World, prompt: list[int]) -> World:
    """The law of the last two tokens after a prompt."""
    table = world.probabilities.reshape(-1, V**2)
    p = table[state_id(torch.tensor(prompt), world.vocab_size)]
    return World(p / p.sum(), V, 2)


class Knows(TabularModel):
    """Exact for the last two tokens of a world, if it may take those before them for clean."""

    def __init__(self, world: World, process: Process, estimate: Estimate = LOO) -> None:
        length, vocab_size = world.length, V + process.extra_tokens
        super().__init__(torch.zeros(1), vocab_size=vocab_size, length=length)
        self.joint = world.probabilities.reshape(-1, V, V)
        self.process, self.estimate = process, estimate

    def forward(self, x_t: Tensor, sigma: Tensor, *, rows: Tensor | None = None) -> Tensor:
        joint = self.joint[state_id(x_t[:, :-2], V)]  # [B, x0, x0]
        alpha = (-sigma.double()).exp()
        one, two = (
            torch.nn.functional.one_hot(x_t[:, at], self.vocab_size)[:, :V]
            + self.process.odds_at(x_t[:, at], alpha, self.vocab_size)[:, None]
            for at in (-2, -1)
        )  # q(x_t | x0) / alpha  [B, x0]
        p = torch.stack((joint @ two[:, :, None], joint.mT @ one[:, :, None]), 1)[..., 0]
        if self.estimate is Estimate.DENOISER:
            p = p * torch.stack((one, two), 1)
        p = p / p.sum(-1, keepdim=True).clamp(min=1e-300)
        out = torch.full((*x_t.shape, self.vocab_size), -690.0, dtype=torch.float64)
        out[:, -2:, :V] = p.clamp(min=1e-300).log()
        return select_rows(out, rows)


def table(seed: int, process: Process, length: int = 3) -> TabularModel:
    """A random network that does not look at the noise level."""
    size = V + process.extra_tokens
    logits = torch.randn(size**length, length, size, generator=torch.Generator().manual_seed(seed))
    logits[..., V:] = -50
    return TabularModel(logits.double(), vocab_size=size, length=length)


def after(model: TabularModel, prompt: list[int], process: Process) -> Any:
    """A network's predictions of the last two tokens, the first being the prompt."""
    x = states(model.vocab_size, 2)
    whole = torch.cat((torch.tensor(prompt).expand(len(x), -1), x), 1)

    def predictions(alpha: float) -> Tensor:
        sigma = torch.full((len(x),), -math.log(alpha), dtype=torch.float64)
        return model(whole, sigma)[:, -2:].softmax(-1)

    return predictions


def scored(model: Any, process: Process, prompt: list[int], **more: Any) -> list[Conditional]:
    """Every continuation of two tokens."""
    choices = [Choice(prompt, pair) for pair in PAIRS.tolist()]
    lm = Trained(model, process, more.pop("estimate", LOO))
    return conditional_bounds(lm, choices, **{"z": math.inf, "batch": 4096, **more})


def values(found: list[Conditional], name: str = "log_p") -> Tensor:
    return torch.tensor([getattr(one, name) for one in found], dtype=torch.float64)


SCHEDULES: list[Any] = [
    LogLinear(), Cosine(), CosinePower(power=1.0), CosinePower(), Polynomial(power=3.0),
    Geometric(sigma_min=1e-3),
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_levels_cover_all_times_and_their_weights_say_how_densely(schedule: Any) -> None:
    u = torch.linspace(1e-4, 1, 200_001, dtype=torch.float64)
    t, weight = importance_times(UniformProcess(schedule), u)
    assert t[0] < 1e-3
    assert t[-1] == pytest.approx(1, abs=1e-12)
    inner = slice(2000, -2000)  # at its ends a schedule may be flat
    slope = (t[2:] - t[:-2]) / (u[2:] - u[:-2])
    torch.testing.assert_close(weight[1:-1][inner], slope[inner], rtol=1e-4, atol=1e-6)
    gone = 1 - schedule.alpha(t)
    least, most = 1 - schedule.alpha(torch.tensor([0.0, 1.0]).double())
    torch.testing.assert_close(gone, least + (most - least) * u**3, rtol=1e-6, atol=1e-12)
    zero = importance_times(UniformProcess(schedule), torch.zeros(1, dtype=torch.float64))
    assert all(x.isfinite().all() for x in zero)


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_with_exact_conditional_predictions_it_is_tight(
    process: Process, estimate: Estimate
) -> None:
    world, prompt = World.random(V, 4, seed=1, concentration=1.0), [2, 1]
    exact = conditional(world, prompt)
    # what is estimated, by quadrature: x_1 of a whole law is nearer to noise than prior_kl says
    limit = nelbo(process, exact.optimum(LOO, process))
    assert (limit - exact.nll).abs().max() < 0.01
    found = scored(Knows(world, process, estimate), process, prompt, estimate=estimate, draws=512)
    assert ((values(found) + limit).abs() < 3.5 * values(found, "stderr")).all()
    assert values(found, "stderr").max() < 1
    ahead, exactly = (x[:, None] - x for x in (values(found), -exact.nll))
    assert (ahead[exactly > 1.5] > 0).all()  # pairs of choices that are that far apart
    assert (exactly > 1.5).sum() > 20
    assert {(one.draws, one.tokens, one.cut, one.exact) for one in found} == {(512, 2, 0, False)}


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_it_bounds_the_law_of_the_sampler_whatever_the_network(process: Process) -> None:
    """Not the world's: a wrong network may find a text likelier than the world does."""
    world, prompt = World.random(V, 3, seed=3, concentration=0.5), [1]
    size = V + process.extra_tokens
    whole = TabularModel(world.optimum(LOO, process), vocab_size=size, length=3)
    for model in (whole, table(4, process)):
        predictions = after(model, prompt, process)
        limit = nelbo(process, predictions)
        drawn = law(Ancestral(steps=128), process, predictions)
        assert (limit > -drawn.log() - 0.01).all()
        found = scored(model, process, prompt, draws=256)
        assert ((values(found) + limit).abs() < 3.5 * values(found, "stderr")).sum() >= 15
        # the draws are skewed: now and then one lies above
        assert (values(found) < drawn.log() + 3.5 * values(found, "stderr")).sum() >= 15
    exact = conditional(world, prompt)
    excess = (
        exact.probabilities * (nelbo(process, after(whole, prompt, process)) - exact.nll)
    ).sum()
    # a mask shows what is clean; of uniform noise the network does not know it
    assert (excess < 0.005) if type(process) is MaskedProcess else (0.01 < excess < 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("process", [UniformProcess(), HybridProcess(uniform=0.4)], ids=name_of)
def test_a_denoiser_that_errs_at_small_times_has_a_finite_bound(process: Process) -> None:
    model, prompt = table(4, process), [1]
    predict = after(model, prompt, process)
    latest = process.schedule.alpha(torch.tensor(1e-3)).item()

    def converted(alpha: float) -> Tensor:
        at = torch.tensor(min(alpha, latest), dtype=torch.float64)
        x_t = states(model.vocab_size, 2)
        logits = predict(min(alpha, latest)).log()
        return to_leave_one_out(logits, Estimate.DENOISER, process, x_t, at).softmax(-1)

    limit = nelbo(process, converted, nodes=400)
    found = scored(model, process, prompt, estimate=Estimate.DENOISER, draws=256)
    assert ((values(found) + limit).abs() < 3.5 * values(found, "stderr")).sum() >= 15
    assert (values(found, "stderr") < 0.2 * limit).all()


@pytest.mark.slow
def test_an_empty_prompt_gives_the_unconditional_bound() -> None:
    world = World.random(V, 2, seed=3, concentration=1.0)
    model = TabularModel(world.optimum(LOO), vocab_size=V, length=2)
    found = scored(model, UniformProcess(), [], draws=512)
    limit = nelbo(UniformProcess(), world.optimum(LOO))
    assert ((values(found) + limit).abs() < 3.5 * values(found, "stderr")).all()


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_the_error_covers_the_expectation(process: Process) -> None:
    """Its square is right on average. Texts of two tokens have skewed draws, hence 88 to 94%."""
    model, pair, count = table(4, process), [2, 3], 1000
    limit = nelbo(process, after(model, [1], process))[state_id(torch.tensor(pair), V)]
    runs = [Window(number, number, [1], pair) for number in range(count)]
    whole = Integral(Trained(model, process), 9, 0, 16, 4096)
    with evaluating(model):
        nats = torch.stack([whole.nats(runs, count, number) for number in range(8)], 1)
    mean, error = nats.mean((1, 2)) + 2 * process.prior_kl(model.vocab_size), stderr(nats)
    covered = ((mean - limit).abs() < 1.96 * error).double().mean()
    print(f"{process}: covered {covered:.3f}")
    assert 0.86 <= covered <= 0.97
    assert error.square().mean().sqrt() == pytest.approx(mean.std().item(), rel=0.1)
    assert abs(mean.mean() - limit) < 3 * mean.std() / count**0.5
    (first,) = conditional_bounds(Trained(model, process), [Choice([1], pair)], seed=9)
    assert first.log_p == pytest.approx(-mean[0].item())
    assert first.stderr == pytest.approx(error[0].item())


@pytest.mark.slow
def test_the_levels_are_better_than_uniform_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variance on a world, exact but for the draws: 4.5 a draw against 17.7."""
    model = Knows(World.random(V, 3, seed=1, concentration=0.5), UniformProcess())
    window, errors = [Window(0, 0, [2], [1, 3])], []
    for power in (3, 1):
        monkeypatch.setattr(nll, "_POWER", power)
        whole = Integral(Trained(model, UniformProcess()), 0, 0, 256, 4096)
        with evaluating(model):
            nats = torch.stack([whole.nats(window, 1, number) for number in range(40)], 1)
        errors.append(stderr(nats))
    assert errors[0] < 0.6 * errors[1]


def questions(number: int) -> tuple[World, list[Choice], Tensor]:
    """A world, four likely continuations of a prompt, and their exact log p."""
    world = World.random(V, 3, seed=number, concentration=0.5)
    exact = conditional(world, [number % V])
    four = exact.probabilities.argsort(descending=True)[torch.tensor([5, 0, 3, 1])]
    norms = [7.0, 9.0, 8.0, 11.0]
    choices = [
        Choice([number % V], pair, norm)
        for pair, norm in zip(PAIRS[four].tolist(), norms, strict=True)
    ]
    return world, choices, exact.probabilities[four].log()


@pytest.mark.slow
@pytest.mark.parametrize("process", [UniformProcess(), MaskedProcess()], ids=name_of)
def test_stopping_early_keeps_the_winner_and_saves_draws(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = Integral.nats, {}

    def kept(whole: Integral, found: list[Window], count: int, number: int) -> Tensor:
        """A round is the same in both readings, so it is drawn once."""
        key = whole.question, number
        if key not in drawn:
            drawn[key] = draw(whole, found, count, number)
        return drawn[key]

    monkeypatch.setattr(Integral, "nats", kept)
    used, changed, wrong = [], 0, 0
    for number in range(25):
        world, choices, exact = questions(number)
        how: Any = {"question": number, "draws": 256}
        model = Knows(world, process)
        early = conditional_bounds(Trained(model, process), choices, **how)
        full = conditional_bounds(Trained(model, process), choices, z=math.inf, **how)
        assert full[0].draws == 256
        used.append(early[0].draws)
        norms = torch.tensor([choice.norm for choice in choices])
        for scale in (torch.ones(4), norms):
            best = (values(early) / scale).argmax()
            changed += int(best != (values(full) / scale).argmax())
            wrong += int(early[0].draws < 256 and best != (exact / scale).argmax())
    stopped = sum(draws < 256 for draws in used)
    print(f"{process}: {stopped} of 25 stopped, mean draws {sum(used) / 25:.0f} of 256")
    assert min(used) >= 32
    assert changed == wrong == 0
    assert stopped >= 4


def test_it_stops_only_when_both_rankings_are_certain() -> None:
    process = MaskedProcess()
    model = Knows(World.random(V, 3, seed=3, concentration=1.0), process)
    p = conditional(World.random(V, 3, seed=3, concentration=1.0), [1]).probabilities
    best, worst = (Choice([1], PAIRS[i].tolist()) for i in (p.argmax(), p.argmin()))
    ratio = (p.min().log() / p.max().log()).item()
    draws = {}
    for name, norm in (("clear", 1.0), ("tied", ratio)):
        pair = [best, Choice([1], worst.continuation, norm)]
        draws[name] = conditional_bounds(Trained(model, process), pair, draws=512)[0].draws
    assert draws["clear"] < draws["tied"] == 512


@pytest.mark.slow
def test_common_noise_makes_differences_surer() -> None:
    """Between texts that share a token at the same place from the beginning of each."""
    gains = []
    for number in range(10):
        world, _, _ = questions(number)
        prompts = [[0], [1]]
        choices = [Choice(prompt, [2, 3]) for prompt in prompts]
        lm = Trained(Knows(world, UniformProcess()))
        found, _ = all_windows(lm, [(c.prompt, c.continuation) for c in choices])
        whole = Integral(lm, 0, number, 16, 32)
        with evaluating(lm.network):
            nats = torch.stack([whole.nats(found, 2, r) for r in range(16)], 1)  # [2, 16, S]
        alone = stderr(nats).square().sum()
        gains.append((stderr(nats[:1] - nats[1:]).square()[0] / alone).item())
    print(f"variance of paired differences: {np.median(gains):.2f} of that of independent ones")
    assert np.median(gains) < 0.8


def test_a_result_is_its_own_questions() -> None:
    """Not of the batch size, of the order of the choices or of other choices."""
    choices = [Choice([], [1, 2]), Choice([3], [1, 2]), Choice([3], [0, 2]), Choice([1], [3])]
    process = UniformProcess()
    model = network(causal=False)
    how: Any = {"z": math.inf, "draws": 32, "seed": 5, "question": 3}
    found = conditional_bounds(Trained(model, process), choices, **how)
    again = conditional_bounds(Trained(model, process), choices, batch=5, **how)
    turned = conditional_bounds(Trained(model, process), choices[::-1], **how)[::-1]
    alone = [conditional_bounds(Trained(model, process), [choice], **how)[0] for choice in choices]
    for other in (again, turned, alone):
        torch.testing.assert_close(values(found), values(other), rtol=1e-6, atol=0)
    for change in ({"question": 4}, {"seed": 6}):
        other = conditional_bounds(Trained(model, process), choices, **{**how, **change})
        assert not torch.isclose(values(found), values(other), rtol=1e-3).any()


def network(causal: bool, length: int = 8, seed: int = 1) -> DiT:
    """Every parameter random."""
    config = DiTConfig(
        vocab_size=V, length=length, width=16, blocks=1, heads=2, cond_dim=8, causal=causal
    )
    return randomised(DiT(config).double(), 0.4, seed)


def one_by_one(model: DiT, context: list[int], tokens: list[int]) -> float:
    """The chain rule with one network call a token."""
    total = 0.0
    for token in tokens:
        hidden = model(torch.tensor([context]), torch.zeros(1))[0, -1:]
        total += model.head.logits(hidden).double().log_softmax(1)[0, token].item()
        context = [*context, token]
    return total


def test_a_next_token_model_is_scored_exactly() -> None:
    model = network(causal=True)
    prompt = [3, 0, 1]
    every = [list(c) for n in (1, 3) for c in product(range(V), repeat=n)]
    choices = [Choice(prompt, c) for c in every]
    found = conditional_bounds(Trained(model, estimate=NEXT), choices, batch=7)
    assert values(found[:V]).exp().sum() == pytest.approx(1, abs=1e-6)
    assert values(found[V:]).exp().sum() == pytest.approx(1, abs=1e-6)
    for one, c in list(zip(found, every, strict=True))[::9]:
        assert one.log_p == pytest.approx(one_by_one(model, prompt, c), abs=1e-6)
        assert one == Conditional(one.log_p, 0.0, 0, len(c), 0, True)
    (first,) = conditional_bounds(Trained(model, estimate=NEXT), [Choice([3], [1, 2])])
    assert first.log_p == pytest.approx(one_by_one(model, [3], [1, 2]), abs=1e-6)
    assert first.cut == 0


LONG = [1, 3, 0, 0, 2, 1, 3, 2, 0, 1, 1, 0, 3, 2, 2, 3, 1, 0, 0]  # 19


@pytest.mark.parametrize(
    ("prompt", "length", "expected"),
    [
        (5, 3, [(5, 3)]),
        (9, 3, [(5, 3)]),
        (9, 7, [(1, 7)]),
        (3, 9, [(3, 5), (4, 4)]),
        (9, 13, [(4, 4), (4, 4), (4, 4), (7, 1)]),
        (1, 8, [(1, 7), (7, 1)]),
    ],
)
def test_too_long_texts_are_cut_into_windows(
    prompt: int, length: int, expected: list[tuple[int, int]]
) -> None:
    model = network(causal=True)
    tokens = LONG[: max(1, prompt)], LONG[-length:]
    (one,) = conditional_bounds(Trained(model, estimate=NEXT), [Choice(*tokens)])
    whole, at, total = [*tokens[0], *tokens[1]], len(tokens[0]), 0.0
    for context, piece in expected:
        total += one_by_one(model, whole[at - context : at], whole[at : at + piece])
        at += piece
    assert at == len(whole)
    assert one.log_p == pytest.approx(total, abs=1e-6)
    assert one.cut == prompt - expected[0][0]
    assert one.tokens == length


@pytest.mark.slow
def test_a_diffusion_model_scores_windows_too() -> None:
    """The sum over windows, each with noise of its own; a full row needs no window."""
    model, process = network(causal=False), UniformProcess()
    how: Any = {"draws": 512, "seed": 1}
    whole = LONG[:16]
    (found,) = conditional_bounds(Trained(model, process), [Choice([], whole)], **how)
    pieces = [([], whole[:8]), (whole[4:8], whole[8:12]), (whole[8:12], whole[12:16])]
    parts = conditional_bounds(Trained(model, process), [Choice(*piece) for piece in pieces],
                               z=math.inf, **how)  # fmt: skip
    off = found.log_p - sum(one.log_p for one in parts)
    assert abs(off) < 4 * sum(one.stderr**2 for one in parts) ** 0.5
    assert found.tokens == 16
    alike = [Window(number, number, [1, 2], [0, 0]) for number in (0, 1)]
    with evaluating(model):  # but with noise of their own
        nats = Integral(Trained(model, process), 0, 0, 16, 64).nats(alike, 2, 0)
    assert (nats[0] != nats[1]).all()
    same = [0] * 8
    how["draws"] = 32
    (full,) = conditional_bounds(Trained(model, process), [Choice(LONG, same)], **how)
    assert (full.cut, full.tokens) == (len(LONG), 8)
    (most,) = conditional_bounds(Trained(model, process), [Choice(LONG, same[:5])], **how)
    (kept,) = conditional_bounds(Trained(model, process), [Choice(LONG[-3:], same[:5])], **how)
    assert most.cut == 16
    assert most.log_p == kept.log_p


def test_nothing_costs_nothing() -> None:
    empty = Conditional(0.0, 0.0, 0, 0, 0, True)
    for model, estimate in ((network(causal=False), LOO), (network(causal=True), NEXT)):
        found = conditional_bounds(
            Trained(model, estimate=estimate), [Choice([1], c) for c in ([], [2], [3])], draws=32
        )
        assert found[0] == empty
        assert math.copysign(1, found[0].log_p) == 1
        assert min(found[1].log_p, found[2].log_p) < -0.01
        assert conditional_bounds(Trained(model, estimate=estimate), []) == []
        assert is_greedy(Trained(model, estimate=estimate), [1], [])


@pytest.mark.parametrize(
    ("choice", "more", "message"),
    [
        (Choice([1], [2]), {"draws": 100}, "multiple of 16 from 32 on; try 96"),
        (Choice([1], [2]), {"draws": 16}, "`draws` is 16.*try 32"),
        (Choice([1], [2]), {"batch": 0}, "`batch` is 0"),
        (Choice([1], [2]), {"z": 0.0}, "`z` is 0.0"),
        (Choice([1], [2], 0.0), {}, "`norm` is 0.0"),
        (Choice([1], [4]), {}, "token 4 is none of the model's, which are 0 to 3"),
        (Choice([-1], [2]), {}, "token -1 is none"),
    ],
)
def test_what_cannot_be_is_refused(choice: Choice, more: Any, message: str) -> None:
    process = MaskedProcess()
    with pytest.raises(ConfigError, match=message):
        conditional_bounds(Trained(table(1, process), process), [choice], **more)


def test_a_next_token_model_needs_something_in_front() -> None:
    for call in (
        lambda lm: conditional_bounds(lm, [Choice([], [1])]),
        lambda lm: is_greedy(lm, [], [1]),
    ):
        with pytest.raises(ConfigError, match="begin-of-text token in front"):
            call(Trained(network(causal=True), estimate=NEXT))


def test_greedy_of_a_next_token_model_is_the_most_likely_token_after_each() -> None:
    model = network(causal=True)
    text = [2, 1]
    for _ in range(5):
        hidden = model(torch.tensor([text]), torch.zeros(1))[0, -1:]
        text.append(int(model.head.logits(hidden).argmax()))
    lm = Trained(model, estimate=NEXT)
    assert is_greedy(lm, text[:2], text[2:])
    for wrong in range(2, 7):
        other = [*text]
        other[wrong] = (other[wrong] + 1) % V
        assert not is_greedy(lm, other[:2], other[2:])


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_greedy_of_a_diffusion_model_decides_from_left_to_right(
    process: Process, estimate: Estimate
) -> None:
    """With a mask it is the greedy choice itself; exactly one continuation passes."""
    for seed in range(2):
        world, prompt = World.random(V, 4, seed=seed, concentration=0.7), [seed]
        size = V + process.extra_tokens
        model = TabularModel(world.optimum(estimate, process), vocab_size=size, length=4)
        every = [list(c) for c in product(range(V), repeat=3)]
        passed = [
            c
            for c in every
            if is_greedy(Trained(model, process, estimate), prompt, c, question=seed, batch=2)
        ]
        assert len(passed) == 1
        assert is_greedy(Trained(model, process, estimate), prompt, passed[0], question=seed)
        chain = list(prompt)
        law_of = world.probabilities.reshape([V] * 4)
        for _ in range(3):
            chain.append(int(law_of[tuple(chain)].reshape(V, -1).sum(1).argmax()))
        if type(process) is MaskedProcess:
            assert passed[0] == chain[1:]


def test_greedy_depends_on_its_seed_alone() -> None:
    model = table(3, UniformProcess(), length=5)
    every = [list(c) for c in product(range(V), repeat=2)]

    def choice(**how: int) -> list[int]:
        return next(c for c in every if is_greedy(Trained(model), [1, 2, 0], c, **how))

    assert choice(seed=1) == choice(seed=1, batch=1)
    assert len({tuple(choice(seed=seed, question=4)) for seed in range(8)}) > 1
    assert len({tuple(choice(question=number)) for number in range(8)}) > 1
    long = is_greedy(Trained(model), LONG, LONG)  # in windows
    assert long is False


def test_the_view_is_what_the_bound_sees() -> None:
    """One draw by hand: tokens of the prompt clean, those behind it noisy."""
    model, process = network(causal=False), UniformProcess()
    window = all_windows(Trained(model), [([1, 2, 3], [0, 1])])[0]
    whole = Integral(Trained(model, process), 0, 0, 16, 64)
    seen = []
    call = Conditioned.__call__

    def spy(self: Conditioned, x_t: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        seen.append((self, x_t, sigma))
        return call(self, x_t, sigma, **more)

    with pytest.MonkeyPatch.context() as patch, evaluating(model):
        patch.setattr(Conditioned, "__call__", spy)
        whole.nats(window, 1, 0)
    ((view, x_t, sigma),) = seen
    assert view.known.tolist() == [True, True, True, False, False]
    assert view.tokens[:, :3].tolist() == [[1, 2, 3]] * 16
    assert x_t.shape == (16, 2)
    gone = 1 - (-sigma.double()).exp()
    strata = (gone / 0.999) ** (1 / 3) * 16
    assert strata.floor().tolist() == [1, *range(1, 16)]  # the first is below t = 1e-3
    assert gone.min().item() == pytest.approx(0.999e-3, rel=1e-4)
