import builtins
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sddlm.data.sources import documents
from sddlm.errors import ConfigError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return str(path)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.zst"])
def test_text_is_one_document_or_cut(tmp_path: Path, name: str) -> None:
    plain = write(tmp_path / "1" / name, "one\n\ntwo é\n")
    assert list(documents(plain)) == ["one\n\ntwo é\n"]
    assert list(documents(plain, separator="\n\n")) == ["one", "two é\n"]
    marked = write(tmp_path / "2" / name, "one\n<|endoftext|>two<|endoftext|>\n")
    assert list(documents(marked)) == ["one\n", "two"]
    assert list(documents(marked, separator="one")) == ["\n<|endoftext|>two<|endoftext|>\n"]


def test_line_ends_and_byte_order_marks_are_evened_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert list(documents(path)) == ["one\ntwo\nthree\n"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.zst", "a.json.zst"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    long = "x" * 3_000_000  # longer than what is read at once
    path = write(tmp_path / name, lines({"text": "a\nb", "body": "B"}, {"text": long}) + "\n")
    assert list(documents(path)) == ["a\nb", long]
    path = write(tmp_path / "b" / name, lines({"body": "B"}).rstrip("\n"))
    assert list(documents(path, field="body")) == ["B"]


def test_parquet(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(3000)]
    pq.write_table(pa.table({"id": list(range(3000)), "text": texts}), tmp_path / "a.parquet")
    assert list(documents(str(tmp_path / "a.parquet"))) == texts
    with pytest.raises(ConfigError, match=r"no field 'body'; there are: id, text;.*--data.field"):
        list(documents(str(tmp_path / "a.parquet"), field="body"))
    with pytest.raises(ConfigError, match=r"row 1: the field 'id' is a int, not text"):
        list(documents(str(tmp_path / "a.parquet"), field="id"))


def test_folders_and_patterns_are_sorted(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "B")
    write(tmp_path / "a" / "z.md", "Z")
    write(tmp_path / "a" / "y.jsonl", lines({"text": "Y"}))
    write(tmp_path / "c.log", "not looked at")
    write(tmp_path / ".hidden" / "h.txt", "nor this")
    assert list(documents(str(tmp_path))) == ["Y", "Z", "B"]
    assert list(documents(str(tmp_path / "*" / "*.md"))) == ["Z"]
    assert list(documents(str(tmp_path / "**" / "*.txt"))) == ["B"]


def test_several_frames_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert list(documents(str(path))) == ["one two"]


BROKEN: list[tuple[str, str | bytes, str]] = [
    ("a.txt", "", r"a.txt is empty; remove it"),
    ("a.txt", " \n ", r"no documents in .*--data.path"),
    ("a.txt", b"text\nx\0y", r"a.txt, line 2: a binary file.*UTF-8"),
    ("a.txt", b"text\n\xff", r"a.txt, line 2: not UTF-8 \(byte 0xff\).*iconv"),
    ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}', r"a.jsonl, line 2: not UTF-8"),
    ("a.jsonl", b'{"text": "a\0"}', r"a.jsonl, line 1: a binary file"),
    ("a.jsonl", '{"text": "a"}\n{"text": ', r"a.jsonl, line 2: not JSON \(.*column 10\)"),
    ("a.jsonl", '["a"]', r"a.jsonl, line 1: a JSON list, not an object"),
    ("a.jsonl", '{"body": "a", "id": 1}', r"line 1: no field 'text'; there are: body, id;.*--data"),
    ("a.jsonl", '{"text": null}', r"line 1: the field 'text' is null, not text;.*--data.field"),
    ("a.jsonl", r'{"text": "\ud800"}', r"line 1: .*half a surrogate pair"),
    ("a.jsonl.zst", '{"text": ', r"a.jsonl.zst, line 1: not JSON"),
    ("a.parquet", "PAR", r"a.parquet cannot be read as Parquet"),
    ("a.pdf", "text", r"unknown kind of file;.*\.txt, \.md, \.jsonl.*rename"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_errors_say_where_and_what_to_do(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list(documents(write(tmp_path / name, content)))


def test_missing_files(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path / "*.txt"):
        with pytest.raises(ConfigError, match=r"--data.path .*: no such file"):
            list(documents(str(path)))
    with pytest.raises(ConfigError, match=r"no documents in the folder .*\.parquet"):
        list(documents(str(tmp_path)))
    with pytest.raises(ConfigError, match=r"--data.separator is empty"):
        list(documents(write(tmp_path / "a.txt", "a"), separator=""))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [(lambda data: data[:-5], "cut short"), (lambda data: b"x" + data, "cannot be decompressed")],
)
def test_damaged_zstd(tmp_path: Path, spoil: Callable[[bytes], bytes], message: str) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(spoil(zstandard.compress(bytes(range(32, 127)) * 1000)))
    with pytest.raises(ConfigError, match=message):
        list(documents(str(path)))


@pytest.mark.parametrize(
    ("name", "package"), [("a.txt.zst", "zstandard"), ("a.parquet", "pyarrow")]
)
def test_missing_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    def absent(wanted: str, *rest: Any) -> Any:
        if wanted == package:
            raise ImportError(wanted)
        return builtins.__import__(wanted, *rest)

    path = write(tmp_path / name, "text")
    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=rf"{package}: pip install 'sddlm\[data\]'"):
        list(documents(path))
