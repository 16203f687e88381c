"""The Triton kernels against the terms' torch form in float64; run by ``test_kernels.py``.

On a GPU, or in Triton's interpreter, which has to be asked for before Triton is first imported.
"""

import os
from dataclasses import replace

import pytest
import torch

from sddlm.models import kernels, vocab_head
from sddlm.models.kernels import Chunk, fused
from sddlm.models.row_losses import (
    AutogradRowLoss,
    Contrastive,
    CrossEntropy,
    DenseNegatives,
    SampledNegatives,
    Top,
    UniformBound,
)
from sddlm.models.vocab_head import VocabHead

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
BLOCK = 64
N = 4
#: below and at a block, one above it, and far from a multiple of one
SIZES = [37, BLOCK, BLOCK + 1, 3 * BLOCK + 40]

assert CUDA or os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", BLOCK)


def rows(V, seed=0, n=N):
    g = torch.Generator().manual_seed(seed)
    x0 = torch.randint(V, (n,), generator=g)
    x_t = torch.randint(V, (n,), generator=g)
    x_t[::2] = x0[::2]
    made = {
        "logits": torch.randn(n, V, generator=g) * 3,
        "bias": torch.randn(V, generator=g),
        "scale": torch.rand(n, generator=g) * 2 - 0.5,
        "x0": x0,
        "x_t": x_t,
        "negatives": torch.randint(V, (n, 3), generator=g),
        "many": torch.randint(V, (n, 40), generator=g),
        "shift": torch.randn(n, generator=g, dtype=torch.float64) * 4,
        "weight": torch.rand(n, generator=g, dtype=torch.float64),
        "alpha": torch.rand(n, generator=g, dtype=torch.float64) * 0.98 + 0.01,
        "law": torch.rand(V, generator=g, dtype=torch.float64) / V * 2,
    }
    made["logits"][0, x0[0]] += 20  # one row that is certain
    return {name: tensor.to(DEVICE) for name, tensor in made.items()}


CASES = {
    "cross-entropy": lambda r: CrossEntropy(r["x0"]),
    "cross-entropy, shifted": lambda r: CrossEntropy(r["x0"], r["x_t"], r["shift"]),
    "cross-entropy, weighted": lambda r: CrossEntropy(r["x0"], weight=r["weight"]),
    "V1 without negatives": lambda r: Contrastive(r["x0"], [], 1.0, 1e-5),
    "V1": lambda r: Contrastive(r["x0"], [SampledNegatives(r["negatives"])], 0.7, 1e-6),
    "V1, one negative": lambda r: Contrastive(
        r["x0"], [SampledNegatives(r["x_t"][:, None])], 1.0, 1e-6
    ),
    "V1, many negatives": lambda r: Contrastive(r["x0"], [SampledNegatives(r["many"])], 1.0, 1e-6),
    "V1, repeated": lambda r: Contrastive(
        r["x0"], [SampledNegatives(r["x0"][:, None].expand(-1, 2))], 0.7, 1e-3
    ),
    "V1, exact": lambda r: Contrastive(r["x0"], [DenseNegatives()], 1.0, 1e-6),
    "V1, least eps": lambda r: Contrastive(r["x0"], [DenseNegatives()], 1.0, 1e-30),
    "V1 of a law": lambda r: Contrastive(r["x0"], [DenseNegatives(r["law"])], 1.0, 1e-4),
    "V1 of the top": lambda r: Contrastive(r["x0"], [Top(4)], 1.0, 1e-4),
    "V1 of a mixture": lambda r: Contrastive(
        r["x0"],
        [
            DenseNegatives(share=0.2),
            SampledNegatives(r["negatives"], 0.3),
            DenseNegatives(r["law"], 0.2),
            Top(2, 0.3),
        ],
        1.3,
        1e-5,
    ),
    "NELBO": lambda r: UniformBound(r["x0"], r["x_t"], r["alpha"], -1 - r["alpha"]),
    "NELBO of a denoiser": lambda r: UniformBound(
        r["x0"], r["x_t"], r["alpha"], -1 - r["alpha"], r["shift"]
    ),
}


def by_torch(term, logits, valid=None):
    """Value and gradient in float64, what is never predicted at -inf."""
    logits = logits.double().clone()
    if valid is not None:
        logits[:, valid:] = -torch.inf
    values, d = term(logits, slice(0, len(logits)), True)
    return values, d


def by_kernel(term, logits, bias=None, scale=None, dtype=torch.float32, size=None, valid=None):
    V = logits.shape[1]
    kernel = fused(term, logits)
    assert kernel is not None
    at = slice(0, len(logits))
    size = size or V
    return kernel(Chunk(logits.clone(), bias, at, scale, dtype, size, valid or size))


def assert_close(mine, reference, tolerance):
    """Of each row, in the norm; where p is near 1 the gradient is p - 1, to float32's 1e-7."""
    error = (mine.double() - reference).norm(dim=-1)
    assert (error <= tolerance * (0.1 + reference.norm(dim=-1))).all(), error


@pytest.mark.parametrize("V", SIZES)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradient_are_the_terms(case, V):
    r = rows(V)
    term = CASES[case](r)
    values, d = by_torch(term, r["logits"])
    mine, gradient = by_kernel(term, r["logits"])
    torch.testing.assert_close(mine.double(), values, rtol=1e-5, atol=1e-5)
    assert_close(gradient, d, 1e-5)


@pytest.mark.parametrize("case", CASES)
def test_bias_scale_padding_and_tokens_never_predicted(case):
    """Values are not scaled; columns past the vocabulary may hold anything and get no gradient."""
    # the last block holds nothing that can be predicted
    V, valid, width = 2 * BLOCK + 3, 2 * BLOCK - 2, 3 * BLOCK
    r = rows(valid)
    r["law"] = rows(V)["law"]
    term = CASES[case](r)
    logits = torch.full((N, width), 7.0, device=DEVICE)
    logits[:, :valid] = r["logits"]
    bias = torch.full((width,), 5.0, device=DEVICE)
    bias[:valid] = r["bias"]
    values, d = by_torch(term, (logits + bias)[:, :V], valid)
    # a step of bfloat16 is 2^-7: Triton's interpreter cuts where a GPU rounds
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 8e-3)):
        mine, gradient = by_kernel(term, logits, bias, r["scale"], dtype, V, valid)
        torch.testing.assert_close(mine.double(), values, rtol=1e-5, atol=1e-5)
        assert gradient.dtype == dtype
        assert (gradient[:, valid:] == 0).all()
        assert_close(gradient[:, :V], d * r["scale"][:, None].double(), tolerance)


@pytest.mark.parametrize("case", ["cross-entropy, weighted", "V1 of a mixture", "NELBO"])
def test_values_alone_and_no_rows(case):
    r = rows(300)
    term = CASES[case](r)
    quiet, none = by_kernel(term, r["logits"], dtype=None)
    assert none is None
    assert torch.equal(quiet, by_kernel(term, r["logits"])[0])
    values, d = by_kernel(term, r["logits"][:0])
    assert values.shape == (0,)
    assert d.shape == (0, 300)


@pytest.mark.parametrize("alpha", [1e-4, 0.5, 1 - 1e-4, 1 - 1e-7])
@pytest.mark.parametrize("sure", [0.0, 12.0, 40.0])
def test_the_bound_at_every_noise_level(alpha, sure, monkeypatch):
    """c = V alpha / (1 - alpha) from 0.1 to 1e10, p of the clean token from small to 1 - 1e-13."""
    V, n = 1000, 6
    monkeypatch.setattr(kernels, "BLOCK", 512)
    r = rows(V, seed=1, n=n)
    logits = r["logits"].scatter_add(1, r["x0"][:, None], torch.full((n, 1), sure, device=DEVICE))
    a = torch.full((n,), alpha, dtype=torch.float64, device=DEVICE)
    term = UniformBound(r["x0"], r["x_t"], a, -torch.ones_like(a))
    # both from logits in float32: the reference is the torch form, where p is float32 as well
    values, d = term(logits.clone(), slice(0, n), True)
    exact, _ = by_torch(term, logits)
    mine, gradient = by_kernel(term, logits)
    for rows_alike in (r["x0"] == r["x_t"], r["x0"] != r["x_t"]):
        off, allowed, size = (
            x[rows_alike].abs().max() for x in (mine - exact, values - exact, exact)
        )
        assert off <= 3 * allowed + 5e-6 * size
    assert_close(gradient, d.double(), 1e-4)


def test_what_has_no_kernel_falls_back():
    like = torch.zeros(1, device=DEVICE)
    assert fused(AutogradRowLoss(lambda z, at: z.sum(1)), like) is None
    assert fused(CrossEntropy(torch.zeros(1, dtype=torch.int64)), like.double()) is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("case", ["cross-entropy", "V1 of a mixture", "NELBO"])
def test_the_head_is_the_same_with_and_without(case, half, bias, monkeypatch):
    """Across chunks and at a vocabulary that needs padding; autocast rounds the logits too."""
    V, D = 301, 8
    monkeypatch.setattr(vocab_head, "CHUNK_BYTES", 4 * 4 * V)
    monkeypatch.setattr(vocab_head, "GPU_CHUNK_BYTES", 4 * 4 * V)
    r = rows(V - 1)
    r["law"] = rows(V)["law"]
    term = CASES[case](r)
    torch.manual_seed(1)
    head = VocabHead(D, V, bias=bias, num_extra_tokens=1).to(DEVICE)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(N, D, device=DEVICE, requires_grad=True)

    def run():
        head.zero_grad()
        hidden.grad = None
        with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
            out = head(hidden, term, r["scale"])
        out.total.backward()
        grads = [parameter.grad for parameter in head.parameters()]
        return [out.rows, out.total.detach()[None], hidden.grad, *grads]

    mine = run()
    assert head.weight.grad.shape == (V, D)
    monkeypatch.setattr(vocab_head.kernels, "fused", lambda term, like: None)
    for a, b in zip(mine, run(), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).norm() <= (2e-2 if half else 2e-5) * b.norm()
    no_rows = replace(CrossEntropy(r["x0"]), target=r["x0"][:0])
    head(hidden[:0], no_rows).total.backward()
