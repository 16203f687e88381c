import hashlib
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sddlm.data.cache as cache_room
import sddlm.data.packing as packing
from sddlm.data.packed import PackedTokens
from sddlm.data.prepare import DataArgs, prepare
from sddlm.data.split import split_documents
from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError

DOCS = [f"This is document number {i}, and it says {i * i}.\n" * 3 for i in range(60)]


@pytest.fixture
def args(tmp_path: Path) -> DataArgs:
    path = tmp_path / "docs.jsonl"
    write(path, DOCS)
    return DataArgs(
        path=str(path),
        vocab_size=300,
        length=16,
        validation=0.2,
        cache=str(tmp_path / "cache"),
    )


def write(path: Path, docs: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": doc}) + "\n" for doc in docs))


def tokens(rows: PackedTokens | None) -> list[int]:
    assert rows is not None
    found: list[int] = np.fromfile(rows.path, np.uint16).tolist()
    assert len(found) == rows.tokens
    return found


def folders(args: DataArgs) -> list[str]:
    return sorted(os.listdir(args.cache_folder))


def test_documents_are_encoded_ended_and_concatenated(args: DataArgs) -> None:
    prepared = prepare(args)
    tokenizer = prepared.tokenizer
    train, validation = split_documents(DOCS, 0.2)
    assert tokenizer.fingerprint == Tokenizer.train_bpe(train, 300).fingerprint
    for docs, rows in ((train, prepared.train), (validation, prepared.validation)):
        expected = [i for ids in tokenizer.encode_batch(docs) for i in [*ids, tokenizer.eos_id]]
        assert rows is not None
        assert tokens(rows) == expected
        assert rows.characters == sum(map(len, docs))
        assert rows[1].tolist() == expected[16:32]


def test_the_folder_explains_itself(args: DataArgs) -> None:
    prepared = prepare(args)
    assert prepared.train is not None
    folder = prepared.train.path.parent
    assert sorted(os.listdir(folder)) == [
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "validation.bin",
    ]
    assert Tokenizer.load(folder).fingerprint == prepared.tokenizer.fingerprint
    said = prepared.meta["splits"]["train"]
    assert said["sha256"] == hashlib.sha256(prepared.train.path.read_bytes()).hexdigest()
    assert said["tokens"] == prepared.train.tokens
    assert said["documents"] + prepared.meta["splits"]["validation"]["documents"] == 60
    assert prepared.meta["source"] == args.path
    assert prepared.meta["vocab_size"] == prepared.tokenizer.vocab_size == 300
    assert json.loads((folder / "meta.json").read_text())["key"] == prepared.key


def test_prepared_tokens_are_reused(
    args: DataArgs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(args)
    before = folders(args)
    monkeypatch.setattr(packing, "_pack", None)  # nothing may be packed any more
    monkeypatch.setattr(Tokenizer, "train_bpe", None)
    with caplog.at_level(logging.INFO):
        second = prepare(args)
        third = prepare(replace(args, length=8), first.tokenizer)  # rows are cut when read
    assert caplog.text.count("prepared tokens reused from") == 2
    assert first.key == second.key == third.key
    assert third.validation.path == first.validation.path
    assert len(third.validation) == first.validation.tokens // 8
    assert folders(args) == before


def test_the_key_knows_everything_that_made_the_bytes(args: DataArgs, tmp_path: Path) -> None:
    def key(args: DataArgs, **kwargs: Any) -> str:
        return prepare(args, **kwargs).key

    keys = [
        key(args),
        key(replace(args, vocab_size=301)),
        key(replace(args, tokenizer="bytes")),
        key(replace(args, tokenizer="characters")),
        key(replace(args, validation=0.5)),
        key(args, split="all"),
    ]
    copy = tmp_path / "copy.jsonl"
    write(copy, DOCS)
    assert key(replace(args, path=str(copy))) == keys[0]  # the text counts, not the name
    assert key(replace(args, validation_path=str(copy))) not in keys
    write(Path(args.path or ""), [*DOCS[:-1], DOCS[-1] + "!"])
    keys.append(key(args))
    write(Path(args.path or ""), DOCS[::-1])
    keys.append(key(args))
    assert len(set(keys)) == len(keys)


def test_a_kill_leaves_no_half_cache(args: DataArgs, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Tokenizer, texts: list[str]) -> list[list[int]]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Tokenizer, "encode_batch", interrupt)
        with pytest.raises(KeyboardInterrupt):
            prepare(args)
    assert [name.split("-")[0] for name in folders(args)] == ["tokenizer"]  # learnt, so kept
    # what a harder kill leaves behind: never taken for a cache, and removed a day later
    for name, age in (("new", 0), ("old", 2 * 24 * 3600)):
        left = args.cache_folder / f".unfinished-{name}"
        left.mkdir()
        (left / "train.bin").write_bytes(b"half")
        os.utime(left, (time.time() - age,) * 2)
    prepared = prepare(args)
    assert prepared.validation.tokens > 0
    names = folders(args)
    assert ".unfinished-new" in names
    assert ".unfinished-old" not in names


def test_who_comes_second_takes_the_first_ones_folder(tmp_path: Path) -> None:
    for content in ("first", "second"):
        with cache_room.new_folder(tmp_path / "x") as temporary:
            (temporary / "a").write_text(content)
    assert (tmp_path / "x" / "a").read_text() == "first"
    assert os.listdir(tmp_path) == ["x"]


def test_damage_is_told(args: DataArgs) -> None:
    path = prepare(args).validation.path
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ConfigError, match=r"damaged; remove the folder .*tokens-"):
        prepare(args)


def test_a_models_tokenizer_scores_a_whole_text(args: DataArgs) -> None:
    tokenizer = Tokenizer.bytes()
    prepared = prepare(args, tokenizer, split="all")
    assert prepared.train is None
    assert prepared.tokenizer is tokenizer
    text = "".join(DOCS)
    assert prepared.validation.characters == len(text)
    assert tokenizer.decode(tokens(prepared.validation)) == text
    assert prepared.validation.tokens == len(text) + len(DOCS)
    with pytest.raises(ConfigError, match=r"--data.validation_path"):
        prepare(replace(args, validation_path=args.path), tokenizer, split="all")


def test_a_validation_text_of_its_own(args: DataArgs, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("Something else entirely, long enough for a row.")
    prepared = prepare(replace(args, validation_path=str(held_out), tokenizer="bytes"))
    decode = prepared.tokenizer.decode
    assert decode(tokens(prepared.train)) == "".join(DOCS)
    assert decode(tokens(prepared.validation)) == held_out.read_text()


def test_one_long_document_comes_back_whole(tmp_path: Path) -> None:
    text = "".join(f"Line {i} of a long text, with é.\n" for i in range(9000))
    (tmp_path / "long.txt").write_text(text)
    args = DataArgs(path=str(tmp_path / "long.txt"), tokenizer="characters", cache=str(tmp_path))
    prepared = prepare(args)
    train, validation = tokens(prepared.train), tokens(prepared.validation)
    eos = prepared.tokenizer.eos_id
    assert train.count(eos) == validation.count(eos) == 1
    decode = prepared.tokenizer.decode
    assert decode(train) + decode(validation) == text


def test_the_alphabet_comes_from_both_splits(args: DataArgs, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("ÆØÅ are only here, and that must not end the run.")
    prepared = prepare(replace(args, validation_path=str(held_out), tokenizer="characters"))
    assert prepared.tokenizer.decode(tokens(prepared.validation)) == held_out.read_text()


def test_little_text_gives_fewer_tokens_and_says_so(
    args: DataArgs, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = prepare(replace(args, vocab_size=5000))
    assert prepared.tokenizer.vocab_size < 5000
    assert "--data.vocab_size" in caplog.text


def test_large_vocabularies_get_wide_tokens(args: DataArgs, tmp_path: Path) -> None:
    import tokenizers as hf

    inner = hf.Tokenizer(hf.models.WordLevel({"u": 0, "This": 70_000}, unk_token="u"))
    inner.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    prepared = prepare(args, Tokenizer(inner), split="all")
    assert prepared.validation.row_tokens(0).dtype == np.uint32
    assert prepared.validation[0][0] == 70_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 0}, "--data.length 0"),
        ({"validation": 0.0}, "--data.validation 0.0 .*between 0 and 1"),
        ({"validation": 1.0}, "--data.validation 1.0"),
        ({"vocab_size": 1}, "--data.vocab_size 1"),
        ({"corpus": "owt"}, "--data.corpus owt is unknown; there are: builtin.*--data.path"),
    ],
)
def test_what_can_never_work_is_refused_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataArgs(**wrong)


def test_what_does_not_work_with_this_text_is_refused(args: DataArgs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train split has \d+ tokens.*--data.length \(now 9999"):
        prepare(replace(args, length=99_999))
    with pytest.raises(ConfigError, match=r"--data.vocab_size 20 .*at least 257"):
        prepare(replace(args, vocab_size=20))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"--data.cache .*SDDLM_CACHE"):
        prepare(replace(args, cache=str(file / "cache")))


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDDLM_CACHE", raising=False)
    assert DataArgs().cache_folder == Path.home() / ".cache" / "sddlm"
    monkeypatch.setenv("SDDLM_CACHE", "/elsewhere")
    assert DataArgs().cache_folder == Path("/elsewhere")
    assert DataArgs(cache="~/mine").cache_folder == Path.home() / "mine"
