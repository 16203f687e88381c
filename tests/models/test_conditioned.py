"""A network that knows part of a sequence: what it is over the rest, and that samplers obey it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from networks import randomised
from sddlm.exact import TabularModel, World, state_id, states, total_variation
from sddlm.models.conditioned import Conditioned
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.padding import PaddingMasked
from sddlm.objectives import NELBO
from sddlm.process import HybridProcess, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation

V, L, B = 7, 6, 5
KNOWN = torch.tensor([True, False, False, True, False, True])
UNKNOWN = (~KNOWN).nonzero()[:, 0]
TOKENS = torch.randint(0, V, (B, L), generator=torch.Generator().manual_seed(0))
X_T = torch.randint(0, V, (B, 3), generator=torch.Generator().manual_seed(1))
SIGMA = torch.tensor([0.01, 0.7, 4.2, 1.0, 0.2])
KINDS: list[dict[str, Any]] = [{}, {"input_conv": 3}, {"time_input": "none"}, {"causal": True}]


def network(**changes: Any) -> DiT:
    """Every parameter random, float64."""
    values = {"vocab_size": V, "length": L, "width": 16, "blocks": 2, "heads": 2, "cond_dim": 8}
    return randomised(DiT(DiTConfig(**{**values, **changes})).double())


def filled(tokens: Tensor, x_t: Tensor) -> Tensor:
    """Whole sequences, place by place."""
    whole = tokens.expand(len(x_t), -1).tolist()
    for row, some in zip(whole, x_t.tolist(), strict=True):
        for place, token in zip(UNKNOWN.tolist(), some, strict=True):
            row[place] = token
    return torch.tensor(whole)


@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1]], ids=["each", "one"])
def test_it_is_the_network_at_the_unknown_positions(changes: Any, tokens: Tensor) -> None:
    model = network(**changes)
    view = Conditioned(model, tokens, KNOWN)
    expected = model(filled(tokens, X_T), SIGMA)[:, UNKNOWN]
    before = tokens.clone()
    torch.testing.assert_close(view(X_T, SIGMA), expected)
    rows = torch.tensor([0, 4, 5, 11, 12, 14])
    torch.testing.assert_close(view(X_T, SIGMA, rows=rows), expected.flatten(0, 1)[rows])
    assert torch.equal(tokens, before)
    anything = torch.where(KNOWN, tokens, (tokens + 1) % V)
    assert torch.equal(Conditioned(model, anything, KNOWN)(X_T, SIGMA), view(X_T, SIGMA))


def test_the_known_tokens_of_one_serve_any_number_of_sequences() -> None:
    view = Conditioned(network(), TOKENS[:1], KNOWN)
    torch.testing.assert_close(view(X_T[1:3], SIGMA[1:3]), view(X_T, SIGMA)[1:3])


def test_a_causal_network_takes_the_first_of_the_unknown_positions() -> None:
    view = Conditioned(network(causal=True), TOKENS, KNOWN)
    for m in (1, 2):
        torch.testing.assert_close(view(X_T[:, :m], SIGMA), view(X_T, SIGMA)[:, :m])
    sampler = Autoregressive(bos_id=3, truncation=Truncation(temperature=0.01))
    model = network(causal=True)
    prompt = Conditioned(model, torch.tensor([[5, 2, 0, 0, 0]]), torch.arange(5) < 2)
    how: Any = {"process": UniformProcess(), "estimate": Estimate.NEXT_TOKEN}
    made = sampler.sample(prompt, batch=2, length=3, **how).tokens
    text = [5, 2, 3]
    for _ in range(2):
        hidden = model(torch.tensor([text]), torch.zeros(1))[0, -1:]
        text.append(int(model.head.logits(hidden).argmax()))
    assert made.tolist() == [text[2:]] * 2


def test_wrong_shapes_are_refused() -> None:
    model = network()
    for tokens, known in ((TOKENS, KNOWN[1:]), (TOKENS, KNOWN.long()), (TOKENS[0], KNOWN)):
        with pytest.raises(ValueError, match=r"tokens must be \[B, L\] and known \[L\] bool"):
            Conditioned(model, tokens, known)
    with pytest.raises(ValueError, match="no position is unknown"):
        Conditioned(model, TOKENS, torch.ones_like(KNOWN))
    view = Conditioned(model, TOKENS, KNOWN)
    for x_t in (X_T[:3], X_T[:, :2], X_T.repeat(1, 2), X_T[:, :0]):
        with pytest.raises(ValueError, match="x_t must be"):
            view(x_t, SIGMA[: len(x_t)])


def test_the_view_has_what_the_network_has() -> None:
    for changes in KINDS:
        model = network(**changes)
        view = Conditioned(model, TOKENS, KNOWN)
        assert view.length == 3
        for name in ("vocab_size", "head", "causal", "time_free"):
            assert getattr(view, name) == getattr(model, name)
        for name in ("modules", "parameters", "buffers"):
            assert list(getattr(view, name)()) == list(getattr(model, name)())
    assert Conditioned(TabularModel(torch.zeros(4, 2, 2), vocab_size=2, length=2), TOKENS[:, :2],
                 KNOWN[:2]).time_free is False  # fmt: skip


def test_views_lie_on_each_other() -> None:
    """Padding behind the known tokens, and known tokens of a view."""
    model = network()
    attention_mask = torch.arange(L) < 5
    padded = Conditioned(PaddingMasked(model, attention_mask[None]), TOKENS, KNOWN)
    cut = Conditioned(model, TOKENS[:, :5], KNOWN[:5])
    torch.testing.assert_close(padded(X_T, SIGMA), cut(X_T, SIGMA))
    twice = Conditioned(
        Conditioned(model, TOKENS, KNOWN), TOKENS[:, UNKNOWN], torch.tensor([True, False, True])
    )
    once = Conditioned(model, TOKENS, torch.arange(L) != 2)
    torch.testing.assert_close(twice(X_T[:, :1], SIGMA), once(X_T[:, :1], SIGMA))


@pytest.mark.slow
@pytest.mark.parametrize("changes", KINDS[:3], ids=str)
def test_lazy_and_ancestral_draw_the_same(changes: dict[str, Any]) -> None:
    """Lazy calls only the sequences that still change."""
    view = Conditioned(network(**changes), TOKENS[:1], KNOWN)
    how: Any = {"process": UniformProcess(), "estimate": Estimate.LEAVE_ONE_OUT, "seed": 4}
    lazy, plain = (
        sampler.sample(view, batch=60, length=3, **how)
        for sampler in (Lazy(steps=20), Ancestral(steps=20))
    )
    assert torch.equal(lazy.tokens, plain.tokens)
    assert lazy.nfe.sum() < plain.nfe.sum()
    assert lazy.tokens.shape == (60, 3)


def test_an_objective_and_its_bound_work_on_it() -> None:
    view = Conditioned(network(), TOKENS, KNOWN)
    loss = NELBO().loss(view, X_T, Draw.simple(3, 5, B))
    assert loss.count == X_T.numel()
    loss.total.backward()
    assert next(view.parameters()).grad is not None
    assert (NELBO().bound(view, X_T, Draw.simple(3, 5, B)) > 0).any()


WORLD = World.random(3, 4, seed=5, concentration=0.7)
PLACES = torch.tensor([False, True, True, False])  # known
GIVEN = torch.tensor([[0, 2, 1, 0]])


def conditional_world() -> World:
    """The law of the unknown positions given the known ones, by counting."""
    x = states(3, 4)
    fits = (x[:, PLACES] == GIVEN[0, PLACES]).all(1)
    p = WORLD.probabilities[fits]
    return World(p / p.sum(), 3, 2)


class OfTheWhole(TabularModel):
    """Exact for the conditional problem, called with whole sequences."""

    def forward(self, x_t: Tensor, sigma: Tensor, *, rows: Tensor | None = None) -> Tensor:
        assert (x_t[:, PLACES] == GIVEN[0, PLACES]).all(), "known tokens have changed"
        out = torch.zeros(*x_t.shape, self.vocab_size, dtype=torch.float64)
        out[:, ~PLACES] = super().forward(x_t[:, ~PLACES], sigma)
        return out if rows is None else out.flatten(0, 1)[rows]


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [Estimate.LEAVE_ONE_OUT, Estimate.DENOISER])
@pytest.mark.parametrize(
    "process", [UniformProcess(), MaskedProcess(), HybridProcess(uniform=0.4)], ids=str
)
def test_samples_follow_the_conditional_law(process: Process, estimate: Estimate) -> None:
    """The better the more steps; 10,000 samples of 9 states miss it by 0.01."""
    world = conditional_world()
    model = OfTheWhole(
        world.optimum(estimate, process), vocab_size=3 + process.extra_tokens, length=2
    )
    view = Conditioned(model, GIVEN, PLACES)
    gaps = []
    for steps in (2, 8, 32):
        for sampler in (Ancestral(steps=steps), Lazy(steps=steps)):
            made = sampler.sample(view, process=process, estimate=estimate, batch=10_000, length=2)
            law = torch.bincount(state_id(made.tokens, 3), minlength=9) / 10_000
            gaps.append(total_variation(law, world.probabilities))
    few, some, many = gaps[0], gaps[2], gaps[4]
    assert gaps[1::2] == gaps[::2]
    assert many < 0.02
    assert many < some < few
    whole = WORLD.probabilities.reshape(3, 3, 3, 3).sum((1, 2)).flatten()  # no condition at all
    assert total_variation(whole, world.probabilities) > 0.1
