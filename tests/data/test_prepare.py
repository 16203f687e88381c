import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sddlm.data.tokenize as tokenize_file
from sddlm.data.config import DataArgs
from sddlm.data.prepare import Prepared, load_prepared, prepare
from sddlm.data.rows import DocumentRows, PackedTokens, Rows
from sddlm.data.split import hash_fraction
from sddlm.data.tokenizer import Tokenizer
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


def tokens(rows: Rows | None) -> list[int]:
    assert isinstance(rows, PackedTokens | DocumentRows)
    found: list[int] = np.fromfile(rows.path, np.uint16).tolist()
    assert len(found) == rows.tokens
    return found


def folders(args: DataArgs) -> list[str]:
    return sorted(os.listdir(args.cache_folder))


def test_documents_are_encoded_ended_and_concatenated(args: DataArgs) -> None:
    prepared = prepare(args)
    tokenizer = prepared.tokenizer
    train = [doc for doc in DOCS if hash_fraction(hashlib.sha256(doc.encode()).digest()) > 0.2]
    validation = [doc for doc in DOCS if doc not in train]
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
        "checksums.json",
        "meta.json",
        "tokenizer.json",
        "train.bin",
        "train.idx",
        "validation.bin",
        "validation.idx",
    ]
    assert Tokenizer.load(folder).fingerprint == prepared.tokenizer.fingerprint
    said = prepared.meta["splits"]["train"]
    assert said["sha256"] == hashlib.sha256(prepared.train.path.read_bytes()).hexdigest()
    assert said["tokens"] == prepared.train.tokens
    assert said["documents"] + prepared.meta["splits"]["validation"]["documents"] == 60
    end = {"id": prepared.tokenizer.eos_id, "sampled": True, "scored": True}  # also if it pads
    assert prepared.meta["special"] == {"<|endoftext|>": end}
    assert prepared.meta["source"] == args.path
    assert prepared.meta["vocab_size"] == prepared.tokenizer.vocab_size == 300
    assert json.loads((folder / "meta.json").read_text())["key"] == prepared.key


def test_prepared_tokens_are_reused(
    args: DataArgs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepare(args)
    before = folders(args)
    monkeypatch.setattr(tokenize_file, "write_tokens", None)  # nothing may be packed any more
    monkeypatch.setattr(Tokenizer, "train_bpe", None)
    with caplog.at_level(logging.INFO):
        second = prepare(args)
        third = prepare(replace(args, length=8), first.tokenizer)  # rows are cut when read
    assert caplog.text.count("prepared tokens reused from") == 2
    assert first.key == second.key == third.key
    assert third.validation.path == first.validation.path
    assert len(third.validation) == first.validation.tokens // 8
    assert folders(args) == before


@pytest.mark.slow
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


def test_a_models_tokenizer_scores_a_whole_text(args: DataArgs) -> None:
    tokenizer = Tokenizer.bytes()
    prepared = prepare(args, tokenizer, split="all")
    assert prepared.train is None
    assert prepared.tokenizer is tokenizer
    text = "".join(DOCS)
    assert prepared.validation.characters == len(text)
    assert tokenizer.decode(tokens(prepared.validation)) == text
    assert prepared.validation.tokens == len(text) + len(DOCS)
    with pytest.raises(ConfigError, match=r"`data.validation_path`"):
        prepare(replace(args, validation_path=args.path), tokenizer, split="all")


def test_a_validation_text_of_its_own(args: DataArgs, tmp_path: Path) -> None:
    held_out = tmp_path / "held-out.txt"
    held_out.write_text("Something else entirely, long enough for a row.")
    prepared = prepare(replace(args, validation_path=str(held_out), tokenizer="bytes"))
    decode = prepared.tokenizer.decode
    assert decode(tokens(prepared.train)) == "".join(DOCS)
    assert decode(tokens(prepared.validation)) == held_out.read_text()


@pytest.mark.slow
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
    assert "`data.vocab_size`" in caplog.text


def test_large_vocabularies_get_wide_tokens(args: DataArgs, tmp_path: Path) -> None:
    import tokenizers as hf

    inner = hf.Tokenizer(hf.models.WordLevel({"u": 0, "This": 70_000}, unk_token="u"))
    inner.pre_tokenizer = hf.pre_tokenizers.Whitespace()
    prepared = prepare(args, Tokenizer(inner), split="all")
    assert prepared.validation.dtype == np.uint32
    assert prepared.validation[0][0] == 70_000


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"length": 0}, "`length` is 0"),
        ({"validation": 0.0}, "`validation` is 0.0, .*between 0"),
        ({"validation": 1.5}, "`validation` is 1.5"),
        ({"validation": -1}, "`validation` is -1"),
        ({"vocab_size": 1}, "`vocab_size` is 1"),
        ({"corpus": "owt"}, "`corpus` is 'owt', must be one of classics.*`path='FILE'`"),
    ],
)
def test_what_can_never_work_is_refused_at_once(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DataArgs(**wrong)


def test_what_does_not_work_with_this_text_is_refused(args: DataArgs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train split has \d+ tokens.*`data.length` \(now 9999"):
        prepare(replace(args, length=99_999))
    with pytest.raises(ConfigError, match=r"`data.vocab_size` is 20, .*at least 257"):
        prepare(replace(args, vocab_size=20))
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"`data.cache` .*SDDLM_CACHE"):
        prepare(replace(args, cache=str(file / "cache")))


def test_a_text_shorter_than_a_row_of_a_model_is_refused_as_that(
    args: DataArgs, tmp_path: Path
) -> None:
    """Neither the length nor a split can be chosen there."""
    short = tmp_path / "short.txt"
    short.write_text("Too short.")
    with pytest.raises(ConfigError) as caught:
        prepare(replace(args, path=str(short)), Tokenizer.bytes(), split="all")
    line = str(caught.value)
    assert f"{short} has 11 tokens, fewer than one row of 16" in line
    assert "give a longer text" in line
    assert "`data" not in line


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SDDLM_CACHE", raising=False)
    assert DataArgs().cache_folder == Path.home() / ".cache" / "sddlm"
    monkeypatch.setenv("SDDLM_CACHE", "/elsewhere")
    assert DataArgs().cache_folder == Path("/elsewhere")
    assert DataArgs(cache="~/mine").cache_folder == Path.home() / "mine"


def test_bad_documents_stop_everything_before_anything_is_written(args: DataArgs) -> None:
    path = Path(args.path or "")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:5], "{broken", *lines[5:]]) + "\n")
    with pytest.raises(ConfigError, match=r"docs.jsonl, line 6: not JSON.*`data.max_errors`"):
        prepare(args)
    assert not args.cache_folder.exists()
    prepared = prepare(replace(args, max_errors=1))
    (text,) = prepared.meta["texts"]
    assert text["out"] == 1
    meta = json.loads((folder_of(prepared) / "meta.json").read_text())
    assert meta["out"][0].startswith(f"{path}, line 6: not JSON")
    write(path, DOCS)
    assert prepare(args).key == prepared.key  # the same good documents


def folder_of(prepared: Prepared) -> Path:
    assert isinstance(prepared.validation, PackedTokens)
    return prepared.validation.path.parent


def test_so_many_documents_at_the_end_and_the_first_ones_only(args: DataArgs) -> None:
    args = replace(args, tokenizer="bytes", validation=7, limit=30)
    prepared = prepare(args)
    decode = prepared.tokenizer.decode
    assert decode(tokens(prepared.train)) == "".join(DOCS[:23])
    assert decode(tokens(prepared.validation)) == "".join(DOCS[23:30])
    with pytest.raises(ConfigError, match=r"`data.validation` 30 holds out all 30 documents"):
        prepare(replace(args, validation=30))


def test_without_ends_of_text(args: DataArgs) -> None:
    prepared = prepare(replace(args, tokenizer="bytes", eos=False))
    assert prepared.tokenizer.eos_id not in tokens(prepared.train)
    assert prepared.key != prepare(replace(args, tokenizer="bytes")).key


def test_rows_of_any_kind_come_from_the_same_files(args: DataArgs) -> None:
    args = replace(args, tokenizer="bytes")
    plain = prepare(args)
    for change in ({"length": 40}, {"bos_eos": True}, {"packing": "document", "length": 400}):
        assert prepare(replace(args, **change)).key == plain.key
    assert len([name for name in folders(args) if name.startswith("tokens-")]) == 1
    documents = prepare(replace(args, packing="document", length=400))
    assert documents.train is not None
    assert documents.train.padded
    assert documents.meta["row_lengths"][0] == 0
    assert sum(documents.meta["row_lengths"]) == len(documents.train)
    n = int(documents.train.lengths(np.array([3]))[0])
    first = documents.tokenizer.decode(documents.train[3][:n].tolist())
    assert first in DOCS


def test_documents_that_are_cut_are_spoken_of(
    args: DataArgs, caplog: pytest.LogCaptureFixture
) -> None:
    prepare(replace(args, tokenizer="bytes", packing="document"))
    assert "tokens for train are cut off" in caplog.text
    assert "`data.packing='wrap'`" in caplog.text


def test_a_mixture(args: DataArgs, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("<|endoftext|>".join(f"Other {i}: {'la ' * i}" for i in range(40)))
    parts = {str(args.path): 1.0, str(other): 3.0}
    mixed = replace(args, path=None, mixture=parts, tokenizer="bytes")
    prepared = prepare(mixed)
    assert prepared.train is not None
    alone = [prepare(replace(args, path=path, tokenizer="bytes")) for path in parts]
    assert prepared.key not in [one.key for one in alone]
    assert len([name for name in folders(args) if name.startswith("tokens-")]) == 2  # shared
    n = [len(one.train or ()) for one in alone]
    assert len(prepared.train) == sum(n)
    rows = prepared.train.row_indices(0, np.arange(4000))
    assert (rows < n[0]).sum() == 1000
    sums = prepared.meta["splits"]["train"]
    assert sums["documents"] == sum(one.meta["splits"]["train"]["documents"] for one in alone)
    assert [text["share"] for text in prepared.meta["texts"]] == [1, 3]
    assert prepare(replace(mixed, mixture={**parts, str(other): 2.0})).key != prepared.key
    # one vocabulary, learnt from both
    learnt = prepare(replace(mixed, tokenizer="bpe", vocab_size=300)).tokenizer
    assert learnt.fingerprint != prepare(args).tokenizer.fingerprint
    with pytest.raises(ConfigError, match=r"`data.mixture` has no place where a whole text"):
        prepare(mixed, split="all")


def test_what_was_prepared_is_opened_again_without_the_text(args: DataArgs) -> None:
    for chosen in (args, replace(args, packing="document", bos_eos=True)):
        first = prepare(chosen)
        again = load_prepared(chosen, first.meta, first.tokenizer)
        assert again is not None
        assert again.meta == first.meta
        alone = load_prepared(chosen, first.meta)
        assert alone is not None
        assert alone.tokenizer.fingerprint == first.tokenizer.fingerprint
        assert again.validation[0].tolist() == first.validation[0].tolist()
    assert load_prepared(args, {"key": "of an older version"}, first.tokenizer) is None
    shutil.rmtree(folder_of(prepare(args)))
    assert load_prepared(args, first.meta, first.tokenizer) is None


@pytest.mark.slow
def test_standard_input_is_read_once(tmp_path: Path) -> None:
    code = (
        "import sys; from sddlm import DataArgs, prepare;"
        "print(prepare(DataArgs(path='-', cache=sys.argv[1], vocab_size=300, length=16)).key)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "a")]
    text = "<|endoftext|>".join(DOCS)
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=True)
    (tmp_path / "docs.txt").write_text(text)
    from_file = DataArgs(
        path=str(tmp_path / "docs.txt"), cache=str(tmp_path), vocab_size=300, length=16
    )
    assert done.stdout == prepare(from_file).key + "\n"
    assert not list((tmp_path / "a").glob(".unfinished-*/documents.jsonl"))  # the copy is gone


@pytest.mark.slow
def test_a_second_process_waits_for_the_first(args: DataArgs) -> None:
    """Two at once give one folder, and neither disturbs the other."""
    code = (
        "import sys; from sddlm import DataArgs, prepare;"
        "print(prepare(DataArgs(path=sys.argv[1], cache=sys.argv[2], tokenizer='bytes')).key)"
    )
    command = [sys.executable, "-c", code, str(args.path), str(args.cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    keys = {process.communicate()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(keys) == 1
    assert [n for n in folders(args) if "tokens" in n] == [f"tokens-{keys.pop().strip()}"]


def test_a_vocabulary_is_learnt_from_an_even_sample(args: DataArgs, monkeypatch) -> None:
    learnt: list[str] = []
    train = Tokenizer.train_bpe

    def watched(texts, vocab_size):
        learnt.extend(texts)
        return train(learnt, vocab_size)

    monkeypatch.setattr(Tokenizer, "train_bpe", watched)
    monkeypatch.setattr(tokenize_file, "_LEARN", sum(map(len, DOCS)) // 4)
    prepare(replace(args, validation=1))
    places = [DOCS.index(text) for text in learnt]
    assert 0.2 < sum(map(len, learnt)) / sum(map(len, DOCS)) < 0.3
    assert places == sorted(set(places))
    assert max(b - a for a, b in zip([-1, *places], [*places, 59], strict=True)) <= 5
