"""The rows, read from local folders laid out as the repositories are; only the place differs."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from memory_source import read_texts

from sddlm.data import detokenizers, documents
from sddlm.data.corpora import CORPORA, Corpus, Role, markdown
from sddlm.data.detokenizers import articles
from sddlm.data.documents import Document
from sddlm.data.python_docs import PythonDocs, python_documents
from sddlm.errors import ConfigError

# lines of WikiText-2 as they stand on the hub, articles cut short: blank lines are empty rows
LOBSTER = [
    "",
    " = Homarus gammarus = \n",
    "",
    " Homarus gammarus , known as the European lobster , is a species of <unk> lobster . \n",
    "",
    " = = Description = = \n",
    "",
    " It may grow to a length of 60 cm ( 24 in ) . \n",
]
BILLIARDS = [
    "",
    " = The <unk> ( film ) = \n",
    "",
    " The <unk> is credited with a resurgence in the popularity of pool . \n",
    " = Played , W = \n",  # a table's legend: a title has blank lines around it
    " The film also brought recognition to Willie <unk> . \n",
    "",
]
LOBSTER_READ = (
    " = Homarus gammarus =\n\nHomarus gammarus, known as the European lobster, is a species of "
    "<unk> lobster.\n\n== Description ==\n\nIt may grow to a length of 60 cm (24 in).\n\n"
)
BILLIARDS_READ = (
    " = The <unk> (film) =\n\nThe <unk> is credited with a resurgence in the popularity of pool."
    "\n= Played, W =\nThe film also brought recognition to Willie <unk>.\n\n"
)

Rows = Mapping[str, list[str]]  # of a split


def parquet(folder: Path, rows: Rows, *, column: str = "text", layout: str = "data/{}-0.parquet"):
    """One file a split, with a column that is of no interest."""
    for split, texts in rows.items():
        path = folder / layout.format(split)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"label": list(range(len(texts))), column: texts}), path)


def configured(folder: Path, rows: Rows, config: str, column: str = "text") -> None:
    """A configuration beside another one, which the card tells apart as on the hub."""
    other = {split: ["wrong"] for split in rows}
    card = ["---", "configs:"]
    for name, found in (("other", other), (config, rows)):
        parquet(folder, found, column=column, layout=f"{name}/{{}}-00000-of-00001.parquet")
        card += [f"- config_name: {name}", "  data_files:"]
        for split in found:
            card += [f"  - split: {split}", f"    path: {name}/{split}-*"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def json_lines(folder: Path, rows: Rows) -> None:
    for split, texts in rows.items():
        path = folder / split / "chunk1" / f"example_{split}_0.jsonl.zst"
        path.parent.mkdir(parents=True)
        lines = "".join(json.dumps({"text": t, "meta": {"set": "C4"}}) + "\n" for t in texts)
        path.write_bytes(zstandard.ZstdCompressor().compress(lines.encode()))


def three(train: list[str], validation: list[str], test: list[str]) -> Rows:
    return {"train": train, "validation": validation, "test": test}


def converted(config: str, column: str = "text") -> Callable[[Path, Rows], None]:
    """What the hub makes of a script."""

    def build(folder: Path, rows: Rows) -> None:
        parquet(folder, rows, column=column, layout=config + "/{}/0000.parquet")

    return build


Build = Callable[[Path, Rows], None]
ABC = three(["a one", "b two", "c"], ["d"], ["e", "f"])
SHAPES: dict[str, tuple[Build, Rows, dict[Role, list[str]]]] = {
    "lm1b": (
        converted("plain_text"),
        {"train": ["I don 't .", "It is odd ."], "test": ["Is it ?"]},
        {"train": ["I don't .", "It is odd."], "validation": ["Is it?"], "test": ["Is it?"]},
    ),
    "openwebtext": (parquet, {"train": ["a ,", "b"]}, {"train": ["a ,", "b"]}),
    "slimpajama": (json_lines, ABC, dict(ABC)),
    "fineweb-edu": (
        lambda folder, rows: configured(folder, rows, "sample-10BT"),
        {"train": ["a", "b"]},
        {"train": ["a", "b"]},
    ),
    "tinystories": (
        parquet,
        {"train": ["a ,", "b"], "validation": ["c"]},
        {"train": ["a ,", "b"], "validation": ["c"]},
    ),
    "wikitext-2": (
        lambda folder, rows: configured(folder, rows, "wikitext-2-raw-v1"),
        three([*LOBSTER, *BILLIARDS], LOBSTER, BILLIARDS),
        {
            "train": [LOBSTER_READ, BILLIARDS_READ],
            "validation": [LOBSTER_READ.removesuffix("\n")],
            "test": [BILLIARDS_READ],
        },
    ),
    "wikitext-103": (
        lambda folder, rows: configured(folder, rows, "wikitext-103-raw-v1"),
        three(LOBSTER, LOBSTER, BILLIARDS),
        {
            "train": [LOBSTER_READ.removesuffix("\n")],
            "validation": [LOBSTER_READ.removesuffix("\n")],
            "test": [BILLIARDS_READ],
        },
    ),
    "ptb": (
        converted("penn_treebank", "sentence"),
        three(["a price was n't disclosed"], ["down N cents"], ["to $ N a share"]),
        {
            "train": ["a price wasn't disclosed"],
            "validation": ["down 1 cents"],
            "test": ["to $1 a share"],
        },
    ),
    "lambada": (
        lambda folder, rows: configured(folder, rows, "default"),
        {"test": ["“Why?” asked Lulu"]},
        {"test": ['\n"Why?" asked Lulu']},
    ),
    "ag_news": (
        parquet,
        {"train": ["a , b", "c"], "test": ["d"]},
        {"train": ["a , b", "c"], "validation": ["d"], "test": ["d"]},
    ),
    **{
        f"scientific_papers-{name}": (
            lambda folder, rows: configured(folder, rows, "document", "article"),
            three(["see @xcite ( fig . 1 ) .\nit is ' so ' ?"], ["b ; c"], ["d"]),
            {
                "train": ["see @xcite (fig. 1) .\nit is'so'?"],
                "validation": ["b; c"],
                "test": ["d"],
            },
        )
        for name in ("pubmed", "arxiv")
    },
}


@pytest.fixture(autouse=True)
def _no_network_and_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def moved(corpus: Corpus, folder: Path) -> Corpus:
    """The same row with its data here."""
    return replace(corpus, dataset=str(folder))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
@pytest.mark.parametrize("name", SHAPES)
def test_every_split_is_read_as_documents(tmp_path: Path, name: str, streaming: bool) -> None:
    build, rows, wanted = SHAPES[name]
    build(tmp_path / "it", rows)
    corpus = moved(CORPORA[name], tmp_path / "it")
    for role in ("train", "validation", "test"):
        source = corpus.source(role, streaming=streaming)
        assert (source is None) == (role not in wanted)
        if source:
            assert source.once == (streaming or corpus.detokenizer is not None)
            assert read_texts(source) == wanted[role]


def test_every_corpus_of_the_hub_was_read_above() -> None:
    assert {name for name, corpus in CORPORA.items() if corpus.dataset} == {*SHAPES, "text8"}


@pytest.mark.slow
def test_a_signature_tells_detokenizers_apart(tmp_path: Path) -> None:
    parquet(tmp_path / "it", {"train": ["a ,"]})
    os.utime(tmp_path / "it" / "data" / "train-0.parquet", (1e9, 1e9))  # not changed just now
    plain = Corpus("it", "", "", "", str(tmp_path / "it"), {"train": "train"})
    read = replace(plain, detokenizer=CORPORA["wikitext-2"].detokenizer)
    lines = replace(plain, adapter=articles)
    signatures = [variant.training().signature() for variant in (plain, read, lines)]
    assert None not in signatures
    assert len(set(signatures)) == 3
    assert signatures == [variant.training().signature() for variant in (plain, read, lines)]
    assert lines.training(streaming=True).signature() is None


@pytest.mark.parametrize("ends", ["\n", ""])
def test_articles_are_the_file_cut_before_titles(ends: str) -> None:
    rows = [row.removesuffix("\n") + ends if row else "" for row in LOBSTER + BILLIARDS + LOBSTER]
    found = [document.text for document in articles(map(Document, rows))]
    assert [text.count(" = ") > 0 and text.split("\n")[0] for text in found] == [
        " = Homarus gammarus = ",
        " = The <unk> ( film ) = ",
        " = Homarus gammarus = ",
    ]
    whole = "".join((row.removesuffix("\n") or " ") + "\n" for row in rows)
    assert " \n" + "".join(found) == whole  # what is before the first title is blank


def test_articles_of_rows_with_problems() -> None:
    rows = [Document(row) for row in LOBSTER[:4]]
    bad = Document("", "given, row 4: null")
    blank = Document("", "given, row 5: the field 'text' is empty or blank; remove the row")
    found = list(articles(iter([*rows, bad, *rows, blank, *map(Document, BILLIARDS)])))
    assert found[0] == bad  # once, in place of its article
    assert [document.problem for document in found[1:]] == ["", ""]
    assert list(articles(iter([blank, blank]))) == []


def sized(tmp_path: Path, rows: Rows, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    """text8 as if these were its lengths."""
    parquet(tmp_path / "it", rows, layout="data/{}-00000-of-00001.parquet")
    monkeypatch.setattr(detokenizers, "_TEXT8", (9, 3))
    return moved(CORPORA["text8"], tmp_path / "it")


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streaming"])
def test_text8_is_three_documents_of_any_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streaming: bool
) -> None:
    monkeypatch.setattr(documents, "LONGEST", 4)  # what text8 exceeds
    assert detokenizers._TEXT8 == (90_000_000, 5_000_000)
    corpus = sized(tmp_path, three([" anarchis"], ["be "], ["e a"]), monkeypatch)
    for role, text in (("train", " anarchis"), ("validation", "be "), ("test", "e a")):
        source = corpus.source(role, streaming=streaming)
        assert source
        assert read_texts(source) == [text]


def test_what_is_not_text8_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = sized(tmp_path, three([" anarchi"], ["Be "], ["e\na"]), monkeypatch)
    for role, found in (("train", "8 characters"), ("validation", "'B'"), ("test", r"'\\n'")):
        source = corpus.source(role)
        assert source
        with pytest.raises(ConfigError, match=f"not text8: it has .*{found}"):
            read_texts(source)


def test_the_corpus_pydoc_needs_no_hub() -> None:
    corpus = CORPORA["pydoc"]
    assert isinstance(corpus.source("train"), PythonDocs)
    assert corpus.source("validation") is corpus.source("test") is corpus.dataset is None
    assert read_texts(corpus.training()) == [*python_documents()]


def test_a_corpus_for_evaluation_is_not_for_training() -> None:
    with pytest.raises(ConfigError, match=r"`data.corpus` lambada is for evaluation.*`data.path="):
        CORPORA["lambada"].training()
    assert [c.name for c in CORPORA.values() if "train" not in c.roles] == ["lambada"]


def test_conventions_of_the_field() -> None:
    scored = {name: corpus.scored for name, corpus in CORPORA.items()}
    on_test = {"lm1b", "text8", "lambada", "ag_news"}
    assert {name for name, role in scored.items() if role == "test"} == on_test
    assert {name for name, corpus in CORPORA.items() if corpus.last} == {"openwebtext"}
    assert CORPORA["openwebtext"].last == 100_000
    for name, corpus in CORPORA.items():
        assert name == corpus.name
        assert corpus.scored in corpus.roles or "train" in corpus.roles  # a part of it
        assert all((corpus.description, corpus.licence, corpus.size))


def test_the_table_for_people() -> None:
    lines = markdown().splitlines()
    assert len(lines) == 2 + len(CORPORA)
    assert {line.count("|") for line in lines} == {8}
    rows = {line.split("`")[1]: line for line in lines[2:]}
    assert list(rows) == list(CORPORA)
    assert "| train, validation (= test), **test** | lm1b |" in rows["lm1b"]
    assert "| train, **validation (last 100,000 of train)** | none |" in rows["openwebtext"]
    assert "| train, **validation (a share of train)** | none | PSF" in rows["pydoc"]
    assert "| train, **validation**, test | wikitext |" in rows["wikitext-2"]
    assert "| **test** | lambada |" in rows["lambada"]
    assert "ptb-text-only/ptb_text_only, refs/convert/parquet |" in rows["ptb"]
    done = subprocess.run(
        [sys.executable, "-m", "sddlm.data.corpora"], capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == (markdown() + "\n", "")


def test_the_page_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    told = page.split("<!-- corpora:begin -->")[1].split("<!-- corpora:end -->")[0]
    assert told.strip() == markdown().strip(), "python -m sddlm.data.corpora prints it"
