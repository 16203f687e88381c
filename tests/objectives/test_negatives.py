"""Laws of negatives: what is drawn is what is said, whatever the batch."""

import warnings
from dataclasses import replace
from math import isqrt

import numpy as np
import pytest
import torch
import yaml

from sddlm.data import rows as rows_file
from sddlm.data.rows import PackedTokens, token_dtype
from sddlm.errors import ConfigError
from sddlm.models.layers import select_rows
from sddlm.models.row_losses import Contrastive, DenseNegatives, SampledNegatives, Top
from sddlm.models.vocab_head import VocabHead
from sddlm.objectives.contrastive import SDDLMV1, SDDLMV2
from sddlm.objectives.negatives import (
    MixedNegatives,
    NoisyToken,
    SequenceNegatives,
    TopNegatives,
    UniformNegatives,
    UnigramNegatives,
)
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.spec import from_spec, to_spec
from sddlm.types import Noisy

B, L, V = 6, 5, 11
COUNTS = torch.tensor([7, 0, 3, 1, 20, 2, 0, 0, 5, 1, 0])


class Table(torch.nn.Module):
    """A network whose logits are its parameter."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(logits.clone())
        self.vocab_size = logits.shape[-1]
        self.head = VocabHead(self.vocab_size, self.vocab_size, bias=False).to(logits.dtype)
        self.head.weight.data.copy_(torch.eye(self.vocab_size))

    def forward(self, x_t, sigma, rows=None):
        return select_rows(self.table, rows)


def batch(step: int = 0) -> tuple[Noisy, Draw]:
    x0 = torch.randint(V, (B, L), generator=torch.Generator().manual_seed(3))
    draw = Draw.simple(1, step, B)
    return UniformProcess().corrupt(x0, draw.times(), Draw.simple(1, 0, B), vocab_size=V), draw


def logits() -> torch.Tensor:
    return 2 * torch.randn(B, L, V, generator=torch.Generator().manual_seed(4)).double()


def total(objective, noisy, draw, table: torch.Tensor | None = None) -> float:
    with torch.no_grad():
        model = Table(logits() if table is None else table)
        return objective.score(model, noisy, draw).total.item()


def unigram(count) -> UnigramNegatives:
    return UnigramNegatives(count).learn(COUNTS)


def one(negatives, noisy=None, draw=None):
    noisy, draw = (noisy, draw) if noisy else batch()
    at = torch.ones_like(noisy.resampled)
    (part,) = negatives.mixture(noisy, at, draw)
    return part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampled", "exact"),
    [
        (UniformNegatives(2), UniformNegatives("exact")),
        (unigram(2), unigram("exact")),
        (
            MixedNegatives([UniformNegatives(1), unigram(3), NoisyToken()], [1, 2, 3]),
            MixedNegatives([UniformNegatives("exact"), unigram("exact"), NoisyToken()], [1, 2, 3]),
        ),
    ],
    ids=["uniform", "unigram", "mixed"],
)
def test_what_is_drawn_has_the_exact_expectation_within_four_sigma(sampled, exact):
    noisy, _ = batch()
    knobs = {"eps": 1e-3, "weight": 1.3}
    steps, copies = 60, 1000
    fields = ("x0", "x_t", "t", "alpha_t", "dalpha_t", "resampled")
    many = replace(noisy, **{name: torch.cat([getattr(noisy, name)] * copies) for name in fields})
    table = logits().repeat(copies, 1, 1)
    draws = (
        torch.tensor(
            [
                total(
                    SDDLMV1(**knobs, negatives=sampled),
                    many,
                    Draw.simple(5, step, B * copies),
                    table,
                )
                for step in range(steps)
            ]
        ).double()
        / copies
    )
    expected = total(SDDLMV1(**knobs, negatives=exact), noisy, Draw.simple(5, 0, B))
    assert abs(draws.mean() - expected) < 4 * draws.std() / steps**0.5
    assert draws.std() > 0


def test_tokens_of_the_sequence_are_drawn_alike_from_all_other_positions():
    noisy, _ = batch()
    clean = torch.arange(L).expand(B, L)  # each token tells its position
    noisy = replace(noisy, x0=clean)
    K = 4000
    tokens = one(SequenceNegatives(K), noisy, Draw.simple(0, 0, B)).tokens.view(B, L, K)
    seen = torch.nn.functional.one_hot(tokens, L).double().mean(2)  # [B, L, L]
    assert (seen.diagonal(dim1=1, dim2=2) == 0).all()
    share = 1 / (L - 1)
    sigma = (share * (1 - share) / K) ** 0.5
    rest = seen[:, ~torch.eye(L, dtype=torch.bool)]
    assert ((rest - share).abs() < 5 * sigma).all()
    # and only tokens of the same sequence
    noisy, draw = batch()
    tokens = one(SequenceNegatives(50), noisy, draw).tokens.view(B, -1)
    for row, x0 in zip(tokens, noisy.x0, strict=True):
        assert set(row.tolist()) <= set(x0.tolist())


def test_exact_unigram_equals_brute_force():
    noisy, draw = batch()
    law = COUNTS.double() / COUNTS.sum()
    log_p = (logits().softmax(-1) + 1e-4).log()
    expected = 0.0
    for b in range(B):
        for at in range(L):
            if noisy.resampled[b, at]:
                row = log_p[b, at]
                repel = sum(float(law[v]) * float(row[v]) for v in range(V))
                expected += 0.8 * repel - float(row[noisy.x0[b, at]])
    objective = SDDLMV1(weight=0.8, eps=1e-4, negatives=unigram("exact"))
    assert total(objective, noisy, draw) == pytest.approx(expected, rel=1e-12)


def test_unigram_draws_each_occurrence_alike_and_nothing_else():
    noisy, draw = batch()
    K = 3000
    tokens = one(unigram(K), noisy, draw).tokens
    seen = torch.bincount(tokens.flatten(), minlength=V).double() / tokens.numel()
    law = COUNTS.double() / COUNTS.sum()
    sigma = (law * (1 - law) / tokens.numel()).sqrt()
    assert ((seen - law).abs() <= 4 * sigma).all()
    assert (seen[COUNTS == 0] == 0).all()


@pytest.mark.parametrize("count", [1, 3, V, 100])
def test_the_top_never_contains_x0_and_leaves_the_logits_as_they_were(count):
    rows = logits().view(-1, V)
    target = rows.argmax(1, keepdim=True)  # the hardest case: x0 is the most likely
    before = rows.clone()
    chosen = Top(count).choose(rows, target, slice(None))
    assert chosen.shape == (len(rows), min(count, V - 1))
    assert not (chosen == target).any()
    assert torch.equal(rows, before)
    rest = before.scatter(1, target, -torch.inf).sort(1, descending=True).indices
    assert torch.equal(chosen, rest[:, : chosen.shape[1]])


@pytest.mark.parametrize("positions", ["resampled", "changed"])
def test_the_noisy_token_makes_v2(positions):
    noisy, draw = batch()
    knobs = {"positions": positions, "weight": 0.7, "eps": 1e-4}
    v1, v2 = SDDLMV1(**knobs, negatives=NoisyToken()), SDDLMV2(**knobs)
    grads = []
    for objective in (v1, v2):
        model = Table(logits())
        loss = objective.score(model, noisy, draw)
        loss.total.backward()
        grads.append((loss.total, model.table.grad))
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])
    assert v1.estimate is v2.estimate is Estimate.WITHOUT_X_T


def test_a_mixture_is_the_weighted_sum():
    noisy, draw = batch()
    plain = total(SDDLMV1(negatives=UniformNegatives(), weight=0.0), noisy, draw)
    parts = [UniformNegatives("exact"), TopNegatives(2), NoisyToken(), unigram("exact")]
    alone = [total(SDDLMV1(negatives=part), noisy, draw) - plain for part in parts]
    shares = [2.0, 0.0, 5.0, 1.0]
    nested = MixedNegatives([parts[0], MixedNegatives(parts[1:], shares[1:])], [2.0, 6.0])
    expected = plain + sum(s * a for s, a in zip(shares, alone, strict=True)) / 8
    for mixed in (MixedNegatives(parts, shares), nested):
        assert total(SDDLMV1(negatives=mixed), noisy, draw) == pytest.approx(expected, rel=1e-12)


def test_parts_of_a_mixture_draw_numbers_of_their_own():
    noisy, draw = batch()
    at = torch.ones_like(noisy.resampled)
    a, b = MixedNegatives([UniformNegatives(8), UniformNegatives(8)]).mixture(noisy, at, draw)
    assert isinstance(a, SampledNegatives)
    assert isinstance(b, SampledNegatives)
    assert (a.tokens == b.tokens).double().mean() < 0.5
    assert isinstance(one(UniformNegatives("exact")), DenseNegatives)


@pytest.mark.parametrize(
    "negatives",
    [UniformNegatives(3), unigram(3), SequenceNegatives(3), TopNegatives(3), NoisyToken(),
     MixedNegatives([SequenceNegatives(2), unigram(2)])],
    ids=lambda n: type(n).__name__,
)  # fmt: skip
def test_rows_have_the_same_negatives_alone_and_in_a_larger_batch(negatives):
    noisy, draw = batch()
    objective = SDDLMV1(negatives=negatives)

    def gradient(rows: slice) -> torch.Tensor:
        some = {
            name: getattr(noisy, name)[rows]
            for name in ("x0", "x_t", "t", "alpha_t", "dalpha_t", "resampled")
        }
        model = Table(logits()[rows])
        here = replace(draw, index=draw.index[rows])
        objective.score(model, replace(noisy, **some), here).total.backward()
        assert model.table.grad is not None
        return model.table.grad

    whole = gradient(slice(0, B))
    parts = torch.cat([gradient(slice(0, 1)), gradient(slice(1, 4)), gradient(slice(4, B))])
    torch.testing.assert_close(parts, whole, rtol=1e-13, atol=1e-16)


@pytest.mark.slow
def test_the_optimum_is_cut_where_the_law_says():
    """Gradient descent on one row reaches max(pi - w n, 0), renormalised."""
    pi = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    n = torch.tensor([0.1, 0.6, 0.2, 0.1, 0.0], dtype=torch.float64)
    z = torch.zeros(1, 5, dtype=torch.float64)
    term = Contrastive(
        torch.arange(5), [DenseNegatives(n)], 0.6, 1e-8
    )  # a row for each token that may be x0
    for _ in range(4000):
        z -= 0.5 * pi @ term(z.repeat(5, 1), slice(0, 5), True)[1]
    expected = (pi - 0.6 * n).clamp(min=0)
    assert (z.softmax(1)[0] - expected / expected.sum()).abs().sum() < 1e-3


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: UniformNegatives(0), r"^`count` is 0"),
        (lambda: UniformNegatives("all"), r"^`count` is 'all'"),
        (lambda: UnigramNegatives(-1), r"^`count` is -1"),
        (lambda: SequenceNegatives(0), r"^`count` is 0"),
        (lambda: TopNegatives(0), r"^`top` is 0"),
        (lambda: TopNegatives("exact"), r"^`top` is 'exact'"),
        (lambda: MixedNegatives([], []), r"^`parts` is \[\]"),
        (lambda: MixedNegatives(["x"], [1.0]), r"^`parts` is"),
        (lambda: MixedNegatives([NoisyToken()], [1, 2]), r"`shares` has 2 numbers for 1 parts"),
        (lambda: MixedNegatives([NoisyToken()], [-1.0]), r"^`shares` is"),
        (lambda: MixedNegatives([NoisyToken()], [0.0]), r"not all 0"),
        (lambda: MixedNegatives([NoisyToken()], [float("nan")]), r"^`shares` is"),
        (lambda: SDDLMV1(negatives="exact"), r"`negatives=UniformNegatives"),
        (lambda: UnigramNegatives().learn(torch.zeros(3, dtype=torch.int64)), "not all 0"),
        (lambda: one(UnigramNegatives()), r"\.learn\(counts\)"),
        (lambda: one(UnigramNegatives().learn(COUNTS[:-1])), "10 frequencies, but .* 11 tokens"),
        (
            lambda: one(SequenceNegatives(), replace(batch()[0], x0=batch()[0].x0[:, :1]), 0),
            r"`data\.length` is 1",
        ),
    ],
)
def test_what_is_wrong_is_named(make, named):
    with pytest.raises(ConfigError, match=named):
        make()


def test_a_mixture_survives_its_specification():
    mixed = MixedNegatives([UniformNegatives("exact"), TopNegatives(3)], [1.0, 2.0])
    spec = to_spec(SDDLMV1(negatives=mixed))
    assert from_spec(yaml.safe_load(yaml.safe_dump(spec))) == SDDLMV1(negatives=mixed)


@pytest.mark.parametrize(
    ("negatives", "estimate"),
    [
        (UniformNegatives(), Estimate.TRUNCATED),
        (MixedNegatives([NoisyToken()], [1.0]), Estimate.WITHOUT_X_T),
        (MixedNegatives([NoisyToken(), TopNegatives()]), Estimate.TRUNCATED),
    ],
)
def test_what_they_estimate(negatives, estimate):
    assert SDDLMV1(negatives=negatives).estimate is estimate


def never() -> torch.Tensor:
    raise AssertionError("a pass over the data that nobody needs")


def test_a_large_eps_is_warned_of_and_only_that():
    with pytest.warns(UserWarning, match=r"eps` 1e-06 is not far below weight / V = 7.8e-06"):
        SDDLMV1().setup(128_256, never)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SDDLMV1().setup(50_258, never)
        SDDLMV1(eps=1e-3, weight=0.0).setup(50_258, never)
        SDDLMV1(eps=1e-3, negatives=NoisyToken()).setup(50_258, never)
        SDDLMV2(eps=1e-3).setup(50_258, never)
        parts = [UniformNegatives(), MixedNegatives([UnigramNegatives(), NoisyToken()])]
        SDDLMV1(eps=1e-4, negatives=MixedNegatives(parts)).setup(V, lambda: COUNTS)
    one(parts[1].parts[0])  # has learned


@pytest.mark.parametrize("vocab_size", [200, 70_000])
def test_tokens_of_rows_are_counted_by_chunks(tmp_path, vocab_size, monkeypatch):
    tokens = np.random.default_rng(0).integers(vocab_size, size=1003)
    (tmp_path / "tokens").write_bytes(tokens.astype(token_dtype(vocab_size)).tobytes())
    rows = PackedTokens(tmp_path / "tokens", length=10, vocab_size=vocab_size, characters=1)
    expected = np.bincount(tokens[:1000], minlength=vocab_size + 1)
    for chunk in (isqrt(1000), 10**6):
        monkeypatch.setattr(rows_file, "_CHUNK", chunk)
        counted = rows.counts(vocab_size + 1)
        assert counted.dtype == torch.int64
        assert torch.equal(counted, torch.from_numpy(expected))
    assert len(rows.counts()) == vocab_size


def test_negatives_of_the_sequence_are_other_positions_that_count():
    """Each as likely as any other; padding never is one, nor does its content matter."""
    x0 = torch.tensor(
        [[10, 11, 12, 13, 99, 99], [20, 21, 99, 99, 99, 99], [30, 99, 99, 99, 99, 99]]
    )
    mask = x0 < 99
    draw = Draw.simple(0, 0, 3)
    noisy = UniformProcess().corrupt(x0, draw.times(), draw, vocab_size=100)
    noisy = replace(noisy, loss_mask=mask)
    (found,) = SequenceNegatives(3000).mixture(noisy, mask, draw)
    for row, own in zip(found.tokens, x0[mask].tolist(), strict=True):
        others = [t for t in range(own // 10 * 10, own // 10 * 10 + 4) if t in x0 and t != own]
        shares = [(row == t).double().mean().item() for t in others]
        assert sum(shares) == pytest.approx(1 if others else 0)
        assert all(abs(share - 1 / len(others)) < 0.05 for share in shares)
        assert others or row.unique().tolist() == [own]
    (again,) = SequenceNegatives(3000).mixture(
        replace(noisy, x0=x0.masked_fill(~mask, 7)), mask, draw
    )
    assert torch.equal(again.tokens, found.tokens)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (0.5, 1.0), (0.3, 0.6)])
def test_x_t_is_the_negative_at_some_noise_levels_and_a_uniform_token_at_others(low, high):
    noisy, draw = batch()
    level = (1 - noisy.alpha_t).expand(B, L).flatten()
    inside = (level >= low) & (level <= high)
    assert 0 < inside.sum() < B * L
    found, x_t = one(NoisyToken(low, high), noisy, draw), noisy.x_t.flatten()
    uniform = one(UniformNegatives(), noisy, draw).tokens[:, 0]
    assert torch.equal(found.tokens[:, 0], torch.where(inside, x_t, uniform))
    assert not torch.equal(uniform, x_t)
    assert torch.equal(one(NoisyToken(), noisy, draw).tokens[:, 0], x_t)
    assert NoisyToken(low, high).estimate is Estimate.TRUNCATED
    assert NoisyToken().estimate is Estimate.WITHOUT_X_T
    with pytest.raises(ConfigError, match="noise levels from 0 to 1"):
        NoisyToken(high, low)
