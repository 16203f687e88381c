"""Known tokens, padding, a text to begin from: the exact conditional law, whatever the batch."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.exact import Predictions, TabularModel, World, law, state_id, states, total_variation
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process import HybridProcess, LogLinear, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.adaptive import Adaptive
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.base import Sampler
from sddlm.sampling.condition import Condition
from sddlm.sampling.first_hitting import FirstHitting
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.psi import Psi
from sddlm.sampling.truncation import Truncation

ALL_THE_WAY = LogLinear(eps=1e-12)  # alpha = 1 - t
PROCESSES = [UniformProcess(ALL_THE_WAY), MaskedProcess(ALL_THE_WAY), HybridProcess(ALL_THE_WAY)]
WORLD = World.random(3, 3, seed=1, concentration=0.5)
LOO = Estimate.LEAVE_ONE_OUT
SHARP = Truncation(temperature=0.8, top_p=0.9, tail_cut=0.2)
name_of = lambda value: type(value).__name__  # noqa: E731


def conditioned(known: dict[int, int]) -> World:
    """The world in which these tokens are certain."""
    tokens = states(WORLD.vocab_size, WORLD.length)
    fits = torch.stack([tokens[:, at] == token for at, token in known.items()]).all(0)
    p = WORLD.probabilities * fits
    return World(p / p.sum(), WORLD.vocab_size, WORLD.length)


def score_of(world: World, process: Process, alpha: Tensor, x_t: Tensor) -> Tensor:
    """What a network that scores would say: its zero is the score of a uniform guess of x0."""
    V = world.vocab_size + process.extra_tokens
    guess = process.odds(alpha, V) + torch.arange(V).lt(world.vocab_size) / world.vocab_size
    logits = world.log_score(alpha.item(), process) - guess.log()
    return logits + guess.log().expand(logits.shape).gather(-1, x_t[..., None])


def read(estimate: Estimate, process: Process, world: World) -> Predictions:
    """A network's output read as samplers do."""

    def predictions(alpha: float) -> Tensor:
        a = torch.tensor(alpha, dtype=torch.float64)
        x_t = states(world.vocab_size + process.extra_tokens, world.length)
        if estimate is Estimate.SCORE:
            logits = score_of(world, process, a, x_t)
        else:
            logits = world.optimum(estimate, process)(alpha).clamp(min=1e-300).log()
        return to_leave_one_out(logits, estimate, process, x_t, a).softmax(-1)

    return predictions


@pytest.mark.slow
@pytest.mark.parametrize("known", [{0: 1}, {2: 0}, {1: 2}], ids=["prompt", "suffix", "middle"])
@pytest.mark.parametrize(
    "estimate", [LOO, Estimate.DENOISER, Estimate.SCORE], ids=lambda e: e.value
)
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_the_exact_law_converges_to_the_conditional_one(
    process: Process, estimate: Estimate, known: dict[int, int]
) -> None:
    world = conditioned(known)
    assert total_variation(world.probabilities, WORLD.probabilities) > 0.3
    p = read(estimate, process, world)
    errors = [
        total_variation(law(Ancestral(steps), process, p, known=known), world.probabilities)
        for steps in (48, 96)
    ]
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert errors[1] < 0.01


def test_a_single_blank_is_exact_in_one_step() -> None:
    known = {0: 1, 2: 0}
    world, process = conditioned(known), PROCESSES[0]
    found = law(Ancestral(1), process, read(LOO, process, world), known=known)
    assert total_variation(found, world.probabilities) < 1e-12


def test_a_network_that_takes_a_clean_prompt_for_a_noisy_one_is_off() -> None:
    """What is documented of networks that were trained on whole noisy sequences."""
    known = {0: 1}
    process, world = PROCESSES[0], conditioned(known)
    naive = law(Ancestral(128), process, WORLD.leave_one_out, known=known)
    assert total_variation(naive, world.probabilities) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_from_a_noisy_text_the_law_is_that_of_clean_texts_given_it(process: Process) -> None:
    """x_t ~ q(x_t), denoised from t: the data again, and given one x_t its posterior."""

    def predictions(alpha: float) -> Tensor:
        return WORLD.leave_one_out(alpha, process)

    t = 0.4
    alpha = process.schedule.alpha(torch.tensor(t, dtype=torch.float64)).item()
    noisy = WORLD.noisy(alpha, process)
    found = law(Ancestral(128), process, predictions, begin=noisy, t=t)
    assert total_variation(found, WORLD.probabilities) < 0.005
    one = torch.zeros_like(noisy)
    one[7] = 1
    V = WORLD.vocab_size + process.extra_tokens
    x_t, x0 = states(V, 3)[7], states(WORLD.vocab_size, 3)
    odds = process.odds(torch.tensor(alpha, dtype=torch.float64), V)
    seen = ((x0 == x_t) + odds[x_t]).prod(-1) * WORLD.probabilities
    found = law(Ancestral(128), process, predictions, begin=one, t=t)
    assert total_variation(found, seen / seen.sum()) < 0.01


def check(tokens: Tensor, exact: Tensor) -> None:
    """Chi-square of clean sequences ``[n, L]``."""
    counts = torch.bincount(state_id(tokens, 3), minlength=27).double()
    assert counts[exact < 1e-12].sum() == 0
    live = exact * len(tokens) >= 5
    observed, wanted = counts[live], exact[live]
    wanted = wanted / wanted.sum() * observed.sum()
    assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [Ancestral(6), Lazy(6), Lazy(6, "greedy", SHARP), Psi(6, kappa="0.5"), Psi(6, kappa="0")],
    ids=lambda s: f"{name_of(s)} {getattr(s, 'kappa', '')} {s.tail}",
)
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_samplers_have_the_law_of_their_kernel_at_unequal_conditions(
    process: Process, sampler: Ancestral
) -> None:
    """One batch: a prompt, a suffix, nothing known; each has its own law."""
    count = 3000
    given = torch.tensor([[1, 0, 0], [0, 0, 2], [0, 0, 0]]).repeat(count, 1)
    known = torch.tensor([[1, 0, 0], [0, 0, 1], [0, 0, 0]]).bool().repeat(count, 1)
    V = 3 + process.extra_tokens
    tokens = sampler.sample(
        TabularModel(
            lambda alpha: WORLD.leave_one_out(alpha, process),
            vocab_size=V,
            length=3,
            num_extra_tokens=process.extra_tokens,
        ),
        process=process,
        estimate=LOO,
        batch=3 * count,
        length=3,
        condition=Condition(given, known),
    ).tokens

    def predictions(alpha: float) -> Tensor:
        return sampler.truncation(WORLD.leave_one_out(alpha, process).log())

    for i, where in enumerate(({0: 1}, {2: 2}, {})):
        check(tokens[i::3], law(sampler, process, predictions, known=where))


def test_first_hitting_has_the_conditional_law_itself() -> None:
    process = MaskedProcess(ALL_THE_WAY)
    # under a mask the prediction does not depend on the noise level
    table = WORLD.leave_one_out(0.5, process).clamp(min=1e-300).log()
    model = TabularModel(table, vocab_size=4, length=3)
    count = 2000
    given = torch.tensor([[1, 0, 0], [0, 2, 0]]).repeat(count, 1)
    known = torch.tensor([[1, 0, 0], [0, 1, 0]]).bool().repeat(count, 1)
    drawn = FirstHitting().sample(
        model,
        process=process,
        estimate=LOO,
        batch=2 * count,
        length=3,
        condition=Condition(given, known),
    )
    check(drawn.tokens[::2], conditioned({0: 1}).probabilities)
    check(drawn.tokens[1::2], conditioned({1: 2}).probabilities)
    assert drawn.nfe.unique().tolist() == [2]


# --- networks: what is known stays, and the batch changes nothing -------------------------------

V, L = 40, 32
LENGTHS = [32, 20, 9, 32, 27, 1]


def network(extra: int = 0, *, causal: bool = False, time_free: bool = False) -> DiT:
    config = DiTConfig(
        vocab_size=V, length=L, width=48, heads=3, blocks=2, head_init=0.3,
        gate_init=0 if causal or time_free else 1, input_conv=5, causal=causal,
        time_input="none" if time_free else "sigma", num_extra_tokens=extra,
    )  # fmt: skip
    return DiT(config, seed=3)


def conditions(prompts: bool = False) -> Condition:
    """Six requests of unequal lengths and conditions."""
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, V - 1, (6, L), generator=generator)
    if prompts:
        known = torch.arange(L) < torch.tensor([3, 19, 1, 10, 2, 1])[:, None]
    else:
        known = (
            torch.rand(6, L, generator=generator)
            < torch.tensor([0.5, 0, 0.2, 0.9, 0.1, 0])[:, None]
        )
    return Condition(given, known, torch.tensor(LENGTHS))


SAMPLERS: list[tuple[Sampler, Process, dict[str, bool]]] = [
    (Lazy(6), UniformProcess(), {}),
    (Lazy(6, "greedy", SHARP), UniformProcess(), {"time_free": True}),
    (Ancestral(4, truncation=SHARP), UniformProcess(), {}),
    (Psi(6, kappa="0.3"), UniformProcess(), {}),
    (Adaptive(8, budget=2.0), UniformProcess(), {}),
    (Adaptive(8, "greedy", SHARP, budget=0.6, criterion="confidence"), UniformProcess(), {}),
    (Lazy(6), MaskedProcess(), {}),
    (Adaptive(8, budget=1.0), MaskedProcess(), {}),
    (FirstHitting(), MaskedProcess(), {}),
    (Autoregressive(), UniformProcess(), {"causal": True}),
]


#: every request alone or beside one other, and one batch that is nearly whole
BATCHES = [[0], [3], [5, 1], [4, 2], [2, 5, 0, 4, 1]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "process", "kind"), SAMPLERS, ids=lambda v: name_of(v) if v else ""
)
def test_a_request_is_the_same_whatever_else_is_in_its_batch(
    sampler: Sampler, process: Process, kind: dict[str, bool]
) -> None:
    compare_batches(sampler, process, kind, BATCHES)


def test_nor_does_a_batch_change_a_request_with_two_threads() -> None:
    torch.set_num_threads(2)
    try:
        compare_batches(Ancestral(2), UniformProcess(), {}, [[0], [5, 1]])
        compare_batches(Lazy(3), MaskedProcess(), {}, [[4, 3, 0]])
    finally:
        torch.set_num_threads(1)


def compare_batches(
    sampler: Sampler, process: Process, kind: dict[str, bool], batches: list[list[int]]
) -> None:
    """Six requests at once, and again in other batches; what is known stays."""
    model = network(process.extra_tokens, **kind)
    estimate = Estimate.NEXT_TOKEN if kind.get("causal") else LOO
    whole = conditions(prompts=kind.get("causal", False))
    assert whole.lengths is not None
    index = torch.tensor([5, 2**40, 7, 0, 3, 1])
    seen: list[Tensor] = []

    def draw(which: list[int]) -> tuple[Tensor, Tensor]:
        drawn = sampler.sample(
            model,
            process=process,
            estimate=estimate,
            batch=len(which),
            length=L,
            seed=4,
            index=index[which],
            condition=Condition(whole.given[which], whole.known[which], whole.lengths[which]),
            on_step=lambda n, t, x: seen.append(x.clone()),
        )
        return drawn.tokens, drawn.nfe

    tokens, nfe = draw([0, 1, 2, 3, 4, 5])
    history = torch.stack(seen)
    for which in batches:
        again, calls = draw(which)
        assert torch.equal(again, tokens[which])
        assert torch.equal(calls, nfe[which])
    known = whole.known
    assert torch.equal(history[:, known], whole.given[known].expand(len(history), -1))
    changed = (tokens != whole.given).sum(1) / whole.free.sum(1)
    assert (changed[:3] > 0.5).all()


def test_padding_is_not_looked_at() -> None:
    """Other tokens behind the end, or a longer row: the same text."""
    model, whole = network(), conditions()

    def draw(given: Tensor, known: Tensor, lengths: Tensor | None) -> Tensor:
        return (
            Lazy(12)
            .sample(
                model,
                process=UniformProcess(),
                estimate=LOO,
                batch=given.shape[0],
                length=given.shape[1],
                condition=Condition(given, known, lengths),
            )
            .tokens
        )

    first = draw(whole.given, whole.known, whole.lengths)
    other = draw((whole.given + 1 * ~whole.known) % V, whole.known, whole.lengths)
    for a, b, length in zip(first, other, LENGTHS, strict=True):
        assert torch.equal(a[:length], b[:length])
    exact = draw(whole.given[1:2, :20], whole.known[1:2, :20], None)
    row = draw(whole.given[1:2], whole.known[1:2], torch.tensor([20]))
    assert torch.equal(exact[0], row[0, :20])


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_lazy_draws_what_ancestral_draws(seed: int) -> None:
    model, whole = network(), conditions()
    begin = Condition(whole.given, whole.known, whole.lengths, t=0.1)
    for condition in (whole, begin):
        a, b = (
            sampler.sample(
                model,
                process=UniformProcess(),
                estimate=LOO,
                batch=6,
                length=L,
                seed=seed,
                condition=condition,
            )
            for sampler in (Ancestral(16), Lazy(16))
        )
        assert torch.equal(a.tokens, b.tokens)
        assert (b.nfe <= a.nfe).all()
        assert b.nfe.sum() < a.nfe.sum()
    assert (a.tokens == whole.given)[whole.free].double().mean() > 0.4  # little noise, few changes


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"known": torch.zeros(2, 3)}, "known bool"),
        ({"given": torch.zeros(2, 4).long()}, "given and known"),
        ({"lengths": torch.tensor([3, 4])}, "each 1 to 3"),
        ({"lengths": torch.tensor([3, 0])}, "each 1 to 3"),
        ({"lengths": torch.tensor([3])}, "lengths must be"),
        ({"t": 0.0}, "`t` is 0.0"),
        ({"t": float("nan")}, "`t` is nan"),
    ],
)
def test_wrong_conditions_are_refused(more: dict[str, object], said: str) -> None:
    right: dict[str, object] = {
        "given": torch.zeros(2, 3).long(),
        "known": torch.zeros(2, 3).bool(),
    }
    with pytest.raises((ValueError, ConfigError), match=said):
        Condition(**{**right, **more})  # type: ignore[arg-type]


def test_what_a_sampler_cannot_keep_to_is_refused() -> None:
    given, known = torch.zeros(1, L).long(), torch.zeros(1, L).bool()
    with pytest.raises(ValueError, match="but shape is"):
        Lazy(2).sample(
            network(), process=UniformProcess(), estimate=LOO, batch=2, length=L,
            condition=Condition(given, known),
        )  # fmt: skip
    known[0, 5] = True
    for condition, said in (
        (Condition(given, known), "reads only what is before"),
        (Condition(given, known, t=0.5), "cannot change a text"),
    ):
        with pytest.raises(ConfigError, match=said):
            Autoregressive().sample(
                network(causal=True), process=UniformProcess(), estimate=Estimate.NEXT_TOKEN,
                batch=1, length=L, condition=condition,
            )  # fmt: skip
