"""Padding: what stands there changes nothing elsewhere, and a row is what it is without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from networks import randomised
from sddlm.models.conditioned import Conditioned
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.padding import PaddingMasked, hide_padding
from sddlm.objectives import (
    D3PM,
    MDLM,
    NELBO,
    SDDLM,
    SDDLMV1,
    SEDD,
    Autoregressive,
    DuoCurriculum,
    NaiveDenoising,
)
from sddlm.objectives.negatives import SequenceNegatives
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.lazy import Lazy
from sddlm.types import SoftTokens

V, L = 11, 8
LENGTHS = [8, 5, 1, 7]
B = len(LENGTHS)
KINDS: list[dict[str, Any]] = [
    {},
    {"input_conv": 5},
    {"time_input": "none"},
    {"architecture": "llama", "cond_dim": 128, "input_conv": 3},
    {"architecture": "gidd", "cond_dim": 128},
    {"causal": True, "input_conv": 3},
]
MODES: list[Any] = ["none", "selective", "full"]
X_T = torch.randint(1, V, (B, L), generator=torch.Generator().manual_seed(0))  # 0 is for padding
SIGMA = torch.tensor([0.01, 0.7, 4.2, 1.0])
ATTEND = torch.arange(L) < torch.tensor(LENGTHS)[:, None]


def network(**changes: Any) -> DiT:
    """Every parameter random, float64."""
    values = {"vocab_size": V, "length": L, "width": 16, "blocks": 3, "heads": 2, "cond_dim": 8}
    return randomised(DiT(DiTConfig(**{**values, **changes})).double())


def gradients(model: DiT, value: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    return list(torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True))


def assert_close(ours: Any, theirs: Any) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_a_row_is_what_it_is_without_its_padding(changes: dict[str, Any], mode: Any) -> None:
    model = network(**changes)
    model.checkpointing = mode
    cut = [
        model(X_T[b : b + 1, :n], SIGMA[b : b + 1])[0] for b, n in enumerate(LENGTHS)
    ]  # each [n, D]
    alone = torch.cat(cut)
    hidden = model(X_T, SIGMA, attention_mask=ATTEND)[ATTEND]
    assert_close(hidden, alone)
    rows = ATTEND.flatten().nonzero()[:, 0]
    some = model(X_T, SIGMA, rows=rows, attention_mask=ATTEND)
    assert_close(some, alone)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(2)).double()
    expected = gradients(model, (alone * weights).sum())
    for out in (hidden, some):
        assert_close(gradients(model, (out * weights).sum()), expected)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_without_it_the_network_looks_at_padding(changes: dict[str, Any]) -> None:
    """But for a causal one."""
    model = network(**changes)
    gap = (model(X_T, SIGMA) - model(X_T, SIGMA, attention_mask=ATTEND))[ATTEND].abs().max()
    assert (gap == 0) if model.causal else (gap > 1e-3)
    assert_close(model(X_T, SIGMA, attention_mask=torch.ones_like(ATTEND)), model(X_T, SIGMA))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("changes", KINDS, ids=str)
@pytest.mark.parametrize("soft", [False, True])
def test_what_stands_in_the_padding_changes_no_bit(
    changes: dict[str, Any], mode: Any, soft: bool
) -> None:
    model = network(**changes)
    model.checkpointing = mode
    found = []
    for other in (X_T, torch.zeros_like(X_T), X_T.flip(0)):
        x = torch.where(ATTEND, X_T, other)
        hidden = model(
            SoftTokens(F.one_hot(x, V).double()) if soft else x, SIGMA, attention_mask=ATTEND
        )
        d = gradients(model, hidden[ATTEND].square().sum())
        found.append((hidden[ATTEND], d))
    for hidden, d in found[1:]:
        assert torch.equal(hidden, found[0][0])
        assert all(torch.equal(a, b) for a, b in zip(d, found[0][1], strict=True))
    assert (found[1][1][0][0] == 0).all()  # the embedding of the token that is padding


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_rows_of_nothing_but_padding_harm_no_other(
    changes: dict[str, Any], dtype: torch.dtype
) -> None:
    model = network(**changes).to(torch.float32 if dtype == torch.bfloat16 else dtype)
    empty = torch.cat((ATTEND, torch.zeros(2, L, dtype=torch.bool)))
    x_t, sigma = torch.cat((X_T, X_T[:2])), torch.cat((SIGMA, SIGMA[:2]))
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden = model(x_t, sigma, attention_mask=empty)
        full = model(X_T, SIGMA, attention_mask=ATTEND)
    assert hidden.isfinite().all()
    atol = {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.2}[dtype]
    torch.testing.assert_close(hidden[empty], full[ATTEND], rtol=0, atol=atol)
    assert all(d.isfinite().all() for d in gradients(model, hidden[empty].square().sum()))


def test_without_padding_attention_is_given_no_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    attention = F.scaled_dot_product_attention

    def spy(*args: Any, attn_mask: Any = None, **more: Any) -> torch.Tensor:
        masks.append(attn_mask)
        return attention(*args, attn_mask=attn_mask, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    network()(X_T, SIGMA)
    network(causal=True)(X_T, SIGMA, attention_mask=ATTEND)
    assert masks == [None] * 6
    network()(X_T, SIGMA, attention_mask=ATTEND)
    assert [mask.shape for mask in masks[6:]] == [(B, 1, 1, L)] * 3
    network()(X_T, SIGMA, attention_mask=torch.zeros_like(ATTEND))  # 0 / 0 in some kernels
    assert all(mask.all() for mask in masks[9:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "bad",
    [ATTEND[:, 1:], ATTEND[1:], ATTEND[0], ATTEND.long(), ATTEND[:, None]],
    ids=lambda bad: f"{list(bad.shape)} {bad.dtype}",
)
def test_wrong_masks_are_refused(bad: torch.Tensor, causal: bool) -> None:
    with pytest.raises(ValueError, match=r"attention_mask must be \[4, 8\] bool like x_t, got \["):
        network(causal=causal)(X_T, SIGMA, attention_mask=bad)


OBJECTIVES: list[Any] = [SDDLM(), NELBO(), NaiveDenoising(), MDLM(), Autoregressive()]


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("changes", [{}, {"input_conv": 3}], ids=str)
def test_loss_and_bound_are_the_sum_over_rows_cut(objective: Any, changes: dict[str, Any]) -> None:
    """The same noise: it depends on a sequence's index and the position alone."""
    extra = objective.process.extra_tokens
    changes = {**changes, "vocab_size": V + extra, "num_extra_tokens": extra}
    model = network(causal=objective.causal, **changes)
    view = PaddingMasked(model, ATTEND)
    loss = objective.loss(view, X_T, Draw.simple(3, 5, B), ATTEND)
    bound = objective.bound(view, X_T, Draw.simple(3, 5, B))
    totals, counts = [], []
    for b, n in enumerate(LENGTHS):
        draw, x0 = Draw(3, 5, torch.tensor([b]), B), X_T[b : b + 1, :n]
        if objective.causal and n == 1:  # nothing to predict
            continue
        one = objective.loss(model, x0, draw)
        totals.append(one.total)
        counts.append(one.count)
        assert_close(bound[b, :n], objective.bound(model, x0, draw)[0])
    assert loss.count == sum(counts) == ATTEND.sum() - B * objective.causal
    total = torch.stack(totals).sum()
    assert total > 1
    assert_close(loss.total, total)
    assert_close(gradients(model, loss.total), gradients(model, total))
    blind = objective.loss(model, X_T, Draw.simple(3, 5, B), ATTEND).total
    assert objective.causal or (blind - total).abs() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Ancestral(steps=6), Lazy(steps=6)], ids=lambda s: str(type(s)))
@pytest.mark.parametrize("changes", [{}, {"time_input": "none"}, {"input_conv": 3}], ids=str)
def test_samples_of_one_length_are_those_of_shorter_rows(
    sampler: Any, changes: dict[str, Any]
) -> None:
    model = network(**changes)
    how = {"process": UniformProcess(), "estimate": Estimate.LEAVE_ONE_OUT, "seed": 4}
    view = PaddingMasked(model, ATTEND[1:2])
    n = LENGTHS[1]
    padded = sampler.sample(view, batch=40, length=L, **how).tokens[:, :n]
    assert torch.equal(padded, sampler.sample(model, batch=40, length=n, **how).tokens)
    assert not torch.equal(padded, sampler.sample(model, batch=40, length=L, **how).tokens[:, :n])
    assert model.training


def test_the_view_has_what_the_network_has() -> None:
    for changes in ({}, {"time_input": "none"}, {"causal": True}):
        model = network(**changes)
        view = PaddingMasked(model, ATTEND)
        for name in ("vocab_size", "length", "head", "causal", "time_free"):
            assert getattr(view, name) == getattr(model, name)
        assert list(view.modules()) == list(model.modules())
        assert list(view.parameters()) == list(model.parameters())
        assert list(view.buffers()) == list(model.buffers())


def test_the_view_refuses_other_sequences() -> None:
    view = PaddingMasked(network(), ATTEND)
    for x_t in (X_T[:3], X_T.repeat(1, 2)):
        with pytest.raises(ValueError, match="attention_mask must be"):
            view(x_t, SIGMA[: len(x_t)])


class Recorder:
    """Keeps what a network is given; its output is that of the network."""

    def __init__(self, model: DiT) -> None:
        self.model, self.seen = model, []
        self.head, self.vocab_size, self.hollow = model.head, model.vocab_size, model.hollow

    def __call__(self, x: Any, sigma: Any, **options: Any) -> torch.Tensor:
        self.seen.append((x, options["rows"]))
        return self.model(x, sigma, **options)


@pytest.mark.parametrize(
    "objective",
    [
        SDDLM(),
        NELBO(),
        NaiveDenoising(),
        MDLM(),
        SEDD(),
        D3PM(),
        SDDLMV1(negatives=SequenceNegatives(count=3)),
        DuoCurriculum(),
        DuoCurriculum(top_k=3),
    ],
    ids=str,
)
def test_prompts_are_clean_and_not_scored(objective: Any) -> None:
    extra = objective.process.extra_tokens
    recorder = Recorder(network(vocab_size=V + extra, num_extra_tokens=extra))
    prompts = torch.tensor([3, 0, 1, 7])
    model, scored = hide_padding(recorder, None, X_T, prompts)
    at = torch.arange(L)
    expected = at >= prompts[:, None]
    assert torch.equal(scored, expected)
    loss = objective.loss(model, X_T, Draw.simple(0, 0, B), scored)
    assert loss.count == expected.sum()
    assert loss.total.isfinite()
    ((x, rows),) = recorder.seen
    given = at < prompts[:, None]
    if isinstance(x, SoftTokens):
        dense = x.weights
        if x.ids is not None:
            dense = torch.zeros(B, L, V).double().scatter_add_(2, x.ids, x.weights.double())
        assert torch.equal(dense[given].double(), F.one_hot(X_T, V)[given].double())
    else:
        assert torch.equal(x[given], X_T[given])
        assert (x[expected] != X_T[expected]).any()  # the rest is noise
    assert set(rows.tolist()) <= set(expected.flatten().nonzero()[:, 0].tolist())


def test_the_bound_of_a_text_behind_a_prompt_is_that_of_the_conditional_problem() -> None:
    """`Conditioned` solves the same problem by itself; the noise is the same."""
    model, k = network(), 3
    process = UniformProcess()
    seen, scored = hide_padding(model, None, X_T, torch.full((B,), k))
    t = torch.tensor([0.1, 0.4, 0.7, 0.95]).double()
    noisy = process.corrupt(X_T, t, Draw.simple(1, 0, B), vocab_size=V)
    known = torch.arange(L) < k
    given = Conditioned(model, X_T, known)
    ours = seen(noisy.x_t, noisy.sigma)[:, k:]
    assert_close(ours, given(noisy.x_t[:, k:], noisy.sigma))
    assert scored is not None
    assert torch.equal(scored, ~known.expand(B, -1))
