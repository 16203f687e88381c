"""The hollow network: blind to its own token, exact with padding and rows, alike in every batch."""

import pytest
import torch

from networks import randomised
from sddlm.errors import ConfigError
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.padding import PaddingMasked
from sddlm.objectives import (
    NELBO,
    SDDLM,
    SDDLMV1,
    SDDLMV2,
    SEDD,
    CalibratedDenoising,
    NaiveDenoising,
)
from sddlm.rng import Draw

V, L, B = 50, 12, 3
KINDS = [
    {"blocks": blocks, **more} for blocks in (1, 2, 3) for more in ({}, {"time_input": "none"})
]


def network(blocks: int = 2, **more) -> DiT:
    config = DiTConfig(
        vocab_size=V, length=L, width=32, heads=2, blocks=blocks, architecture="hollow",
        **{"input_conv": 4, **more},
    )  # fmt: skip
    return randomised(DiT(config)).eval()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(V, (B, L), generator=generator), torch.rand(B, generator=generator)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_prediction_depends_on_all_tokens_but_its_own(kind):
    model, (x, sigma) = network(**kind).double(), batch()
    before = model(x, sigma)
    for position in range(L):
        other = x.clone()
        other[:, position] = (other[:, position] + 7) % V
        change = (model(other, sigma) - before).abs().amax(dim=(0, 2))  # [L]
        assert change[position] == 0
        assert (change > 1e-9).sum() == L - 1


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_padding_changes_nothing_and_rows_are_those_of_all(kind):
    model, (x, sigma) = network(**kind).double(), batch()
    whole, rows = model(x, sigma), torch.tensor([0, 5, 13, 35])
    torch.testing.assert_close(model(x, sigma, rows=rows), whole.flatten(0, 1)[rows])
    real = torch.arange(L) < torch.tensor([L, 7, 1])[:, None]
    padded = model(x, sigma, attention_mask=real)
    for i, count in enumerate(real.sum(1)):
        alone = model(x[i : i + 1, :count], sigma[i : i + 1])[0]
        torch.testing.assert_close(padded[i, :count], alone)


def test_a_sequence_has_the_same_bits_in_every_batch():
    model, (x, sigma) = network(), batch()
    with torch.no_grad():
        together = model(x, sigma)
        for size in range(1, B):
            assert torch.equal(model(x[:size], sigma[:size]), together[:size])


@pytest.mark.parametrize("how", ["selective", "full"])
def test_activation_checkpointing_changes_no_gradient(how):
    model, (x, sigma) = network(dropout=0.1, gate_init=1.0).train(), batch()
    gradients = []
    for model.checkpointing in ("none", how):
        torch.manual_seed(0)
        loss = model(x, sigma, rows=torch.tensor([1, 20])).square().sum()
        gradients.append(torch.autograd.grad(loss, list(model.blocks.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_weights_come_back(tmp_path):
    model, (x, sigma) = network(blocks=3), batch()
    model.save_pretrained(tmp_path)
    assert torch.equal(DiT.from_pretrained(tmp_path)(x, sigma), model(x, sigma))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ConfigError, match="the weights have 4 blocks, not 3 as of `blocks=2`"):
        DiT.from_state(network(blocks=2).config, state)


def test_an_autoregressive_network_is_not_hollow():
    with pytest.raises(ConfigError, match="`architecture` is hollow, which looks ahead"):
        network(causal=True)


def test_objectives_are_held_to_what_the_network_can_learn():
    hollow, (x, _) = network(), batch()
    seeing = randomised(DiT(DiTConfig(vocab_size=V, length=L, width=32, heads=2, blocks=1)))
    draw = Draw.simple(0, 0, B)
    real = torch.ones(1, L, dtype=torch.bool)
    for objective in (SDDLM(), SDDLM(positions="all"), NELBO(), CalibratedDenoising(), SDDLMV1()):
        assert objective.loss(hollow, x, draw).total.isfinite()
        assert objective.loss(PaddingMasked(hollow, real), x, draw).total.isfinite()
    for objective in (NaiveDenoising(), SEDD(), SDDLMV2(), SDDLM(positions="changed")):
        with pytest.raises(ConfigError, match="`architecture` is hollow, which cannot depend"):
            objective.loss(hollow, x, draw)
    with pytest.raises(ConfigError, match="`positions` all needs a network that does not see"):
        SDDLM(positions="all").loss(seeing, x, draw)


def test_every_position_is_scored():
    hollow, (x, _) = network(), batch()
    loss = SDDLM(positions="all").loss(hollow, x, Draw.simple(0, 0, B))
    assert loss.metrics["loss_per_row"][1] == loss.count == B * L
