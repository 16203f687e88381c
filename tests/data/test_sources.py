"""Sources: what a user may name, in which order it is read, and whether it has changed."""

import importlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from memory_source import MemorySource, read_texts

from sddlm.data.documents import Document
from sddlm.data.hf import HubDataset
from sddlm.data.sources import Adapted, mapped, open_source
from sddlm.data.split import scan
from sddlm.errors import ConfigError

zstandard = pytest.importorskip("zstandard")


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()
    path.write_bytes(zstandard.compress(data) if path.suffix == ".zst" else data)
    return str(path)


def lines(*records: object) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def documents(spec: str, **options: Any) -> list[str]:
    return read_texts(open_source(spec, **options))


# ------------------------------------------------------------------ files


def test_folders_and_patterns_are_sorted(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "B")
    write(tmp_path / "a" / "z.md", "Z")
    write(tmp_path / "a" / "y.jsonl", lines({"text": "Y"}))
    write(tmp_path / "a" / "deep" / "D.TXT.ZST".lower(), "D")
    write(tmp_path / "c.log", "not looked at")
    write(tmp_path / ".hidden" / "h.txt", "nor this")
    write(tmp_path / "a" / ".h.txt", "nor that")
    assert documents(str(tmp_path)) == ["D", "Y", "Z", "B"]
    assert documents(str(tmp_path / "*" / "*.md")) == ["Z"]
    assert documents(str(tmp_path / "**" / "*.txt")) == ["B"]
    assert open_source(str(tmp_path)).name == str(tmp_path)


def test_a_separator_is_taken_literally(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one.+two.+<|endoftext|>.+\n.+")
    assert documents(path, separator=".+") == ["one", "two", "<|endoftext|>"]
    assert documents(path) == ["one.+two.+", ".+\n.+"]


def test_suffixes_in_capitals(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "A.TXT", "x")) == ["x"]


def test_what_is_not_there_or_unknown(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.txt", tmp_path / "*.txt"):
        with pytest.raises(ConfigError, match=r"`data.path` .*: no such file.*quoted pattern"):
            open_source(str(path))
    with pytest.raises(ConfigError, match=r"no documents in the folder .*\.parquet"):
        open_source(str(tmp_path))
    with pytest.raises(ConfigError, match=r"`data.separator` is empty"):
        open_source(write(tmp_path / "a.txt", "a"), separator="")
    with pytest.raises(ConfigError, match=r"unknown kind.*\.txt, \.md, \.jsonl.*\.zst: rename"):
        open_source(write(tmp_path / "a.pdf", "x"))
    with pytest.raises(ConfigError, match=r"a.parquet.gz: unknown kind of file"):
        open_source(write(tmp_path / "a.parquet.gz", "x"))
    write(tmp_path / "some" / "empty.txt", "")
    write(tmp_path / "some" / "a.txt", "a")
    with pytest.raises(ConfigError, match=r"empty.txt is empty; remove it"):
        open_source(str(tmp_path / "some"))
    with pytest.raises(ConfigError, match=r"no documents in .*b.txt.*`data.path`"):
        scan(open_source(write(tmp_path / "b.txt", " \n ")))


@pytest.mark.skipif(os.name != "posix", reason="no such permissions")
def test_a_file_without_permission() -> None:
    user = os.geteuid()
    with TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        path = write(Path(name) / "a.txt", "x")
        os.chmod(path, 0)
        if user == 0:  # to whom everything is permitted
            os.seteuid(65534)
        try:
            with pytest.raises(ConfigError, match=r"a.txt cannot be read: Permission denied; chec"):
                documents(path)
        finally:
            os.seteuid(user)


@pytest.mark.parametrize(
    ("name", "package"), [("a.txt.zst", "zstandard"), ("a.parquet", "datasets")]
)
def test_missing_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    path = write(tmp_path / name, "text")
    real = importlib.import_module

    def absent(wanted: str, *rest: Any) -> Any:
        if wanted == package:
            raise ImportError(wanted)
        return real(wanted, *rest)

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ConfigError, match=rf"{package}: pip install 'sddlm\[data\]'"):
        documents(path)


# ------------------------------------------------------------------ signatures


def old(path: Path, seconds: float = 100) -> None:
    then = time.time_ns() - int(seconds * 1e9)
    os.utime(path, ns=(then, then))


def changed_size(path: Path) -> None:
    path.write_text("longer")
    old(path)


def changed_inode(path: Path) -> None:
    stat = path.stat()
    other = path.with_name("other")
    other.write_text("B")
    os.replace(other, path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


CHANGES: dict[str, Callable[[Path], Any]] = {
    "time": lambda path: old(path, 50),
    "size": changed_size,
    "inode": changed_inode,
    "name": lambda path: path.rename(path.with_name("c.txt")),
    "one more": lambda path: old(Path(write(path.with_name("c.txt"), "C"))),
    "one less": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_signatures_change_with_the_files(tmp_path: Path, change: str) -> None:
    for name in ("a.txt", "b.txt"):
        old(Path(write(tmp_path / name, name)))
    before = open_source(str(tmp_path)).signature()
    assert before == open_source(str(tmp_path)).signature()
    assert before is not None
    CHANGES[change](tmp_path / "b.txt")
    assert open_source(str(tmp_path)).signature() not in (before, None)


def test_signatures_change_with_the_options_and_wait_for_the_clock(tmp_path: Path) -> None:
    path = Path(write(tmp_path / "a.txt", "a"))
    old(path, -600)  # as if it were written all the time
    assert open_source(str(path)).signature() is None
    old(path)
    options: list[dict[str, Any]] = [
        {}, {"field": "body"}, {"separator": "text"}, {"field": "a", "separator": "b"},
        {"field": "a" + "b"},
    ]  # fmt: skip
    said = [open_source(str(path), **option).signature() for option in options]
    assert len(set(said)) == len(options)
    source = open_source(str(path))
    wrapped = [Adapted(source, iter, "1"), Adapted(source, iter, "2"), mapped(source, str, "s")]
    assert len({one.signature() for one in (*wrapped, source)}) == 4
    assert Adapted(MemorySource([]), iter, "1").signature() is None


# ------------------------------------------------------------------ standard input


PRINT = """
import sys
from sddlm.data.sources import open_source
source = open_source(sys.argv[1], separator="|")
print([*source.read()][-1].text, source.name, source.once, source.signature())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "content"),
    [("-", "one|two"), ("-.md", "two"), ("-.jsonl", '{"text": "two"}')],
)
@pytest.mark.parametrize("packing", ["", ".zst"])
def test_standard_input(spec: str, content: str, packing: str) -> None:
    data = zstandard.compress(content.encode()) if packing else content.encode()
    spec = (f"{spec}.txt" if spec == "-" else spec) + packing if packing else spec
    done = subprocess.run([sys.executable, "-c", PRINT, spec], input=data, capture_output=True)
    assert done.stdout.decode().split() == ["two", "standard", "input", "True", "None"], done


def test_standard_input_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\xff\n|b")))
    source = open_source("-", separator="|")
    assert [document.problem or document.text for document in source.read()] == [
        "standard input, line 1: not UTF-8 (byte 0xff); convert the file, for example: "
        "iconv -f LATIN1 -t UTF-8",
        "b",
    ]
    assert not sys.stdin.closed


def test_nothing_on_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ConfigError, match="no documents in standard input"):
        scan(open_source("-"))
    with pytest.raises(ConfigError, match=r"-\.parquet: standard input is .*save it in a file"):
        documents("-.parquet")
    with pytest.raises(ConfigError, match=r"-\.pdf: unknown kind of file.*\.jsonl"):
        open_source("-.pdf")
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(ConfigError, match="nothing is piped into it; for example: cat FILE"):
        open_source("-")


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals here")
def test_a_terminal_is_no_source(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        with pytest.raises(ConfigError, match="nothing is piped into it"):
            open_source("-")
    os.close(ours)


def test_specs_of_the_hub() -> None:
    assert open_source("hf:owner/name:config", field="body", streaming=True) == HubDataset(
        "owner/name", "config", field="body", streaming=True
    )
    assert open_source("hf:./folder") == HubDataset("./folder")
    revision = HubDataset("owner/name", revision="v1.0")
    assert open_source("hf:owner/name@v1.0") == revision
    assert open_source("hf:owner/name@v1.0:small") == replace(revision, config="small")
    assert revision.name == "hf:owner/name@v1.0, split train"
    with pytest.raises(ConfigError, match="names no dataset; use hf:OWNER/NAME"):
        open_source("hf:")


# ------------------------------------------------------------------ wrappers


def test_mapped_documents() -> None:
    seen = []

    def function(text: str) -> str:
        seen.append(text)
        return text.upper() if text != "gone" else " "

    source = MemorySource(["one two", "!bad", "gone", "four"])
    assert list(mapped(source, function, "shout").read()) == [
        Document("ONE TWO"), Document("", "!bad"),
        Document("", "memory, document 3: shout leaves nothing of it; leave it out"),
        Document("FOUR"),
    ]  # fmt: skip
    assert seen == ["one two", "gone", "four"]
