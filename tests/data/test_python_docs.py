import os
import re
import sys
import sysconfig
from itertools import islice
from pathlib import Path

import pytest
from memory_source import read_texts

from sddlm.data import python_docs
from sddlm.data.python_docs import PythonDocs, _prose, _raw_documents, python_documents
from sddlm.errors import ConfigError

WORD = re.compile(r"[\"'(]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?\"')]*")


@pytest.mark.slow
def test_the_corpus_pydoc_is_english_and_large_enough() -> None:
    docs = list(python_documents())
    text = " ".join(docs)
    words = text.split()
    assert len(docs) > 300
    assert 1_000_000 < len(text) < 5_000_000
    assert sum(WORD.fullmatch(word) is not None for word in words) / len(words) > 0.9
    assert sum(word in ("the", "a", "of", "to", "is") for word in words) / len(words) > 0.12
    assert ">>>" not in text
    paragraphs = [line for doc in docs for line in doc.splitlines()]
    assert len(paragraphs) == len(set(paragraphs))  # nothing said twice


@pytest.mark.slow
def test_the_corpus_is_the_same_every_time() -> None:
    assert read_texts(PythonDocs()) == read_texts(PythonDocs()) == list(python_documents())
    first, second = (list(islice(_raw_documents(), 120)) for _ in range(2))  # topics and modules
    assert first == second


def test_cleaning() -> None:
    text = """A heading
*********

The first paragraph runs
over  two lines with :class:`Names` and ``code``.

   >>> the_doctest(goes, away, with, its, prompt)
   42

Too short.

* the first point is long enough
* the second point is kept as well
  over its hanging line

name -- a definition that goes on
    behind a hanging indent

   if x < y < z: print(x); print(y); print(z)
   stmt ::= "if" expression and so on and on
"""
    assert list(_prose(text)) == [
        "The first paragraph runs over two lines with Names and code.",
        "* the first point is long enough",
        "* the second point is kept as well over its hanging line",
        "name -- a definition that goes on behind a hanging indent",
    ]


def test_a_python_without_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"`data.path='FILE'`"):
        python_documents.__wrapped__()
    with pytest.raises(ConfigError, match=r"`data.path='FILE'`"):
        PythonDocs().signature()


@pytest.mark.slow
def test_the_signature_changes_with_what_is_read_and_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(name: str, changed: int) -> Path:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('"""A docstring that has enough words to be kept."""\n')
        os.utime(path, (changed, changed))
        return path

    whole = PythonDocs().signature()
    assert whole == PythonDocs().signature()
    code, *_ = (write(name, 1) for name in ("code/builtin", "one.py", "two.py", "tests/no.py"))
    monkeypatch.setattr(python_docs, "__file__", str(code))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    found = [PythonDocs().signature()]
    write("tests/no.py", 2)  # which is not read
    assert PythonDocs().signature() == found[0]
    for name in ("two.py", "code/builtin"):
        write(name, 2)
        found.append(PythonDocs().signature())
    write("three.py", 1)
    found.append(PythonDocs().signature())
    monkeypatch.setattr(sys, "version", "another Python")
    found.append(PythonDocs().signature())
    assert None not in found
    assert len({*found, whole}) == 6
