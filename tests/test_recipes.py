"""Every recipe parses, says nothing twice, builds the network that it should and trains."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers as hf
import torch
import yaml
from tokenizers import models, normalizers, pre_tokenizers, trainers

from sddlm.cli import _parse
from sddlm.data.tokenizer import Tokenizer
from sddlm.inherit import read_files
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import MDLM, Autoregressive, DuoCurriculum
from sddlm.options import merge
from sddlm.process import MaskedProcess
from sddlm.process.gaussian import gaussian_map
from sddlm.training.monitor import read_metrics
from sddlm.training.run import train_model
from sddlm.verbs import READS_RECIPES, VERBS

FOLDER = Path(__file__).parent.parent / "recipes"
#: of a training; suites have tests of their own
FILES = {
    path.relative_to(FOLDER).as_posix(): path
    for path in sorted(FOLDER.rglob("*.yaml"))
    if path.parent.name != "suites"
}
#: what is there to be inherited: a file called base, or one of the folder objectives
BASES = {name for name in FILES if name.endswith("/base.yaml") or "/objectives/" in name}
RECIPES = sorted(FILES.keys() - BASES)
OBJECTIVES = ("naive", "sddlm", "v1", "v2", "udlm", "duo", "mdlm", "ar")
SETTINGS = ("lm1b-wrap", "lm1b", "owt", "slimpajama-170m", "slimpajama-1.1b")

V = {"bert-base-uncased": 30_522, "gpt2": 50_257, "TinyLlama/TinyLlama_v1.1": 32_000}
#: Duo's range of gamma; for a text that it has none for, that of LM1B
GAMMA = {"bert-base-uncased": (-3.5, -1.75), "gpt2": (-3.55, -1.85)}

SUBJECTS = ("the old dog", "a small boat", "my neighbour", "the last train", "her quiet sister")
ACTS = ("runs past", "is waiting for", "has never seen", "slowly follows")
OBJECTS = ("the river", "a yellow house", "two tall trees", "the winter sun", "its own shadow")


class Chosen(NamedTuple):
    data: Any
    model: Any
    objective: Any
    train: Any
    seed: int


@cache
def chosen(name: str) -> Chosen:
    """What a user gets who types the recipe's name."""
    _, arguments = _parse("train", ["--config", str(FILES[name]), "--out", "run"])
    apart = tuple(arguments.pop(name) for name in ("out", "resume", "start"))
    assert apart == ("run", False, None)
    return Chosen(**arguments)


def leaves(tree: dict[str, Any], section: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{section}{key}.")
        else:
            yield f"{section}{key}", value


def test_every_setting_has_every_objective() -> None:
    expected = {f"paper/{s}/{o}.yaml" for s in SETTINGS for o in OBJECTIVES}
    assert expected <= set(RECIPES)
    assert len(RECIPES) == 47


def test_files_are_short_and_repeat_nothing() -> None:
    for name, path in FILES.items():
        text = path.read_text()
        assert len(text.splitlines()) < 40, name
        if name in BASES:
            assert text.startswith("# "), name  # what is taken from where
        *bases, own = read_files([str(path)])
        inherited = dict(leaves(merge(bases, train_model)))
        repeated = {key for key, value in leaves(own.options) if inherited.get(key, ...) == value}
        assert not repeated, name


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_prepared_is_what_is_trained_on(setting: str) -> None:
    name = f"paper/{setting}/v1.yaml"
    for verb in READS_RECIPES & VERBS.keys():
        _, arguments = _parse(verb, ["--config", str(FILES[name])])
        assert arguments["data"] == chosen(name).data


def of_setting(data: Any) -> tuple[str, str | None, int, str, bool]:
    return data.corpus, data.tokenizer, data.length, data.packing, data.bos_eos


@pytest.mark.slow
def test_settings_are_those_of_the_literature() -> None:
    found = {s: [chosen(f"paper/{s}/{o}.yaml") for o in OBJECTIVES] for s in SETTINGS}
    for recipes in found.values():  # objectives are compared with all else alike
        assert all(r.data == recipes[0].data for r in recipes)
        assert all(r.model == recipes[0].model for r in recipes)
        assert all(r.train == recipes[0].train for r in recipes)
        assert recipes[0].train.batch % (8 * recipes[0].train.micro_batch) == 0  # fits 8 GPUs
    assert {s: of_setting(recipes[0].data) for s, recipes in found.items()} == {
        "lm1b-wrap": ("lm1b", "bert-base-uncased", 128, "wrap", True),
        "lm1b": ("lm1b", "bert-base-uncased", 128, "document", True),
        "owt": ("openwebtext", "gpt2", 1024, "wrap", True),
        "slimpajama-170m": ("slimpajama", "TinyLlama/TinyLlama_v1.1", 2048, "wrap", False),
        "slimpajama-1.1b": ("slimpajama", "TinyLlama/TinyLlama_v1.1", 2048, "wrap", False),
    }
    assert found["owt"][0].data.validation == 100_000
    for setting in SETTINGS[:4]:
        train = found[setting][0].train
        assert (train.lr, train.beta2, train.weight_decay, train.clip) == (3e-4, 0.999, 0, 1)
        assert (train.warmup, train.schedule, train.ema) == (2500, "constant", 0.9999)
        assert (train.steps, train.curriculum) == (1_000_000, 0)
        assert train.batch == (256 if setting == "slimpajama-170m" else 512)
    large = found["slimpajama-1.1b"][0].train
    assert (large.lr, large.beta2, large.weight_decay, large.clip) == (2e-4, 0.95, 0.1, 1)
    assert (large.warmup, large.schedule, large.ema, large.batch) == (4950, "cosine", 0, 256)


def network(recipe: Chosen) -> DiT:
    """As ``train_model`` builds it, without memory for its weights."""
    extra = recipe.objective.process.extra_tokens
    config = recipe.model.build(
        vocab_size=V.get(recipe.data.tokenizer, recipe.data.vocab_size) + extra,
        length=recipe.data.length,
        causal=recipe.objective.causal,
        num_extra_tokens=extra,
    )
    with torch.device("meta"):
        return DiT(config)


def count(config: DiTConfig) -> int:
    """Parameters by formula: of the embedding, the blocks, the last norm, the head, the rest."""
    d, n, tokens = config.width, config.blocks, config.vocab_size
    if config.architecture == "llama":
        return tokens * d + n * (16 * d * d + 2 * d) + d + tokens * d
    if config.causal:
        return tokens * d + n * (12 * d * d + 7 * d) + d + tokens * (d + 1)
    return tokens * d + n * (12 * d * d + 781 * d) + d + tokens * (d + 1) + 258 * d + 49_408


def test_the_formula_is_that_of_the_published_networks() -> None:
    """In millions: Duo's DiT with two vocabularies, without noise level and larger, and SMDM's."""
    published = {
        ("small", 50_258, False): 169.63,
        ("small", 30_522, False): 139.29,
        ("small", 50_258, True): 162.25,
        ("1.1b", 32_000, False): 1142.37,
        ("1b", 50_258, False): 1297.0,
    }
    for (preset, tokens, causal), millions in published.items():
        config = DiTConfig.preset(preset, vocab_size=tokens, length=8, causal=causal)
        assert count(config) / 1e6 == pytest.approx(millions, abs=0.05 if preset == "1b" else 0.005)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("paper/")])
def test_the_network_is_the_right_one(name: str) -> None:
    recipe = chosen(name)
    net = network(recipe)
    masked, causal = name.endswith("/mdlm.yaml"), name.endswith("/ar.yaml")
    assert isinstance(recipe.objective, MDLM) is masked
    assert isinstance(recipe.objective.process, MaskedProcess) is masked
    assert (isinstance(recipe.objective, Autoregressive), net.causal) == (causal, causal)
    assert net.vocab_size == V[recipe.data.tokenizer] + masked
    assert net.config.num_extra_tokens == masked
    llama = "1.1b" in name and "dit" not in name
    assert net.config.architecture == ("llama" if llama else "dit")
    assert (net.config.width, net.config.blocks, net.config.heads) == (
        (1792, 20, 14) if llama else (2048, 21, 32) if "dit" in name else (768, 12, 12)
    )
    assert sum(p.numel() for p in net.parameters()) == count(net.config)


@pytest.mark.parametrize("setting", SETTINGS)
def test_duos_range_of_alpha_is_its_range_of_gamma(setting: str) -> None:
    recipe = chosen(f"paper/{setting}/duo.yaml")
    objective = recipe.objective
    assert isinstance(objective, DuoCurriculum)
    assert objective.until == recipe.train.steps // 2
    path = gaussian_map(V[recipe.data.tokenizer], objective.alpha_min, objective.alpha_max)
    expected = GAMMA.get(recipe.data.tokenizer, GAMMA["bert-base-uncased"])
    assert (path.gamma_min, path.gamma_max) == pytest.approx(expected, abs=1e-5)


# ---------------------------------------------------------------------- two steps of each


def wordpiece(sentences: list[str]) -> hf.Tokenizer:
    """Of BERT's kind, with its special tokens."""
    tokenizer = hf.Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


def sentencepiece(sentences: list[str]) -> hf.Tokenizer:
    """Of LLaMA's kind, with its special tokens."""
    tokenizer = hf.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([
        normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"),
    ])  # fmt: skip
    special = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(sentences, trainer)
    return tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text, and for each tokenizer of the recipes a small one of its kind."""
    place = tmp_path_factory.mktemp("recipes")
    sentences = [f"{s} {v} {o}." for s in SUBJECTS for v in ACTS for o in OBJECTS]
    (place / "text.txt").write_text("\n\n".join(sentences))
    made = {
        "bert-base-uncased": Tokenizer(wordpiece(sentences)),
        "gpt2": Tokenizer.train_bpe(sentences, 300),
        "TinyLlama/TinyLlama_v1.1": Tokenizer(sentencepiece(sentences)),
    }
    for name, tokenizer in made.items():
        tokenizer.save(place / name)
    return place


def shrunk(recipe: Chosen, place: Path) -> Chosen:
    """The recipe in miniature: another text, less of everything, but every choice as it is."""
    data, model, objective, train, _ = recipe
    name = data.tokenizer
    data = replace(
        data,
        path=str(place / "text.txt"),
        separator="\n\n",
        streaming=False,  # the text is no Hugging Face dataset
        validation=10 if (data.validation or 0) >= 1 else 0.2,  # documents at the end, or a share
        tokenizer=str(place / name) if name in V else name,
        vocab_size=300,
        length=16,
        cache=str(place / "cache"),
    )
    model = replace(model, width=32, heads=2, blocks=1)
    if isinstance(objective, DuoCurriculum):  # a step in the curriculum, one behind it
        objective = replace(objective, until=1)
    train = replace(
        train,
        steps=2,
        batch=4,
        micro_batch=train.micro_batch and 2,
        warmup=1,
        validate_every=2,
        validation_rows=4,
        preview_every=0,
        checkpoint_every=1000,
        accelerator="cpu",
        devices=1,
    )
    return Chosen(data, model, objective, train, recipe.seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_two_steps_of_its_miniature(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # nine tenths of the time would go into the picture: as on a machine that cannot draw it
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    full = chosen(name)
    recipe = shrunk(full, place)
    run = train_model(str(tmp_path / "run"), **recipe._asdict())
    rows = read_metrics(run)
    assert {"loss", "val_nelbo"} <= {key for row in rows for key in row}
    assert rows[-1]["step"] == 2
    assert all(isfinite(value) for row in rows for value in row.values())
    written = yaml.safe_load((run / "config.yaml").read_text())
    assert "inherit" not in written
    kept = ("packing", "bos_eos", "eos", "corpus", "max_errors")
    assert [written["data"][key] for key in kept] == [getattr(full.data, key) for key in kept]
    config = yaml.safe_load((run / "model" / "config.json").read_text())
    extra = recipe.objective.process.extra_tokens
    tokens = Tokenizer.load(run / "model").vocab_size
    assert (config["vocab_size"], config["length"]) == (tokens + extra, 16)
