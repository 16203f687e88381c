"""Text files and JSON lines: every kind of problem and its place, and how much memory they take."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sddlm.data import documents, readers
from sddlm.data.documents import Document
from sddlm.data.readers import Input
from sddlm.data.sources import open_source
from sddlm.data.split import scan
from sddlm.errors import ConfigError

zstandard = pytest.importorskip("zstandard")

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.compress,
}  # fmt: skip


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(PACK.get(path.suffix, bytes)(data))
    return str(path)


def read(path: str, field: str = "text", separator: str | None = None) -> list[str]:
    """The text of each document, or its problem."""
    source = open_source(path, field=field, separator=separator)
    return [document.problem or document.text for document in source.read()]


# ------------------------------------------------------------------ what is read


CONTENT = {
    ".txt": ("one\n\ntwo é\n<|endoftext|>three\n", ["one\n\ntwo é\n", "three\n"]),
    ".md": ("# one\n", ["# one\n"]),
    ".jsonl": ('\n{"text": "a\\nb", "id": 1}\n \r\n{"text": "é"}', ["a\nb", "é"]),
    ".json": ('{"text": "a"}\n', ["a"]),
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", CONTENT)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_every_format_packed_or_not_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, packing: str, chunk: int
) -> None:
    content, documents = CONTENT[suffix]
    monkeypatch.setattr(readers, "CHUNK", chunk)
    monkeypatch.setattr(readers, "_FED", min(chunk, 3))
    assert read(write(tmp_path / f"a{suffix}{packing}", content)) == documents
    marked = write(tmp_path / f"b{suffix}{packing}", b"\xef\xbb\xbf" + content.encode())
    assert read(marked) == documents


# ------------------------------------------------------------------ text


def cut(text: str, limit: int) -> list[str]:
    """Pieces of at most ``limit`` characters, cut behind the last line end or blank."""
    if len(text) <= limit:
        return [text]
    marks = [end for end in (text.rfind("\n", 0, limit), text.rfind(" ", 0, limit)) if end > 0]
    at = marks[0] + 1 if marks else limit
    return [text[:at], *cut(text[at:], limit)]


@pytest.mark.slow
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.lists(
        st.sampled_from(
            ["a", "bc", " ", "\n", "\r", "\r\n", "é", "世", "🙂", "<|", "|>", "-", "--"]
        )
    ).map("".join),
    separator=st.sampled_from([None, "-", "--", "\n\n", "\r\n", "|>a<|", "é"]),
    chunk=st.integers(1, 9),
    limit=st.sampled_from([1, 2, 5, 100]),
)
def test_documents_are_what_is_between_separators_cut_at_the_limit(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    separator: str | None,
    chunk: int,
    limit: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.txt"
    path.write_bytes(text.encode())
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    mark = (separator or "<|endoftext|>").replace("\r\n", "\n")
    pieces = [piece for document in plain.split(mark) for piece in cut(document, limit)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "CHUNK", chunk)
        patch.setattr(documents, "LONGEST", limit)
        found = list(readers.text(Input("some.txt", ".txt", path=path), separator))
    assert found == [Document(piece) for piece in pieces if piece.strip()]


def test_a_document_beyond_the_limit_is_cut_near_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(documents, "LONGEST", 10_000)
    text = "word " * 7000 + "x" * 12_000
    found = read(write(tmp_path / "a.txt", text))
    assert "".join(found) == text
    assert list(map(len, found)) == [10_000, 10_000, 10_000, 10_000, 7000]
    bad = write(tmp_path / "b.txt", b"\n" + text.encode() + b"\n\xff")
    *good, last = read(bad)  # only the piece with the problem is bad
    assert len(good) == 4
    assert ("\n" + text).startswith("".join(good))
    assert "b.txt, line 3: not UTF-8" in last


def test_a_mark_across_the_limit_is_found(tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "a.txt", "abc<|endoftext|>def")
    monkeypatch.setattr(documents, "LONGEST", 5)
    for chunk in range(1, 20):
        monkeypatch.setattr(readers, "CHUNK", chunk)
        assert read(path) == ["abc", "def"]


def test_carriage_returns_at_the_end_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "CHUNK", 4)
    assert read(write(tmp_path / "a.txt", b"one\r\ntw\r\rx\r")) == ["one\ntw\n\nx\n"]


# ------------------------------------------------------------------ problems


PROBLEMS: list[tuple[str, str | bytes, list[str]]] = [
    ("a.txt", b"one\n\xe9t\xe9|two|\n\nx\0|three", [
        "a.txt, line 2: not UTF-8 (byte 0xe9); convert the file", "two",
        "a.txt, line 4: a NUL byte", "three",
    ]),
    ("b.txt", b"one\r\n|\rtwo\xe4\xb8", ["one\n", "b.txt, line 3: not UTF-8 (byte 0xe4)"]),
    ("a.jsonl", b'{"text": "\xff"}\n{"text": "a\0"}\n\n{"text": \n{"text": "good"}\n["a"]\n', [
        "a.jsonl, line 1: not UTF-8 (byte 0xff); convert the file",
        "a.jsonl, line 2: a NUL byte", "a.jsonl, line 4: not JSON (Expecting value at column 10)",
        "good", "a.jsonl, line 6: a JSON list, not an object; each line must be",
    ]),
    ("b.jsonl", r'''{"body": "a", "id": 1}
{"text": null}
{"text": 1}
{"text": "\ud800"}
{"text": "a\u0000"}
{"text": " \n"}
{"text": ""}
{"text": "\ud83d\ude42"}
{"text": "\udc80"}
''', [
        "line 1: no field 'text'; there are: body, id; choose one with `data.field`",
        "line 2: the field 'text' is null, not text; choose another with `data.field`",
        "line 3: the field 'text' is a int, not text",
        "line 4: the field 'text' holds half a surrogate pair",
        "line 5: the field 'text' holds a NUL character",
        "line 6: the field 'text' is empty or blank; remove the line",
        "line 7: the field 'text' is empty or blank", "🙂",
        "line 9: the field 'text' holds half a surrogate pair",
    ]),
    ("c.jsonl", "[" * 100_000 + "\n" + '{"text": "a", "n": ' + "1" * 5000 + '}\n{"text": "x"}', [
        "c.jsonl, line 1: not JSON", "c.jsonl, line 2: not JSON", "x",
    ]),
]  # fmt: skip


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize(("name", "content", "expected"), PROBLEMS)
def test_problems_have_a_place_and_reading_goes_on(
    tmp_path: Path, name: str, content: str | bytes, expected: list[str], packing: str
) -> None:
    path = tmp_path / (name + packing)
    write(path, content)
    found = read(str(path), separator="|")
    assert len(found) == len(expected)
    for text, said in zip(found, expected, strict=True):
        assert said.replace(name, name + packing) in text if "line " in said else text == said
        if "line " in said:
            assert text.startswith(str(path))
            assert ";" in text  # what to do
            assert "\n" not in text


def test_line_ends_in_a_separator_count(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"one\n\ntwo\r\n\r\n\xff\n\nthree")
    found = read(path, separator="\n\n")
    assert (found[:2], found[3]) == (["one", "two"], "three")
    assert "a.txt, line 5: not UTF-8" in found[2]


LONG = "x" * 200


@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_records_that_are_too_long_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(documents, "LINE", 100)
    monkeypatch.setattr(readers, "CHUNK", chunk)
    rows = [{"text": "a"}, {"text": LONG}, {"text": "b"}, {"text": LONG}]
    found = read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert found[::2] == ["a", "b"]
    assert "line 2: longer than" in found[1]
    assert "line 4: longer than" in found[3]
    longest = json.dumps({"text": LONG})[: 100 - 13] + '"}'
    assert read(write(tmp_path / "b.jsonl", f"{longest}\n{longest}x\n"))[0] == LONG[: 100 - 12 - 11]


# ------------------------------------------------------------------ what ends the reading


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-5], r"a.txt\.\w+ is cut short.*get it again"),
        (lambda data: b"x" + data, r"a.txt\.\w+ cannot be decompressed: .*get it again"),
        (lambda data: data + b"more", r"a.txt\.\w+ cannot be decompressed: .*get it again"),
        (lambda data: data[:40] + b"??" + data[42:], r"a.txt\.\w+ (is cut|cannot be)"),
    ],
)
def test_damaged_compression(
    tmp_path: Path, suffix: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / f"a.txt{suffix}"
    text = " ".join(str(i * i) for i in range(5000)).encode()
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(text)
    path.write_bytes(spoil(whole if suffix == ".zst" else gzip.compress(text)))
    with pytest.raises(ConfigError, match=message):
        read(str(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_several_frames_are_one_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.txt{suffix}"
    path.write_bytes(PACK[suffix](b"one ") + PACK[suffix](b"two"))
    assert read(str(path)) == ["one two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt.gz", "", r"no documents in .*a.txt.gz"),
        ("a.jsonl", '{"text": null}', r"no documents in .*: 1 with problems; .*line 1: .*null"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    source = open_source(write(tmp_path / name, content))
    with pytest.raises(ConfigError, match=message):
        scan(source, 1)


# ------------------------------------------------------------------ memory


MEASURE = """
import re, sys
from pathlib import Path
from sddlm.data import documents
from sddlm.data.sources import open_source
from sddlm.data.split import scan
import zstandard
documents.LONGEST = documents.LINE = 1 << 23
def peak():  # getrusage's begins with that of the parent
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
size = sum(len(document.text) for document in open_source(sys.argv[1]).read())
print(size, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "long.jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    line = b"a line of text that is like all the others in this long file\n"
    block = line * (1_000_000 // len(line))
    size = 200 * len(block)
    if name == "a.txt.zst":  # 200 MB in some 20 kB
        with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as stream:
            for _ in range(200):
                stream.write(block)
    else:
        with path.open("wb") as file:
            file.write(b'{"text": "x"}\n{"text": "' if name == "long.jsonl" else b"")
            file.writelines(
                block.replace(b"\n", b" ") if "json" in name else block for _ in range(200)
            )
            file.write(b'"}\n' if name == "long.jsonl" else b"")
        size = 1 if name == "long.jsonl" else size  # the other record is too long
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    read_size, grown = map(int, done.stdout.split())
    print(f"{name}: {grown // 1000} MB more")
    assert read_size == size
    assert grown < 150_000  # kB
