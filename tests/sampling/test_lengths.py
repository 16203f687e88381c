"""Samples of a model of documents: as long as documents are, and nothing but text in them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_samplers import run

from sddlm.cli import main
from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.data.tokenizer import Tokenizer
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation

L = 12
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{c}" for c in "abcdefgh")]
PAD, UNK, CLS, SEP, MASK = range(5)
NEVER = {PAD, UNK, MASK}
DOCS = ["a", "ba", "cab", "abba", "dad", "fade bad", "gag had a bag", "head", "a b c d e f g h a b"]
DOCS += ["abc", "bad cab", "dada", "babe", "deaf", "face", "cafe", "hag", "bead", "fad", "a dab"]
DOCS += ["add a bead", "egad had a bad egg head"]
LOO, NEXT = Estimate.LEAVE_ONE_OUT, Estimate.NEXT_TOKEN


def model_dir(
    folder: Path,
    estimate: Estimate = LOO,
    process: Process | None = None,
    docs: list[str] = DOCS,
    **data: Any,
) -> LanguageModel:
    """An untrained model of documents, which writes any token as often as another."""
    process = process or UniformProcess()
    (folder / "vocab.txt").write_text("\n".join(VOCAB))
    (folder / "docs.txt").write_text("<|endoftext|>".join(docs))
    values = {"tokenizer": str(folder / "vocab.txt"), "length": L, "cache": str(folder / "cache")}
    args = DataArgs(path=str(folder / "docs.txt"), validation=1, **values | data)
    prepared = prepare(args)
    extra = process.extra_tokens
    config = DiTConfig(
        vocab_size=len(VOCAB) + extra, length=L, width=16, blocks=1, heads=2,
        num_extra_tokens=extra, causal=not estimate.diffusion, head_init=0.5,
    )  # fmt: skip
    model = DiT(config, seed=1)
    spec: dict[str, Any] = {}
    return LanguageModel(model.eval(), process, estimate, prepared.tokenizer, spec, prepared.meta)


def lengths_of(docs: list[str], extra: int) -> list[int]:
    """Tokens of each document's row."""
    found = [sum(map(len, doc.split())) + extra for doc in docs]  # a letter is a token
    return [min(n, L) for n in found]


def drawn(loaded: LanguageModel, **more: Any) -> list[list[int]]:
    asked = Request(count=more.pop("count", 9), length=more.pop("length", None))
    writer = Generator(loaded, [asked], SamplerConfig(steps=6), **{"batch": 4, "seed": 2, **more})
    return [each.tokens for each in writer.generate(whole=True)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "extra"),
    [({}, 1), ({"bos_eos": True}, 2), ({"eos": False}, 0), ({"bos_eos": True, "eos": False}, 2)],
)
@pytest.mark.parametrize("count", [1, 2, 7, 60])
def test_lengths_are_quantiles_of_those_of_the_training_documents(
    tmp_path: Path, data: dict[str, bool], extra: int, count: int
) -> None:
    nothing = ["\x01"] * 9  # which BERT's rules leave out of a text
    loaded = model_dir(tmp_path, docs=[*nothing, *DOCS], packing="document", **data)
    # the last document is held out
    real = [n for n in lengths_of([*([""] * 9), *DOCS[:-1]], extra) if n > 0]
    at = (np.arange(count) + 0.5) / count
    expected = np.quantile(real, at, method="inverted_cdf")[::-1].tolist()
    assert [len(row) for row in drawn(loaded, count=count, batch=64)] == expected
    if count == 7:
        assert len(set(expected)) > 3
    assert [len(row) for row in drawn(loaded, count=count, length=5)] == [5] * count


def test_rows_without_padding_have_the_models_length(tmp_path: Path) -> None:
    loaded = model_dir(tmp_path)
    assert [len(row) for row in drawn(loaded)] == [L] * 9


@pytest.mark.slow
@pytest.mark.parametrize("estimate", [LOO, NEXT])
def test_a_sample_is_the_same_whatever_the_batch(tmp_path: Path, estimate: Estimate) -> None:
    loaded = model_dir(tmp_path, estimate, packing="document")
    one, more, *others = (drawn(loaded, count=20, batch=n) for n in (1, 16, 3, 99))
    assert one == more == others[0] == others[1]
    assert drawn(loaded, count=20, seed=3) != one
    # equal lengths are no equal samples, and a sample of one length is that of `length`
    assert len({tuple(row) for row in one if len(row) == 4}) > 1
    for i, row in enumerate(one):
        assert row == drawn(loaded, count=20, length=len(row))[i]


KINDS: list[Any] = [
    (LOO, UniformProcess(), {}),
    (LOO, UniformProcess(), {"tail": "greedy"}),
    (LOO, MaskedProcess(), {}),
    (Estimate.DENOISER, UniformProcess(), {}),
    (NEXT, UniformProcess(), {}),
]


@pytest.mark.filterwarnings("ignore:.*denoiser")
@pytest.mark.parametrize(("estimate", "process", "how"), KINDS, ids=str)
def test_what_is_no_text_is_never_written(
    tmp_path: Path, estimate: Estimate, process: Process, how: dict[str, Any]
) -> None:
    loaded = model_dir(tmp_path, estimate, process, packing="document")
    sampler = SamplerConfig(steps=3, top_p=1.0, **how).build(loaded)
    assert isinstance(sampler, Lazy | Autoregressive)
    free = replace(sampler, truncation=Truncation())
    found = []
    for each in (sampler, free):
        samples = each.sample(
            loaded.network, process=process, estimate=estimate, batch=40, length=L, seed=0
        )
        found.append(set(samples.tokens.flatten().tolist()))
    assert not found[0] & NEVER
    assert found[0] > {SEP}  # the end of text is text
    assert found[1] & NEVER


def test_an_autoregressive_model_begins_as_its_rows_do(tmp_path: Path) -> None:
    for name, ends, token in (("a", True, CLS), ("b", False, SEP)):
        (folder := tmp_path / name).mkdir()
        loaded = model_dir(folder, NEXT, packing="document", bos_eos=ends)
        rows = drawn(loaded)
        assert {row[0] for row in rows} == {token}
        assert len({tuple(row[1:]) for row in rows}) > 5


@pytest.mark.parametrize("tail", ["sample", "greedy"])
@pytest.mark.parametrize("steps", [1, 2, 33])
def test_lazy_is_ancestral_where_tokens_are_never_written(tail: Any, steps: int) -> None:
    truncation = Truncation(temperature=0.8, top_p=0.95, never=(1, 3))
    a, b = (run(kind(steps, tail, truncation), 200, seed=3) for kind in (Ancestral, Lazy))
    assert torch.equal(a.tokens, b.tokens)
    assert not set(a.tokens.flatten().tolist()) & {1, 3}
    free = run(Lazy(steps, tail), 200, seed=3)
    assert set(free.tokens.flatten().tolist()) & {1, 3}
    assert steps < 3 or b.nfe.sum() < a.nfe.sum()


@pytest.mark.parametrize("estimate", [LOO, NEXT])
def test_the_verb_writes_each_sample_with_its_own_tokens(
    tmp_path: Path, estimate: Estimate
) -> None:
    loaded = model_dir(tmp_path, estimate, packing="document", bos_eos=True)
    loaded.save(tmp_path / "model")
    command = ["sample", str(tmp_path / "model"), "--count", "7", "--steps", "4"]
    command += ["--whole", "true"]
    assert main(command) == 0
    out = tmp_path / "model" / "samples.jsonl"
    records = [json.loads(line) for line in out.read_text().splitlines()]
    at = (np.arange(7) + 0.5) / 7
    expected = np.quantile(lengths_of(DOCS[:-1], 2), at, method="inverted_cdf")[::-1].tolist()
    assert [len(record["tokens"]) for record in records] == expected
    tokenizer = Tokenizer.load(tmp_path / "model")
    for record in records:
        assert not NEVER & set(record["tokens"])
        assert record["text"] == tokenizer.decode(record["tokens"])
        assert "[" not in record["text"]
    assert main([*command, "--length", "6"]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [len(record["tokens"]) for record in records] == [6] * 7


@pytest.mark.parametrize("estimate", [LOO, NEXT])
def test_models_of_older_versions_sample_as_they_did(tmp_path: Path, estimate: Estimate) -> None:
    """Their record of the data has no packing, no texts and no lengths."""
    loaded = model_dir(tmp_path, estimate)
    known = {"source", "key", "vocab_size", "tokenizer", "splits"}
    old = {name: value for name, value in loaded.data.items() if name in known}
    assert old.keys() == known < loaded.data.keys()
    expected = drawn(loaded)
    replace(loaded, data=old).save(tmp_path / "model")
    assert drawn(LanguageModel.load(tmp_path / "model")) == expected
    assert {len(row) for row in expected} == {L}
