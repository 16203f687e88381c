"""Tokens are the same whatever the threads, and whatever was killed on the way."""

import json
import os
import random
import signal
from collections.abc import Iterator
from hashlib import sha256
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from memory_source import MemorySource

import sddlm.data.packing as room
from sddlm.data.args import DataArgs
from sddlm.data.packed import INDEX_DTYPE
from sddlm.data.packing import write_tokens
from sddlm.data.prepare import prepare
from sddlm.data.sources import TextChunk
from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError

DOCS = ["one two", ["th", "ree four ", "five"], "", "sechs sieben acht é", ["neun"]]
SIDES = ["train", "validation", "train", "train", "validation"]


def sided() -> Iterator[tuple[str, TextChunk]]:
    number = 0
    for part in MemorySource(DOCS).chunks():
        yield SIDES[number], part
        number += part.is_last


def write(folder: Path, tokenizer: Tokenizer, **more) -> dict[str, bytes]:
    folder.mkdir(exist_ok=True)
    splits = ("train", "validation")
    told = write_tokens(folder, sided(), tokenizer, splits=splits, characters=40, **more)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    for name in splits:
        assert told[name]["sha256"] == sha256(files[f"{name}.bin"]).hexdigest()
        assert told[name]["tokens"] == len(files[f"{name}.bin"]) // 2
        assert told[name]["documents"] == len(files[f"{name}.idx"]) // 8 == SIDES.count(name)
        texts = ["".join(d) for d, side in zip(DOCS, SIDES, strict=True) if side == name]
        assert told[name]["characters"] == sum(map(len, texts))
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
        texts = ["".join(d) for d, side in zip(DOCS, SIDES, strict=True) if side == name]
        expected = [[*tokenizer.encode_batch([t])[0], *[256] * eos] for t in texts]
        assert [doc.tolist() for doc in found] == expected


def test_threads_and_parts_change_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "_UNIT", 5)
    tokenizer = Tokenizer.train_bpe(["one two three four five"], 262)
    first = write(tmp_path / "first", tokenizer, workers=1)
    for workers in (2, 5):
        assert write(tmp_path / f"{workers}", tokenizer, workers=workers) == first


def test_who_goes_on_encodes_only_what_is_missing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(room, "_UNIT", 5)
    monkeypatch.setattr(room, "_NOTED", 0.0)  # a note behind each unit
    tokenizer, calls = Tokenizer.bytes(), []
    whole = write(tmp_path / "whole", tokenizer)
    units = len(list(room._units(sided(), tokenizer)))
    encode = Tokenizer.encode_batch

    def counted(self: Tokenizer, texts: list[str]) -> list[list[int]]:
        calls.append(texts)
        return encode(self, texts)

    monkeypatch.setattr(Tokenizer, "encode_batch", counted)
    for done in range(units):
        folder = tmp_path / str(done)
        folder.mkdir()
        with monkeypatch.context() as patch:  # the source breaks behind some units
            first = list(islice(room._units(sided(), tokenizer), done))

            def broken(*_, first=first) -> Iterator[list[room.Piece]]:
                yield from first
                raise OSError("the disk is full")

            patch.setattr(room, "_units", broken)
            with pytest.raises(OSError, match="disk is full"):
                write(folder, tokenizer, workers=1)
        noted = (folder / "journal").read_text().count("\n") if done > 1 else 0
        for path in folder.glob("*.bin"):  # what was written behind the last note
            with path.open("ab") as file:
                file.write(b"half a unit")
        with (folder / "journal").open("a") as journal:
            journal.write('{"unit": 99, "spl')
        calls.clear()
        assert write(folder, tokenizer) == whole
        assert len(calls) == units - noted


@pytest.mark.parametrize("name", ["train.bin", "train.idx", "validation.bin", "journal"])
def test_damage_to_what_is_unfinished_is_found(
    tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    monkeypatch.setattr(room, "_UNIT", 5)
    monkeypatch.setattr(room, "_NOTED", 0.0)
    tokenizer, chance = Tokenizer.bytes(), random.Random(name)
    whole = write(tmp_path / "whole", tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(room.Path, "unlink", lambda path: None)  # the journal stays
        done = write(tmp_path / "done", tokenizer)
    for number in range(25):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path, content in done.items():
            (folder / path).write_bytes(flipped(content, chance) if path == name else content)
        assert write(folder, tokenizer) == whole
    assert ("is damaged and made anew" in caplog.text) is (name != "journal")


def flipped(content: bytes, chance: random.Random) -> bytes:
    """The same but for one bit."""
    bit = chance.randrange(8 * len(content))
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_notes_of_a_version_with_other_units_are_not_gone_on_from(
    tmp_path: Path, monkeypatch
) -> None:
    tokenizer = Tokenizer.bytes()
    whole = write(tmp_path / "whole", tokenizer)
    monkeypatch.setattr(room, "_NOTED", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(room, "_UNIT", 5)
        patch.setattr(room.Path, "unlink", lambda path: None)  # the journal stays
        write(tmp_path / "x", tokenizer)
    (tmp_path / "x" / "train.bin").write_bytes(b"")
    assert write(tmp_path / "x", tokenizer) == whole


def prepare_when_allowed(args: DataArgs, test: Connection) -> None:
    """What the killed process does: it waits for the test before each unit, and reports it after.

    The first thing that it reports is that it has begun.
    """

    def write_when_allowed(writer, unit, write=room._Writer.write) -> None:
        test.recv()
        write(writer, unit)
        test.send("written")

    room._NOTED, room._UNIT, room._Writer.write = 0.0, 1 << 12, write_when_allowed
    test.send("begun")
    prepare(args)


@pytest.mark.slow
def test_killed_at_ten_random_moments_the_next_start_finishes(tmp_path: Path, monkeypatch) -> None:
    text = tmp_path / "docs.jsonl"
    chance = random.Random(0)
    with text.open("w") as file:
        for i in range(4000):
            words = (chance.choice(["lorem", "ipsum", "dolor", "sit", "amet"]) for _ in range(100))
            file.write(json.dumps({"text": f"{i} " + " ".join(words)}) + "\n")
    args = DataArgs(path=str(text), tokenizer="bytes", validation=0.1, workers=1)
    args.cache = str(tmp_path / "whole")
    whole = prepare(args)
    expected = contents(tmp_path / "whole")

    args.cache, args.workers = str(tmp_path / "killed"), 2
    context = get_context("forkserver")
    context.set_forkserver_preload(["sddlm.data.prepare"])  # torch is imported once, not ten times
    for _ in range(10):
        here, there = context.Pipe()
        process = context.Process(target=prepare_when_allowed, args=(args, there))
        process.start()
        allowed = chance.randint(0, 20)  # of more than 500
        for _ in range(allowed):
            here.send("write")
        for _ in range(1 + chance.randint(0, allowed)):
            here.recv()
        process.kill()  # in one of the other units, or while it waits for more
        process.join()
        assert process.exitcode == -signal.SIGKILL
    monkeypatch.setattr(room, "_UNIT", 1 << 12)
    (unfinished,) = (tmp_path / "killed").glob(".unfinished-tokens-*/journal")
    assert unfinished.read_text().count("\n") >= 2
    assert prepare(args).key == whole.key
    assert contents(tmp_path / "killed") == expected
    assert not list((tmp_path / "killed").glob(".unfinished-tokens*"))


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
