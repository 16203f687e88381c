"""Tokens are the same whatever the threads; a kill leaves nothing half-made."""

import json
import os
import random
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

import sddlm.data.tokenize as room
from processes import Command
from sddlm.data import tokenizer as tokenizer_file
from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.data.rows import INDEX_DTYPE
from sddlm.data.tokenize import write_tokens
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError

DOCS = ["one two", "three four five", "", "sechs sieben acht é", "neun"]
SPLITS = ["train", "validation", "train", "train", "validation"]


def write(folder: Path, tokenizer: Tokenizer, **more) -> dict[str, bytes]:
    folder.mkdir()
    names = ("train", "validation")
    documents = zip(SPLITS, DOCS, strict=True)
    counts = write_tokens(folder, documents, tokenizer, splits=names, **more)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in names:
        assert counts[name]["sha256"] == sha256(files[f"{name}.bin"]).hexdigest()
        assert counts[name]["tokens"] == len(files[f"{name}.bin"]) // 2
        assert counts[name]["documents"] == len(files[f"{name}.idx"]) // 8 == SPLITS.count(name)
        texts = [text for text, split in zip(DOCS, SPLITS, strict=True) if split == name]
        assert counts[name]["characters"] == sum(map(len, texts))
    return files


@pytest.mark.parametrize("eos", [True, False])
@pytest.mark.parametrize("unit", [1, 7, 1 << 20])
def test_documents_can_be_found_again(tmp_path: Path, eos, unit, monkeypatch) -> None:
    monkeypatch.setattr(room, "_UNIT", unit)
    tokenizer = Tokenizer.bytes()
    files = write(tmp_path / "x", tokenizer, eos=eos)
    for name in ("train", "validation"):
        tokens = np.frombuffer(files[f"{name}.bin"], "<u2")
        places = np.frombuffer(files[f"{name}.idx"], INDEX_DTYPE).astype(int)
        found = np.split(tokens, places)
        assert not len(found.pop())
        texts = [text for text, split in zip(DOCS, SPLITS, strict=True) if split == name]
        expected = [[*tokenizer.encode_batch([t])[0], *[256] * eos] for t in texts]
        assert [doc.tolist() for doc in found] == expected


def test_threads_and_pieces_change_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "_UNIT", 5)
    monkeypatch.setattr(tokenizer_file, "_PIECE", 3)
    tokenizer = Tokenizer.train_bpe(["one two three four five"], 262)
    first = write(tmp_path / "first", tokenizer, workers=1)
    for workers in (2, 5):
        assert write(tmp_path / f"{workers}", tokenizer, workers=workers) == first


HOLD = "sddlm.data.tokenize:_SplitFiles.append"


@pytest.mark.slow
@pytest.mark.parametrize("moment", [(HOLD, 0), (HOLD, 7), ("sddlm.data.cache:os.rename", 1)])
def test_a_kill_leaves_nothing_half_made_and_the_next_start_begins_anew(
    tmp_path: Path, moment: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    text, chance = tmp_path / "docs.jsonl", random.Random(0)
    with text.open("w") as file:
        for i in range(4000):
            words = (chance.choice(["lorem", "ipsum", "dolor", "sit", "amet"]) for _ in range(100))
            file.write(json.dumps({"text": f"{i} " + " ".join(words)}) + "\n")
    os.utime(text, (0, 0))  # an old file's scan is kept, so the first rename is that of the scan
    options = ["--data.path", text, "--data.tokenizer", "bytes", "--data.validation", "0.1"]
    Command("prepare", *options, "--data.cache", tmp_path / "a", hold=moment).kill()
    (left,) = (tmp_path / "a").glob("*tokens-*/")
    assert left.name.startswith(".unfinished-")
    args = DataArgs(path=str(text), tokenizer="bytes", validation=0.1, cache=str(tmp_path / "a"))
    prepare(args)
    assert "an earlier preparation was interrupted; starting over" in caplog.text
    args.cache = str(tmp_path / "b")
    prepare(args)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not list((tmp_path / "a").glob(".*"))


def contents(cache: Path) -> dict[str, bytes]:
    (folder,) = cache.glob("tokens-*")
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    found["checksums.json"] = json.dumps(json.loads(found["checksums.json"])["sha256"]).encode()
    return found


def test_an_error_of_the_text_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc é " * 100)
    args = DataArgs(path=str(tmp_path / "text.txt"), cache=str(tmp_path / "cache"))
    with pytest.raises(ConfigError, match="does not know 'é'"):
        prepare(args, Tokenizer.characters(["abc "]))
    left = [name for name in os.listdir(tmp_path / "cache") if not name.endswith(".lock")]
    assert not [name for name in left if "tokens" in name]
