"""The network: golden values, sizes, laws of its parts, what it starts from, saving."""

from __future__ import annotations

import copy
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from sddlm.errors import ConfigError
from sddlm.models.config import PRESETS, DiTConfig, ModelArgs, Preset
from sddlm.models.dit import DiT
from sddlm.models.layers import Rotary, rotate, sigma_features
from sddlm.models.row_losses import CrossEntropy

GOLDEN = Path(__file__).parents[1] / "golden"
V, L = 11, 8
AWAKE = {"gate_init": 1.0, "head_init": 0.5}
LLAMA = {"architecture": "llama", "cond_dim": 128}
GIDD = {"architecture": "gidd", "cond_dim": 128}


def small(**changes: Any) -> DiT:
    values = {"vocab_size": V, "length": L, "width": 16, "blocks": 2, "heads": 2, "cond_dim": 8}
    return DiT(DiTConfig(**{**values, **changes}))


def awake(**changes: Any) -> DiT:
    """A network that does something: every parameter random."""
    model = small(**changes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


@pytest.fixture
def x_t() -> torch.Tensor:
    return torch.randint(V, (3, L), generator=torch.Generator().manual_seed(0))


SIGMA = torch.tensor([0.01, 0.7, 4.2])


def test_sigma_features_are_those_of_duo() -> None:
    golden = np.load(GOLDEN / "misc.npz")
    ours = sigma_features(torch.from_numpy(golden["sigma"]).float())
    assert torch.allclose(ours, torch.from_numpy(golden["sigma_embedding"]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("preset", "causal", "millions"),
    [
        ("tiny", False, 33.79),
        ("small", False, 169.63),
        ("medium", False, 424.48),
        ("1b", False, 1297.0),
        ("small", True, 162.25),
    ],
)
def test_number_of_parameters(preset: str, causal: bool, millions: float) -> None:
    config = DiTConfig.preset(preset, vocab_size=50258, length=1024, causal=causal)
    with torch.device("meta"):
        model = DiT(config)
    d, nb, vocab = config.width, config.blocks, config.vocab_size
    blocks = nb * (12 * d * d + (7 if causal else 781) * d)
    rest = 0 if causal else 258 * d + 49408
    count = sum(p.numel() for p in model.parameters())
    assert count == 2 * vocab * d + vocab + d + blocks + rest
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


def test_predicts_uniformly_at_the_start(x_t: torch.Tensor) -> None:
    model = small()
    hidden = model(x_t, SIGMA)
    assert hidden.shape == (3, L, 16)
    assert model.head.logits(hidden).abs().max() == 0
    # and every block is the identity: the noise level changes nothing
    assert torch.equal(hidden, model(x_t, SIGMA.flip(0)))


def test_gates_and_head_can_start_open(x_t: torch.Tensor) -> None:
    model = small(**AWAKE)
    for block in model.blocks:
        bias = block.modulation.bias.view(6, 16)
        assert (bias[[2, 5]] == 1).all()
        assert (bias[[0, 1, 3, 4]] == 0).all()
    assert small(width=256, **AWAKE).head.weight.std().item() == pytest.approx(0.5, rel=0.05)
    assert not torch.equal(model(x_t, SIGMA), small()(x_t, SIGMA))


@pytest.mark.parametrize("input_conv", [0, 3])
def test_causal_network_does_not_look_ahead(x_t: torch.Tensor, input_conv: int) -> None:
    changed = x_t.clone()
    changed[:, 5] = (changed[:, 5] + 1) % V
    causal = awake(causal=True, input_conv=input_conv)
    moved = (causal(x_t, SIGMA) - causal(changed, SIGMA)).abs().amax((0, 2))  # [L]
    assert (moved[:5] == 0).all()
    assert (moved[5:] > 0).all()
    free = awake(input_conv=input_conv)
    assert ((free(x_t, SIGMA) - free(changed, SIGMA)).abs().amax((0, 2)) > 0).all()


def test_noise_level_matters_to_diffusion_alone(x_t: torch.Tensor) -> None:
    for causal in (False, True):
        model = awake(causal=causal)
        assert torch.equal(model(x_t, SIGMA), model(x_t, SIGMA * 2)) == causal


def test_input_convolution_reaches_as_far_as_its_kernel() -> None:
    for causal, reached in ((False, [2, 3, 4]), (True, [3, 4, 5])):
        model = awake(input_conv=3, causal=causal)
        x = torch.zeros(1, L, 16)
        x[:, 3] = 1
        moved = (model.input_conv(x) - x).abs().amax((0, 2))
        assert moved.nonzero().flatten().tolist() == reached


def test_rotary_depends_on_the_distance_alone() -> None:
    cos, sin = Rotary(8)(20, torch.device("cpu"), torch.float64)
    q, k = torch.randn(2, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    score = rotate(q.expand(20, 8), cos, sin) @ rotate(k.expand(20, 8), cos, sin).T  # [20, 20]
    for distance in (-3, 0, 5):
        diagonal = score.diagonal(distance)
        assert torch.allclose(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-12)
    assert torch.allclose(score.diagonal()[0], q @ k)


def test_rotary_table_made_in_inference_mode_serves_training(x_t: torch.Tensor) -> None:
    model = awake()
    with torch.inference_mode():
        model(x_t, SIGMA)
    model(x_t, SIGMA).sum().backward()
    assert not any("rotary" in name for name in model.state_dict())


def test_any_length_works(x_t: torch.Tensor) -> None:
    model = awake()
    assert model(x_t.repeat(1, 3), SIGMA).shape == (3, 3 * L, 16)
    assert torch.equal(model(x_t[:, :2], SIGMA), awake()(x_t[:, :2], SIGMA))


@pytest.mark.parametrize("bad", [(0, 3), (3, 0), (3,)])
def test_wrong_shapes_are_refused(bad: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"x_t must be \[B, L\]|sigma must be"):
        small()(torch.zeros(bad, dtype=torch.long), SIGMA)


def test_start_depends_on_the_seed_alone() -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, other = small(head_init=0.1), small(head_init=0.1)
    one.init(7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    other.init(7)
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b), name
    other.init(8)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    other.reset_parameters()
    assert torch.equal(other.embedding.weight, small().embedding.weight)
    assert one.embedding.weight.abs().max() <= 16**-0.5
    assert one.embedding.weight.std().item() == pytest.approx((3 * 16) ** -0.5, rel=0.1)


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_meta_device(tie_embeddings: bool) -> None:
    with torch.device("meta"):
        model = small(tie_embeddings=tie_embeddings)
    assert all(p.is_meta for p in model.parameters())
    model.to_empty(device="cpu").init(0)
    for a, b in zip(
        model.parameters(), small(tie_embeddings=tie_embeddings).parameters(), strict=True
    ):
        assert torch.equal(a, b)


def test_sharded_start() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        with torch.device("meta"):
            model = small(head_init=0.1)
        mesh = dist.init_device_mesh("cpu", (1,))
        for part in (*model.blocks, model.head, model):
            fully_shard(part, mesh=mesh)
        model.to_empty(device="cpu").init(5)
        plain = DiT(model.config, seed=5)
        for a, b in zip(model.parameters(), plain.parameters(), strict=True):
            assert torch.equal(a.full_tensor(), b)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True},
        {"causal": True},
        {"input_conv": 5},
        {**LLAMA, "tie_embeddings": True},
        GIDD,
    ],
)
def test_gradient_reaches_every_parameter(x_t: torch.Tensor, changes: dict[str, Any]) -> None:
    model = awake(**changes).double().train()
    hidden = model(x_t, SIGMA)
    assert hidden.dtype == torch.float64
    model.head(hidden.flatten(0, 1), CrossEntropy(x_t.flatten())).total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("changes", [{}, LLAMA, GIDD], ids=str)
def test_bfloat16(x_t: torch.Tensor, changes: dict[str, Any]) -> None:
    exact = awake(**changes)
    hidden = copy.deepcopy(exact).bfloat16()(x_t, SIGMA)
    assert hidden.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact(x_t, SIGMA)
    assert mixed.dtype == torch.float32
    for inexact in (hidden, mixed):
        assert (inexact - exact(x_t, SIGMA)).norm() / exact(x_t, SIGMA).norm() < 0.05


def test_dropout_in_training_only(x_t: torch.Tensor) -> None:
    model = awake(dropout=0.5)
    assert torch.equal(model(x_t, SIGMA), model(x_t, SIGMA))
    model.train()
    assert not torch.equal(model(x_t, SIGMA), model(x_t, SIGMA))


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": True}, {"causal": True}, {"input_conv": 3}, GIDD]
)
def test_saved_and_loaded(
    x_t: torch.Tensor, changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = awake(dropout=0.1, **changes)
    model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("{", '{"later": 1,', 1))
    loaded = DiT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert torch.equal(loaded(x_t, SIGMA), model(x_t, SIGMA))
    assert torch.equal(loaded.head.weight, model.head.weight)
    assert (loaded.head.weight is loaded.embedding.weight) == model.config.tie_embeddings
    assert all(p.requires_grad for p in loaded.parameters())
    assert capsys.readouterr().out == ""


def test_unfit_weights_are_refused(tmp_path: Path) -> None:
    model = small()
    state = model.state_dict()
    state["extra"] = state.pop("norm.weight")
    state["head.bias"] = torch.zeros(3)
    with pytest.raises(
        ConfigError, match=r"norm.weight \[16\] is missing; extra \[16\] is unexpected; head.bias"
    ):
        DiT.from_state(model.config, state)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no model.safetensors"):
        DiT.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"no config.json"):
        DiT.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"does not describe a DiT.*width"):
        DiTConfig.from_dict({"vocab_size": 3})


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"heads": 3}, "heads"),
        ({"heads": 16}, "heads"),
        ({"heads": 0}, "heads"),
        ({"vocab_size": 1}, "vocab_size"),
        ({"length": 0}, "length"),
        ({"blocks": 0}, "blocks"),
        ({"dropout": 1.0}, "dropout"),
        ({"head_init": -1.0}, "head_init"),
        ({"head_init": 1.0, "tie_embeddings": True}, "head_init"),
        ({"gate_init": 1.0, "causal": True}, "gate_init"),
        ({"input_conv": 4}, "input_conv"),
        ({"input_conv": -1}, "input_conv"),
    ],
)
def test_wrong_measures_name_the_flag(changes: dict[str, Any], flag: str) -> None:
    with pytest.raises(ConfigError, match=rf"`{flag}` "):
        small(**changes)


def test_arguments_build_a_configuration() -> None:
    config = ModelArgs(preset="mini", blocks=1, tie_embeddings=True).build(vocab_size=30, length=5)
    assert config == DiTConfig(
        vocab_size=30, length=5, width=192, blocks=1, heads=6, tie_embeddings=True
    )
    assert ModelArgs().build(vocab_size=30, length=5, causal=True).causal
    with pytest.raises(ConfigError, match=r"`preset` is 'huge'"):
        DiTConfig.preset("huge")
    assert set(get_args(Preset)) == set(PRESETS)
    ours, theirs = ({f.name for f in fields(c)} for c in (ModelArgs, DiTConfig))
    assert ours - theirs == {"preset"}
    assert theirs - ours == {
        "vocab_size", "length", "causal", "num_extra_tokens", "shift", "time_uniform", "labels",
        "label",
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["dit", "time-free", "gidd"])
def test_a_sequence_has_the_same_bits_in_every_batch(kind: str, threads: int) -> None:
    """Also alone, also of few rows, also beside padding: `layers.by_row`."""
    config = DiTConfig(
        vocab_size=50, length=24, width=64, heads=2, blocks=2, head_init=0.3, input_conv=5,
        gate_init=1 if kind == "dit" else 0, time_input="sigma" if kind == "dit" else "none",
        architecture="gidd" if kind == "gidd" else "dit",
    )  # fmt: skip
    model = DiT(config).eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 50, (17, 24), generator=generator)
    sigma = 3 * torch.rand(17, generator=generator)
    attention_mask = torch.arange(24) < torch.randint(1, 25, (17, 1), generator=generator)
    rows = torch.randint(0, 24, (17, 3), generator=generator).sort(1).values
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            for hide in (None, attention_mask):
                whole = model(x, sigma, attention_mask=hide)
                logits = model.head.logits(whole[:, 5])
                for B, start in product((1, 2, 3, 5, 6, 7, 9, 11, 16), (0, 1)):
                    at = slice(start, start + B)
                    part = None if hide is None else hide[at]
                    hidden = model(x[at], sigma[at], attention_mask=part)
                    assert torch.equal(hidden, whole[at])
                    assert torch.equal(model.head.logits(hidden[:, 5]), logits[at])
                    few = (torch.arange(B)[:, None] * 24 + rows[at]).flatten()
                    picked = model(x[at], sigma[at], rows=few, attention_mask=part)
                    wanted = whole[at].gather(1, rows[at][..., None].expand(-1, -1, 64))
                    assert torch.equal(picked, wanted.flatten(0, 1))
    finally:
        torch.set_num_threads(1)
