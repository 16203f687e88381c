import hashlib
import logging
from pathlib import Path

import pytest
from memory_source import MemorySource

from sddlm.data.scan import scan, valid_documents
from sddlm.errors import ConfigError


def text_of(parts) -> list[str]:
    documents, now = [], ""
    for part in parts:
        now += part.text
        if part.is_last:
            documents.append(now)
            now = ""
    assert not now
    return documents


def test_what_a_scan_tells() -> None:
    found = scan(MemorySource(["one", ["tw", "o ", "three"], "é"]))
    assert (found.documents, found.characters, found.bad) == (3, 13, {})
    assert found.lengths == [3, 9, 1]
    assert list(found.long) == [1]
    digest = hashlib.sha256()
    for text in ("one", "two three", "é"):
        digest.update(hashlib.sha256(text.encode()).digest())
    assert found.key == digest.hexdigest()
    assert scan(MemorySource([f"{i}" for i in range(20)])).lengths == []


def test_where_a_document_is_cut_into_parts_does_not_matter() -> None:
    one, other = scan(MemorySource(["ab", "cde"])), scan(MemorySource([["a", "b"], ["cd", "e"]]))
    assert one.key == other.key
    assert one.least == other.least
    assert one.key != scan(MemorySource(["abc", "de"])).key
    assert one.key != scan(MemorySource(["cde", "ab"])).key


BAD = ["good", "!file, line 2: broken", ["begun", "!file, line 3: broken"], "last"]


@pytest.mark.parametrize("limit", [0, 1])
def test_bad_documents_end_the_scan(limit: int) -> None:
    with pytest.raises(ConfigError, match=rf"line {limit + 2}: broken .*`data.max_errors` {limit}"):
        scan(MemorySource(BAD), limit)


def test_bad_documents_up_to_the_limit_are_left_out_and_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = MemorySource(BAD)
    with caplog.at_level(logging.WARNING):
        found = scan(source, 2)
    assert found.bad == {1: "!file, line 2: broken", 2: "!file, line 3: broken"}
    assert (found.documents, found.characters, found.lengths) == (2, 8, [4, 4])
    assert text_of(valid_documents(source, found)) == ["good", "last"]
    assert "2 bad documents of 4" in caplog.text
    assert caplog.text.count("left out: ") == 2
    assert found.key == scan(MemorySource(["good", "last"])).key


def test_nothing_good_is_an_error() -> None:
    for documents in ([], ["!bad"]):
        with pytest.raises(ConfigError, match="no documents in memory"):
            scan(MemorySource(documents), 1)


def test_a_source_that_changes_between_readings_is_found_out() -> None:
    source = MemorySource(["one", "two"])
    found = scan(source)
    for documents in ([["one"], ["twa"]], [["one"]], [["one"], ["two"], ["three"]], [["!one"]]):
        source.pieces = documents
        with pytest.raises(ConfigError, match="memory has changed"):
            list(valid_documents(source, found))


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    source = MemorySource(BAD)
    source.state = "a" * 64
    first = scan(source, 2, remember=tmp_path / "cache")
    second = scan(source, 2, remember=tmp_path / "cache")
    assert source.readings == 1
    assert first == second
    with pytest.raises(ConfigError, match=r"`data.max_errors` 1"):  # the limit still holds
        scan(source, 1, remember=tmp_path / "cache")
    source.state = "b" * 64
    scan(source, 2, remember=tmp_path / "cache")
    source.state = None  # only reading tells
    scan(source, 2, remember=tmp_path / "cache")
    assert source.readings == 3
