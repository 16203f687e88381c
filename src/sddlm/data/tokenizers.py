"""One tokenizer, whatever its kind: a wrapper around Hugging Face ``tokenizers``.

Everything a tokenizer is lies in its ``tokenizer.json``; the wrapper adds rules, not state.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from sddlm.data.documents import cut
from sddlm.data.tokenizer_files import FILE_NAME, byte_level, download, read, vocabulary
from sddlm.errors import ConfigError, closest
from sddlm.io import atomic_write

#: The end of a text, where a tokenizer file has none of ``END_OF_TEXTS``.
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXTS = (END_OF_TEXT, "</s>", "[SEP]")
#: The beginning of a text, for each of them.
_BEGIN_OF_TEXTS = {"</s>": "<s>", "[SEP]": "[CLS]"}
#: Padding, and what stands for something else: never text, so never sampled.
_PADS = ("[PAD]", "<pad>")
_STAND_INS = (*_PADS, "[UNK]", "<unk>", "[MASK]", "<mask>")
KINDS = ("bytes", "characters", "bpe")

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
        eos_id: id of the end-of-text token: the first of ``<|endoftext|>``, ``</s>`` and
            ``[SEP]`` that the tokenizer has, else a new ``<|endoftext|>``.
        bos_id: id of the beginning of a text: ``<s>`` beside ``</s>``, ``[CLS]`` beside ``[SEP]``,
            else the end of text again.
        pad_id: what fills up a row; the end of text where there is no padding token. Which one it
            is changes nothing: padding is neither scored nor looked at.
        special: every special token and its id.
        not_sampled: ids of padding, unknown and mask tokens, which samplers never write.
        local: pieces of a text have the ids of the whole (see `pieces`).
    """

    def __init__(self, tokenizer: hf.Tokenizer) -> None:
        """Take over a ``tokenizers.Tokenizer`` (it is changed: see the class).

        Raises:
            ConfigError: something else; fewer than two ids, or no free id for an end of text.
        """
        if not isinstance(tokenizer, hf.Tokenizer):
            raise ConfigError(
                f"a Tokenizer wraps a tokenizers.Tokenizer, not {tokenizer!r:.80}; see "
                "Tokenizer.load, .bytes, .characters and .train_bpe"
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        eos = next((t for t in END_OF_TEXTS if tokenizer.token_to_id(t) is not None), END_OF_TEXT)
        tokenizer.add_special_tokens([hf.AddedToken(eos, special=True, normalized=False)])
        tokenizer.encode_special_tokens = True  # not part of tokenizer.json
        self._hf = tokenizer
        vocab: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self.eos_id: int = vocab[eos]
        self.vocab_size: int = 1 + max(vocab.values())
        self.bos_id = vocab.get(_BEGIN_OF_TEXTS.get(eos, eos), self.eos_id)
        self.pad_id = next((vocab[name] for name in _PADS if name in vocab), self.eos_id)
        added = tokenizer.get_added_tokens_decoder().items()
        self.special = {str(token.content): i for i, token in added if token.special}
        self.special |= {name: vocab[name] for name in _STAND_INS if name in vocab}
        self.not_sampled = sorted(vocab[name] for name in _STAND_INS if name in vocab)
        self.local = _is_local(tokenizer)
        if sum(i == self.eos_id for i in vocab.values()) > 1:  # the library counts, not looks
            raise ConfigError(
                f"the tokenizer has none of {', '.join(END_OF_TEXTS)}, and its ids have gaps, so "
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
        tokenizer = byte_level({char: i for i, char in enumerate(alphabet)}, use_regex=False)
        return cls(tokenizer)

    @classmethod
    def characters(cls, texts: Iterable[str]) -> Tokenizer:
        """The characters that occur in ``texts``, in code point order, and the end of text.

        There is no unknown token: to encode another character is a ``ConfigError`` naming it.
        """
        alphabet = sorted(set().union(*texts))
        vocab = {char: i for i, char in enumerate(alphabet)}
        # an unknown token that does not exist makes the library raise instead of guess
        tokenizer = hf.Tokenizer(models.WordLevel(vocab=vocab, unk_token="<none>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Split(hf.Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        return cls(tokenizer)

    @classmethod
    def train_bpe(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Byte-level BPE (as GPT-2's, without a prefix space), the same for the same texts.

        Args:
            texts: what to learn the merges from.
            vocab_size: V, the 256 bytes and the end of text included. Little text gives fewer.

        Raises:
            ConfigError: V < 257.
        """
        if isinstance(texts, str) or not isinstance(vocab_size, int):
            raise ConfigError(
                f"no vocabulary of {vocab_size!r:.80} tokens comes from {texts!r:.80}: give a list "
                "of texts and a whole number"
            )
        if vocab_size < 257:
            raise ConfigError(
                f"`data.vocab_size` is {vocab_size}, must be at least 257 for bpe, which starts "
                "from 256 bytes and the end of text; or use `data.tokenizer='characters'`"
            )
        tokenizer = byte_level({}, use_regex=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(_words(texts), trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, name: str | os.PathLike[str]) -> Tokenizer:
        """A ``tokenizer.json``, a folder with one, or a name on the Hugging Face hub.

        GPT-2's own files (``vocab.json`` with ``merges.txt`` beside it) and BERT's (``vocab.txt``,
        lower case) do as well, as a folder or as the path of the vocabulary, whatever stands before
        ``vocab`` and ``merges`` in their names.

        Raises:
            ConfigError: there is none, or the library cannot read it.
        """
        if not isinstance(name, str | os.PathLike):
            raise ConfigError(f"a tokenizer is loaded by its path or name, not by {name!r:.80}")
        path = vocabulary(Path(name))
        if not path.is_file():
            path = _found(os.fspath(name))
        try:
            return cls(read(path))
        except ConfigError:
            raise
        except Exception as error:  # the library raises bare Exceptions
            raise ConfigError(f"{path} is not a tokenizer.json of 'tokenizers': {error}") from error

    @classmethod
    def choose(cls, spec: str, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Make the tokenizer of a specification.

        Args:
            spec: ``bytes``, ``characters``, ``bpe``, a path or a hub name.
            texts: what ``characters`` and ``bpe`` learn from.
            vocab_size: V for ``bpe``; the others bring their own.
        """
        if spec == "bytes":
            return cls.bytes()
        if spec == "characters":
            return cls.characters(texts)
        if spec == "bpe":
            return cls.train_bpe(texts, vocab_size)
        return cls.load(spec)

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
        Path(folder).mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(folder) / FILE_NAME) as file:
            file.write(self.to_json())
        return Path(folder) / FILE_NAME

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


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Context in which each call encodes on its own thread, for callers with several threads."""
    before = os.environ["TOKENIZERS_PARALLELISM"]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        os.environ["TOKENIZERS_PARALLELISM"] = before


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


def _found(name: str) -> Path:
    """Download the file of a tokenizer from the hub."""
    advice = f"use one of {', '.join(KINDS)}, a {FILE_NAME}, a folder with one, or a hub name"
    meant = closest(name, KINDS)
    if meant:  # the hub would be asked for it, for half a minute where there is no network
        raise ConfigError(f"`data.tokenizer` {name}: did you mean {meant}? {advice}")
    try:
        return download(name)
    except OSError as error:
        raise ConfigError(f"`data.tokenizer` {name}: no such file{error}; {advice}") from error
