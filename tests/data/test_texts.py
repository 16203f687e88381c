"""What the user's options make of a corpus known by name."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from memory_source import MemorySource

from sddlm.data.config import DataArgs
from sddlm.data.corpora import CORPORA, Corpus
from sddlm.data.prepare import prepare
from sddlm.data.sources import mapped
from sddlm.data.texts import data_sources
from sddlm.errors import ConfigError

DOCS = [f"training document {i}" for i in range(30)]
HELD_OUT, TEST = ["held out 1", "held out 2"], ["test 1", "test 2", "test 3"]
SPLITS: dict[Any, Any] = {"validation": "validation", "test": "test"}


class Memory(Corpus):
    """A corpus in memory."""

    def source(self, role: Any, *, streaming: bool = False) -> Any:
        texts = {"train": DOCS, "validation": HELD_OUT, "test": TEST}
        return MemorySource(texts[role]) if role in self.roles else None


PLAIN = Memory("corpus", "", "", "", None, {"train": "train"})


def read(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, split: Any = "both", **options: Any
) -> dict[str, list[str]]:
    """The documents of each split."""
    monkeypatch.setitem(CORPORA, "corpus", corpus)
    found: dict[str, list[str]] = {}
    with ExitStack() as until_done:
        for text in data_sources(DataArgs(corpus="corpus", **options), split, until_done):
            for side, document in text.documents():
                assert side in text.splits
                found.setdefault(side, []).append(document)
    return found


def test_a_corpus_holds_out_by_its_own_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    last = replace(PLAIN, last=4)
    assert read(last, monkeypatch) == {"train": DOCS[:26], "validation": DOCS[26:]}
    split = replace(last, roles={**PLAIN.roles, **SPLITS})
    assert read(split, monkeypatch) == {"train": DOCS, "validation": HELD_OUT}
    shared = read(PLAIN, monkeypatch)
    assert sorted(shared["train"] + shared["validation"]) == sorted(DOCS)


def test_the_user_knows_better(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    split = replace(PLAIN, last=4, roles={**PLAIN.roles, **SPLITS})
    for corpus in (split, replace(PLAIN, last=4)):
        found = read(corpus, monkeypatch, validation=2)
        assert found == {"train": DOCS[:28], "validation": DOCS[28:]}
        (tmp_path / "own.txt").write_text("own text")
        own = str(tmp_path / "own.txt")
        found = read(corpus, monkeypatch, validation_path=own)
        assert found == {"train": DOCS, "validation": ["own text"]}
        found = read(corpus, monkeypatch, "validation", validation_path=own)
        assert found == {"validation": ["own text"]}


def test_what_is_scored_of_a_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own split for that; what training would hold out; all of it."""
    split = replace(PLAIN, roles={**PLAIN.roles, **SPLITS}, scored="test")
    assert read(split, monkeypatch, "all") == {"validation": TEST}
    assert read(replace(split, scored="validation"), monkeypatch, "all") == {"validation": HELD_OUT}
    assert read(replace(PLAIN, last=4), monkeypatch, "all") == {"validation": DOCS[26:]}
    assert read(PLAIN, monkeypatch, "all") == {"validation": DOCS}


def test_a_corpus_that_is_only_scored_cannot_be_trained_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    only = replace(PLAIN, roles={"test": "test"}, scored="test")
    assert read(only, monkeypatch, "all") == {"validation": TEST}
    with pytest.raises(ConfigError, match=r"`data.corpus` corpus is for evaluation"):
        read(only, monkeypatch)


def test_the_key_knows_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()
    for corpus, split in ((PLAIN, "both"), (replace(PLAIN, last=4), "both"), (PLAIN, "all")):
        monkeypatch.setitem(CORPORA, "corpus", corpus)
        with ExitStack() as until_done:
            (text,) = data_sources(DataArgs(corpus="corpus"), split, until_done)  # type: ignore[arg-type]
        keys.add(text.key)
    assert len(keys) == 3


def test_documents_are_detokenized_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Rules of old corpora take as long as encoding, and a text is read up to three times."""
    seen: list[str] = []

    class Words(Memory):
        def source(self, role: Any, *, streaming: bool = False) -> Any:
            source = super().source(role)
            return source and mapped(source, lambda text: seen.append(text) or text.upper(), "up")

    monkeypatch.setitem(CORPORA, "corpus", Words("corpus", "", "", "", None, {"train": "train"}))
    args = DataArgs(corpus="corpus", vocab_size=260, length=8, cache=str(tmp_path / "cache"))
    prepared = prepare(args)
    assert seen == DOCS
    assert prepared.validation.characters + prepared.train.characters == sum(map(len, DOCS))
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")]
