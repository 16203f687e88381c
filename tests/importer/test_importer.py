"""Public checkpoints: the same logits as independent code, nothing guessed, nothing executed."""

from __future__ import annotations

import json
import pickle
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hf
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import public
import sddlm
from hub_server import hub
from sddlm.cli import main
from sddlm.data.config import DataArgs
from sddlm.data.ids import without
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.importer.run import ImportConfig, open_checkpoint
from sddlm.lm import LanguageModel
from sddlm.objectives import NELBO
from sddlm.process import (
    HybridProcess,
    LogLinear,
    MaskedProcess,
    MixtureProcess,
    Process,
    UniformProcess,
)
from sddlm.process.estimate import Estimate
from sddlm.training.start import continued, measures, open_start

GOLDEN = Path(__file__).parents[1] / "golden" / "duo_dit_A.npz"
BERT = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "dog", "cat", "runs", "sees", "red",
    "big", "##s", "##ly", ".", ",",
]  # fmt: skip
MASK = BERT.index("[MASK]")
SIZES = {"model_length": 8, "n_heads": public.HEADS}
SIGMA = torch.tensor([0.01, 0.7, 4.2])
LOO = Estimate.LEAVE_ONE_OUT


def of_bytes(folder: Path) -> Path:
    Tokenizer.bytes().save(folder)
    return folder


def of_words(folder: Path) -> Path:
    (folder / "vocab.txt").write_text("\n".join(BERT))
    return folder


def tokens(vocabulary: int) -> Tensor:
    return torch.randint(0, vocabulary, (3, 8), generator=torch.Generator().manual_seed(1))


def check_logits(
    lm: LanguageModel,
    weights: dict[str, Tensor],
    noise: Tensor | None,
    *,
    mask: int | None = None,
    label: int | None = None,
    sigma: Tensor = SIGMA,
) -> None:
    """Compare the logits at every token, in the order of ids that `sddlm` gives them."""
    V = lm.network.vocab_size
    order = torch.arange(V)
    if mask is not None:
        order = torch.cat([order[order != mask], torch.tensor([mask])])
    x = tokens(V)  # ours
    with torch.no_grad():
        ours = lm.network.head.logits(lm.network(x, sigma))
    theirs = public.logits(weights, order[x], noise, label)[..., order]
    if mask is not None:
        assert (ours[..., -1] == -torch.inf).all()
        ours, theirs = ours[..., :-1], theirs[..., :-1]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 1e-5
    assert theirs.std() > 0.5


@pytest.mark.parametrize("prefix", ["backbone.", ""])
def test_uniform_noise_and_sigma(tmp_path: Path, prefix: str) -> None:
    weights = public.state(258, prefix=prefix)
    source = of_bytes(public.write(tmp_path, weights, model_type="DUO", **SIZES))
    lm = open_checkpoint(str(source))
    check_logits(lm, weights, SIGMA)
    assert (lm.process, lm.estimate) == (UniformProcess(), LOO)
    assert not lm.network.time_free
    assert lm.tokenizer.vocab_size == 258  # [PAD] was added
    assert lm.tokenizer.special["[PAD]"] == 257
    assert lm.network.config.length == 8


def test_mixed_precision_becomes_float32(tmp_path: Path) -> None:
    weights = public.state(258)
    halves = {k: v if "norm" in k or "inv" in k else v.bfloat16() for k, v in weights.items()}
    lm = open_checkpoint(str(of_bytes(public.write(tmp_path, halves, model_type="DUO", **SIZES))))
    check_logits(lm, {name: value.float() for name, value in halves.items()}, SIGMA)
    assert {p.dtype for p in lm.network.parameters()} == {torch.float32}


def test_a_mask_at_the_end_and_zero_for_sigma(tmp_path: Path) -> None:
    weights = public.state(258)
    config = {"model_type": "mdlm", "time_conditioning": False, **SIZES}
    lm = open_checkpoint(str(of_bytes(public.write(tmp_path, weights, **config))))
    check_logits(lm, weights, torch.zeros(3), mask=257)
    assert (lm.process, lm.estimate) == (MaskedProcess(), LOO)
    assert lm.network.time_free
    assert lm.tokenizer.vocab_size == 257
    # the file has precedence over the family, and the choice over both
    public.write(tmp_path, weights, **{**config, "time_conditioning": True})
    check_logits(open_checkpoint(str(tmp_path)), weights, SIGMA, mask=257)
    chosen = open_checkpoint(str(tmp_path), ImportConfig(time_input="zero"))
    check_logits(chosen, weights, torch.zeros(3), mask=257)


@pytest.mark.parametrize("kind", [MaskedProcess, MixtureProcess])
def test_a_mask_in_the_middle(tmp_path: Path, kind: type[Process]) -> None:
    weights = public.state(len(BERT))
    source = of_words(public.write(tmp_path, weights, **SIZES))
    like = "mdlm" if kind is MaskedProcess else "xdlm"
    lm = open_checkpoint(str(source), ImportConfig(like=like))
    assert lm.process == kind()
    check_logits(lm, weights, torch.zeros(3), mask=MASK)
    # the tokenizer has moved with the rows
    text = "the dog sees a big red cat."
    before = Tokenizer.load(source)
    ids, old = lm.tokenizer.encode_batch([text])[0], before.encode_batch([text])[0]
    assert max(ids) < len(BERT) - 1
    assert ids == [i - (i > MASK) for i in old]
    assert lm.tokenizer.decode(ids) == before.decode(old)
    assert "[MASK]" not in lm.tokenizer.special
    assert (lm.tokenizer.eos_id, lm.tokenizer.bos_id) == (3, 2)
    # the same model with its mask at the end from the start, and a tokenizer without one
    rows = [i for i in range(len(BERT)) if i != MASK] + [MASK]
    moved = {
        name: value[rows] if len(value) == len(BERT) else value for name, value in weights.items()
    }
    other = public.write(tmp_path / "other", moved, **SIZES)
    (other / "vocab.txt").write_text("\n".join(word for word in BERT if word != "[MASK]"))
    same = open_checkpoint(str(other), ImportConfig(like=like))
    assert same.nll([text], draws=32) == lm.nll([text], draws=32)
    assert same.generate("the dog", seed=2, steps=4)[0].text == (
        lm.generate("the dog", seed=2, steps=4)[0].text
    )
    with pytest.raises(ConfigError, match=r"`mask` is 7, which is 'dog' in this tokenizer"):
        open_checkpoint(str(source), ImportConfig(like=like, mask=7))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.2])
def test_the_time_of_gidd(tmp_path: Path, share: float) -> None:
    weights = public.state(258, prefix="")
    del weights["rotary_emb.inv_freq"]
    sizes = {"max_seq_len": 8, "num_attention_heads": public.HEADS}
    source = of_bytes(public.write(tmp_path, weights, model_type="dit", p_uniform=share, **sizes))
    lm = open_checkpoint(str(source))
    assert lm.process == (
        HybridProcess(LogLinear(1e-4), uniform=share) if share else MaskedProcess(LogLinear(1e-4))
    )
    weights["rotary_emb.inv_freq"] = public.state(258, prefix="")["rotary_emb.inv_freq"]
    t = torch.tensor([0.02, 0.5, 0.97])
    # kept : masked : uniform = 1 - t : t : 2 k sqrt(t (1 - t))
    kept = (1 - t) / (1 + 2 * share / (1 - share) * (t * (1 - t)).sqrt())
    check_logits(lm, weights, t, mask=257, sigma=-kept.log())
    clean = lm.network(tokens(258), torch.zeros(3))
    assert torch.equal(clean, lm.network(tokens(258), torch.full((3,), 1e-12)))
    assert clean.isfinite().all()


def test_a_label(tmp_path: Path) -> None:
    weights = public.state(258, classes=2)
    config = {"model_type": "udlm", "time_conditioning": True, **SIZES}
    source = str(of_bytes(public.write(tmp_path, weights, **config)))
    check_logits(open_checkpoint(source), weights, SIGMA, label=2)  # the last is no label
    lm = open_checkpoint(source, ImportConfig(label=1))
    check_logits(lm, weights, SIGMA, label=1)
    lm.save(tmp_path / "out")
    check_logits(LanguageModel.load(tmp_path / "out"), weights, SIGMA, label=1)
    with pytest.raises(ConfigError, match=r"`label` is 3, must be below `labels` 3"):
        open_checkpoint(source, ImportConfig(label=3))


def test_golden_logits_of_duo(tmp_path: Path) -> None:
    file = np.load(GOLDEN)
    golden = {name: torch.from_numpy(file[name]) for name in file.files}
    weights = {k.removeprefix("param/"): v for k, v in golden.items() if k.startswith("param/")}
    path = tmp_path / "duo.safetensors"
    save_file(weights, path)
    characters = Tokenizer.characters(["abc"]).save(tmp_path / "t").parent
    config = ImportConfig(like="duo", length=32, tokenizer=str(characters))
    lm = open_checkpoint(str(path), config)
    shape = {"vocab_size": 35, "length": 32, "width": 64, "blocks": 3, "heads": 4}
    assert lm.network.config == sddlm.DiTConfig(**shape)
    with torch.no_grad():
        logits = lm.network.head.logits(lm.network(golden["x_t"], golden["sigma"]))
    assert (logits - golden["logits"]).abs().max() < 1e-5
    assert lm.tokenizer.vocab_size == 35


class Trace:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def foreign_objects() -> dict[str, Any]:
    """Objects of classes that are not there when they are read: with state, items and elements."""
    module = types.ModuleType("foreign_library")
    for name, base in (("Config", object), ("Table", dict), ("Row", list)):
        setattr(module, name, type(name, (base,), {"__module__": module.__name__}))
    sys.modules[module.__name__] = module
    config = module.Config()  # type: ignore[attr-defined]
    config.__dict__ |= {"layers": 12, "module": module.Row([1, 2])}  # type: ignore[attr-defined]
    return {"config": config, "table": module.Table(a=config)}  # type: ignore[attr-defined]


def lightning(path: Path, weights: dict[str, Tensor], trace: Path, **more: Any) -> Path:
    objects = {**foreign_objects(), "tokenizer": Trace(trace)}
    state = {**weights, "noise.sigma_max": torch.ones(1)}
    torch.save({"state_dict": state, "hyper_parameters": objects, "epoch": 3, **more}, path)
    del sys.modules["foreign_library"]
    return path


def test_lightning_checkpoints_are_read_and_nothing_else_of_them(tmp_path: Path) -> None:
    trace, weights = tmp_path / "trace", public.state(258)
    names = [name for name in weights if "inv_freq" not in name]
    shadow = [weights[name] + 1 for name in names] + [torch.ones(1)]
    ema = {"decay": 0.9999, "shadow_params": shadow}
    path = lightning(tmp_path / "last.ckpt", weights, trace, ema=ema)
    Path(trace).unlink(missing_ok=True)
    how = {"like": "duo", "length": 8, "tokenizer": "bytes"}
    averaged = open_checkpoint(str(path), ImportConfig(**how))
    plain = open_checkpoint(str(path), ImportConfig(**how, averaged=False))
    assert not trace.exists()
    check_logits(plain, weights, SIGMA)
    frequencies = {name: weights[name] for name in weights if "inv_freq" in name}
    moved = dict(zip(names, shadow, strict=False)) | frequencies
    for name, value in averaged.network.state_dict().items():
        assert torch.equal(value, plain.network.state_dict()[name] + 1), name
    assert moved.keys() == weights.keys()
    with pytest.raises(ModuleNotFoundError):  # what any other reader would do
        torch.load(path, weights_only=False)
    ema["shadow_params"] = shadow[1:]
    lightning(path, weights, trace, ema=ema)
    with pytest.raises(ConfigError, match=r"do not have the shapes .* use `averaged=False`"):
        open_checkpoint(str(path), ImportConfig(**how))
    assert not trace.exists()


def test_the_trace_is_one(tmp_path: Path) -> None:
    """What the test before relies on."""
    pickle.loads(pickle.dumps(Trace(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()


def test_an_autoregressive_checkpoint(tmp_path: Path) -> None:
    weights = public.state(258, causal=True)
    path = lightning(tmp_path / "ar.ckpt", weights, tmp_path / "trace")
    lm = open_checkpoint(str(path), ImportConfig(length=8, tokenizer="bytes"))
    assert (lm.network.causal, lm.estimate) == (True, Estimate.NEXT_TOKEN)
    check_logits(lm, weights, None)
    with pytest.raises(ConfigError, match=r"`estimate` is leave_one_out, but the network has no"):
        open_checkpoint(str(path), ImportConfig(like="mdlm", length=8, tokenizer="bytes"))
    torch.save(public.state(258), path)
    with pytest.raises(ConfigError, match=r"`estimate` is next_token, but the network looks ahead"):
        open_checkpoint(str(path), ImportConfig(like="ar", length=8, tokenizer="bytes"))


def test_every_tensor_that_does_not_fit_is_named(tmp_path: Path) -> None:
    weights = public.state(258)
    del weights["backbone.sigma_map.mlp.2.weight"]
    weights["backbone.odd"] = weights.pop("backbone.blocks.0.attn_out.weight")
    weights["backbone.blocks.1.norm2.weight"] = torch.ones(3)
    source = of_bytes(public.write(tmp_path, weights, model_type="DUO", **SIZES))
    with pytest.raises(ConfigError) as error:
        open_checkpoint(str(source))
    assert str(error.value) == (
        "the weights do not fit the network: sigma_map.mlp.2.weight [8, 8] is missing; "
        "blocks.0.attn_out.weight [16, 16] is missing; odd [16, 16] is unexpected; "
        "blocks.1.norm2.weight is [3] instead of [16]"
    )


def test_a_block_that_is_missing_is_not_overlooked(tmp_path: Path) -> None:
    weights = {name: value for name, value in public.state(258).items() if "blocks.1" not in name}
    source = of_bytes(public.write(tmp_path, weights, model_type="DUO", n_blocks=2, **SIZES))
    with pytest.raises(ConfigError, match=r"blocks\.1\.attn_qkv\.weight \[48, 16\] is missing"):
        open_checkpoint(str(source))


def test_one_odd_conditioning_is_the_one_that_is_named(tmp_path: Path) -> None:
    weights = public.state(258)
    weights["backbone.blocks.0.adaLN_modulation.weight"] = torch.ones(96, 3)
    source = of_bytes(public.write(tmp_path, weights, model_type="DUO", **SIZES))
    with pytest.raises(ConfigError) as error:
        open_checkpoint(str(source))
    assert str(error.value).endswith(
        "blocks.0.adaLN_modulation.weight is [96, 3] instead of [96, 8]"
    )


def test_what_cannot_be_known_is_asked_for(tmp_path: Path) -> None:
    weights = public.state(258)
    del weights["backbone.rotary_emb.inv_freq"]
    source = str(public.write(tmp_path / "model", weights))

    def refused(message: str, **how: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(source, ImportConfig(**how))

    refused(r"give `process`, `time_input`, `estimate`, or `like` one of duo, udlm, mdlm")
    refused(r"give `estimate`, or", process=UniformProcess(), time_input="sigma")
    refused(r"give `process`, or", like="gidd")  # its share of uniform noise is not known
    refused(r"`tokenizer`: no such file|`tokenizer` none", like="duo", tokenizer="none/../x")
    refused(r"`length` cannot be read", like="duo", tokenizer="bytes")
    refused(r"`heads` cannot be read", like="duo", tokenizer="bytes", length=8)
    refused(r"UniformProcess has no mask", like="duo", tokenizer="bytes", mask=257)
    refused(r"must be an id below 258", like="mdlm", tokenizer="bytes", mask=258)
    with pytest.raises(ConfigError, match=r"`like` is 'dou', must be one of .*; did you mean duo"):
        ImportConfig(like="dou")
    small = str(public.write(tmp_path / "small", public.state(200)))
    with pytest.raises(ConfigError, match=r"has 257 tokens, but the network only 200"):
        open_checkpoint(small, ImportConfig(like="duo", tokenizer="bytes", length=8))
    with pytest.raises(ConfigError, match="has no tokenizer: give `tokenizer`"):
        open_checkpoint(small, ImportConfig(like="duo", length=8))
    for name in ("other", "another"):
        save_file({"a": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ConfigError, match=r"is no DiT: .* but a"):
        open_checkpoint(str(tmp_path / "other.safetensors"))
    (tmp_path / "text.ckpt").write_text("no archive")
    torch.save({"a": torch.ones(1)}, tmp_path / "script.ckpt")
    with zipfile.ZipFile(tmp_path / "script.ckpt", "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
    public.write(tmp_path / "config", public.state(258))
    (tmp_path / "config" / "config.json").write_text('["model_type"]')
    torch.save([torch.ones(1)], tmp_path / "list.ckpt")
    whole = (Path(source) / "model.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-1])
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("text.ckpt", "no archive of torch"),
        ("script.ckpt", "it is a TorchScript archive, which holds code"),
        ("config", "config.json holds no names with values"),
        ("list.ckpt", "holds no tensors by name"),
        ("cut.safetensors", "cannot be read"),
        ("nothing", "no such file or folder"),
        (".", r"has several checkpoints, give one: another.safetensors, cut.safetensors, other"),
        ("empty", r"has no model.safetensors, no other one, and no .ckpt"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_checkpoint(str(tmp_path / name))


def test_the_verb_and_what_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A model of GIDD is converted, loaded, sampled, scored and can be trained on."""
    monkeypatch.chdir(tmp_path)
    weights, sizes = public.state(258), {"max_seq_len": 8, "num_attention_heads": public.HEADS}
    of_bytes(public.write(tmp_path / "gidd", weights, model_type="dit", p_uniform=0.2, **sizes))
    assert main(["import", "gidd", "out"]) == 0
    assert "family gidd" in capfd.readouterr().err
    lm = sddlm.load("out", device="cpu")
    t = torch.tensor([0.02, 0.5, 0.97])
    kept = (1 - t) / (1 + 0.5 * (t * (1 - t)).sqrt())
    check_logits(lm, weights, t, mask=257, sigma=-kept.log())
    (text,) = lm.generate("a", steps=3)
    assert text.text.startswith("a")
    assert 257 not in text.tokens
    (nll,) = lm.nll(["abc"], draws=32)
    assert nll.nats > 0
    start = open_start("out", DataArgs(), measures(lm), NELBO(HybridProcess()))
    assert continued(start, 16, 0).config.time_uniform == 0.2
    loaded = sddlm.load("gidd", device="cpu")  # nothing needs to be decided
    for name, value in lm.network.state_dict().items():
        assert torch.equal(value, loaded.network.state_dict()[name])
    assert main(["import", "gidd", "out2", "--time_input", "half"]) == 2
    assert (
        main(["import", "gidd", "out2", "--process", "MaskedProcess", "--time_input", "zero"]) == 0
    )
    assert LanguageModel.load("out2").process == MaskedProcess()
    assert main(["import", "gidd"]) == 2


def test_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = public.state(258)
    source = of_bytes(public.write(tmp_path / "s", weights, model_type="none", **SIZES))
    content = {path.name: path.read_bytes() for path in source.iterdir()}
    with hub(monkeypatch, str(tmp_path / "cache")) as repositories:
        repositories |= {"EER6/xdlm-owt": content, "me/other": content}
        lm = sddlm.load("EER6/xdlm-owt", device="cpu")
        assert lm.process == MixtureProcess(uniform=0.1)
        check_logits(lm, weights, torch.zeros(3), mask=257)
        with pytest.raises(ConfigError, match=r"me/other does not state all .* `like` one of"):
            sddlm.load("me/other", device="cpu")
        open_checkpoint("me/other", ImportConfig(like="duo", revision="v1"))
    assert (tmp_path / "cache" / "models--me--other" / "refs" / "v1").is_file()


def test_shards_are_put_together(tmp_path: Path) -> None:
    weights = public.state(258)
    source = of_bytes(public.write(tmp_path, weights, model_type="DUO", **SIZES))
    whole = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    names, shards = sorted(whole), {}
    for number, part in enumerate((names[::2], names[1::2])):
        shards |= {name: f"model-{number}.safetensors" for name in part}
        save_file({name: whole[name] for name in part}, source / f"model-{number}.safetensors")
    # a place outside of the folder is not looked at
    for place in ("", "../other/"):
        index = json.dumps({"weight_map": {name: place + file for name, file in shards.items()}})
        (source / "model.safetensors.index.json").write_text(index)
        check_logits(open_checkpoint(str(source)), weights, SIGMA)


def test_a_mask_is_taken_out_of_a_unigram_tokenizer() -> None:
    names = ["<s>", "</s>", "<mask>", "<unk>", "a", "b"]
    inner = hf.Tokenizer(hf.models.Unigram([(name, -1.0) for name in names], 3))
    inner.add_special_tokens(names[:4])
    smaller = without(Tokenizer(inner), 2)
    assert smaller.special == {"<s>": 0, "</s>": 1, "<unk>": 2}
    assert smaller.encode_batch(["abc"]) == [[3, 4, 2]]
    assert smaller.decode([3, 4]).split() == ["a", "b"]
