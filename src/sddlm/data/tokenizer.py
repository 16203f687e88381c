"""One tokenizer, whatever its kind: a wrapper around Hugging Face ``tokenizers``.

The state of a tokenizer is its ``tokenizer.json``; the wrapper adds rules, not state.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from sddlm.data.documents import cut
from sddlm.errors import ConfigError, check_arguments, closest, first_line
from sddlm.io import atomic_write

#: The end of a text, where a tokenizer file has none of ``_ENDS_OF_TEXT``.
END_OF_TEXT = "<|endoftext|>"
_ENDS_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "[SEP]", "<eos>")
#: The beginning of a text, for each of them.
_BEGINS_OF_TEXT = {
    "<|end_of_text|>": "<|begin_of_text|>", "</s>": "<s>", "[SEP]": "[CLS]", "<eos>": "<bos>",
}  # fmt: skip
#: Padding, and what stands for something else: never text, so never sampled.
_PADS = ("[PAD]", "<pad>")
_STAND_INS = (*_PADS, "[UNK]", "<unk>", "[MASK]", "<mask>")
_KINDS = ("bytes", "characters", "bpe")

_FILE = "tokenizer.json"
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")

#: Longer words are cut for learning, which takes the square of a word's length: letters and digits,
#: other signs, white space. No language has such words.
_WORD = 256
_BLANKS = re.compile(rf"\s{{{_WORD}}}")
_LONG = re.compile(rf"[^\W_]{{{_WORD}}}|(?:(?!\s)[\W_]){{{_WORD}}}|{_BLANKS.pattern}")
_PIECE = 1 << 16  # characters; the library needs some 300 bytes per token of one text

# After it has used threads, the library warns on stderr at every fork (a loader's worker) unless
# the variable is set; and a forked child would wait for ever for threads only its parent has.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        after_in_child=lambda: os.environ.__setitem__("TOKENIZERS_PARALLELISM", "false")
    )


class Tokenizer:
    """Text to ids and back.

    Special tokens are never found *in* text: ``"<|endoftext|>"`` written by a user is thirteen
    characters like any others, so text cannot end a document, and ``decode(encode(x)) == x`` holds
    exactly for the kinds made here. Encoding adds no special token and does not truncate or pad,
    whatever the file specifies; callers append ``eos_id``.

    Attributes:
        vocab_size: V, one more than the largest id that can be emitted (added tokens included).
        eos_id: id of the end-of-text token: the first of ``<|endoftext|>``, ``<|end_of_text|>``,
            ``</s>``, ``[SEP]`` and ``<eos>`` that the tokenizer has, else a new ``<|endoftext|>``.
        bos_id: id of the beginning of a text: ``<|begin_of_text|>`` beside ``<|end_of_text|>``,
            ``<s>`` beside ``</s>``, and so on, else the end of text again.
        pad_id: what fills up a row; the end of text where there is no padding token. Which one it
            is changes nothing: padding is neither scored nor looked at.
        special: every special token and its id.
        not_sampled: ids of padding, unknown and mask tokens, which samplers never write.
        local: pieces of a text have the ids of the whole (see `pieces`).
    """

    @check_arguments
    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        """Take over a ``tokenizers.Tokenizer`` (it is changed: see the class).

        Raises:
            ConfigError: something else; fewer than two ids, or no free id for an end of text.
        """
        tokenizer.no_truncation()
        tokenizer.no_padding()
        eos = next((t for t in _ENDS_OF_TEXT if tokenizer.token_to_id(t) is not None), END_OF_TEXT)
        tokenizer.add_special_tokens([hf.AddedToken(eos, special=True, normalized=False)])
        tokenizer.encode_special_tokens = True  # not part of tokenizer.json
        self._hf = tokenizer
        vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.eos_id: int = vocab[eos]
        self.vocab_size: int = 1 + max(vocab.values())
        self.bos_id = vocab.get(_BEGINS_OF_TEXT.get(eos, eos), self.eos_id)
        self.pad_id = next((vocab[name] for name in _PADS if name in vocab), self.eos_id)
        added = tokenizer.get_added_tokens_decoder().items()
        self.special = {str(token.content): i for i, token in added if token.special}
        self.special |= {name: vocab[name] for name in _STAND_INS if name in vocab}
        self.not_sampled = sorted(vocab[name] for name in _STAND_INS if name in vocab)
        self.local = _is_local(tokenizer)
        if sum(i == self.eos_id for i in vocab.values()) > 1:  # the library counts, not looks
            raise ConfigError(
                f"the tokenizer has none of {', '.join(_ENDS_OF_TEXT)}, and its ids have gaps, so "
                "none can be added; add one to its tokenizer.json"
            )
        if self.vocab_size < 2:
            raise ConfigError(
                "a tokenizer of 1 token has nothing to tell apart; at least 2 are needed: give it "
                "text, or use `data.tokenizer='bytes'`"
            )

    def __getstate__(self) -> str:
        return self.to_json()

    def __setstate__(self, state: str) -> None:
        self.__init__(hf.Tokenizer.from_str(state))  # type: ignore[misc]

    # ------------------------------------------------------------------ making one

    @classmethod
    def bytes(cls) -> Tokenizer:
        """The 256 bytes of UTF-8 and the end of text: V = 257, no text is unknown."""
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        return cls(_byte_level({char: i for i, char in enumerate(alphabet)}, use_regex=False))

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Tokenizer:
        """The characters that occur in ``texts``, in code point order, and the end of text.

        There is no unknown token: to encode another character is a ``ConfigError`` naming it.
        """
        vocab = {char: i for i, char in enumerate(sorted(set().union(*texts)))}
        # an unknown token that does not exist makes the library raise instead of guess
        tokenizer = hf.Tokenizer(models.WordLevel(vocab=vocab, unk_token="<none>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return cls(tokenizer)

    @classmethod
    @check_arguments
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Byte-level BPE (as GPT-2's, without a prefix space), the same for the same texts.

        Args:
            texts: what to learn the merges from.
            vocab_size: V, the 256 bytes and the end of text included. Little text gives fewer.

        Raises:
            ConfigError: V < 257.
        """
        if vocab_size < 257:
            raise ConfigError(
                f"`data.vocab_size` is {vocab_size}, must be at least 257 for bpe, which starts "
                "from 256 bytes and the end of text; or use `data.tokenizer='characters'`"
            )
        tokenizer = _byte_level({}, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_words(texts), trainer)
        return cls(tokenizer)

    @classmethod
    @check_arguments
    def load(cls, name: str | Path) -> Tokenizer:
        """A ``tokenizer.json``, a folder with one, a name on the Hugging Face hub, or ``bytes``.

        GPT-2's own files (``vocab.json`` with ``merges.txt`` beside it) and BERT's (``vocab.txt``,
        lower case) do as well, as a folder or as the path of the vocabulary, whatever stands before
        ``vocab`` and ``merges`` in their names.

        Raises:
            ConfigError: there is none, or the library cannot read it.
        """
        if name == "bytes":
            return cls.bytes()
        path = Path(name)
        if path.is_dir():
            known = (path / file for file in (_FILE, "vocab.json", "vocab.txt"))
            path = next((file for file in known if file.is_file()), path / _FILE)
        if not path.is_file():
            path = _downloaded(os.fspath(name))
        try:
            return cls(_read(path))
        except ConfigError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(f"{path} is not a tokenizer.json of 'tokenizers': {error}") from error

    # ------------------------------------------------------------------ using it

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without any special token.

        Raises:
            ConfigError: the tokenizer does not know a character and has no token for that.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ConfigError(f"there is no list of texts to encode in {texts!r:.80}")
        try:
            encodings = self._hf.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # the library raises bare Exceptions
            raise self._unknown(texts, error) from error
        return [encoding.ids for encoding in encodings]

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Beginning and end in ``text`` of each of its tokens, in characters."""
        return list(self._hf.encode(text, add_special_tokens=False).offsets)

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """Decode ids; special tokens are skipped or written literally."""
        return str(self._hf.decode(list(ids), skip_special_tokens=skip_special))

    def decode_batch(self, rows: Sequence[Sequence[int]], skip_special: bool = True) -> list[str]:
        """Decode each row of ids."""
        ids = [list(row) for row in rows]
        return list(self._hf.decode_batch(ids, skip_special_tokens=skip_special))

    def pieces(self, text: str) -> Iterator[str]:
        """Split a text into pieces whose concatenated ids are the ids of the whole.

        A text of 100 MB in one go needs tens of GB and one core; pieces need neither. Where the
        kind of tokenizer does not promise the same ids, the whole text is the only piece.
        """
        return cut(text, _PIECE) if self.local else iter((text,))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write ``folder/tokenizer.json``, whole or not at all, and return its path."""
        path = Path(folder) / _FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(self.to_json())
        return path

    def to_json(self) -> str:
        """Serialised tokenizer, as written by `save`."""
        return str(self._hf.to_str())

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the serialisation (hex): the same ids for the same text, or another one."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def _unknown(self, texts: Sequence[str], error: Exception) -> ConfigError:
        known = self._hf.get_vocab()
        unknown = sorted({char for text in texts for char in text if char not in known})
        if not isinstance(self._hf.pre_tokenizer, pre_tokenizers.Split) or not unknown:
            return ConfigError(f"the tokenizer cannot encode this text: {error}")
        shown = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in unknown[:5])
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        return ConfigError(
            f"the tokenizer does not know {shown}{more}; it knows the {len(known) - 1} characters "
            "of the text it was made from: remove the others, or use `data.tokenizer='bytes'`"
        )


def _words(texts: Iterable[str]) -> Iterator[str]:
    """Pieces of texts to learn from: words longer than `_WORD` are cut."""
    for text in texts:
        for piece in cut(text, _PIECE):
            start = 0
            # hardly any piece has one; this check is six times faster than the pattern
            any_long = max(map(len, piece.split()), default=0) >= _WORD or _BLANKS.search(piece)
            for long in _LONG.finditer(piece) if any_long else ():
                yield piece[start : long.end()]
                start = long.end()
            yield piece[start:]


def _is_local(tokenizer: hf.Tokenizer) -> bool:
    """Whether `cut` leaves the ids of a text unchanged."""
    words = tokenizer.pre_tokenizer
    if isinstance(tokenizer.normalizer, normalizers.BertNormalizer):
        return isinstance(words, pre_tokenizers.BertPreTokenizer)
    if tokenizer.normalizer is not None:
        return False
    if isinstance(words, pre_tokenizers.ByteLevel):
        return not words.add_prefix_space
    return isinstance(words, pre_tokenizers.Split) and isinstance(tokenizer.model, models.WordLevel)


def _byte_level(vocab: dict[str, int], *, use_regex: bool) -> hf.Tokenizer:
    """A tokenizer of UTF-8 bytes; with ``use_regex`` they stay within words, as GPT-2's do."""
    tokenizer = hf.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _read(path: Path) -> hf.Tokenizer:
    """Read a tokenizer from its file, or from the file of its vocabulary."""
    if path.name.endswith("vocab.json"):
        merges = path.with_name(path.name.removesuffix("vocab.json") + "merges.txt")
        if not merges.is_file():
            raise ConfigError(f"{path} needs {merges.name} beside it")
        tokenizer = _byte_level({}, use_regex=True)
        tokenizer.model = models.BPE.from_file(str(path), str(merges))
        return tokenizer
    if path.name.endswith("vocab.txt"):
        vocab = models.WordPiece.read_file(str(path))
        tokenizer = hf.Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        tokenizer.add_special_tokens([name for name in names if name in vocab])
        return tokenizer
    return hf.Tokenizer.from_file(str(path))


def _downloaded(name: str) -> Path:
    """``tokenizer.json`` of a repository on the hub, from its cache where it is there."""
    advice = f"use one of {', '.join(_KINDS)}, a {_FILE}, a folder with one, or a hub name"
    if meant := closest(name, _KINDS):  # the hub would be asked for it, for half a minute offline
        raise ConfigError(f"`data.tokenizer` {name}: did you mean {meant}? {advice}")
    if not _HUB_NAME.fullmatch(name) or name.endswith(".json"):
        raise ConfigError(f"`data.tokenizer` {name}: no such file, nor a folder with one; {advice}")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, _FILE)
    if isinstance(cached, str):  # no look at the network, which retries for half a minute
        return Path(cached)
    try:
        return Path(hf_hub_download(name, _FILE))
    except Exception as error:  # offline, no such repository, no such file, no permission
        why = first_line(error)
        raise ConfigError(
            f"`data.tokenizer` {name}: no such file, and none from the hub ({why}); {advice}"
        ) from error
