"""Damaged caches and full disks: made anew or one line, never other tokens."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sddlm.data.cache as cache
from sddlm.data.config import DataArgs
from sddlm.data.prepare import Prepared, load_prepared, prepare
from sddlm.data.rows import Rows
from test_io import small_files

DOCS = [f"This is document number {i}, and it says {i * i}.\n" for i in range(30)]


@pytest.fixture
def args(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataArgs:
    monkeypatch.setattr(cache, "FRESH", 0)  # stamps are trusted at once
    path = tmp_path / "docs.jsonl"
    path.write_text("".join(json.dumps({"text": doc}) + "\n" for doc in DOCS))
    os.utime(path, (1e9, 1e9))  # so that its scan is remembered
    return DataArgs(
        path=str(path),
        tokenizer="bpe",
        vocab_size=280,
        length=16,
        validation=0.2,
        packing="document",
        cache=str(tmp_path / "cache"),
    )


def content(prepared: Prepared) -> Any:
    """Whatever a training could see of it."""
    assert prepared.train is not None
    return [everything(rows) for rows in (prepared.train, prepared.validation)], prepared.meta


def everything(rows: Rows) -> Any:
    numbers = np.arange(len(rows))
    return rows.read(numbers).tolist(), rows.lengths(numbers).tolist(), rows.characters


def file_of(args: DataArgs, pattern: str) -> Path:
    (found,) = args.cache_folder.glob(pattern)
    return found


def flip(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    write(path, data)


def write(path: Path, data: bytes) -> None:
    """As any program does, but that the clock may not have ticked since."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 1, before + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "times"),
    [
        ("tokens-*/train.bin", 25),
        ("tokens-*/train.idx", 25),
        ("tokens-*/validation.bin", 5),
        ("tokens-*/validation.idx", 5),
        ("tokens-*/meta.json", 10),
        ("tokens-*/tokenizer.json", 10),
        ("tokens-*/checksums.json", 10),
        ("tokenizer-*/tokenizer.json", 10),
        ("tokenizer-*/checksums.json", 10),
        ("scan-*/scan.json", 10),
    ],
)
def test_no_flipped_bit_is_silent(
    args: DataArgs, caplog: pytest.LogCaptureFixture, pattern: str, times: int
) -> None:
    first = prepare(args)
    expected, chance = content(first), random.Random(pattern)
    for _ in range(times):
        caplog.clear()
        flip(file_of(args, pattern), chance)
        again = load_prepared(args, first.meta)
        assert again is None or content(again) == expected
        assert content(prepare(args)) == expected
        if "checksums" not in pattern:  # there a time stamp may have changed, which is no damage
            assert "damaged" in caplog.text
        if pattern.startswith("scan"):  # tokens are there, so what is damaged is seen by itself
            shutil.rmtree(file_of(args, "tokens-*"))
            assert content(prepare(args)) == expected
    assert not list(args.cache_folder.glob(".unfinished-*"))


def swapped(args: DataArgs, a: str, b: str) -> None:
    one, other = file_of(args, a), file_of(args, b)
    one.rename(one.with_name("x"))
    other.rename(one)
    one.with_name("x").rename(other)


def old_layout(args: DataArgs) -> None:
    """What a version without checksums left."""
    for path in args.cache_folder.glob("*/checksums.json"):
        path.unlink()


def edit(pattern: str, change: Callable[[bytes], bytes]) -> Callable[[DataArgs], Any]:
    def changed(args: DataArgs) -> None:
        path = file_of(args, pattern)
        write(path, change(path.read_bytes()))

    return changed


DAMAGE: dict[str, Callable[[DataArgs], Any]] = {
    "zeroed tokens": edit("tokens-*/train.bin", lambda data: bytes(len(data))),
    "zeroed index": edit("tokens-*/train.idx", lambda data: bytes(len(data))),
    "cut tokens": edit("tokens-*/train.bin", lambda data: data[:-2]),
    "cut index": edit("tokens-*/train.idx", lambda data: data[:-8]),
    "longer tokens": edit("tokens-*/train.bin", lambda data: data + data[:2]),
    "longer index": edit("tokens-*/validation.idx", lambda data: data + data[-8:]),
    "empty": edit("tokens-*/validation.bin", lambda data: b""),
    "empty record": edit("tokens-*/checksums.json", lambda data: b"{}"),
    "exchanged tokens": lambda args: swapped(args, "tokens-*/train.bin", "tokens-*/validation.bin"),
    "exchanged indices": lambda args: swapped(
        args, "tokens-*/train.idx", "tokens-*/validation.idx"
    ),
    "no index": lambda args: file_of(args, "tokens-*/train.idx").unlink(),
    "no tokens": lambda args: file_of(args, "tokens-*/train.bin").unlink(),
    "an earlier version": old_layout,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_damaged_is_made_anew(
    args: DataArgs, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    first = prepare(args)
    expected = content(first)
    DAMAGE[name](args)
    assert load_prepared(args, first.meta) is None
    assert content(prepare(args)) == expected
    assert "is damaged and made anew: " in caplog.text
    again = load_prepared(args, first.meta)
    assert again is not None
    assert content(again) == expected


def test_another_folder_under_the_same_name_is_found(args: DataArgs) -> None:
    first, other = prepare(args), replace(args, validation=0.5)
    prepare(other)
    one, two = (args.cache_folder / f"tokens-{prepare(a).key}" for a in (args, other))
    shutil.rmtree(one)
    two.rename(one)
    assert load_prepared(args, first.meta) is None
    assert content(prepare(args)) == content(first)


def test_a_bit_that_the_disk_lost_is_found_on_request(
    args: DataArgs, caplog: pytest.LogCaptureFixture
) -> None:
    """No time stamp tells of it."""
    expected = content(prepare(args))
    path = file_of(args, "tokens-*/train.bin")
    data = bytearray(path.read_bytes())
    data[0] ^= 1  # another token below V
    path.write_bytes(data)
    record = path.with_name("checksums.json")
    known = json.loads(record.read_text())
    known["stamps"]["train.bin"] = cache._stamp(path)
    record.write_text(json.dumps(known))
    assert content(prepare(args)) != expected
    assert content(prepare(args, verify=True)) == expected
    assert "train.bin is not as it was written" in caplog.text


def test_a_time_stamp_that_was_put_back_does_not_help(args: DataArgs) -> None:
    expected = content(prepare(args))
    path = file_of(args, "tokens-*/train.bin")
    stat = path.stat()
    flip(path, random.Random(0))
    while path.stat().st_ctime_ns == stat.st_ctime_ns:  # until the clock has ticked
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert content(prepare(args)) == expected


def test_tokens_are_read_whole_only_after_a_change(
    args: DataArgs, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(args)
    read: list[str] = []
    sha256 = cache.sha256

    def noted(path: Path) -> str:
        read.append(path.name)
        return sha256(path)

    monkeypatch.setattr(cache, "sha256", noted)

    def tokens_read(**more: Any) -> set[str]:
        read.clear()
        prepare(args, **more)
        return {name for name in read if name.endswith(".bin")}

    assert tokens_read() == set()
    assert "train.idx" in read
    assert tokens_read(verify=True) == {"train.bin", "validation.bin"}
    os.utime(file_of(args, "tokens-*/train.bin"))
    assert tokens_read() == {"train.bin"}
    assert tokens_read() == set()


def test_a_file_that_changed_just_now_is_read_whole(args: DataArgs, monkeypatch) -> None:
    """Its next change may have the same time stamp."""
    monkeypatch.setattr(cache, "FRESH", 10**18)
    expected = content(prepare(args))
    path = file_of(args, "tokens-*/train.bin")
    prepare(args)
    assert json.loads(path.with_name("checksums.json").read_text())["stamps"]["train.bin"] is None
    assert content(prepare(args)) == expected


def test_a_cache_that_cannot_be_written_to_is_still_checked(args: DataArgs, monkeypatch) -> None:
    first = prepare(args)
    os.utime(file_of(args, "tokens-*/train.bin"))

    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(cache, "atomic_write", refused)
    again = load_prepared(args, first.meta)
    assert again is not None
    flip(file_of(args, "tokens-*/train.bin"), random.Random(0))
    assert load_prepared(args, first.meta) is None


@pytest.mark.parametrize("texts", [None, 1, "x", [1], [None], [{}], [{"key": "x"}], {"a": 1}])
def test_a_damaged_record_of_a_run_opens_nothing(args: DataArgs, texts: object) -> None:
    assert load_prepared(args, {"texts": texts}) is None
    assert load_prepared(args, {}) is None


# ------------------------------------------------------------------ full disks


@pytest.mark.slow
@pytest.mark.parametrize("size", [0, 10, 100, 500, 1000, 1500, 2000])
def test_a_full_disk_is_named_and_nothing_half_done_is_taken_for_whole(
    args: DataArgs, tmp_path: Path, size: int
) -> None:
    whole = replace(args, cache=str(tmp_path / "elsewhere"))
    expected = content(prepare(whole))
    with small_files(size), pytest.raises(OSError, match="File too large") as caught:
        prepare(args)
    assert str(args.cache_folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(args.cache_folder.glob("tokens-*"))
    assert content(prepare(args)) == expected
    assert content(prepare(args, verify=True)) == expected


def test_a_disk_that_is_full_keeps_what_was_damaged_until_the_new_one_is_whole(
    args: DataArgs,
) -> None:
    expected = content(prepare(args))
    flip(file_of(args, "tokens-*/train.bin"), random.Random(0))
    with small_files(100), pytest.raises(OSError, match="File too large"):
        prepare(args)
    assert file_of(args, "tokens-*/train.bin").is_file()
    assert content(prepare(args)) == expected
