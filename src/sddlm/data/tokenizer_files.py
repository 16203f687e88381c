"""Tokenizer files in common formats, and download from the hub."""

from __future__ import annotations

import re
from pathlib import Path

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sddlm.errors import ConfigError, first_line

FILE_NAME = "tokenizer.json"
_HUB_NAME = re.compile(r"[\w.-]+(?:/[\w.-]+)?")


def vocabulary(path: Path) -> Path:
    """Tokenizer file of a path: the path itself, or the first known file of a folder."""
    if not path.is_dir():
        return path
    names = (FILE_NAME, "vocab.json", "vocab.txt")
    return next((path / n for n in names if (path / n).is_file()), path / FILE_NAME)


def read(path: Path) -> hf.Tokenizer:
    """Read a tokenizer from its file, or from the file of its vocabulary."""
    if path.name.endswith("vocab.json"):
        merges = path.with_name(path.name.removesuffix("vocab.json") + "merges.txt")
        if not merges.is_file():
            raise ConfigError(f"{path} needs {merges.name} beside it")
        tokenizer = byte_level({}, use_regex=True)
        tokenizer.model = models.BPE.from_file(str(path), str(merges))
        return tokenizer
    if path.name.endswith("vocab.txt"):
        vocab = path.read_text(encoding="utf-8").splitlines()
        tokenizer = hf.Tokenizer(
            models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token="[UNK]")
        )
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        names = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
        tokenizer.add_special_tokens([name for name in names if name in vocab])
        return tokenizer
    return hf.Tokenizer.from_file(str(path))


def byte_level(vocab: dict[str, int], *, use_regex: bool) -> hf.Tokenizer:
    """A tokenizer of UTF-8 bytes; with ``use_regex`` they stay within words, as GPT-2's do."""
    tokenizer = hf.Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def download(name: str) -> Path:
    """``tokenizer.json`` of a repository on the hub, from its cache where it is there.

    Raises:
        OSError: there is none; the message continues "no such file".
    """
    if not _HUB_NAME.fullmatch(name) or name.endswith(".json"):
        raise OSError(", nor a folder with one")
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, FILE_NAME)
    if isinstance(cached, str):  # no look at the network, which retries for half a minute
        return Path(cached)
    try:
        return Path(hf_hub_download(name, FILE_NAME))
    except Exception as error:  # offline, no such repository, no such file, no permission
        raise OSError(f", and none from the hub ({first_line(error)})") from error
