"""The shipped samplers: their law, their randomness, their bookkeeping."""

from math import expm1, log

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sddlm.errors import ConfigError
from sddlm.exact import TabularModel, World, law, state_id
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.layers import select_rows
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.hybrid import HybridProcess
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.base import sample_categorical
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation
from sddlm.types import Samples

PROCESS = UniformProcess()
WORLD = World.random(4, 2, seed=0, concentration=0.5)
SHARP = Truncation(temperature=0.8, top_p=0.9, tail_cut=0.2)
LOO = Estimate.LEAVE_ONE_OUT


def tabular(world: World = WORLD, estimate: Estimate = LOO) -> TabularModel:
    exact = world.denoiser if estimate is Estimate.DENOISER else world.leave_one_out
    return TabularModel(exact, vocab_size=world.vocab_size, length=world.length)


class Constant(nn.Module):
    """The same prediction everywhere: exact for independent, identically distributed tokens."""

    causal = False

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.vocab_size = len(p)
        self.register_buffer("log_p", p.log())
        self.head = self
        self.calls: list[int] = []

    def forward(self, x_t: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        assert sigma.shape == x_t.shape[:1]
        assert sigma.dtype == torch.float32
        assert not self.training
        self.calls.append(len(x_t))
        return select_rows(torch.zeros(*x_t.shape, 1), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        assert isinstance(self.log_p, Tensor)
        return self.log_p.expand(len(hidden), self.vocab_size)


def run(sampler: Ancestral, count: int, estimate: Estimate = LOO, **more: object) -> Samples:
    options: dict[str, object] = {"process": PROCESS, "batch": count, "length": 2, **more}
    return sampler.sample(tabular(estimate=estimate), estimate=estimate, **options)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["sample", "greedy"])
@pytest.mark.parametrize("truncation", [Truncation(), SHARP], ids=["plain", "sharp"])
@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER])
def test_the_law_is_the_exact_one(tail: str, truncation: Truncation, estimate: Estimate) -> None:
    for seed, kind in enumerate((Ancestral, Lazy)):
        sampler = kind(steps=5, tail=tail, truncation=truncation)  # type: ignore[arg-type]
        exact = law(sampler, PROCESS, lambda alpha: truncation(WORLD.leave_one_out(alpha).log()))
        possible = exact > 1e-12
        out = run(sampler, 20_000, estimate, seed=seed)
        counts = torch.bincount(state_id(out.tokens, 4), minlength=16)
        assert counts[~possible].sum() == 0
        expected = exact[possible] / exact[possible].sum() * len(out.tokens)
        assert stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["sample", "greedy"])
@pytest.mark.parametrize("truncation", [Truncation(), SHARP], ids=["plain", "sharp"])
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_lazy_is_ancestral_token_for_token(tail: str, truncation: Truncation, steps: int) -> None:
    made: dict[type, list[Tensor]] = {Ancestral: [], Lazy: []}
    for kind, seen in made.items():
        sampler = kind(steps=steps, tail=tail, truncation=truncation)
        out = run(sampler, 50, seed=3, on_step=lambda n, t, x, seen=seen: seen.append(x.clone()))
        assert torch.equal(out.tokens, seen[-1])
        assert len(seen) == out.steps == steps
    for a, b in zip(made[Ancestral], made[Lazy], strict=True):
        assert torch.equal(a, b)


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["sample", "greedy"])
@pytest.mark.parametrize("process", [MaskedProcess(), HybridProcess(), PROCESS])
def test_own_clocks_change_no_token_and_ask_less(process: Process, tail: str) -> None:
    B, V, steps = 8, 4 + process.extra_tokens, 60
    world = World.random(4, 3, seed=9, concentration=0.5)
    options: dict[str, object] = {
        "process": process,
        "estimate": LOO,
        "batch": B,
        "length": 3,
        "seed": 4,
    }
    made, asked = [], []
    for kind in (Ancestral, Lazy):
        model = TabularModel(world.optimum(LOO, process), vocab_size=V, length=3)
        batches: list[int] = []
        model.register_forward_hook(lambda m, x, out, b=batches: b.append(len(x[0])))
        out = kind(steps=steps, tail=tail, truncation=SHARP).sample(model, **options)  # type: ignore[arg-type]
        assert sum(batches) == out.nfe.sum()
        made.append(out.tokens)
        asked.append(len(batches))
    assert torch.equal(*made)
    # as many calls as the busiest sequence needs, not as steps at which any sequence does
    assert asked == [steps, int(out.nfe.max())]
    if process.extra_tokens and isinstance(process, MaskedProcess):
        assert (out.nfe <= 3).all()  # each token is revealed once, also by a greedy last step
        assert (out.rows == 3).all()


class TimeFree(nn.Module):
    """A network that looks at the tokens alone, and may say so."""

    def __init__(self, said: bool, vocab_size: int = 6) -> None:
        super().__init__()
        self.time_free, self.vocab_size, self.head = said, vocab_size, self
        self.table = torch.randn(vocab_size, vocab_size, generator=torch.Generator().manual_seed(0))
        self.seen: list[Tensor] = []

    def forward(self, x_t: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        self.seen += list(x_t)
        return select_rows(self.table[x_t.roll(1, 1)], rows)  # [B, L, D]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def test_a_time_free_network_is_asked_once_for_each_state() -> None:
    B, L, steps = 6, 8, 300
    options: dict[str, object] = {
        "process": PROCESS,
        "estimate": LOO,
        "batch": B,
        "length": L,
        "seed": 2,
    }
    states_seen: list[Tensor] = []
    models = {said: TimeFree(said) for said in (True, False)}
    out = {
        said: Lazy(steps=steps).sample(
            model,
            on_step=(lambda n, t, x: states_seen.append(x.clone())) if said else None,
            **options,  # type: ignore[arg-type]
        )
        for said, model in models.items()
    }
    assert torch.equal(out[True].tokens, out[False].tokens)
    assert torch.equal(out[True].rows, out[False].rows)
    # a state is asked for once at most: when a candidate comes before the next change
    changes = (torch.stack(states_seen).diff(dim=0) != 0).any(2).sum(0) + 1  # [B]
    assert (out[True].nfe <= changes + 1).all()
    assert (out[True].nfe < 0.8 * out[False].nfe).all()
    assert len(models[True].seen) == out[True].nfe.sum()


def test_the_plan_does_not_depend_on_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Lazy(steps=8), 10, seed=1)
    monkeypatch.setattr("sddlm.sampling.lazy.PLAN_CELLS", 60)  # three steps
    assert torch.equal(run(Lazy(steps=8), 10, seed=1).tokens, whole.tokens)


def test_a_sequence_depends_on_seed_and_index_alone() -> None:
    whole = run(Lazy(steps=8), 10, seed=1)
    again = run(Lazy(steps=8), 10, seed=1)
    assert torch.equal(whole.tokens, again.tokens)
    parts = [run(Lazy(steps=8), n, seed=1, index=i) for i, n in ((0, 3), (3, 7))]
    for name in ("tokens", "nfe", "rows"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))
    assert not torch.equal(run(Lazy(steps=8), 10, seed=2).tokens, whole.tokens)


@pytest.mark.slow
def test_bookkeeping() -> None:
    p = torch.full((6,), 1 / 6, dtype=torch.float64)
    B, L, steps = 32, 16, 200
    options = {"process": PROCESS, "estimate": LOO, "batch": B, "length": L}
    full = Constant(p)
    out = Ancestral(steps=steps).sample(full, **options)  # type: ignore[arg-type]
    assert (out.nfe == steps).all()
    assert (out.rows == steps * L).all()
    assert full.calls == [B] * steps
    assert out.seconds > 0
    lazy = Constant(p)
    out = Lazy(steps=steps).sample(lazy, **options)  # type: ignore[arg-type]
    assert sum(lazy.calls) == out.nfe.sum() < 0.6 * B * steps
    # a position is asked with probability jump_bound at each step
    _, alphas = PROCESS.schedule.grid(steps)
    bounds = PROCESS.jump_bound(torch.tensor(0), alphas[:-1], alphas[1:], vocab_size=6)
    expected, spread = bounds.sum(), (bounds * (1 - bounds)).sum().sqrt() / (B * L) ** 0.5
    assert abs(out.rows.double().mean() / L - expected) < 4 * spread
    assert expected < 2 * log(steps) + 2
    greedy = Lazy(steps=steps, tail="greedy").sample(Constant(p), **options)  # type: ignore[arg-type]
    assert (greedy.rows >= L).all()


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(Ancestral(steps=4), 9)
    monkeypatch.setattr("sddlm.sampling.base.CHUNK_BYTES", 8 * 4 * 5)  # five rows
    assert torch.equal(run(Ancestral(steps=4), 9).tokens, whole.tokens)


def test_leaves_the_model_as_it_was() -> None:
    model = tabular()
    model.train()
    model.head.eval()
    times: list[tuple[int, float]] = []
    out = Ancestral(steps=2).sample(
        model,
        process=PROCESS,
        estimate=LOO,
        batch=3,
        length=2,
        on_step=lambda n, t, x: times.append((n, t)),
    )
    assert times == [(1, 0.5), (2, 0.0)]
    assert model.training
    assert not model.head.training
    assert not out.tokens.is_inference()

    def fail(n: int, t: float, x: Tensor) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        Lazy(steps=1).sample(model, process=PROCESS, estimate=LOO, batch=1, length=2, on_step=fail)
    assert model.training


def test_inputs_are_not_written_to() -> None:
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    model = Constant(p)
    before = model.log_p.clone()
    for estimate in (LOO, Estimate.DENOISER):
        Ancestral(steps=3, truncation=SHARP).sample(
            model, process=PROCESS, estimate=estimate, batch=2, length=3
        )
    assert torch.equal(model.log_p, before)


@pytest.mark.parametrize("kind", [Ancestral, Lazy])
def test_wrong_choices(kind: type[Ancestral]) -> None:
    with pytest.raises(ConfigError, match="`steps`"):
        kind(steps=0)
    with pytest.raises(ConfigError, match="`tail`"):
        kind(tail="none")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="use Autoregressive"):
        run(kind(steps=1), 1, estimate=Estimate.NEXT_TOKEN)


def test_pick_inverts_the_distribution_function() -> None:
    p = torch.tensor([[0.0, 0.25, 0.0, 0.75, 0.0]], dtype=torch.float64)
    u = torch.tensor([0, 0.2499, 0.25, 0.9, 1 - 2**-53], dtype=torch.float64)
    assert sample_categorical(p.expand(5, 5), u).tolist() == [1, 1, 3, 3, 3]
    assert sample_categorical(3 * p.expand(5, 5), u).tolist() == [1, 1, 3, 3, 3]
    assert sample_categorical(p[:0], u[:0]).shape == (0,)


def test_rare_tokens_keep_their_mass_where_float32_noise_drops_them() -> None:
    # 1000 steps; a token of mass 1e-7; in one step it is drawn with about 1e-10
    steps, rare = 1000, 1e-7
    p = torch.full((1, 1001), rare, dtype=torch.float64)
    p[0, 0] = 1 - 1000 * rare
    # two stages: the share of all u that lead to the token is its mass to nine digits
    low = p[0, :500].sum()
    for inside, shift in ((False, -1e-6), (True, 1e-6), (True, 1 - 1e-6), (False, 1 + 1e-6)):
        token = sample_categorical(p, (low + shift * rare)[None])
        assert (token.item() == 500) is inside
    redraw, predict = PROCESS.jump(
        p[0, :1],
        torch.tensor([0]),
        torch.tensor(0.5),
        torch.tensor(0.5 + 1 / steps),
        vocab_size=1001,
    )
    leave = predict.item()  # a scalar decision, resolved to 2^-53
    assert leave * rare > 1e3 * 2**-53
    # argmax p / -log(u + 1e-10) with float32 u in [0, 1): the largest u is 1 - 2^-24
    best_of_rare = leave * rare / -log(1 - 2**-24)
    worst_of_staying = (1 - leave - redraw.item()) / -log(1e-10)
    assert best_of_rare < worst_of_staying / 10  # so it is never drawn, at any step


@pytest.mark.slow
def test_tail_mass_at_many_steps() -> None:
    # a class of mass q against a heavy one wins h / (exp(h/q) - 1) of the draws whose uniform
    # numbers lie on a grid of h: of these 127 tokens float32 (h = 2^-24) keeps 7.5 %
    mass, steps = 1.5e-5, 1000
    kept_by_float32 = 2**-24 / expm1(2**-24 / (mass / steps)) / (mass / steps)
    p = torch.full((128,), mass, dtype=torch.float64)
    p[0] = 1 - 127 * mass
    out = Lazy(steps=steps).sample(
        Constant(p), process=PROCESS, estimate=LOO, batch=16, length=2000, seed=0
    )
    hits = (out.tokens > 0).sum().item()
    expected = out.tokens.numel() * 127 * mass
    assert abs(hits - expected) < 4 * expected**0.5
    assert hits > 4 * kept_by_float32 * expected


class Bigram(nn.Module):
    """A causal model: the next token depends on the last."""

    causal = True

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.vocab_size = len(table)
        self.table = nn.Parameter(table.log())
        self.head = self

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        assert (sigma == 0).all()
        return self.table[x_t]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


def test_autoregressive() -> None:
    table = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25], [0.2, 0.2, 0.6]])
    options = {"process": PROCESS, "estimate": Estimate.NEXT_TOKEN, "seed": 1}
    seen: list[tuple[int, float]] = []
    out = Autoregressive(bos_id=2).sample(
        Bigram(table),
        batch=20_000,
        length=3,
        on_step=lambda n, t, x: seen.append((n, t)),
        **options,  # type: ignore[arg-type]
    )
    assert seen == [(1, 0.5), (2, 0.0)]
    assert (out.tokens[:, 0] == 2).all()
    assert (out.nfe == 2).all()
    assert out.steps == 2
    counts = torch.bincount(out.tokens[:, 1] * 3 + out.tokens[:, 2], minlength=9)
    expected = (table[2][:, None] * table).flatten().double()
    assert stats.chisquare(counts.numpy(), (expected / expected.sum() * 20_000).numpy())[1] > 1e-3
    one = Autoregressive(bos_id=2).sample(
        Bigram(table),
        batch=1,
        length=3,
        index=7,
        **options,  # type: ignore[arg-type]
    )
    assert torch.equal(one.tokens[0], out.tokens[7])


def test_autoregressive_errors() -> None:
    model = Bigram(torch.full((3, 3), 1 / 3))
    with pytest.raises(ConfigError, match="`bos_id`"):
        Autoregressive(bos_id=3).sample(
            model, process=PROCESS, estimate=Estimate.NEXT_TOKEN, batch=1, length=2
        )
    with pytest.raises(ConfigError, match="use Lazy"):
        Autoregressive().sample(model, process=PROCESS, estimate=LOO, batch=1, length=2)


class Uncached(nn.Module):
    """A causal network that offers no cache."""

    causal = True

    def __init__(self, model: DiT) -> None:
        super().__init__()
        self.model = model
        self.vocab_size, self.head = model.vocab_size, model.head

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        return self.model(x_t, sigma)


@pytest.mark.slow
@pytest.mark.parametrize("input_conv", [0, 3])
def test_a_cache_changes_no_token(input_conv: int) -> None:
    config = DiTConfig.preset(
        "mini", vocab_size=27, length=24, causal=True, head_init=0.3, input_conv=input_conv
    )
    model = DiT(config).double()
    widths: list[int] = []
    model.embedding.register_forward_hook(lambda m, args, out: widths.append(out.shape[1]))
    options = {
        "process": PROCESS,
        "estimate": Estimate.NEXT_TOKEN,
        "batch": 5,
        "length": 24,
        "seed": 2,
    }
    cached = Autoregressive().sample(model, **options)  # type: ignore[arg-type]
    assert widths == [1] * 23
    whole = Autoregressive().sample(Uncached(model), **options)  # type: ignore[arg-type]
    assert widths[23:] == list(range(1, 24))
    assert torch.equal(cached.tokens, whole.tokens)
    assert len(cached.tokens.unique()) > 10
