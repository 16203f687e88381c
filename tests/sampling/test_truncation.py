"""Truncation: order, golden nucleus, each cut by hand, errors that name the flag."""

from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sddlm.errors import ConfigError
from sddlm.exact import TabularModel, World, law, state_id, total_variation
from sddlm.process import LogLinear, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation

GOLDEN = Path(__file__).parents[1] / "golden"


def by_hand(logits: list[float], how: Truncation) -> list[float]:
    """The rules as they are told, one token after the other."""
    V = len(logits)
    odds = [0.0 if v in how.never else np.exp(x / how.temperature) for v, x in enumerate(logits)]

    def normalised(values: list[float]) -> list[float]:
        return [value / sum(values) for value in values]

    def keep(p: list[float], tokens: list[int]) -> list[float]:
        return normalised([x if v in tokens else 0.0 for v, x in enumerate(p)])

    def ranked(p: list[float]) -> list[int]:
        return sorted(range(V), key=lambda v: (-p[v], v))

    p = normalised(odds)
    p = keep(p, ranked(p)[: how.top_k])
    nucleus: list[int] = []
    for v in ranked(p):
        if sum(p[w] for w in nucleus) <= how.top_p:
            nucleus.append(v)
    p = keep(p, nucleus)
    p = keep(p, [v for v in range(V) if p[v] >= how.min_p * max(p)])
    cut = [max(x - how.tail_cut / V, 0.0) for x in p]
    return normalised(cut) if sum(cut) > 0 else keep(p, ranked(p)[:1])


@pytest.mark.parametrize("top_p", [0.5, 0.9, 0.95])
def test_nucleus_is_duos(top_p: float) -> None:
    golden = np.load(GOLDEN / "posterior_V11.npz")
    logits = torch.from_numpy(golden["logits"])
    expected = torch.from_numpy(golden[f"top_p_{top_p}"]).exp()
    p = Truncation(top_p=top_p)(logits)
    torch.testing.assert_close(p, expected, rtol=1e-12, atol=1e-15)


def test_nothing_is_the_softmax() -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    before = logits.clone()
    assert torch.equal(Truncation()(logits), logits.double().softmax(-1))
    Truncation(temperature=0.5, top_p=0.5, tail_cut=0.5)(logits)
    assert torch.equal(logits, before)


def test_tail_cut() -> None:
    p = torch.tensor([[0.5, 0.3, 0.15, 0.05], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    cut = Truncation(tail_cut=0.4)(p.log())  # subtracts 0.1
    expected = torch.tensor([0.4, 0.2, 0.05, 0.0], dtype=torch.float64) / 0.65
    torch.testing.assert_close(cut[0], expected)
    torch.testing.assert_close(cut[1], p[1])
    # nothing survives a cut of more than the largest probability: the largest alone is kept
    gone = Truncation(tail_cut=2.4)(p[:1].log())
    assert torch.equal(gone, torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64))


def test_what_is_never_written_is_as_if_it_were_not_in_the_vocabulary() -> None:
    """Also for the nucleus, whose mass it does not fill; the cut is of the whole V."""
    logits = 3 * torch.randn(50, 9, generator=torch.Generator().manual_seed(1))
    logits[:, 2] += 5  # the likeliest by far
    rest = [i for i in range(9) if i not in (2, 7)]
    settings: list[dict[str, Any]] = [
        {}, {"temperature": 0.5}, {"top_p": 0.7}, {"temperature": 2.0, "top_p": 0.5},
        {"top_k": 3}, {"min_p": 0.2},
    ]  # fmt: skip
    for how in settings:
        p = Truncation(**how, never=(2, 7))(logits)
        assert (p[:, [2, 7]] == 0).all()
        torch.testing.assert_close(p[:, rest], Truncation(**how)(logits[:, rest]))
    p = Truncation(tail_cut=0.9, never=(7, 2))(logits)
    torch.testing.assert_close(p[:, rest], Truncation(tail_cut=0.7)(logits[:, rest]))
    assert (p[:, [2, 7]] == 0).all()
    nothing_left = Truncation(tail_cut=50.0, never=(2, 7))(logits)
    assert torch.equal(nothing_left.argmax(1), torch.tensor(rest)[logits[:, rest].argmax(1)])


@pytest.mark.slow
@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    tail_cut=st.floats(0, 20),
    top_k=st.none() | st.integers(1, 12),
    min_p=st.floats(0, 0.99),
    never=st.sampled_from([(), (3, 10)]),
)
@settings(max_examples=200, deadline=None)
def test_always_the_distribution_that_the_rules_give(
    seed: int,
    temperature: float,
    top_p: float,
    tail_cut: float,
    top_k: int | None,
    min_p: float,
    never: tuple[int, ...],
) -> None:
    logits = 2 * torch.randn(3, 11, generator=torch.Generator().manual_seed(seed)).double()
    how = Truncation(temperature, top_p, tail_cut, top_k, min_p, never)
    p = how(logits)
    assert p.dtype == torch.float64
    assert (p >= 0).all()
    expected = torch.tensor([by_hand(row.tolist(), how) for row in logits]).double()
    torch.testing.assert_close(p, expected, rtol=1e-6, atol=1e-9)
    allowed = logits.index_fill(1, torch.tensor(never, dtype=torch.int64), -torch.inf)
    assert torch.equal(p.argmax(-1), allowed.argmax(-1))


def test_the_nucleus_is_of_what_top_k_left() -> None:
    p = torch.tensor([[0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    expected = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    found = Truncation(top_k=2, top_p=0.5)(p.log())  # of the two, the first has 4/7
    torch.testing.assert_close(found, expected)
    assert (Truncation(top_p=0.5)(p.log()) > 0).tolist() == [[True, True, False, False]]
    # the third has exactly half of the mass before it, which does not exceed top_p
    assert (Truncation(top_p=0.5)(torch.zeros(4)) > 0).tolist() == [True, True, True, False]


def test_of_equal_tokens_the_first_are_kept_in_every_batch() -> None:
    V = 3000
    logits = torch.zeros(5, V)
    logits[1, 7::7] = 1.0
    logits[2] = torch.arange(V) % 3
    for how in (Truncation(top_k=300), Truncation(top_p=0.0999)):
        p = how(logits)
        assert (p[0] > 0).nonzero()[:, 0].tolist() == list(range(300))
        assert (p[2] > 0).nonzero()[:, 0].tolist()[:3] == [2, 5, 8]
        for row in range(5):
            assert torch.equal(how(logits[row : row + 1])[0], p[row])
    alike = Truncation(min_p=0.9)(logits)
    assert (alike[0] > 0).all()
    assert (alike[2] > 0).sum() == V // 3


@pytest.mark.parametrize("top_k", [11, 12, 10**9])
def test_top_k_of_the_vocabulary_is_no_cut(top_k: int) -> None:
    logits = torch.randn(4, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Truncation(top_k=top_k)(logits), Truncation()(logits))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("tail_cut", -0.1),
        ("tail_cut", float("inf")),
        ("top_k", 0),
        ("top_k", -3),
        ("top_k", 2.5),
        ("top_k", True),
        ("min_p", -0.1),
        ("min_p", 1.0),
        *((knob, nan) for knob in ("temperature", "top_p", "tail_cut", "top_k", "min_p")),
    ],
)
def test_errors_name_the_flag_and_what_to_type(flag: str, value: Any) -> None:
    advice = rf"(try `{flag}=[\d.]+`|must be a (whole )?number)$"
    with pytest.raises(ConfigError, match=rf"^`{flag}` is {value}, .*{advice}"):
        Truncation(**{flag: value})


@pytest.mark.parametrize("process", [UniformProcess(), MaskedProcess()], ids=lambda p: type(p))
@pytest.mark.parametrize("how", [Truncation(top_k=2), Truncation(min_p=0.4)], ids=repr)
def test_samplers_have_the_law_of_the_cut_prediction(process: Process, how: Truncation) -> None:
    world = World.random(3, 3, seed=1, concentration=0.5)
    process.schedule = LogLinear(eps=1e-12)
    extra = process.extra_tokens

    def network(alpha: float) -> torch.Tensor:
        return world.leave_one_out(alpha, process)

    def cut(alpha: float) -> torch.Tensor:
        rows = network(alpha).clamp(min=1e-300).log().flatten(0, 1).tolist()
        p = torch.tensor([by_hand(row, how) for row in rows], dtype=torch.float64)
        return p.reshape_as(network(alpha))

    exact = law(Ancestral(6), process, cut)
    assert total_variation(exact, law(Ancestral(6), process, network)) > 0.1
    model = TabularModel(network, vocab_size=3 + extra, length=3, num_extra_tokens=extra)
    drawn = Lazy(6, truncation=how).sample(
        model, process=process, estimate=Estimate.LEAVE_ONE_OUT, batch=8000, length=3
    )
    counts = torch.bincount(state_id(drawn.tokens, 3), minlength=27).double()
    assert counts[exact < 1e-12].sum() == 0
    live = exact * len(drawn.tokens) >= 5
    wanted = exact[live] / exact[live].sum() * counts[live].sum()
    assert stats.chisquare(counts[live].numpy(), wanted.numpy()).pvalue > 1e-4
