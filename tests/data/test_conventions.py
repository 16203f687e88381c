"""The conventions of published runs, on real text, with the rows written out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers as hf

from sddlm.data import corpora
from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.data.rows import Rows

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

# sentences 2, 4 and 8 of LM1B's heldout shard 10, as they are there
SENTENCES = [
    "Everybody is aware of consequences .",
    "A funeral service for Mrs Llewellyn will take place on Saturday .",
    "Los Angeles police Lt. John Romero says the death toll may be as high as 20 .",
]
WORDS = """[PAD] [UNK] [CLS] [SEP] [MASK] everybody is aware of consequences . a funeral service for
mrs ll ##ewell ##yn will take place on saturday los angeles police lt john romero says the death
toll may be as high 20""".split()  # noqa: SIM905


@pytest.fixture
def lm1b(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataArgs:
    """LM1B of three sentences in the hub's form, and BERT's tokenizer with a few of its words."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "lm1b"
    for split in ("train", "test"):
        (folder / split).mkdir(parents=True)
        pq.write_table(pa.table({"text": SENTENCES}), folder / split / f"{split}-0.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n"
        "  - split: train\n    path: train/*\n  - split: test\n    path: test/*\n---\n"
    )
    row = corpora.CORPORA["lm1b"]
    moved = replace(row, dataset=str(folder), config=None, revision=None)
    monkeypatch.setitem(corpora.CORPORA, "lm1b", moved)
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    return DataArgs(
        corpus="lm1b",
        tokenizer=str(tmp_path / "vocab.txt"),
        length=16,
        bos_eos=True,
        cache=str(tmp_path / "cache"),
    )


def written(rows: Rows | None) -> list[str]:
    assert rows is not None
    return [" ".join(WORDS[i] for i in rows[n].tolist()) for n in range(len(rows))]


def test_lm1b_one_sentence_a_row(lm1b: DataArgs) -> None:
    """MDLM's and Duo's ``lm1b``: [CLS] sentence [SEP], cut at the length, padding behind."""
    prepared = prepare(replace(lm1b, packing="document"))
    expected = [
        "[CLS] everybody is aware of consequences . [SEP] [PAD] [PAD] [PAD] [PAD] [PAD] [PAD] [PAD]"
        " [PAD]",
        "[CLS] a funeral service for mrs ll ##ewell ##yn will take place on saturday . [SEP]",
        # 18 pieces, of which 14 have room
        "[CLS] los angeles police lt . john romero says the death toll may be as [SEP]",
    ]
    for rows in (prepared.train, prepared.validation):
        assert written(rows) == expected
        assert rows is not None
        assert rows.lengths(np.arange(3)).tolist() == [8, 16, 16]


def test_lm1b_packed(lm1b: DataArgs) -> None:
    """D3PM's and Duo's ``lm1b-wrap``: [SEP] behind each sentence, [CLS] and [SEP] around blocks."""
    prepared = prepare(replace(lm1b, packing="wrap"))
    assert written(prepared.validation) == [
        "[CLS] everybody is aware of consequences . [SEP] a funeral service for mrs ll ##ewell"
        " [SEP]",
        "[CLS] ##yn will take place on saturday . [SEP] los angeles police lt . john [SEP]",
    ]  # and 13 pieces that fill no row
    assert not prepared.validation.padded


def test_the_roles_of_lm1b(lm1b: DataArgs) -> None:
    prepared = prepare(lm1b)
    said = prepared.meta["special"]
    assert said["[PAD]"] == {"id": 0, "sampled": False, "scored": False}
    assert said["[MASK]"] == {"id": 4, "sampled": False, "scored": True}
    assert said["[SEP]"] == {"id": 3, "sampled": True, "scored": True}
    assert prepared.meta["vocab_size"] == len(WORDS)


# the first words of the first two documents of an OpenWebText sample, apostrophes made straight
DOCUMENTS = ["A magazine supplement with an image", "For today's post, I'd like to take a look"]


def test_openwebtext(tmp_path: Path) -> None:
    """Duo's ``openwebtext-split``: the end of text behind each document, around each block too."""
    bpe = hf.ByteLevelBPETokenizer()
    words = [f" {w}" for d in DOCUMENTS for w in d.split()] * 3
    bpe.train_from_iterator([*words, *DOCUMENTS], 400, special_tokens=["<|endoftext|>"],
                            show_progress=False)  # fmt: skip
    bpe.save(str(tmp_path / "tokenizer.json"))
    text = tmp_path / "owt.jsonl"
    text.write_text("".join(json.dumps({"text": d}) + "\n" for d in [*DOCUMENTS, *DOCUMENTS]))
    prepared = prepare(
        DataArgs(
            path=str(text),
            tokenizer=str(tmp_path / "tokenizer.json"),
            validation=2,  # documents, the last ones
            length=10,
            bos_eos=True,
            cache=str(tmp_path / "cache"),
        )
    )
    ids = [bpe.encode(d).ids for d in DOCUMENTS]
    words = [[bpe.decode([i]) for i in row] for row in ids]
    assert words == [
        ["A", " magazine", " supplement", " with", " an", " image"],
        ["For", " today", "'s", " post", ",", " I", "'d", " like", " to", " take", " a", " look"],
    ]
    for rows in (prepared.train, prepared.validation):
        assert rows is not None
        shown = [[bpe.decode([i], skip_special_tokens=False) for i in row.tolist()] for row in rows]
        end = "<|endoftext|>"
        assert shown == [
            [end, "A", " magazine", " supplement", " with", " an", " image", end, "For", end],
            [end, " today", "'s", " post", ",", " I", "'d", " like", " to", end],
        ]
