"""The head against plain autograd on the full logits, in float64."""

from math import log

import pytest
import torch
from torch import Tensor

from sddlm.models import vocab_head
from sddlm.models.row_losses import (
    Contrastive,
    CrossEntropy,
    DenseNegatives,
    SampledNegatives,
    Top,
    UniformBound,
)
from sddlm.models.vocab_head import VocabHead

N, D, V, K = 64, 16, 37, 3


@pytest.fixture(autouse=True)
def chunks_of_seven(monkeypatch):
    monkeypatch.setattr(vocab_head, "CHUNK_BYTES", 7 * 4 * V)


def rows():
    g = torch.Generator().manual_seed(0)
    x0 = torch.randint(V, (N,), generator=g)
    x_t = torch.where(torch.rand(N, generator=g) < 0.4, x0, torch.randint(V, (N,), generator=g))
    alpha = torch.rand(N, generator=g, dtype=torch.float64) * 0.98 + 0.01
    return {
        "x0": x0,
        "x_t": x_t,
        "alpha": alpha,
        "dalpha": -0.5 - torch.rand(N, generator=g, dtype=torch.float64),
        "negatives": torch.randint(V, (N, K), generator=g),
        "shift": torch.randn(N, generator=g, dtype=torch.float64),
    }


def naive_bound(logits: Tensor, r) -> Tensor:
    """KL(A || B) + A_z/B_z - 1 - log(A_z/B_z), the textbook form, all of [N, V] kept."""
    a = r["alpha"][:, None]
    p = logits.softmax(1)
    A = a * torch.nn.functional.one_hot(r["x0"], V) + (1 - a) / V
    B = a * p + (1 - a) / V
    A_z, B_z = A.gather(1, r["x_t"][:, None])[:, 0], B.gather(1, r["x_t"][:, None])[:, 0]
    kl = (A * (A / B).log()).sum(1)
    return -r["dalpha"] / (V * r["alpha"] * A_z) * (kl + A_z / B_z - 1 - (A_z / B_z).log())


def naive_contrastive(logits: Tensor, r, law, weight, eps) -> Tensor:
    """``law`` [N, V] or [V], the law of the negatives."""
    log_p = (logits.softmax(1) + eps).log()
    attract = log_p.gather(1, r["x0"][:, None])[:, 0]
    return -attract + weight * (law * log_p).sum(1)


def counted(tokens: Tensor) -> Tensor:
    """Law of the mean over tokens [N, K]: [N, V] float64."""
    return torch.nn.functional.one_hot(tokens, V).double().mean(1)


def unigram() -> Tensor:
    law = torch.rand(V, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    law[3] = 0
    return law / law.sum()


def top_law(logits: Tensor, r, count: int) -> Tensor:
    masked = logits.detach().clone().scatter_(1, r["x0"][:, None], -torch.inf)
    return counted(masked.topk(min(count, V - 1)).indices)


UNIFORM = torch.full((V,), 1 / V, dtype=torch.float64)


def naive_cross_entropy(logits: Tensor, r) -> Tensor:
    return -logits.log_softmax(1).gather(1, r["x0"][:, None])[:, 0]


def shifted(logits: Tensor, r) -> Tensor:
    return logits + torch.nn.functional.one_hot(r["x_t"], V) * r["shift"][:, None]


CASES = {
    "ce": lambda r: (
        CrossEntropy(r["x0"]),
        lambda z: -z.log_softmax(1).gather(1, r["x0"][:, None])[:, 0],
    ),
    "calibrated": lambda r: (
        CrossEntropy(r["x0"], r["x_t"], r["shift"]),
        lambda z: naive_cross_entropy(shifted(z, r), r),
    ),
    "v1": lambda r: (
        Contrastive(r["x0"], [SampledNegatives(r["negatives"])], 0.7, 1e-3),
        lambda z: naive_contrastive(z, r, counted(r["negatives"]), 0.7, 1e-3),
    ),
    "v1 repeated negatives": lambda r: (
        Contrastive(r["x0"], [SampledNegatives(r["x0"][:, None].expand(-1, 2))], 0.7, 1e-3),
        lambda z: naive_contrastive(z, r, counted(r["x0"][:, None]), 0.7, 1e-3),
    ),
    "v1 exact": lambda r: (
        Contrastive(r["x0"], [DenseNegatives()], 1.0, 1e-5),
        lambda z: naive_contrastive(z, r, UNIFORM, 1.0, 1e-5),
    ),
    "v1 of a law": lambda r: (
        Contrastive(r["x0"], [DenseNegatives(unigram())], 0.7, 1e-3),
        lambda z: naive_contrastive(z, r, unigram(), 0.7, 1e-3),
    ),
    "v1 of the top": lambda r: (
        Contrastive(r["x0"], [Top(4)], 0.7, 1e-3),
        lambda z: naive_contrastive(z, r, top_law(z, r, 4), 0.7, 1e-3),
    ),
    "v1 of all others": lambda r: (
        Contrastive(r["x0"], [Top(10 * V)], 0.7, 1e-3),
        lambda z: naive_contrastive(z, r, top_law(z, r, V), 0.7, 1e-3),
    ),
    "v1 of a mixture": lambda r: (
        Contrastive(
            r["x0"],
            [
                DenseNegatives(share=0.2),
                SampledNegatives(r["negatives"], 0.3),
                DenseNegatives(unigram(), 0.1),
                Top(2, 0.1),
                DenseNegatives(unigram().flip(0), 0.2),
                SampledNegatives(r["x_t"][:, None], 0.1),
            ],
            1.3,
            1e-4,
        ),
        lambda z: naive_contrastive(
            z,
            r,
            0.2 * UNIFORM
            + 0.3 * counted(r["negatives"])
            + 0.1 * unigram()
            + 0.1 * top_law(z, r, 2)
            + 0.2 * unigram().flip(0)
            + 0.1 * counted(r["x_t"][:, None]),
            1.3,
            1e-4,
        ),
    ),
    "v1 without negatives": lambda r: (
        Contrastive(r["x0"], [], 1.0, 1e-5),
        lambda z: naive_contrastive(z, r, 0 * UNIFORM, 1.0, 1e-5),
    ),
    "nelbo": lambda r: (
        UniformBound(r["x0"], r["x_t"], r["alpha"], r["dalpha"]),
        lambda z: naive_bound(z, r),
    ),
    "nelbo of a denoiser": lambda r: (
        UniformBound(r["x0"], r["x_t"], r["alpha"], r["dalpha"], r["shift"]),
        lambda z: naive_bound(shifted(z, r), r),
    ),
}


@pytest.mark.parametrize(("weighted", "bias"), [(False, True), (True, True), (True, False)])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_naive_autograd_to_1e_12(case, weighted, bias):
    r = rows()
    term, naive = CASES[case](r)
    torch.manual_seed(1)
    head = VocabHead(D, V, bias=bias).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    leaves = [*head.parameters()]
    assert len(leaves) == 1 + bias
    hidden = torch.randn(N, D, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(N, dtype=torch.float64) if weighted else None

    out = head(hidden, term, weight)
    (3 * out.total).backward()
    leaves.append(hidden)
    ours = [leaf.grad for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None

    expected = naive(hidden @ head.weight.T + (head.bias if bias else 0))
    total = (expected * (1 if weight is None else weight)).sum()
    (3 * total).backward()
    torch.testing.assert_close(out.rows, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out.total, total, rtol=1e-12, atol=1e-12)
    for mine, leaf in zip(ours, leaves, strict=True):
        assert (mine - leaf.grad).norm() / leaf.grad.norm() < 1e-12


@pytest.mark.parametrize("case", CASES)
def test_without_gradients_the_values_are_the_same(case):
    r = rows()
    term, _ = CASES[case](r)
    torch.manual_seed(1)
    head = VocabHead(D, V)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(N, D)
    with torch.no_grad():
        quiet = head(hidden, term)
    loud = head(hidden, term)
    torch.testing.assert_close(quiet.rows, loud.rows, rtol=1e-5, atol=1e-6)
    assert not quiet.total.requires_grad
    assert loud.total.requires_grad


@pytest.mark.parametrize("bias", [False, True])
def test_zero_rows_give_zero_and_zero_gradients(bias):
    head = VocabHead(D, V, bias=bias)
    hidden = torch.zeros(0, D, requires_grad=True)
    out = head(hidden, CrossEntropy(torch.zeros(0, dtype=torch.int64)))
    out.total.backward()
    assert out.total == 0
    assert head.weight.grad is not None
    assert head.weight.grad.abs().sum() == 0


def test_one_step_of_float32_stays_close_to_float64_at_a_large_vocabulary():
    torch.manual_seed(0)
    size = 5000
    logits = torch.randn(8, size, dtype=torch.float64) * 3
    x0, x_t = torch.randint(size, (8,)), torch.randint(size, (8,))
    for alpha in (0.999, 0.9, 0.5, 0.01, 0.001):
        a = torch.full((8,), alpha, dtype=torch.float64)
        term = UniformBound(x0, x_t, a, -torch.ones_like(a))
        exact = term(logits.clone(), slice(0, 8), False)[0]
        single = term(logits.float(), slice(0, 8), False)[0]
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [False, True])
def test_autocast_multiplies_in_bfloat16_and_reduces_in_float32(bias):
    torch.manual_seed(0)
    head = VocabHead(D, V, bias=bias)
    torch.nn.init.normal_(head.weight)
    hidden = torch.randn(N, D, requires_grad=True)
    target = torch.randint(V, (N,))
    with torch.autocast("cpu", torch.bfloat16):
        out = head(hidden, CrossEntropy(target))
    out.total.backward()
    reference = torch.nn.functional.cross_entropy(hidden @ head.weight.T, target, reduction="sum")
    assert out.rows.dtype == torch.float32
    assert out.total.item() == pytest.approx(reference.item(), rel=2e-2)
    assert hidden.grad.dtype == torch.float32
    assert head.weight.grad.dtype == torch.float32


def test_contrastive_gradient_is_bounded_by_eps():
    """With p far below eps nothing pushes any more: the logit does not run away."""
    logits = torch.zeros(1, V, dtype=torch.float64)
    logits[0, 5] = log(1e-9)
    term = Contrastive(torch.tensor([0]), [SampledNegatives(torch.tensor([[5]]))], 1.0, 1e-6)
    _, grad = term(logits, slice(0, 1), True)
    assert grad is not None
    assert abs(grad[0, 5]) < 1e-3


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_computed_where_none_is_wanted(mode) -> None:
    head = VocabHead(4, 7)

    def term(logits, at, grad):
        assert not grad
        return logits.sum(1), None

    with mode():
        head(torch.randn(3, 4), term)


@pytest.mark.parametrize("bias", [False, True])
def test_tokens_that_are_input_only_are_never_predicted(bias: bool) -> None:
    torch.manual_seed(0)
    head = VocabHead(4, 7, bias=bias, num_extra_tokens=2)
    head.weight.data.normal_()
    hidden = torch.randn(3, 4, requires_grad=True)
    assert (head.logits(hidden)[:, -2:] == -torch.inf).all()
    target = torch.tensor([0, 1, 4])
    out = head(hidden, CrossEntropy(target))
    expected = torch.nn.functional.cross_entropy(
        (hidden @ head.weight.T)[:, :5], target, reduction="none"
    )
    torch.testing.assert_close(out.rows, expected)
    out.total.backward()
    assert head.weight.grad is not None
    assert head.weight.grad.isfinite().all()
    assert (head.weight.grad[-2:] == 0).all()
