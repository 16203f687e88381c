"""The large GIDD models: the same logits as independent code, their noise, their ids, refusals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import tokenizers as hf
import torch
from safetensors.torch import load_file
from torch import Tensor

import public
import public_gidd
import sddlm
from public_gidd import CONFIG, LENGTH, MASK, V
from sddlm.cli import main
from sddlm.errors import ConfigError
from sddlm.importer.run import ImportConfig, open_checkpoint
from sddlm.lm import LanguageModel
from sddlm.process import LogLinear, MaskedProcess, UniformProcess
from sddlm.process.estimate import Estimate

WORDS = [
    "the", "a", "dog", "cat", "runs", "sees", "red", "big", "bird", "fish", "eats", "old", "new",
    "small", "blue", "green",
]  # fmt: skip
NAMES = ["<|begin_of_text|>", "<|end_of_text|>", "<|pad|>", "<|mask|>"]
OTHERS = torch.tensor([i for i in range(V) if i != MASK])
SIGMA = torch.tensor([0.01, 0.7, 4.2])


def write(
    folder: Path,
    weights: dict[str, Tensor] | None = None,
    names: list[str] = NAMES,
    **changes: Any,
) -> Path:
    """A repository with its tokenizer; ``...`` in the place of an option leaves it out."""
    config = {k: v for k, v in {**CONFIG, **changes}.items() if v is not ...}
    public.write(folder, public_gidd.state() if weights is None else weights, **config)
    tokenizer = hf.Tokenizer(hf.models.WordLevel({w: i for i, w in enumerate(names + WORDS)}, "a"))
    tokenizer.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(names)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def check_logits(lm: LanguageModel, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Compare the logits at every token but the mask, in the order of ids that `sddlm` gives."""
    x = torch.randint(0, V - 1, (3, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = lm.network.head.logits(lm.network(x, SIGMA))[..., : V - 1]
    theirs = public_gidd.logits(weights, OTHERS[x], config)[..., OTHERS]
    assert (ours - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.3


def last_alpha(lm: LanguageModel) -> float:
    return lm.process.schedule.alpha(torch.ones(1)).item()


@pytest.mark.parametrize(
    "scales",
    [
        {},
        {"weight_scaling": "fan_in", "head_scaling": "fan_in", "resid_scale": 3},
        {"weight_scaling": "fan_out", "head_scaling": 512.0 / 3072},
    ],
    ids=str,
)
def test_uniform_noise_without_the_mask(tmp_path: Path, scales: dict[str, Any]) -> None:
    weights = public_gidd.state()
    lm = open_checkpoint(str(write(tmp_path, weights, **scales)))
    check_logits(lm, weights, {**CONFIG, **scales})
    assert lm.process == UniformProcess(LogLinear(last_alpha(lm)))
    assert last_alpha(lm) == pytest.approx(1 / (1 + math.exp(9)), rel=1e-12)
    assert lm.estimate is Estimate.LEAVE_ONE_OUT
    assert lm.network.time_free
    assert (lm.network.vocab_size, lm.network.length) == (V - 1, LENGTH)
    assert lm.tokenizer.vocab_size == V - 1
    assert lm.tokenizer.special == {name: i for i, name in enumerate(NAMES[:3])}
    assert (lm.tokenizer.bos_id, lm.tokenizer.eos_id) == (0, 1)
    assert lm.tokenizer.encode_batch(["the dog"]) == [[3, 5]]
    assert lm.data["packing"] == {"packing": "wrap", "bos_eos": False, "eos": True}


def test_masks(tmp_path: Path) -> None:
    weights = public_gidd.state()
    lm = open_checkpoint(str(write(tmp_path, weights, noise_type=-1000.0, min_log_snr=-4)))
    check_logits(lm, weights, CONFIG)
    assert lm.process == MaskedProcess(LogLinear(last_alpha(lm)))
    assert last_alpha(lm) == pytest.approx(1 / (1 + math.exp(4)), rel=1e-12)
    assert (lm.network.vocab_size, lm.tokenizer.vocab_size) == (V, V - 1)
    assert torch.equal(lm.network.embedding.weight[-1], weights["model.embed_tokens.weight"][MASK])
    logits = lm.network.head.logits(lm.network(torch.full((1, LENGTH), V - 1), SIGMA[:1]))
    assert (logits[..., -1] == -torch.inf).all()


def test_half_precision_is_not_rounded_again(tmp_path: Path) -> None:
    """As published: matrices in bfloat16, norms in float32."""
    weights = {
        name: value if "norm" in name else value.bfloat16()
        for name, value in public_gidd.state().items()
    }
    lm = open_checkpoint(str(write(tmp_path / "mixed", weights)))
    check_logits(lm, weights, CONFIG)
    weights = {name: value.bfloat16() for name, value in weights.items()}
    lm = open_checkpoint(str(write(tmp_path / "half", weights)))
    check_logits(lm, weights, CONFIG)
    assert {p.dtype for p in lm.network.parameters()} == {torch.float32}


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = public_gidd.state()
    del weights["model.layers.0.self_attn.k_bias"]
    weights["model.layers.1.self_attn.odd"] = weights.pop("model.layers.1.self_attn.q_norm.weight")
    weights["model.layers.1.mlp.up_proj.bias"] = torch.ones(3)
    weights["lm_head.bias"] = torch.ones(V)
    with pytest.raises(ConfigError) as error:
        open_checkpoint(str(write(tmp_path, weights)))
    assert str(error.value) == (
        "the weights do not fit the network: "
        "model.layers.0.self_attn.k_bias [2, 8] is missing; "
        "model.layers.1.self_attn.q_norm.weight [16] is missing; "
        "lm_head.bias [20] is unexpected; "
        "model.layers.1.self_attn.odd [16] is unexpected; "
        "model.layers.1.mlp.up_proj.bias is [3] instead of [64]"
    )


def test_a_block_that_is_missing_is_not_overlooked(tmp_path: Path) -> None:
    weights = {k: v for k, v in public_gidd.state().items() if "layers.1" not in k}
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.down_proj\.bias \[16\] is missing"):
        open_checkpoint(str(write(tmp_path, weights)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": False}, r"attention_bias False \(must be True\)"),
        ({"mlp_bias": False}, r"mlp_bias False \(must be True\)"),
        ({"use_qk_norm": False}, r"use_qk_norm False \(must be True\)"),
        ({"tie_word_embeddings": True}, r"tie_word_embeddings True \(must be False\)"),
        ({"attn_soft_cap": None}, r"attn_soft_cap None \(must be 30.0\)"),
        ({"rms_norm_eps": 1e-5}, r"rms_norm_eps 1e-05 \(must be 1e-06\)"),
        ({"rope_theta": 5e5}, r"rope_theta 500000.0 \(must be 10000.0\)"),
        ({"rope_scaling": {"factor": 2}}, r"rope_scaling .* \(must be None\)"),
        ({"is_causal": True}, r"is_causal True \(must be False\)"),
        ({"head_dim": 4}, r"head_dim 4 \(must be 8\)"),
        ({"attn_soft_cap": 50, "mlp_bias": False}, r"mlp_bias .*, attn_soft_cap 50"),
        ({"weight_scaling": "fan"}, r"weight_scaling in config.json is 'fan', must be a number"),
        ({"head_scaling": ...}, r"head_scaling in config.json is None, must be a number"),
        ({"resid_scale": ...}, r"resid_scale in config.json is None, must be a number"),
        ({"noise_type": 0.0}, r"noise_type 0.0, a mixture of masks .* give `process`"),
        ({"noise_type": "uniform"}, r"noise_type in config.json is 'uniform', must be a number"),
        ({"noise_type": ...}, r"give `process`, or `like`"),
        ({"num_attention_heads": ...}, r"`heads` cannot be read off the checkpoint"),
        ({"max_position_embeddings": ...}, r"`length` cannot be read off the checkpoint"),
        ({"eos_token_id": 2}, r"begins with id 0 and ends with 1, .* has eos_token_id 2; .*name"),
        ({"bos_token_id": 2}, r"config.json has bos_token_id 2"),
    ],
    ids=str,
)
def test_variants_are_refused_by_name(tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(str(write(tmp_path, **changes)))


def test_choices(tmp_path: Path) -> None:
    source = str(write(tmp_path / "model", noise_type=0.0))

    def refused(message: str, **how: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(source, ImportConfig(**how))

    assert open_checkpoint(source, ImportConfig(process=MaskedProcess())).network.vocab_size == V
    other = open_checkpoint(source, ImportConfig(process=UniformProcess(), mask=2))
    assert other.tokenizer.special == {NAMES[0]: 0, NAMES[1]: 1, NAMES[3]: 2}
    refused(r"`time_input` is sigma, but this network has no noise-level input", like="duo")
    noise: dict[str, Any] = {"process": UniformProcess()}
    refused(r"`time_input` is zero, but", **noise, time_input="zero")
    refused(r"`label` is 1, must be below `labels` 0", **noise, label=1)
    refused(r"`heads` is 3, must divide `width` 16", **noise, heads=3)
    refused(r"head_dim 8 \(must be 4\)", **noise, heads=4)
    refused(r"`estimate` is next_token, but the network looks", **noise, estimate="next_token")
    refused(r"`mask` is 7, which is 'cat'", **noise, mask=7)
    refused(r"`mask` is 20, must be an id below 20", **noise, mask=20)
    assert open_checkpoint(source, ImportConfig(**noise, length=5)).network.length == 5
    unnamed = str(write(tmp_path / "fork", model_type="none"))
    with pytest.raises(ConfigError, match=r"give `process`, `time_input`, `estimate`, or `like`"):
        open_checkpoint(unnamed)
    assert open_checkpoint(unnamed, ImportConfig(like="gidd-large")).process.extra_tokens == 0


def test_the_mask_is_id_3_whatever_its_name(tmp_path: Path) -> None:
    names = [*NAMES[:2], "<mask>", "<odd>"]
    lm = open_checkpoint(str(write(tmp_path, names=names)))
    assert lm.tokenizer.special == {name: i for i, name in enumerate(names[:3])}
    check_logits(lm, public_gidd.state(), CONFIG)


def test_another_language_model_is_refused(tmp_path: Path) -> None:
    weights = {k: v for k, v in public_gidd.state().items() if "attn_layernorm" not in k}
    with pytest.raises(ConfigError, match=r"is no DiT: .* but lm_head.weight, model"):
        open_checkpoint(str(write(tmp_path, weights)))


@pytest.mark.parametrize("noise_type", [1000.0, -1000.0])
def test_the_verb_and_what_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise_type: float
) -> None:
    """A model is converted, loaded, sampled by every sampler, scored and corrected."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "gidd", noise_type=noise_type)
    assert main(["import", "gidd", "out"]) == 0
    lm = sddlm.load("out", device="cpu")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert stored.keys() == lm.network.state_dict().keys()
    masks = noise_type < 0
    for sampler in (
        *(sddlm.Ancestral(steps=3), sddlm.Lazy(steps=3), sddlm.Adaptive(steps=3)),
        sddlm.FirstHitting() if masks else sddlm.Psi(steps=3),
    ):
        tokens = sampler.sample(lm, batch=2, length=6).tokens
        assert tokens.shape == (2, 6)
        assert tokens.max() < V - 1
    (text,) = lm.generate("the dog", steps=3)
    assert text.text.startswith("the dog")
    (nll,) = lm.nll(["the cat sees a bird"], draws=32)
    assert nll.nats > 0
    if not masks:
        assert lm.correct("the dog runs a", steps=2).text


@pytest.mark.slow
def test_training_goes_on_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = open_checkpoint(str(write(tmp_path / "gidd")))
    before.save("out")
    (tmp_path / "my.txt").write_text("\n\n".join(["the dog sees a big red bird"] * 40))
    start = ["--start", "out", "--data.path", "my.txt", "--out", "run", "--objective", "NELBO"]
    few = ["--data.length", "8", "--train.steps", "2", "--train.batch", "4"]
    few += ["--train.warmup", "1", "--train.validation_rows", "8"]
    assert main(["train", *start, *few]) == 0
    after = sddlm.load("run", device="cpu")
    assert after.network.config == before.network.config
    for name, value in before.network.state_dict().items():
        assert not torch.equal(after.network.state_dict()[name], value), name
