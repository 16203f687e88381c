"""Mixtures of tokens as the network's input."""

import pytest
import torch
import torch.nn.functional as F

from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.types import SoftTokens

B, L, V = 3, 8, 11
SIGMA = torch.tensor([0.01, 0.7, 4.2])


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16])
def model(request):
    config = DiTConfig(
        vocab_size=V, length=L, width=16, blocks=2, heads=2, cond_dim=8, input_conv=3,
        gate_init=1.0, head_init=0.5,
    )  # fmt: skip
    return DiT(config).to(request.param)


@pytest.fixture
def x_t():
    return torch.randint(V, (B, L), generator=torch.Generator().manual_seed(0))


def mixture(k):
    """k distinct tokens at each place, sparse and dense."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.rand(B, L, V, generator=generator).argsort(-1)[..., :k]
    weights = torch.rand(B, L, k, generator=generator).softmax(-1)
    dense = torch.zeros(B, L, V).scatter_(-1, ids, weights)
    return SoftTokens(weights, ids), SoftTokens(dense)


def test_one_hot_mixtures_are_tokens(model, x_t):
    hard = model(x_t, SIGMA)
    onehot = F.one_hot(x_t, V).float()
    ids = torch.stack([x_t, (x_t + 1) % V], -1)
    sparse = SoftTokens(torch.tensor([1.0, 0.0]).expand(B, L, 2), ids)
    assert SoftTokens(onehot).shape == sparse.shape == (B, L)
    for soft in (SoftTokens(onehot), sparse):
        assert torch.equal(model(soft, SIGMA), hard)


def test_sparse_equals_dense_with_gradients(model):
    close = {"rtol": 1e-5, "atol": 1e-5} if model.head.weight.dtype != torch.bfloat16 else {}
    found = []
    for soft in mixture(4):
        out = model.embedding(soft)
        (d,) = torch.autograd.grad(out.float().square().sum(), model.embedding.weight)
        found.append((out, d, model(soft, SIGMA)))
    for sparse, dense in zip(*found, strict=True):
        assert sparse.dtype == model.head.weight.dtype
        torch.testing.assert_close(sparse, dense, **close)


def test_autocast_does_not_round_the_mixture():
    model = DiT(DiTConfig(vocab_size=V, length=L, width=16, blocks=1, heads=2, cond_dim=8))
    for soft in mixture(4):
        plain = model.embedding(soft)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.embedding(soft), plain)


def test_a_wrong_shape_is_named():
    model = DiT(DiTConfig(vocab_size=V, length=L, width=16, blocks=1, heads=2, cond_dim=8))
    with pytest.raises(ValueError, match=r"\[B, L\] with L > 0"):
        model(SoftTokens(torch.ones(L, V)), SIGMA)
    with pytest.raises(ValueError, match=r"sigma must be \[3\]"):
        model(SoftTokens(torch.ones(B, L, V)), SIGMA[:2])
