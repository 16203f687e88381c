"""Prompts with their texts: rows, what is scored of them, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sddlm.data.tokenize as tokenize_file
from sddlm.data import tokenizer as tokenizer_file
from sddlm.data.config import DataArgs
from sddlm.data.prepare import Prepared, prepare
from sddlm.errors import ConfigError

RNG = random.Random(0)
PAIRS = [
    ("Q: " + " ".join(RNG.choices(["one", "two", "three é"], k=n % 5 + 1)) + "\nA:", f" {n}" * 3)
    for n in range(40)
]


def write(path: Path, pairs: list[tuple[str, str]] = PAIRS) -> str:
    lines = [json.dumps({"question": q, "answer": a, "id": i}) for i, (q, a) in enumerate(pairs)]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


def arguments(text: str, tmp_path: Path, **changes: Any) -> DataArgs:
    values = {
        "path": text, "prompt_field": "question", "field": "answer", "packing": "document",
        "tokenizer": "bytes", "length": 64, "validation": 8, "cache": str(tmp_path / "cache"),
    }  # fmt: skip
    return DataArgs(**{**values, **changes})


def found(prepared: Prepared) -> list[tuple[str, list[int]]]:
    """Prompt and scored tokens of each training row, without the ends of text that fill it."""
    rows, tokenizer = prepared.train, prepared.tokenizer
    assert rows is not None
    assert (rows.lengths(np.arange(2)) == rows.length).all()
    pairs = []
    at = np.arange(len(rows))
    for row, k in zip(rows.read(at).tolist(), rows.prompts(at).tolist(), strict=True):
        text = row[k:]
        while len(text) > 1 and text[-2] == tokenizer.eos_id:
            assert text.pop() == tokenizer.eos_id
        pairs.append((tokenizer.decode(row[:k]), text))
    return pairs


@pytest.mark.parametrize("unit", [1, 30, 1 << 18])
def test_a_row_is_a_prompt_and_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unit: int
) -> None:
    monkeypatch.setattr(tokenize_file, "_UNIT", unit)
    monkeypatch.setattr(tokenizer_file, "_PIECE", max(unit // 3, 1))
    prepared = prepare(arguments(write(tmp_path / "pairs.jsonl"), tmp_path))
    rows, tokenizer = prepared.train, prepared.tokenizer
    assert rows is not None
    assert rows.paired
    assert not rows.padded
    expected = [(q, [*tokenizer.encode_batch([a])[0], tokenizer.eos_id]) for q, a in PAIRS[:32]]
    assert found(prepared) == expected
    scored = 32 * 64 - sum(len(q.encode()) for q, _ in PAIRS[:32])
    characters = sum(len(a) for _, a in PAIRS[:32])
    assert rows.characters_per_token == pytest.approx(characters / scored)
    assert rows.row_lengths.tolist() == [0] * 64 + [32]
    assert prepared.meta["splits"]["train"]["documents"] == 32


def test_long_prompts_are_cut_and_leave_nothing_to_score(tmp_path: Path) -> None:
    data = arguments(write(tmp_path / "pairs.jsonl"), tmp_path, length=8)
    for prompt, scored in found(prepare(data)):
        assert len(prompt.encode()) + len(scored) == 8 - prompt.endswith("\ufffd")


def test_rows_with_ends_begin_with_one_that_is_given(tmp_path: Path) -> None:
    plain = prepare(arguments(write(tmp_path / "pairs.jsonl"), tmp_path))
    ends = prepare(arguments(write(tmp_path / "pairs.jsonl"), tmp_path, bos_eos=True))
    assert [scored for _, scored in found(ends)] == [scored for _, scored in found(plain)]
    assert ends.train is not None
    assert plain.train is not None
    at = np.arange(4)
    assert (ends.train.prompts(at) == plain.train.prompts(at) + 1).all()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_tables_have_pairs_too(tmp_path: Path, kind: str) -> None:
    import datasets

    table = datasets.Dataset.from_list(
        [{"question": q, "answer": a, "id": i} for i, (q, a) in enumerate(PAIRS)]
    )
    path = tmp_path / f"pairs.{kind}"
    table.to_csv(str(path)) if kind == "csv" else table.to_parquet(str(path))
    lines = prepare(arguments(write(tmp_path / "pairs.jsonl"), tmp_path))
    of_table = prepare(arguments(str(path), tmp_path))
    assert found(of_table) == found(lines)
    hub = tmp_path / "saved"
    table.save_to_disk(hub)
    assert found(prepare(arguments(str(hub), tmp_path))) == found(lines)


def test_learnt_tokenizers_do_not_know_the_mark_between_them(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl")
    tokenizer = prepare(arguments(path, tmp_path, tokenizer="bpe", vocab_size=300)).tokenizer
    tokens = [tokenizer.decode([i]) for i in range(tokenizer.vocab_size)]
    assert [token for token in tokens if "\x1e" in token] == ["\x1e"]  # the byte
    tokenizer = prepare(arguments(path, tmp_path, tokenizer="characters")).tokenizer
    with pytest.raises(ConfigError):
        tokenizer.encode_batch(["\x1e"])


def test_the_same_documents_without_prompts_are_other_tokens(tmp_path: Path) -> None:
    """As one text with the mark in it, in the same cache."""
    path = tmp_path / "marked.jsonl"
    path.write_text("".join(json.dumps({"answer": f"{q}\x1e{a}"}) + "\n" for q, a in PAIRS))
    pairs = prepare(arguments(write(tmp_path / "pairs.jsonl"), tmp_path))
    plain = prepare(arguments(str(path), tmp_path, prompt_field=None))
    assert pairs.key != plain.key
    assert plain.train is not None
    assert not plain.train.paired
    assert len(plain.train) == 32


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answer": "x"}, r"line 41: no field 'question'; there are: answer; choose"),
        ({"question": "x", "answer": " "}, r"line 41: the field 'answer' is empty or blank"),
        ({"question": 3, "answer": "x"}, r"line 41: the field 'question' is a int, not text"),
        ({"question": "a\x1eb", "answer": "x"}, r"'question' holds the character U\+001E"),
    ],
)
def test_malformed_pairs_are_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "pairs.jsonl")
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")
    with pytest.raises(ConfigError, match=message):
        prepare(arguments(path, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"packing": "wrap"}, "`prompt_field` is 'question': each prompt .* `packing='document'`"),
        ({"field": "question"}, "`prompt_field` and `field` are both 'question'"),
        (
            {"path": None, "corpus": "classics"},
            "no text with prompts is given: `path='FILE.jsonl'`",
        ),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arguments(write(tmp_path / "pairs.jsonl"), tmp_path, **changes)


def test_texts_that_hold_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("a text")
    with pytest.raises(ConfigError, match=r"but .*plain.txt is a text file and has no fields"):
        prepare(arguments(str(tmp_path / "plain.txt"), tmp_path))
    few = write(tmp_path / "few.jsonl", PAIRS[:9])
    with pytest.raises(ConfigError, match=r"has 9 pairs, of which no share can be held out"):
        prepare(arguments(few, tmp_path, validation=0.1))
    assert len(found(prepare(arguments(few, tmp_path, validation=2)))) == 7


def test_a_damaged_index_is_found(tmp_path: Path) -> None:
    prepared = prepare(arguments(write(tmp_path / "pairs.jsonl"), tmp_path))
    rows: Any = prepared.train
    ends = np.fromfile(rows.index, "<u8")
    ends[[4, 5]] = ends[[5, 4]]  # the text of row 2 before its prompt
    ends.tofile(rows.index)
    with pytest.raises(ConfigError, match="its index puts row 2 at tokens"):
        rows.read(np.array([2]))
    with pytest.raises(ConfigError, match="its index puts row 2 at tokens"):
        rows.prompts(np.array([2]))
