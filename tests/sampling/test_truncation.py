"""Truncation: order, golden nucleus, the tail cut, errors that name the flag."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sddlm.errors import ConfigError
from sddlm.sampling.truncation import Truncation

GOLDEN = Path(__file__).parents[1] / "golden"


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
    for how in ({}, {"temperature": 0.5}, {"top_p": 0.7}, {"temperature": 2.0, "top_p": 0.5}):
        p = Truncation(**how, never=(2, 7))(logits)
        assert (p[:, [2, 7]] == 0).all()
        torch.testing.assert_close(p[:, rest], Truncation(**how)(logits[:, rest]))
    p = Truncation(tail_cut=0.9, never=(7, 2))(logits)
    torch.testing.assert_close(p[:, rest], Truncation(tail_cut=0.7)(logits[:, rest]))
    assert (p[:, [2, 7]] == 0).all()
    nothing_left = Truncation(tail_cut=50.0, never=(2, 7))(logits)
    assert torch.equal(nothing_left.argmax(1), torch.tensor(rest)[logits[:, rest].argmax(1)])


@given(
    seed=st.integers(0, 1000),
    temperature=st.floats(0.05, 5),
    top_p=st.floats(0.01, 1),
    tail_cut=st.floats(0, 20),
)
@settings(max_examples=100, deadline=None)
def test_always_a_distribution(
    seed: int, temperature: float, top_p: float, tail_cut: float
) -> None:
    logits = 5 * torch.randn(3, 11, generator=torch.Generator().manual_seed(seed))
    p = Truncation(temperature, top_p, tail_cut)(logits)
    assert p.dtype == torch.float64
    assert (p >= 0).all()
    torch.testing.assert_close(p.sum(-1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(p.argmax(-1), logits.argmax(-1))


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("temperature", 0.0),
        ("temperature", -1.0),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("tail_cut", -0.1),
        ("tail_cut", float("nan")),
    ],
)
def test_errors_name_the_flag(flag: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{flag}"):
        Truncation(**{flag: value})
