import json
import pickle
import subprocess
import sys
from itertools import chain
from pathlib import Path

import huggingface_hub
import pytest
import tokenizers as hf
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, pre_tokenizers, processors

import sddlm.data.tokenizer as room
from sddlm.data.tokenizer import END_OF_TEXT, Tokenizer
from sddlm.errors import ConfigError

TEXT = "The cat sat on the mat.\nThe dog, too, sat there!\n\n  Indented\tline\r\n" * 20
STRANGE = ["", " ", "\n\n", " leading", "a\r\nb\tc", END_OF_TEXT]
STRANGE += ["naïve 日本語 👩\u200d👧 \u200b\x00\x1f\xa0"]
anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

BYTES = Tokenizer.bytes()
BPE = Tokenizer.train_bpe([TEXT], 280)


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
@pytest.mark.parametrize("text", STRANGE)
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode_batch([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_batch([ids, ids]) == [text, text]
    assert tokenizer.eos_id not in ids
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@given(anything)
def test_round_trip_is_a_law(text: str) -> None:
    for tokenizer in (BYTES, BPE, Tokenizer.characters([text, "a"])):
        assert tokenizer.decode(tokenizer.encode_batch([text])[0]) == text


@pytest.mark.slow
@given(st.lists(st.sampled_from([*"ab,1 \n\t\r", "'s", "\x1c", "\xa0", "é"]), max_size=80))
@settings(max_examples=200)
def test_pieces_have_the_ids_of_the_whole(parts: list[str]) -> None:
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_PIECE", 3)
        for tokenizer in (BYTES, BPE, Tokenizer.characters([text, "a"])):
            pieces = list(tokenizer.pieces(text))
            assert "".join(pieces) == text
            (whole,) = tokenizer.encode_batch([text])
            assert list(chain(*tokenizer.encode_batch(pieces))) == whole


def test_a_tokenizer_that_adds_prefixes_is_not_cut(tmp_path: Path) -> None:
    inner = hf.Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    assert len(list(Tokenizer(inner).pieces("a b " * 100_000))) == 1


def test_vocabularies() -> None:
    assert (BYTES.vocab_size, BYTES.eos_id) == (257, 256)
    assert (BPE.vocab_size, BPE.eos_id) == (280, 0)
    characters = Tokenizer.characters(["ba", "c\n"])
    assert (characters.vocab_size, characters.eos_id) == (5, 4)
    assert characters.encode_batch(["\nabc"]) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("tokenizer", [BYTES, BPE], ids=["bytes", "bpe"])
def test_the_end_of_text_is_shown_or_left_out(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode_batch(["one"])[0], tokenizer.eos_id, *tokenizer.encode_batch(["x"])[0]]
    assert tokenizer.decode(ids) == "onex"
    assert tokenizer.decode(ids, skip_special=False) == f"one{END_OF_TEXT}x"


def test_unknown_characters_are_named() -> None:
    tokenizer = Tokenizer.characters(["abc"])
    with pytest.raises(ConfigError, match=r"'é' \(U\+00E9\).*`data.tokenizer='bytes'`"):
        tokenizer.encode_batch(["ab", "aé"])


def test_words_without_an_end_are_cut_for_learning() -> None:
    """It takes the square of a word's length: 149 seconds for one of 250,000 letters."""
    for long in ("ab" * 20_000, "日" * 40_000, "\t" * 40_000, "_-" * 20_000, "a1" * 20_000):
        text = f"a {long} b"
        pieces = list(room._words([text]))
        assert "".join(pieces) == text
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        words = [word for piece in pieces for word, _ in byte_level.pre_tokenize_str(piece)]
        assert max(map(len, words)) <= 3 * 256 + 1  # in UTF-8, and the blank in front
    ordinary = [TEXT, "x" * 255 + " " * 255 + "y" * 255 + "." * 255, "一二三，" * 1000]
    assert list(room._words(ordinary)) == ordinary


def test_what_is_no_text_is_refused() -> None:
    for call in (
        lambda: Tokenizer(5),
        lambda: Tokenizer.load(5),
        lambda: Tokenizer.train_bpe(["text"], "300"),
        lambda: BPE.encode_batch("text"),
        lambda: BPE.encode_batch([1]),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_training_is_the_same_in_another_process() -> None:
    code = (
        "from sddlm.data.tokenizer import Tokenizer;"
        f"print(Tokenizer.train_bpe([{TEXT!r}], 280).fingerprint)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == BPE.fingerprint
    assert run.stderr == ""  # no progress bars


def test_saved_loaded_and_pickled_are_the_same(tmp_path: Path) -> None:
    for tokenizer in (BYTES, BPE, Tokenizer.characters(["abc <|endoftext|>"])):
        path = tokenizer.save(tmp_path / "deep" / "er")
        assert [p.name for p in path.parent.iterdir()] == ["tokenizer.json"]
        for other in (
            Tokenizer.load(path),
            Tokenizer.load(path.parent),
            Tokenizer.load(str(path)),
            pickle.loads(pickle.dumps(tokenizer)),
        ):
            assert other.fingerprint == tokenizer.fingerprint
            assert (other.vocab_size, other.eos_id) == (tokenizer.vocab_size, tokenizer.eos_id)
            text = "a<|endoftext|>c"  # the wrapper's rule survives the file
            assert other.encode_batch([text]) == tokenizer.encode_batch([text])
    assert BYTES.fingerprint != BPE.fingerprint


def test_a_failed_save_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(room.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        BYTES.save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_others_files_do_not_truncate_pad_or_add(tmp_path: Path) -> None:
    vocab = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"])}
    inner = hf.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.add_special_tokens(["[PAD]", "[CLS]", "[SEP]"])
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    inner.enable_truncation(2)
    inner.enable_padding()
    inner.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos_id == 3
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode_batch(["a b a b", "a"]) == [[4, 5, 4, 5], [4]]
    assert 3 not in tokenizer.encode_batch(["a [SEP] b"])[0]


def test_an_end_of_text_is_added_where_there_is_none() -> None:
    def words(vocab: dict[str, int]) -> Tokenizer:
        return Tokenizer(hf.Tokenizer(models.WordLevel(vocab, unk_token="a")))

    assert (words({"a": 0, "b": 1}).vocab_size, words({"a": 0, "b": 1}).eos_id) == (3, 2)
    assert words({"a": 0, "b": 7}).vocab_size == 8  # V counts ids, gaps included
    with pytest.raises(ConfigError, match="ids have gaps"):
        words({"a": 0, "b": 2})


def test_bytes_by_name() -> None:
    assert Tokenizer.load("bytes").fingerprint == BYTES.fingerprint


def test_too_small_vocabularies_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"`data.vocab_size` is 256.*at least 257"):
        Tokenizer.train_bpe(["text"], 256)
    with pytest.raises(ConfigError, match="at least 2"):
        Tokenizer.characters([])


def test_files_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text(json.dumps({"model": "nonsense"}))
    with pytest.raises(ConfigError, match=r"is not a tokenizer.json"):
        Tokenizer.load(broken)
    with pytest.raises(ConfigError, match=r"`data.tokenizer` .*absent.json: no such file"):
        Tokenizer.load(tmp_path / "absent.json")

    def offline(*_: object) -> str:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(ConfigError, match=r"gpt9: .*hub \(no network\).*bytes, characters, bpe"):
        Tokenizer.load("gpt9")
    with pytest.raises(ConfigError, match=r"bpee: did you mean bpe\? use one of bytes, charac"):
        Tokenizer.load("bpee")  # the hub is not asked


def test_hub_names_are_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = BYTES.save(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda name, file: str(path))
    assert Tokenizer.load("some-one/some.tokenizer").fingerprint == BYTES.fingerprint


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")
def test_forks_are_quiet_and_can_tokenise() -> None:
    code = (
        "import os\n"
        "from sddlm.data.tokenizer import Tokenizer\n"
        "t = Tokenizer.bytes(); t.encode_batch(['a'] * 100)\n"
        "pid = os.fork()\n"
        "if pid == 0: os._exit(len(t.encode_batch(['ab'] * 100)) - 93)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert (run.stdout.strip(), run.stderr) == ("7", "")


def vocabulary_files(folder: Path) -> dict[str, Path]:
    """One tokenizer of each kind that is about, in its authors' files, and as tokenizer.json."""
    bpe = hf.ByteLevelBPETokenizer()
    bpe.train_from_iterator([TEXT], 300, special_tokens=[END_OF_TEXT], show_progress=False)
    bert = hf.BertWordPieceTokenizer(lowercase=True)
    bert.train_from_iterator([TEXT], 120, show_progress=False)
    for name, made in (("gpt2", bpe), ("bert", bert)):
        (folder / name).mkdir()
        made.save_model(str(folder / name))
        made.save_model(str(folder), name)
        made.save(str(folder / f"{name}.json"))
    return {"gpt2": folder / "gpt2-vocab.json", "bert": folder / "bert-vocab.txt"}


def test_gpt2s_and_berts_own_files(tmp_path: Path) -> None:
    text = "The CAT sat, naïvely: the dog's mat!\n 42"
    for name, path in vocabulary_files(tmp_path).items():
        whole = hf.Tokenizer.from_file(str(tmp_path / f"{name}.json"))
        expected = whole.encode(text, add_special_tokens=False).ids
        for place in (path, tmp_path / name, tmp_path / f"{name}.json"):
            tokenizer = Tokenizer.load(place)
            assert tokenizer.encode_batch([text]) == [expected]
            assert tokenizer.vocab_size == whole.get_vocab_size()
    (tmp_path / "gpt2-merges.txt").unlink()
    with pytest.raises(ConfigError, match=r"needs gpt2-merges.txt beside it"):
        Tokenizer.load(tmp_path / "gpt2-vocab.json")


def test_special_tokens_are_told_apart(tmp_path: Path) -> None:
    vocabulary_files(tmp_path)
    gpt2, bert = (Tokenizer.load(tmp_path / name) for name in ("gpt2", "bert"))
    assert (gpt2.bos_id, gpt2.eos_id, gpt2.pad_id) == (0, 0, 0)
    assert gpt2.special == {END_OF_TEXT: 0}
    assert gpt2.not_sampled == []
    ids = bert.special
    assert list(ids) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (bert.bos_id, bert.eos_id, bert.pad_id) == (ids["[CLS]"], ids["[SEP]"], ids["[PAD]"])
    assert bert.not_sampled == sorted([ids["[PAD]"], ids["[UNK]"], ids["[MASK]"]])


@given(st.lists(st.sampled_from([*"aBsz,1 \n\t", "é", "e\u0301", "日", "\x00"]), max_size=60))
def test_pieces_of_bert_have_the_ids_of_the_whole(parts: list[str]) -> None:
    known = ["[UNK]", "[CLS]", "[SEP]", *"abesz1,", "##a", "##b"]
    bert = hf.BertWordPieceTokenizer({token: i for i, token in enumerate(known)})
    tokenizer = Tokenizer(hf.Tokenizer.from_str(bert.to_str()))
    assert tokenizer.local
    text = "".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "_PIECE", 3)
        pieces = list(tokenizer.pieces(text))
        (whole,) = tokenizer.encode_batch([text])
        assert list(chain(*tokenizer.encode_batch(pieces))) == whole
