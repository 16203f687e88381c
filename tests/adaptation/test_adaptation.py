"""Models of transformers: the states of their own classes with a full mask, trained and sampled."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import sddlm
from networks import randomised
from sddlm.adaptation import adapt, wrap
from sddlm.cli import main
from sddlm.data.config import DataArgs
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.model_dir import read_model_dir
from sddlm.models.backbone import CAUSAL
from sddlm.models.config import DiTConfig, ModelArgs
from sddlm.models.dit import DiT
from sddlm.process import UniformProcess
from sddlm.process.estimate import Estimate
from sddlm.training.lora import add_adapters, merge_adapters
from sddlm.training.start import continued, open_start

V, ROWS, POSITIONS = 257, 320, 32
SIGMA = torch.zeros(3)
TOKENS = torch.randint(0, V, (3, 9), generator=torch.Generator().manual_seed(1))
CODE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

(__import__("pathlib").Path(__file__).parent / "was_run").touch()

class OffByOneConfig(PretrainedConfig):
    model_type = "off_by_one"
    vocab_size, hidden_size, max_position_embeddings, causal = 257, 16, 32, False

class Base(PreTrainedModel):
    config_class, base_model_prefix = OffByOneConfig, "model"

class OffByOneModel(Base):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.post_init()

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        x = self.embed(input_ids)
        q, k, v = self.qkv(x).chunk(3, -1)
        scores = q @ k.mT
        if attention_mask is not None:
            scores = scores.masked_fill(attention_mask[:, None] == 0, -torch.inf)
        if self.config.causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
        weights = scores.exp()
        x = x + weights / (1 + weights.sum(-1, keepdim=True)) @ v
        return BaseModelOutput(last_hidden_state=x)

class OffByOneForMaskGeneration(Base):
    def __init__(self, config):
        super().__init__(config)
        self.model = OffByOneModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_output_embeddings(self):
        return self.lm_head
"""


def _config(kind: str) -> Any:
    import transformers

    if kind == "gpt2":
        return transformers.GPT2Config(
            vocab_size=ROWS, n_positions=POSITIONS, n_embd=32, n_layer=2, n_head=4,
            bos_token_id=None, eos_token_id=None, initializer_range=0.3,
        )  # fmt: skip
    make = transformers.AutoConfig.for_model(kind).__class__
    more = {"head_dim": 8} if kind == "qwen3" else {}
    return make(
        vocab_size=ROWS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=64, max_position_embeddings=POSITIONS,
        tie_word_embeddings=kind == "qwen2", bos_token_id=None, eos_token_id=None,
        initializer_range=0.3, **more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models of the real classes, with random weights, as they are on the hub."""
    import transformers

    transformers.logging.disable_progress_bar()
    folder = tmp_path_factory.mktemp("hub")
    for kind in CAUSAL:
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(_config(kind)).save_pretrained(folder / kind)
        Tokenizer.bytes().save(folder / kind)
    return folder


@pytest.fixture
def gemma(hub: Path) -> Path:
    """A tiny DiffusionGemma."""
    import transformers

    place = hub / "gemma"
    if not place.exists():
        sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "head_dim": 8}
        text = transformers.DiffusionGemmaTextConfig(
            **sizes, vocab_size=260, intermediate_size=32, num_hidden_layers=2,
            num_key_value_heads=1, global_head_dim=8, max_position_embeddings=POSITIONS,
            num_experts=4, top_k_experts=2, moe_intermediate_size=8, sliding_window=4,
            layer_types=["sliding_attention", "full_attention"], initializer_range=0.3,
            pad_token_id=0, eos_token_id=256, bos_token_id=256,
        )  # fmt: skip
        vision = transformers.AutoConfig.for_model(
            "gemma4_vision", **sizes, intermediate_size=16, num_hidden_layers=1,
            num_key_value_heads=2,
        )  # fmt: skip
        config = transformers.DiffusionGemmaConfig(
            text_config=text, vision_config=vision, canvas_length=12, image_token_id=1,
            boi_token_id=2, eoi_token_id=3,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.DiffusionGemmaForBlockDiffusion(config).save_pretrained(place)
        Tokenizer.bytes().save(place)
    return place


def _states(place: Path, x: Tensor) -> tuple[Tensor, Tensor]:
    """States and logits of the real class whose attention, not that of torch, hides nothing."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(place, attn_implementation="eager")
    nothing = torch.zeros(len(x), 1, x.shape[1], x.shape[1])
    with torch.no_grad():
        states = model.eval().base_model(x, attention_mask=nothing).last_hidden_state
        return states, model.get_output_embeddings()(states)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CAUSAL)
def test_an_adapted_network_is_the_real_one_with_a_full_mask(
    hub: Path, tmp_path: Path, kind: str
) -> None:
    adapt(str(hub / kind), str(tmp_path / "start"))
    random_state = torch.get_rng_state()
    network = read_model_dir(tmp_path / "start", "cpu")[1]["network"]
    assert torch.equal(torch.get_rng_state(), random_state)
    table = network.inner.get_input_embeddings().weight
    assert len(table) == V  # rows without a token are cut off, and ties kept
    assert (network.head.weight is table) == (kind in ("gpt2", "qwen2"))
    assert not any(m.p for m in network.modules() if isinstance(m, torch.nn.Dropout))
    states, logits = _states(hub / kind, TOKENS)
    shifted = [0, *range(8)]
    with torch.no_grad():
        hidden = network(TOKENS, SIGMA)
        torch.testing.assert_close(hidden, states[:, shifted], atol=1e-5, rtol=0)
        ours = network.head.logits(hidden)  # [3, 9, V]
        torch.testing.assert_close(ours, logits[:, shifted, :V], atol=1e-5, rtol=0)
        rows = torch.tensor([0, 3, 9, 26])
        torch.testing.assert_close(network(TOKENS, SIGMA, rows=rows), hidden.flatten(0, 1)[rows])
        later = TOKENS.clone()
        later[:, 8] = (later[:, 8] + 1) % V
        assert ((network(later, SIGMA)[:, 0] - hidden[:, 0]).abs().amax(-1) > 1e-4).all()
        seen = torch.arange(9).expand(3, 9) < 8
        padded = [network(x, SIGMA, attention_mask=seen) for x in (TOKENS, later)]
        torch.testing.assert_close(padded[0][:, :8], padded[1][:, :8])
        torch.testing.assert_close(padded[0][:, :8], network(TOKENS[:, :8], SIGMA))


@pytest.mark.slow
def test_rotary_frequencies_keep_their_precision(hub: Path, tmp_path: Path) -> None:
    """Of a model in 16 bits: a position's angle would be wrong by a percent."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(hub / "llama", dtype=torch.bfloat16)
    for name in ("half", "whole"):
        model.save_pretrained(tmp_path / name)
        Tokenizer.bytes().save(tmp_path / name)
        adapt(str(tmp_path / name), str(tmp_path / f"{name}-start"))
        model = model.float()
    half, whole = (
        read_model_dir(tmp_path / f"{name}-start", "cpu")[1]["network"]
        for name in ("half", "whole")
    )
    assert load_file(tmp_path / "half-start" / "model.safetensors")["inner.norm.weight"].dtype == (
        torch.bfloat16
    )
    torch.testing.assert_close(half(TOKENS, SIGMA), whole(TOKENS, SIGMA))


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a training of four steps."""
    monkeypatch.setattr("sddlm.training.monitor.draw_curves", lambda runs, path: None)
    (tmp_path / "text.txt").write_text("the dog sees the cat, and the cat runs. " * 100)
    options = {
        "data.path": tmp_path / "text.txt", "data.cache": tmp_path / "cache", "data.length": 16,
        "train.steps": 4, "train.batch": 4, "train.validate_every": 2, "train.preview_every": 2,
        "train.validation_rows": 8, "train.lr": 1e-2, "train.warmup": 1, "train.ema": 0.5,
    }  # fmt: skip
    return [str(part) for name, value in options.items() for part in (f"--{name}", value)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])  # learnt positions; tied embeddings
def test_from_a_model_of_the_hub_to_a_report(
    hub: Path, tmp_path: Path, text: list[str], capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    start, run = str(tmp_path / "start"), str(tmp_path / "run")
    assert main(["adapt", str(hub / kind), start]) == 0
    for verb in (["sample", start], ["eval", start]):
        assert main(verb) == 2
        assert f"{start} was adapted and is not trained yet: sddlm train --start {start}" in (
            capsys.readouterr().err
        )
    train = ["train", "--start", start, *text, "--objective", "CalibratedDenoising", "--out"]
    assert main([*train, str(tmp_path / "x"), "--model.width", "64"]) == 2
    assert "is a network of transformers, which has its own sizes" in capsys.readouterr().err
    assert main([*train, str(tmp_path / "x"), "--data.length", "33"]) == 2
    assert "positions for 1 to 32" in capsys.readouterr().err
    how = ["--train.optimizer", "Muon", "--train.activation_checkpointing", "full"]
    assert main([*train, run, *how]) == 0
    lm, before = sddlm.load(run), read_model_dir(start, "cpu")[1]["network"].state_dict()
    assert (lm.estimate, lm.network.length) == (Estimate.LEAVE_ONE_OUT, 16)
    after = lm.network.state_dict()
    assert all(not torch.equal(after[name], before[name]) for name in before)
    assert main(["train", "--config", f"{run}/config.yaml", "--out", run, "--resume", "true"]) == 0
    assert main(["sample", run, "--steps", "4", "--out", str(tmp_path / "samples.jsonl")]) == 0
    assert main(["eval", run, "--metrics", "likelihood", "--rows", "4"]) == 0
    assert "bits per character" in capsys.readouterr().out.lower()


@pytest.mark.slow
def test_adapters_of_a_gpt2_are_merged(hub: Path, tmp_path: Path) -> None:
    adapt(str(hub / "gpt2"), str(tmp_path / "start"))
    network = read_model_dir(tmp_path / "start", "cpu")[1]["network"]
    before, names = network(TOKENS, SIGMA), network.state_dict().keys()
    add_adapters(network, rank=2, seed=0)
    torch.testing.assert_close(network(TOKENS, SIGMA), before)
    trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 2 * 4  # two factors of four matrices in two blocks
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapted = network(TOKENS, SIGMA)
    assert (adapted - before).abs().max() > 1e-3
    merge_adapters(network)
    torch.testing.assert_close(network(TOKENS, SIGMA), adapted, atol=1e-4, rtol=1e-4)
    assert network.state_dict().keys() == names


@pytest.mark.slow
def test_missing_weights_are_named(hub: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    for file in (hub / "llama").iterdir():
        (lacking / file.name).write_bytes(file.read_bytes())
    state, name = load_file(lacking / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    del state[name]
    save_file(state, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=rf"lacks weights of its network.*: {name}"):
        adapt(str(lacking), str(tmp_path / "start"))
    adapt(str(hub / "llama"), str(tmp_path / "start"))
    place = tmp_path / "start" / "model.safetensors"
    config = tmp_path / "start" / "config.json"
    config.write_text(config.read_text().replace('"sha256"', '"once"'))
    state = load_file(place)
    del state["inner.norm.weight"]
    save_file(state, place)
    with pytest.raises(ConfigError, match=r"network: inner\.norm\.weight \[\d+\] is missing$"):
        read_model_dir(tmp_path / "start", "cpu")


@pytest.mark.parametrize("kernel", [0, 4])
def test_the_mask_of_a_network_of_ours_is_lifted(tmp_path: Path, kernel: int) -> None:
    config = DiTConfig(
        vocab_size=V, length=9, width=16, blocks=2, heads=2, causal=True, input_conv=kernel
    )
    network, tokenizer = randomised(DiT(config)), Tokenizer.bytes()
    lm = LanguageModel(network, UniformProcess(), Estimate.NEXT_TOKEN, tokenizer, {}, {"a": 1})
    lm.save(tmp_path / "ar")
    assert adapt(str(tmp_path / "ar"), str(tmp_path / "start")) == tmp_path / "start"
    lifted = read_model_dir(tmp_path / "start", "cpu")[1]
    assert (lifted["data"], lifted["estimate"]) == ({"a": 1}, Estimate.NEXT_TOKEN)
    for block in network.blocks:
        block.causal = False
    with torch.no_grad():
        expected = network(TOKENS, SIGMA)[:, [0, *range(8)]]
        hidden = lifted["network"](TOKENS, SIGMA)
        torch.testing.assert_close(hidden, expected)
        rows = torch.tensor([0, 3, 9, 26])
        one_by_one = lifted["network"](TOKENS, SIGMA, rows=rows)
    torch.testing.assert_close(one_by_one, hidden.flatten(0, 1)[rows])
    with pytest.raises(ConfigError, match="was adapted and is not trained yet"):
        sddlm.load(tmp_path / "start")
    options = (DataArgs(), ModelArgs(), sddlm.SDDLM())
    with pytest.raises(ConfigError, match=r"an autoregressive model.*; first: sddlm adapt \S+/ar "):
        open_start(str(tmp_path / "ar"), *options)
    trained = continued(open_start(str(tmp_path / "start"), *options), 5, seed=0)
    assert (trained.length, trained.config.shift) == (5, True)
    assert torch.equal(trained(TOKENS, SIGMA), hidden)


def test_what_cannot_be_adapted(tmp_path: Path) -> None:
    config = DiTConfig(vocab_size=V, length=9, width=16, blocks=1, heads=2)
    lm = LanguageModel(
        DiT(config), UniformProcess(), Estimate.LEAVE_ONE_OUT, Tokenizer.bytes(), {}, {}
    )
    lm.save(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a diffusion model already"):
        adapt(str(tmp_path / "run"), str(tmp_path / "start"))
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="is a bert; sddlm adapt reads gpt2, llama, qwen2, qwen3"):
        adapt(str(tmp_path / "bert"), str(tmp_path / "start"))
    with pytest.raises(ConfigError, match=r"no config\.json there has a model_type"):
        adapt(str(tmp_path), str(tmp_path / "start"))


def test_without_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ConfigError, match=r"needs the package transformers: pip install '[^\n]*$"):
        adapt(str(tmp_path), str(tmp_path / "start"))


@pytest.mark.slow
def test_diffusion_gemma_is_sampled_and_scored(gemma: Path, tmp_path: Path) -> None:
    import transformers

    lm = wrap(str(gemma))
    assert (lm.estimate, lm.network.length) == (Estimate.DENOISER, 12)
    assert lm.network.vocab_size == lm.tokenizer.vocab_size == 260
    model = transformers.DiffusionGemmaForBlockDiffusion.from_pretrained(gemma).eval()
    with torch.no_grad():
        prompt = torch.full((3, 1), 256)
        expected = model(input_ids=prompt, decoder_input_ids=TOKENS).logits
        hidden = lm.network(TOKENS, SIGMA)
        torch.testing.assert_close(lm.network.head.logits(hidden), expected)
        seen = torch.arange(9).expand(3, 9) < 5
        padded = lm.network(TOKENS, SIGMA, attention_mask=seen)[:, :5]
        torch.testing.assert_close(padded, lm.network(TOKENS[:, :5], SIGMA))
    adapt(str(gemma), str(tmp_path / "model"))
    saved = sddlm.load(tmp_path / "model")
    assert torch.equal(saved.network(TOKENS, SIGMA), hidden)
    (text,) = saved.generate(steps=4, length=8)
    assert len(text.tokens) == 8
    # a random network is as good as a uniform guess of 260 tokens, about
    (nll,) = saved.nll("hello", draws=32)
    assert 0.5 < nll.nats / nll.tokens / 5.56 < 5
    with pytest.raises(ConfigError, match="sampled and scored, not trained"):
        saved.network.head(saved.network(TOKENS, SIGMA)[0], sddlm.CrossEntropy(TOKENS[0]))
    with pytest.raises(ConfigError, match="is a gpt2: sddlm adapt makes it a diffusion model"):
        wrap(str(gemma.parent / "gpt2"))


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with code of its own and weights that fit it."""
    import transformers

    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "m"))
    place = tmp_path / "repository"
    place.mkdir()
    (place / "tiny_code.py").write_text(CODE)
    names = {
        "AutoConfig": "OffByOneConfig",
        "AutoModelForMaskGeneration": "OffByOneForMaskGeneration",
    }
    _write_config(place, auto_map={key: f"tiny_code.{name}" for key, name in names.items()})
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "model.embed.weight": (V, 16), "model.qkv.weight": (48, 16), "model.qkv.bias": (48,),
        "lm_head.weight": (V, 16),
    }  # fmt: skip
    state = {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}
    save_file(state, place / "model.safetensors", {"format": "pt"})
    Tokenizer.bytes().save(place)
    return place


def _write_config(place: Path, **values: Any) -> None:
    config = {"model_type": "off_by_one", **values}
    (place / "config.json").write_text(json.dumps(config))


@pytest.mark.slow
def test_remote_code_runs_only_if_it_is_trusted(repository: Path, tmp_path: Path) -> None:
    for opened in (
        lambda: adapt(str(repository), str(tmp_path / "start")),
        lambda: wrap(str(repository), estimate="leave_one_out"),
        lambda: sddlm.load(repository),
    ):
        with pytest.raises(ConfigError):
            opened()
    with pytest.raises(ConfigError, match="does not state what it predicts: give `estimate`"):
        wrap(str(repository), trust_remote_code=True)
    assert not list(tmp_path.rglob("was_run"))
    lm = wrap(str(repository), estimate="leave_one_out", length=8, trust_remote_code=True)
    assert list(tmp_path.rglob("was_run"))
    assert (lm.network.vocab_size, lm.network.length) == (V, 8)
    samples = sddlm.Lazy(steps=4).sample(lm, batch=2)
    assert samples.tokens.shape == (2, 8)
    (nll,) = lm.nll("hello", draws=32)
    assert 0.5 < nll.nats / nll.tokens / 5.55 < 2
    with pytest.raises(ConfigError, match=r"open it with `sddlm\.wrap` each time"):
        lm.save(tmp_path / "saved")
    config = json.loads((repository / "config.json").read_text())
    _write_config(repository, **config, causal=True)
    with pytest.raises(ConfigError, match="is causal: no position sees those behind it"):
        wrap(str(repository), estimate="leave_one_out", trust_remote_code=True)
