"""What the samplers do is what they declare: every transition against the kernel, with numbers."""

from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sddlm.errors import ConfigError
from sddlm.exact import TabularModel, World, state_id, states
from sddlm.models.layers import select_rows
from sddlm.process import (
    HybridProcess,
    LogLinear,
    MaskedProcess,
    MixtureProcess,
    Process,
    UniformProcess,
)
from sddlm.process.estimate import Estimate
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.first_hitting import FirstHitting
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.psi import Psi
from sddlm.sampling.truncation import Truncation
from sddlm.types import Samples

WORLD = World.random(3, 2, seed=5, concentration=0.7)
SHARP = Truncation(temperature=0.8, top_p=0.9, tail_cut=0.2)
LOO = Estimate.LEAVE_ONE_OUT
# much is left at t = 1, so that a few steps meet all cases
PROCESSES = [UniformProcess(LogLinear(0.2)), MaskedProcess(), HybridProcess(uniform=0.4)]
PROCESSES += [MixtureProcess(uniform=0.4)]
name_of = lambda value: type(value).__name__  # noqa: E731


class Always(Psi):
    """Psi, but every position meets the network."""

    def ask(self, run, x, cells, kappa, draw):  # type: ignore[no-untyped-def]
        cells, _, fresh = super().ask(run, x, cells, kappa, draw)
        return cells, ~fresh, fresh


def tabular(process: Process, estimate: Estimate = LOO) -> TabularModel:
    return TabularModel(
        WORLD.optimum(estimate, process), vocab_size=3 + process.extra_tokens, length=2
    )


def history(
    sampler: Ancestral, process: Process, count: int, *, estimate: Estimate = LOO, seed: int = 0
) -> list[Tensor]:
    """Tokens ``[B, L]`` after each step."""
    seen: list[Tensor] = []
    sampler.sample(
        tabular(process, estimate),
        process=process,
        estimate=estimate,
        batch=count,
        length=2,
        seed=seed,
        on_step=lambda n, t, x: seen.append(x.clone()),
    )
    return seen


def check(counts: Tensor, law: Tensor) -> None:
    """Chi-square of counts, rare cells in one, and nothing where nothing can be."""
    assert counts[law < 1e-12].sum() == 0
    expected = law / law.sum() * counts.sum()
    common = expected >= 5
    observed, wanted = (
        torch.cat((values[common].double(), values[~common].double().sum(0, keepdim=True)))
        for values in (counts, expected)
    )
    if wanted[-1] < 5:
        observed, wanted = observed[:-1], wanted[:-1] * observed[:-1].sum() / wanted[:-1].sum()
    assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-4


SAMPLERS: list[Callable[..., Ancestral]] = [
    Ancestral,
    Lazy,
    lambda **more: Psi(kappa="0", **more),
    lambda **more: Psi(kappa="0.4", **more),
    lambda **more: Psi(kappa="cap:0.3", **more),
    lambda **more: Psi(kappa="0.8+remdm:0.1+0.2", hold=0.5, segments=(0.4, 0.4), **more),
]
NAMES = ["ancestral", "lazy", "corrector", "mixed", "cap", "held"]


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["sample", "greedy", "sharp"])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
@pytest.mark.parametrize("make", SAMPLERS, ids=NAMES)
def test_every_transition_is_the_kernels(
    make: Callable[..., Ancestral], process: Process, tail: str
) -> None:
    truncation = SHARP if tail == "sharp" else Truncation()
    sampler = make(steps=4, tail=tail.replace("sharp", "sample"), truncation=truncation)
    V = 3 + process.extra_tokens
    _, alphas = sampler.grid(process.schedule)
    after = history(sampler, process, 25_000, seed=1)
    for number in range(2, 5):  # of the first, the prior is tested by the process
        alpha_t, alpha_s = alphas[number - 1], alphas[number]
        p = truncation(WORLD.leave_one_out(alpha_t.item(), process).clamp(min=1e-300).log())
        kernel = sampler.kernel(number, process, p, states(V, 2), alpha_t, alpha_s)  # [S, L, V]
        joint = (kernel[:, 0, :, None] * kernel[:, 1, None, :]).flatten(1)  # [S, S]
        source, target = (state_id(x, V) for x in after[number - 2 : number])
        start = torch.bincount(source, minlength=V**2)
        counts = torch.bincount(source * V**2 + target, minlength=V**4).view(V**2, V**2)
        check(counts.flatten(), (start[:, None] * joint).flatten() / 25_000)
    assert (after[-1] < 3).all()


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["sample", "greedy", "sharp"])
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
@pytest.mark.parametrize("kappa", ["0", "0.3", "1", "1+remdm:0.2+0.5"])
def test_asking_everywhere_changes_no_token(kappa: str, process: Process, tail: str) -> None:
    options = {
        "steps": 9,
        "kappa": kappa,
        "tail": tail.replace("sharp", "sample"),
        "truncation": SHARP if tail == "sharp" else Truncation(),
        "hold": 0.5,
    }
    made = [history(kind(**options), process, 300) for kind in (Psi, Always)]  # type: ignore[arg-type]
    for lazy, asked in zip(*made, strict=True):
        assert torch.equal(lazy, asked)
    if kappa == "1":
        options.pop("kappa")
        options.pop("hold")
        plain = history(Ancestral(**options), process, 300)  # type: ignore[arg-type]
        for a, b in zip(plain, history(Psi(kappa="1", **options), process, 300), strict=True):  # type: ignore[arg-type]
            assert torch.equal(a, b)


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_a_denoiser_is_read_as_leave_one_out(process: Process) -> None:
    a, b = (
        history(Psi(steps=6, kappa="0.5"), process, 500, estimate=estimate)
        for estimate in (LOO, Estimate.DENOISER)
    )
    assert torch.equal(a[-1], b[-1])


class Independent(nn.Module):
    """All tokens but the mask equally likely, whatever the others; remembers its calls."""

    def __init__(self, vocab_size: int, extra: int = 0) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.extra = extra
        self.head = self
        self.calls: list[Tensor] = []
        self.sigmas: list[Tensor] = []

    def forward(self, x_t: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        self.calls.append(x_t.clone())
        self.sigmas.append(sigma)
        return select_rows(torch.zeros(*x_t.shape, 1), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        logits = torch.zeros(len(hidden), self.vocab_size)
        if self.extra:
            logits[:, -self.extra :] = -torch.inf
        return logits


def asked(sampler: Ancestral, process: Process, B: int, L: int) -> Samples:
    V = 5 + process.extra_tokens
    model = Independent(V, process.extra_tokens)
    out = sampler.sample(model, process=process, estimate=LOO, batch=B, length=L)
    assert sum(map(len, model.calls)) == out.nfe.sum()
    return out


def test_only_what_needs_an_answer_is_asked() -> None:
    B, L, steps = 64, 32, 10
    process = UniformProcess()
    _, alphas = Psi(steps=steps).grid(process.schedule)
    bound = process.jump_bound(torch.tensor(0), alphas[:-1], alphas[1:], vocab_size=5)
    for kappa in (0.0, 0.6, 1.0):
        # a guess of x0 is asked with alpha_s, a posterior position with the bound, noise never
        share = kappa * bound + (1 - kappa) * alphas[1:]
        rows = asked(Psi(steps=steps, kappa=str(kappa)), process, B, L).rows.double().mean() / L
        spread = (share * (1 - share)).sum().sqrt() / (B * L) ** 0.5
        assert abs(rows - share.sum()) < 4 * spread
    # under a mask a clean token is never asked: alone what is masked and to be revealed
    masked = MaskedProcess()
    revealed = asked(Psi(steps=steps, kappa="1"), masked, B, L)
    assert (revealed.rows == L).all()
    again = asked(Psi(steps=steps, kappa="0"), masked, B, L)
    _, alphas = Psi(steps=steps).grid(masked.schedule)
    before = torch.cat((torch.zeros(1), alphas[1:-1]))  # share of clean tokens before each step
    assert abs(again.rows.double().mean() / L - ((1 - before) * alphas[1:]).sum()) < 0.1


@pytest.mark.parametrize("sampler", [Psi(steps=8, kappa="0.5"), FirstHitting()], ids=name_of)
def test_a_sequence_depends_on_seed_and_index_alone(sampler: Psi | FirstHitting) -> None:
    process = MaskedProcess()

    def run(count: int, first: int, seed: int = 1) -> Samples:
        return sampler.sample(
            tabular(process),
            process=process,
            estimate=LOO,
            batch=count,
            length=2,
            seed=seed,
            index=first,
        )

    whole = run(40, 0)
    parts = [run(n, i) for i, n in ((0, 1), (1, 32), (33, 7))]
    for name in ("tokens", "nfe", "rows"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    assert not torch.equal(run(40, 0, seed=2).tokens, whole.tokens)


@pytest.mark.parametrize("truncation", [Truncation(), SHARP], ids=["plain", "sharp"])
@pytest.mark.parametrize(("V", "L"), [(2, 4), (4, 3)])
def test_first_hitting_has_the_law(V: int, L: int, truncation: Truncation) -> None:
    world = World.random(V, L, seed=V, concentration=0.5)
    process = MaskedProcess()
    # under a mask the prediction does not depend on the noise level
    table = world.leave_one_out(0.5, process).clamp(min=1e-300).log()
    model = TabularModel(table, vocab_size=V + 1, length=L)
    out = FirstHitting(truncation).sample(
        model, process=process, estimate=LOO, batch=30_000, length=L, seed=3
    )
    # the law: all orders of revealing are equally likely
    p, x0 = truncation(table), states(V, L)
    orders = list(permutations(range(L)))
    exact = torch.zeros(V**L, dtype=torch.float64)
    for order in orders:
        x = torch.full_like(x0, V)
        path = torch.ones(V**L, dtype=torch.float64)
        for place in order:
            path *= p[state_id(x, V + 1), place].gather(1, x0[:, place, None])[:, 0]
            x[:, place] = x0[:, place]
        exact += path / len(orders)
    if truncation == Truncation():
        torch.testing.assert_close(exact, world.probabilities)
    check(torch.bincount(state_id(out.tokens, V), minlength=V**L), exact)


def test_first_hitting_asks_each_sequence_at_its_own_level() -> None:
    B, L = 500, 8
    process = MaskedProcess(LogLinear(0.1))
    model = Independent(6, 1)
    seen: list[tuple[int, float]] = []
    out = FirstHitting().sample(
        model,
        process=process,
        estimate=LOO,
        batch=B,
        length=L,
        on_step=lambda n, t, x: seen.append((n, t)),
    )
    assert seen == [(n, 1 - n / L) for n in range(1, L + 1)]
    assert (out.nfe == L).all()
    assert (out.rows == L).all()
    assert out.steps == L == FirstHitting().calls(L)
    assert (out.tokens < 5).all()
    for done, x in enumerate(model.calls):
        assert ((x == 5).sum(1) == L - done).all()
    level = 1 - torch.exp(-torch.stack(model.sigmas, 1).double())  # [B, L]
    assert (level.diff(dim=1) <= 0).all()
    assert level.max() < 0.9
    assert stats.kstest(level.flatten().numpy() / 0.9, "uniform").pvalue > 1e-3
    assert len(level[:, 0].unique()) == B


def test_first_hitting_needs_a_mask() -> None:
    for process in (UniformProcess(), HybridProcess()):
        with pytest.raises(ConfigError, match="use Lazy or Psi"):
            FirstHitting().sample(Independent(6), process=process, estimate=LOO, batch=1, length=2)
    with pytest.raises(ConfigError, match="use Autoregressive"):
        FirstHitting().sample(
            Independent(6), process=MaskedProcess(), estimate=Estimate.NEXT_TOKEN, batch=1, length=2
        )
