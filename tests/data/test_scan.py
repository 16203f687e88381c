import hashlib
import logging
from pathlib import Path

import pytest
from memory_source import MemorySource

from sddlm.data.split import hash_fraction, scan, valid_documents
from sddlm.errors import ConfigError


def test_counts_and_key() -> None:
    texts = ["one", "two three", "é"]
    found = scan(MemorySource(texts))
    assert (found.documents, found.characters, found.bad) == (3, 13, {})
    digests = [hashlib.sha256(text.encode()).digest() for text in texts]
    assert found.key == hashlib.sha256(b"".join(digests)).hexdigest()
    assert found.least == min(map(hash_fraction, digests))
    assert found.key != scan(MemorySource(["one", "two thre", "eé"])).key
    assert found.key != scan(MemorySource(["two three", "one", "é"])).key


BAD = ["good", "!file, line 2: broken", "!file, line 3: broken", "last"]


@pytest.mark.parametrize("limit", [0, 1])
def test_bad_documents_end_the_scan(limit: int) -> None:
    with pytest.raises(ConfigError, match=rf"line {limit + 2}: broken .*`data.max_errors` {limit}"):
        scan(MemorySource(BAD), limit)


def test_bad_documents_up_to_the_limit_are_left_out_and_reported(
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = MemorySource(BAD)
    with caplog.at_level(logging.WARNING):
        found = scan(source, 2)
    assert found.bad == {1: "!file, line 2: broken", 2: "!file, line 3: broken"}
    assert (found.documents, found.characters) == (2, 8)
    assert list(valid_documents(source, found)) == ["good", "last"]
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
    for texts in (["one", "twa"], ["one"], ["one", "two", "three"], ["!one", "two"]):
        source.texts = texts
        with pytest.raises(ConfigError, match="memory has changed"):
            list(valid_documents(source, found))


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    source = MemorySource(BAD, "a" * 64)
    first = scan(source, 2, cache=tmp_path / "cache")
    second = scan(source, 2, cache=tmp_path / "cache")
    assert source.readings == 1
    assert first == second
    with pytest.raises(ConfigError, match=r"`data.max_errors` 1"):  # the limit still holds
        scan(source, 1, cache=tmp_path / "cache")
    source.state = "b" * 64
    scan(source, 2, cache=tmp_path / "cache")
    source.state = None  # only reading tells
    scan(source, 2, cache=tmp_path / "cache")
    assert source.readings == 3
