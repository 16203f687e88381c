"""Sampling in float32: the same law where tokens are few, the artefact where they are many."""

from __future__ import annotations

from itertools import pairwise
from math import exp, expm1

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from sddlm.errors import ConfigError
from sddlm.exact import TabularModel, World, law, state_id
from sddlm.models.layers import select_rows
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess
from sddlm.sampling import float32 as module
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.float32 import Float32, draw_float32
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation

WORLD = World.random(4, 2, seed=0, concentration=0.5)
SHARP = Truncation(temperature=0.8, top_p=0.9, tail_cut=0.2)
LOO = Estimate.LEAVE_ONE_OUT


class Constant(nn.Module):
    """The same prediction everywhere."""

    def __init__(self, p: Tensor) -> None:
        super().__init__()
        self.vocab_size = len(p)
        self.log_p = p.log()
        self.head = self

    def forward(self, x_t: Tensor, sigma: Tensor, rows: Tensor | None = None) -> Tensor:
        return select_rows(torch.zeros(*x_t.shape, 1), rows)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.log_p.expand(len(hidden), self.vocab_size)


@pytest.mark.slow
@pytest.mark.parametrize("tail", ["sample", "greedy"])
@pytest.mark.parametrize("truncation", [Truncation(), SHARP], ids=["plain", "sharp"])
@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER])
def test_the_law_is_the_exact_one_where_no_token_is_rare(
    tail: str, truncation: Truncation, estimate: Estimate
) -> None:
    process = UniformProcess()
    sampler = Float32(steps=5, tail=tail, truncation=truncation)  # type: ignore[arg-type]
    exact = law(sampler, process, lambda alpha: truncation(WORLD.leave_one_out(alpha).log()))
    table = WORLD.denoiser if estimate is Estimate.DENOISER else WORLD.leave_one_out
    model = TabularModel(table, vocab_size=4, length=2)
    out = sampler.sample(model, process=process, estimate=estimate, batch=10_000, length=2, seed=1)
    counts = torch.bincount(state_id(out.tokens, 4), minlength=16)
    possible = exact > 1e-12
    assert counts[~possible].sum() == 0
    expected = exact[possible] / exact[possible].sum() * len(out.tokens)
    assert stats.chisquare(counts[possible].numpy(), expected.numpy()).pvalue > 1e-3


def test_masks_are_never_written_and_text_stays() -> None:
    process, world = MaskedProcess(), World.random(4, 3, seed=9)
    model = TabularModel(world.optimum(LOO, process), vocab_size=5, length=3)
    seen: list[Tensor] = []
    Float32(20).sample(
        model, process=process, estimate=LOO, batch=200, length=3,
        on_step=lambda n, t, x: seen.append(x.clone()),
    )  # fmt: skip
    assert (seen[-1] < 4).all()
    for before, after in pairwise(seen):
        assert ((before == after) | (before == 4)).all()


def test_a_sequence_depends_on_seed_and_index_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(count: int = 10, seed: int = 1, first: int = 0) -> Tensor:
        p = torch.full((50,), 0.02, dtype=torch.float64)
        return Float32(6).sample(
            Constant(p), process=UniformProcess(), estimate=LOO, batch=count, length=7, seed=seed,
            index=first,
        ).tokens  # fmt: skip

    whole = run()
    assert torch.equal(run(), whole)
    assert torch.equal(torch.cat([run(3), run(7, first=3)]), whole)
    assert not torch.equal(run(seed=2), whole)
    monkeypatch.setattr(module, "NOISE", 50 * 9)
    assert torch.equal(run(), whole)


@pytest.mark.slow
@pytest.mark.parametrize("rare", [0.2, 1.0, 3.0])
def test_a_rare_token_loses_by_the_formula(monkeypatch: pytest.MonkeyPatch, rare: float) -> None:
    """On a grid of 2^-12, where it takes few draws to see: h / (exp(h / q) - 1), not q."""
    monkeypatch.setattr(module, "BITS", 12)
    h, classes, draws = 2.0**-12, 64, 200_000
    q = h / rare
    p = torch.full((classes + 1,), q, dtype=torch.float64)
    p[0] = 1.0
    generator = torch.Generator().manual_seed(0)
    wins = 0
    for _ in range(8):
        u = torch.rand(draws // 8, classes + 1, generator=generator, dtype=torch.float64)
        wins += int((draw_float32(p.expand(len(u), -1), u) > 0).sum())
    # the stay class is on the grid too; of two rare ones that would win only one does
    alone = h / expm1(rare)
    expected = -expm1(-classes * alone) * draws
    assert wins == pytest.approx(expected, abs=4 * expected**0.5 + 0.02 * expected)
    exact = classes * q / (1 + classes * q) * draws
    assert abs(exact - expected) > 5 * expected**0.5


def test_float32_has_no_number_that_a_rare_token_needs() -> None:
    """With the best noise that there is, mass q wins only where staying drew exp(-h / q)."""
    h = 2.0**-24
    q = h / 6
    p = torch.tensor([[1.0, q]], dtype=torch.float64)
    best = 1 - 2.0**-53  # becomes 1 - 2^-24
    for factor, token in ((0.98, 1), (1.02, 0)):
        u = torch.tensor([[exp(-h / q) * factor, best]], dtype=torch.float64)
        assert draw_float32(p, u).item() == token
    # in truth it would win whatever staying drew
    assert q / -torch.tensor(best, dtype=torch.float64).log() > 1 / -torch.tensor(0.99).log()


def zipf(vocab_size: int) -> Tensor:
    p = 1 / torch.arange(1, vocab_size + 1, dtype=torch.float64)
    return p / p.sum()


def drawn(kind: type[Ancestral], process: Process, length: int) -> tuple[Tensor, Tensor]:
    """Surprise of each token ``[N]`` and how often each position changed ``[N]``, Zipf's law."""
    p = zipf(200)
    model = Constant(torch.cat([p, torch.zeros(process.extra_tokens)]))
    seen: list[Tensor] = []
    out = kind(200).sample(
        model, process=process, estimate=LOO, batch=8, length=length, seed=3,
        on_step=lambda n, t, x: seen.append(x.clone()),
    )  # fmt: skip
    changes = (torch.stack(seen).diff(dim=0) != 0).sum(0)
    return -p.log()[out.tokens.flatten()], changes.flatten().double()


def off(found: Tensor, truth: float) -> float:
    """How many standard errors the mean lies above."""
    return float((found.mean() - truth) / (found.std() / len(found) ** 0.5))


@pytest.mark.slow
def test_under_masks_coarse_noise_drops_rare_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grid of 2^-12 does at 200 steps and 200 tokens what 2^-24 does at 4096 times as many."""
    monkeypatch.setattr(module, "BITS", 12)
    p = zipf(200)
    entropy = float(-(p * p.log()).sum())
    assert off(drawn(Float32, MaskedProcess(), 40)[0], entropy) < -8
    assert abs(off(drawn(Lazy, MaskedProcess(), 1000)[0], entropy)) < 3.5


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "higher"), [(24, False), (12, False), (10, True)])
def test_under_uniform_noise_it_also_leaves_noise_as_it_was(
    bits: int, higher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer changes, the new noise among them; at the extreme the first noise stays as text."""
    monkeypatch.setattr(module, "BITS", bits)
    p = zipf(200)
    exact, changes = drawn(Lazy, UniformProcess(), 400)
    surprise, fewer = drawn(Float32, UniformProcess(), 40)
    entropy = float(-(p * p.log()).sum())
    assert abs(off(exact, entropy)) < 3.5
    lost = off(fewer, float(changes.mean()))
    assert abs(lost) < 3.5 if bits == 24 else lost < -6
    assert (off(surprise, entropy) > 5) is higher


def test_wrong_choices() -> None:
    with pytest.raises(ConfigError, match="`steps`"):
        Float32(0)
