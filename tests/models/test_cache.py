"""The cache of a causal network: the same hidden states, each position computed once."""

from typing import Any

import pytest
import torch

from sddlm.errors import ConfigError
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT


def network(input_conv: int, causal: bool = True, architecture: Any = "dit") -> DiT:
    config = DiTConfig(
        vocab_size=11,
        length=12,
        width=16,
        blocks=3,
        heads=2,
        causal=causal,
        input_conv=input_conv,
        head_init=0.5,
        architecture=architecture,
    )
    return DiT(config, seed=1).eval()


@pytest.mark.parametrize(("dtype", "atol"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("parts", [[1] * 12, [12], [5, 1, 6], [1, 2, 9]], ids=str)
@pytest.mark.parametrize(("input_conv", "architecture"), [(0, "dit"), (3, "dit"), (3, "llama")])
def test_hidden_states_are_those_of_the_whole(
    input_conv: int, architecture: str, parts: list[int], dtype: torch.dtype, atol: float
) -> None:
    model = network(input_conv, architecture=architecture).to(dtype)
    x = torch.randint(11, (3, 12), generator=torch.Generator().manual_seed(0))
    sigma = torch.zeros(3)
    with torch.no_grad():
        whole = model(x, sigma)
        cache = model.new_cache()
        made = [model(part, sigma, cache=cache) for part in x.split(parts, dim=1)]
    assert cache.seen == 12
    torch.testing.assert_close(torch.cat(made, 1), whole, rtol=0, atol=atol)


def test_a_longer_run_than_trained_for() -> None:
    model = network(3)
    x = torch.randint(11, (2, 20), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        cache = model.new_cache(20)
        made = [model(part, torch.zeros(2), cache=cache) for part in x.split(4, dim=1)]
        torch.testing.assert_close(torch.cat(made, 1), model(x, torch.zeros(2)), rtol=0, atol=1e-5)


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="only a causal network"):
        network(0, causal=False).new_cache()
    model = network(0)
    cache = model.new_cache(3)
    x = torch.zeros(2, 2, dtype=torch.int64)
    model(x, torch.zeros(2), cache=cache)
    with pytest.raises(ValueError, match="room for 3 positions and holds 2"):
        model(x, torch.zeros(2), cache=cache)
    with pytest.raises(ValueError, match="holds 2 sequences, got 1"):
        model(x[:1, :1], torch.zeros(1), cache=cache)
    assert cache.seen == 2
    with pytest.raises(ValueError, match="only a causal network"):
        network(0, causal=False)(x, torch.zeros(2), cache=cache)
