"""Single files: every format, every kind of problem and its place, and how much memory it takes."""

import csv
import gzip
import io
import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sddlm.data import formats, pieces, streams
from sddlm.data.pieces import TextChunk, cut
from sddlm.data.sources import open_source
from sddlm.data.streams import Input
from sddlm.errors import ConfigError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, ".gz": gzip.compress, ".zst": zstandard.compress,
}  # fmt: skip


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    path.write_bytes(PACK.get(path.suffix, bytes)(data))
    return str(path)


def whole(parts: list[TextChunk]) -> list[str]:
    """The text of each document, or its problem."""
    found, held = [], ""
    for part in parts:
        held += part.text
        if part.is_last:
            found.append(part.problem or held)
            held = ""
    assert not held
    return found


def read(path: str, field: str = "text", separator: str | None = None) -> list[str]:
    return whole(list(open_source(path, field=field, separator=separator).chunks()))


# ------------------------------------------------------------------ what is read


TABLE = [("1", 'one, "two"\nthree'), ("2", "é\t世"), ("3", " x ")]


def table(delimiter: str) -> str:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("id", "text"), *TABLE])
    return file.getvalue()


CONTENT = {
    ".txt": ("one\n\ntwo é\n<|endoftext|>three\n", ["one\n\ntwo é\n", "three\n"]),
    ".md": ("# one\n", ["# one\n"]),
    ".jsonl": ('\n{"text": "a\\nb", "id": 1}\n \r\n{"text": "é"}', ["a\nb", "é"]),
    ".json": ('{"text": "a"}\n', ["a"]),
    ".csv": (table(",") + "\n", [text for _, text in TABLE]),
    ".tsv": (table("\t"), [text for _, text in TABLE]),
}


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("suffix", CONTENT)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_every_format_packed_or_not_in_chunks_of_any_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, packing: str, chunk: int
) -> None:
    content, documents = CONTENT[suffix]
    monkeypatch.setattr(streams, "CHUNK", chunk)
    monkeypatch.setattr(streams, "_FED", min(chunk, 3))
    assert read(write(tmp_path / f"a{suffix}{packing}", content)) == documents
    marked = write(tmp_path / f"b{suffix}{packing}", b"\xef\xbb\xbf" + content.encode())
    assert read(marked) == documents


def test_parquet(tmp_path: Path) -> None:
    texts = [f"row {i}" for i in range(3000)]
    rows = pa.table({"id": list(range(3000)), "text": texts})
    pq.write_table(rows, tmp_path / "a.parquet", row_group_size=700)
    assert read(str(tmp_path / "a.parquet")) == texts


def test_parquet_reads_no_other_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    rows = pa.table({"other": [f"{i:x}" * 5 for i in range(999)], "text": ["x"] * 999})
    pq.write_table(rows, path, use_dictionary=False)
    column = pq.read_metadata(path).row_group(0).column(0)
    start, data = column.data_page_offset, bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert read(str(path)) == ["x"] * 999
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read as Parquet: .*get it again"):
        read(str(path), field="other")


def test_long_records_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MIN_CHUNK", 10)
    text = "one two three four five six"
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}))
    found = list(open_source(path).chunks())
    assert found == [
        TextChunk("one two three", False),
        TextChunk(" four five", False),
        TextChunk(" six"),
    ]


# ------------------------------------------------------------------ text in parts


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    text=st.lists(
        st.sampled_from(
            ["a", "bc", " ", "\n", "\r", "\r\n", "é", "世", "🙂", "<|", "|>", "-", "--"]
        )
    ).map("".join),
    separator=st.sampled_from([None, "-", "--", "\n\n", "\r\n", "|>a<|", "é"]),
    chunk=st.integers(1, 9),
    sizes=st.sampled_from([(1, 3), (2, 9), (5, 5), (100, 200)]),
)
def test_parts_of_a_text_are_its_documents(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    separator: str | None,
    chunk: int,
    sizes: tuple[int, int],
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.txt"
    path.write_bytes(text.encode())
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    mark = (separator or "<|endoftext|>").replace("\r\n", "\n")
    expected = [document for document in plain.split(mark) if document.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "CHUNK", chunk)
        patch.setattr(pieces, "MIN_CHUNK", sizes[0])
        patch.setattr(pieces, "MAX_CHUNK", sizes[1])
        found = list(formats.read(Input("some.txt", ".txt", path=path), "text", separator))
    # white space longer than MAX_CHUNK was handed on before the document turned out to be blank
    good = [document for document in whole(found) if "blanks and line ends" not in document]
    assert good == expected
    assert all(len(part.text) <= max(sizes[1], sizes[0]) + 2 for part in found)
    for part, after in itertools.pairwise(found):
        if not part.is_last and len(part.text) < sizes[1]:  # cut where a word ends
            assert len(part.text) >= sizes[0]
            assert not part.text[-1].isspace()
            assert after.problem or after.text[0] in " \n"


@pytest.mark.parametrize("size", [1, 4, 50])
def test_pieces_are_the_text(size: int) -> None:
    text = "one  two three\n\nfour\nfive sixsevenandeight nine"
    found = list(cut(text, size))
    assert "".join(found) == text
    assert all(len(piece) >= size for piece in found[:-1])
    assert all(piece[0] in " \n" and not piece[1].isspace() for piece in found[1:])
    assert max(map(len, cut("x" * 100, size, 60))) == (60 if size < 60 else 100)


def test_carriage_returns_at_the_end_of_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CHUNK", 4)
    assert read(write(tmp_path / "a.txt", b"one\r\ntw\r\rx\r")) == ["one\ntw\n\nx\n"]


def test_parts_are_about_a_mebibyte(tmp_path: Path) -> None:
    text = "word " * 1_000_000
    found = list(open_source(write(tmp_path / "a.txt", text + "x" * 9_000_000)).chunks())
    assert "".join(part.text for part in found) == text + "x" * 9_000_000
    lengths = [len(part.text) for part in found]
    assert all(1 << 20 <= length < (1 << 20) + 5 for length in lengths[:4])
    assert max(lengths) == 1 << 22


def test_too_much_white_space_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "MIN_CHUNK", 4)
    monkeypatch.setattr(pieces, "MAX_CHUNK", 8)
    found = read(write(tmp_path / "a.txt", "a|" + "\n" * 20 + "|b"), separator="|")
    assert found[0] == "a"
    assert found[2] == "b"
    assert "more than 8 blanks and line ends; remove them" in found[1]


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
    ("a.csv", b'text,id\n"a\nb",1\n"x\n\xe9",2\nx,y,z\ny\0,1\n"a"b,1\n,1\nok,1\n"open,1\nx,2\n', [
        "a\nb", "a.csv, line 5: not UTF-8 (byte 0xe9)",
        "a.csv, line 6: 3 fields where the first line names 2",
        "a.csv, line 7: a NUL byte", "a.csv, line 8: not CSV (",
        "line 9: the field 'text' is empty",
        "ok", "a.csv, line 11: not CSV (unexpected end of data)",
    ]),
    ("b.csv", b'id,text\n"1\n2",\xff\n\xff,good\n', [
        "b.csv, line 3: not UTF-8 (byte 0xff)", "good",
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


def test_a_document_that_has_begun_ends_with_its_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "CHUNK", 8)
    monkeypatch.setattr(pieces, "MIN_CHUNK", 4)
    path = write(tmp_path / "a.txt", b"one two three\nfour \xff five six\xff|seven")
    found = list(open_source(path, separator="|").chunks())
    assert found[0] == TextChunk("one two", is_last=False)
    bad = [part for part in found if part.problem]
    assert len(bad) == 1
    assert bad[0] == TextChunk("", True, bad[0].problem)
    assert "a.txt, line 2: not UTF-8 (byte 0xff)" in bad[0].problem
    assert found[found.index(bad[0]) + 1 :] == [TextChunk("seven")]


def test_problems_of_parquet_have_a_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", None, b"", b"\xff", b"more"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 5, raw.buffers(), null_count=1)
    pq.write_table(pa.table({"text": column, "id": range(5)}), tmp_path / "a.parquet")
    found = read(str(tmp_path / "a.parquet"))
    assert (found[0], found[4]) == ("good", "more")
    assert "a.parquet, row 2: the field 'text' is null" in found[1]
    assert "a.parquet, row 3: the field 'text' is empty or blank; remove the row" in found[2]
    assert "a.parquet, row 4: not UTF-8 (byte 0xff)" in found[3]
    with pytest.raises(ConfigError, match=r"row 1: the field 'id' is a int, not text"):
        list(open_source(str(tmp_path / "a.parquet"), field="id").documents())


LONG = "x" * 200


@pytest.mark.parametrize("chunk", [16, 1 << 20])
def test_records_that_are_too_long_are_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(streams, "RECORD", 100)
    monkeypatch.setattr(streams, "CHUNK", chunk)
    rows = [{"text": "a"}, {"text": LONG}, {"text": "b"}, {"text": LONG}]
    found = read(write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows))))
    assert found[::2] == ["a", "b"]
    assert "line 2: longer than" in found[1]
    assert "line 4: longer than" in found[3]
    table = [
        "id,text", "1,a", f"2,{LONG}", f'3,"{LONG}"', f'4,"x\n{LONG}\ny"', f'5,"{LONG}\n{LONG}"',
        "6," + '"' + "line\n" * 50 + '"', f'7,"one\n{LONG}"', f'8,"{LONG}\none"', "9,b",
    ]  # fmt: skip
    found = read(write(tmp_path / "a.csv", "\n".join(table)))
    assert (found[0], found[-1], len(found)) == ("a", "b", 9)
    places = [3, 4, 5, 8, 10, 61, 63]
    for problem, line in zip(found[1:-1], places, strict=True):
        assert f"a.csv, line {line}: longer than" in problem


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
        (
            "a.csv",
            "id,body\n1,a\n",
            r"line 1: no field 'text'; there are: id, body; .*`data.field`",
        ),
        ("a.tsv", "id,text\n1,a\n", r"a.tsv, line 1: no field 'text'; there are: id,text; choose"),
        ("a.csv", '"x', r"a.csv, line 1: not CSV"),
        ("a.parquet", "PAR", r"a.parquet cannot be read as Parquet: .*; get it again"),
        ("a.txt.gz", "", r"no documents in .*a.txt.gz"),
        ("a.jsonl", '{"text": null}', r"no documents in .*: 1 with problems; .*line 1: .*null"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: str, message: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(ConfigError, match=message):
        read(path)


def test_parquet_without_the_column_or_its_end(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1], "text": ["x"]}), path)
    with pytest.raises(
        ConfigError, match=r"a.parquet: no field 'body'; there are: id, text;.*`data"
    ):
        read(str(path), field="body")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read as Parquet"):
        read(str(path))


# ------------------------------------------------------------------ memory


MEASURE = """
import re, sys
from pathlib import Path
from sddlm.data.sources import open_source
import pyarrow.parquet, zstandard
def peak():  # getrusage's begins with that of the parent
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
before = peak()
size = sum(len(part.text) for part in open_source(sys.argv[1]).chunks())
print(size, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc here")
@pytest.mark.parametrize("name", ["a.txt", "a.txt.zst", "long.jsonl", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    line = b"a line of text that is like all the others in this long file\n"
    block = line * (1_000_000 // len(line))
    size = 200 * len(block)
    if name == "a.parquet":
        texts = [f"{i:03} {block.decode()}" for i in range(200)]
        size = sum(map(len, texts))
        options = {"use_dictionary": False, "compression": "none", "write_batch_size": 1}
        pq.write_table(pa.table({"text": texts}), path, **options)  # in pages of 1 MB
        assert pq.read_metadata(path).num_row_groups == 1
    elif name == "a.txt.zst":  # 200 MB in some 20 kB
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
