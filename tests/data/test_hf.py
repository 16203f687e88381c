"""Datasets and tables through the real library: from folders here, and none from the network."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from memory_source import read_texts

from sddlm.data.hf import HubDataset
from sddlm.data.sources import open_source
from sddlm.data.split import scan
from sddlm.errors import ConfigError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
zstandard = pytest.importorskip("zstandard")
datasets = pytest.importorskip("datasets")

README = (
    "---\nconfigs:\n- config_name: {}\n  data_files:\n  - split: train\n    path: train*\n---\n"
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's cache and nothing of the network is used."""
    import huggingface_hub

    home = tmp_path_factory.mktemp("home")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", home / "datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))


def table(path: Path, texts: list[str | None], **more: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({**more, "text": texts}), path, use_dictionary=False)


def splits(folder: Path) -> str:
    for name in ("train", "test"):
        texts: list[str | None] = [f"{name} {i}" for i in range(600)]
        table(folder / f"{name}-00000-of-00001.parquet", texts, id=list(range(600)))
    return str(folder)


def old(folder: Path, seconds: int = 100) -> None:
    then = time.time_ns() - seconds * 1_000_000_000
    for file in folder.rglob("*"):
        os.utime(file, ns=(then, then))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_parquet_by_splits(tmp_path: Path, streaming: bool) -> None:
    folder = splits(tmp_path / "set")
    source = open_source(f"hf:{folder}", streaming=streaming)
    assert source.once is streaming
    assert source.name == f"hf:{folder}, split train"
    assert read_texts(source) == [f"train {i}" for i in range(600)]
    test = HubDataset(folder, split="test", streaming=streaming)
    assert read_texts(test) == [f"test {i}" for i in range(600)]


def test_a_slice_of_a_split(tmp_path: Path) -> None:
    folder = splits(tmp_path / "set")
    assert read_texts(HubDataset(folder, split="train[:-2]")) == [f"train {i}" for i in range(598)]
    assert read_texts(HubDataset(folder, split="train[-2:]")) == ["train 598", "train 599"]
    with pytest.raises(ConfigError, match=r"train\[:-2\].*cannot be streamed: leave out `data.s"):
        read_texts(HubDataset(folder, split="train[:-2]", streaming=True))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("kind", ["jsonl", "txt"])
def test_rows_with_problems(tmp_path: Path, kind: str, streaming: bool) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    if kind == "txt":
        (folder / "train.txt").write_text("one\n\nthree\n")
    else:
        texts = ["one", None, "three"]
        rows = [json.dumps({"id": i, "text": text}) for i, text in enumerate(texts)]
        (folder / "train.jsonl").write_text("\n".join(rows))
    source = HubDataset(str(folder), streaming=streaming)
    found = read_texts(source)
    assert (found[0], found[2], len(found)) == ("one", "three", 3)
    what = "is empty or blank; remove the row" if kind == "txt" else "is null, not text;"
    assert f"{source.name}, row 2: the field 'text' {what}" in found[1]


@pytest.mark.slow
def test_a_stream_of_parquet_reads_no_other_column(tmp_path: Path) -> None:
    path = tmp_path / "set" / "train.parquet"
    table(path, ["x"] * 999, other=[f"{i:x}" * 5 for i in range(999)])
    column = pq.read_metadata(path).row_group(0).column(0)
    start, data = column.data_page_offset, bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert read_texts(HubDataset(str(path.parent), streaming=True)) == ["x"] * 999
    with pytest.raises(ConfigError, match=r"cannot be read: .*; check the name, the split"):
        read_texts(HubDataset(str(path.parent), streaming=True, field="other"))


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "dev"}, r"split dev cannot be read: .*\['train', 'test'\]; check"),
        ({"field": "body"}, r"no field 'body'; there are: id, text; choose one with `data.field`"),
        ({"field": "id"}, r"row 1: the field 'id' is a int, not text"),
        ({"config": "other"}, r"BuilderConfig 'other' not found. Available: \['default'\]; check"),
    ],
)
def test_what_is_not_there(
    tmp_path: Path, options: dict[str, Any], message: str, streaming: bool
) -> None:
    folder = splits(tmp_path / "set")
    with pytest.raises(ConfigError, match=message) as caught:
        scan(HubDataset(folder, streaming=streaming, **options))
    assert "\n" not in str(caught.value)


def test_a_stream_of_json_lines_knows_its_fields(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"id": 1, "body": "x"}\n')
    with pytest.raises(ConfigError, match=r"no field 'text'; there are: id, body"):
        read_texts(HubDataset(str(tmp_path), streaming=True))


@pytest.mark.parametrize("streaming", [False, True])
def test_configurations(tmp_path: Path, streaming: bool) -> None:
    table(tmp_path / "train.parquet", ["x"])
    (tmp_path / "README.md").write_text(README.format("small"))
    source = open_source(f"hf:{tmp_path}:small", streaming=streaming)
    assert read_texts(source) == ["x"]
    with pytest.raises(ConfigError, match=r"'large' not found. Available: \['small'\]"):
        read_texts(HubDataset(str(tmp_path), "large", streaming=streaming))


@pytest.mark.parametrize("name", ["owner/nothing-of-this-name", "nothing/at/all/here"])
@pytest.mark.parametrize("streaming", [False, True])
def test_nothing_from_the_network(name: str, streaming: bool) -> None:
    with pytest.raises(ConfigError, match=rf"hf:{name}, split train cannot be read: .*network"):
        read_texts(HubDataset(name, streaming=streaming))


@pytest.mark.slow
@pytest.mark.parametrize("readme", [False, True])
def test_changed_folders_and_folders_of_one_name(tmp_path: Path, readme: bool) -> None:
    """With a README.md, the library by itself would go on with what it has prepared before."""
    said = []
    for folder in (tmp_path / "1" / "set", tmp_path / "2" / "set"):
        for text in ("old", "new"):
            table(folder / "train.parquet", [f"{folder} {text}"])
            if readme:
                (folder / "README.md").write_text(README.format("default"))
            old(folder, -600)  # as if it were written all the time
            source = HubDataset(str(folder))
            assert read_texts(source) == [f"{folder} {text}"]
            assert source.signature() is None  # changed just now
            old(folder)
            assert read_texts(HubDataset(str(folder))) == [f"{folder} {text}"]
            said.append(HubDataset(str(folder)).signature())
            assert said[-1] == HubDataset(str(folder)).signature()
    assert len({*said} - {None}) == 4


def test_signatures_of_splits_and_fields(tmp_path: Path) -> None:
    folder = splits(tmp_path / "set")
    old(tmp_path / "set")
    sources = [
        HubDataset(folder), HubDataset(folder, split="test"), HubDataset(folder, field="id"),
        HubDataset(folder, split="train[:-2]"),
    ]  # fmt: skip
    assert len({source.signature() for source in sources} - {None}) == 4
    assert HubDataset(folder, streaming=True).signature() is None


QUIET = """
import sys
from sddlm.data.hf import HubDataset
print(len(list(HubDataset(sys.argv[1]).read())))
import datasets
print(datasets.are_progress_bars_disabled())
"""


@pytest.mark.slow
def test_nothing_is_drawn_where_there_is_no_terminal(tmp_path: Path) -> None:
    folder = splits(tmp_path / "set")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", QUIET, folder],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (["600", "False"], "")


# ------------------------------------------------------------------ saved datasets


@pytest.mark.parametrize("split", [False, True], ids=["one", "splits"])
def test_saved_datasets(tmp_path: Path, split: bool) -> None:
    one = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["a", None, "c"]})
    folder = tmp_path / "saved"
    (datasets.DatasetDict(train=one, dev=one.select([0])) if split else one).save_to_disk(folder)
    for spec in (str(folder), f"hf:{folder}"):
        source = open_source(spec)
        found = read_texts(source)
        assert (found[0], found[2]) == ("a", "c")
        assert "row 2: the field 'text' is null" in found[1]
    streamed = read_texts(HubDataset(str(folder), streaming=True))
    assert (streamed[0], streamed[2], len(streamed)) == ("a", "c", 3)
    assert open_source(str(folder)).signature() is None  # changed just now
    old(folder)
    assert open_source(str(folder)).signature() == source.signature() is not None
    if split:
        assert read_texts(HubDataset(str(folder), split="dev")) == ["a"]
        with pytest.raises(ConfigError, match="has no split 'test'; there are: train, dev"):
            read_texts(HubDataset(str(folder), split="test"))


# ------------------------------------------------------------------ tables


TEXTS = ['one, "two"\nthree', "é\t世", " x ", "NA", "5", "null"]


def csv_of(texts: list[str], delimiter: str) -> bytes:
    file = io.StringIO()
    csv.writer(file, delimiter=delimiter).writerows([("id", "text"), *enumerate(texts)])
    return file.getvalue().encode()


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_csv_is_text_whatever_it_looks_like(tmp_path: Path, suffix: str, packing: str) -> None:
    data = csv_of(TEXTS * 5000, "," if suffix == ".csv" else "\t")
    path = tmp_path / f"a{suffix}{packing}"
    pack: Any = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[packing]
    path.write_bytes(pack(data))
    assert read_texts(open_source(str(path))) == TEXTS * 5000
    path.write_bytes(pack(b"\xef\xbb\xbf" + csv_of(TEXTS, "," if suffix == ".csv" else "\t")))
    assert read_texts(open_source(str(path), field="id")) == list(map(str, range(len(TEXTS))))


def test_other_columns_of_csv_may_mix_numbers_and_words(tmp_path: Path) -> None:
    """Pandas infers types block by block."""
    path = tmp_path / "a.csv"
    rows = "".join(f"{i},{'long ' * 20}\n" for i in range(9000))
    path.write_text(f"id,text\n{rows}end,last\n")
    assert read_texts(open_source(str(path)))[-1] == "last"


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_columns_of_files(tmp_path: Path, suffix: str) -> None:
    texts = [f"row {i}" for i in range(3000)]
    rows = pa.table({"id": list(range(3000)), "text": texts})
    path = tmp_path / f"a{suffix}"
    if suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=700)
    else:
        with pa.ipc.new_stream(path, rows.schema) as file:
            file.write_table(rows)
    assert read_texts(open_source(str(path))) == texts
    with pytest.raises(
        ConfigError, match=rf"a\{suffix}: no field 'body'; there are: id, text;.*`dat"
    ):
        read_texts(open_source(str(path), field="body"))


def test_files_of_a_folder_keep_their_order(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(csv_of(["B"], ","))
    (tmp_path / "a.txt").write_text("A")
    table(tmp_path / "c" / "c.parquet", ["C"])
    source = open_source(str(tmp_path))
    assert read_texts(source) == ["A", "B", "C"]
    old(tmp_path)
    assert source.signature() is not None


def test_a_parquet_file_reads_no_other_column(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table(path, ["x"] * 999, other=[f"{i:x}" * 5 for i in range(999)])
    column = pq.read_metadata(path).row_group(0).column(0)
    start, data = column.data_page_offset, bytearray(path.read_bytes())
    data[start : start + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    assert read_texts(open_source(str(path))) == ["x"] * 999
    with pytest.raises(ConfigError, match=r"a.parquet cannot be read: .*; repair it, or get it ag"):
        read_texts(open_source(str(path), field="other"))


def test_problems_have_a_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", None, b"", b"\xff", b"a\0", b"more"], pa.binary())
    column = pa.Array.from_buffers(pa.string(), 6, raw.buffers(), null_count=1)
    pq.write_table(pa.table({"text": column, "id": range(6)}), tmp_path / "a.parquet")
    found = read_texts(open_source(str(tmp_path / "a.parquet")))
    assert (found[0], found[5]) == ("good", "more")
    assert "a.parquet, row 2: the field 'text' is null" in found[1]
    assert "a.parquet, row 3: the field 'text' is empty or blank; remove the row" in found[2]
    assert "a.parquet, row 4: not UTF-8 (byte 0xff)" in found[3]
    assert "a.parquet, row 5: the field 'text' holds a NUL" in found[4]
    (tmp_path / "b.csv").write_bytes(b"id,text\n1,good\n2,\n3\n4,a\0b\n5,more\n")
    found = read_texts(open_source(str(tmp_path / "b.csv")))
    assert (found[0], found[4]) == ("good", "more")
    assert "b.csv, row 2: the field 'text' is empty or blank" in found[1]
    assert "b.csv, row 3: the field 'text' is empty or blank" in found[2]
    assert "b.csv, row 4: the field 'text' holds a NUL" in found[3]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"id,body\n1,a\n", "a.csv: no field 'text'; there are: id, body; .*`data.field`"),
        ("a.tsv", b"id,text\n1,a\n", "a.tsv: no field 'text'; there are: id,text; choose"),
        (
            "a.csv",
            b"id,text\n1,a\n2,b,c\n3,d\n",
            "a.csv cannot be read: .*2 fields in line 3, saw 3",
        ),
        ("a.csv", b"id,text\n1,a\n2,\xe9\n", "a.csv cannot be read: .*can't decode byte 0xe9"),
        ("a.csv", b'id,text\n1,a\n2,"b\n', "a.csv cannot be read: .*EOF inside string"),
        (
            "a.csv.gz",
            b"id,text",
            "a.csv.gz cannot be decompressed: .*; get it again",
        ),
        ("a.parquet", b"PAR", "a.parquet cannot be read: .*; repair it, or get it again"),
        ("a.arrow", b"PAR", "a.arrow cannot be read: .*; repair it, or get it again"),
    ],
)
def test_tables_that_cannot_be_read(
    tmp_path: Path, name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read_texts(open_source(str(tmp_path / name)))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""
