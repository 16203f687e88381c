"""Data options (``--data``): text, tokenizer and rows."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Literal

from sddlm.data.corpora import CORPORA
from sddlm.errors import ConfigError, check_choices
from sddlm.io import current_names, read_yaml


@dataclass
class DataArgs:
    """Options of the data: text, tokenizer and rows.

    Attributes:
        path: text to use instead of the corpus: a file, a folder, a quoted pattern ('texts/*.txt'),
            '-' for standard input, or hf:NAME, a Hugging Face dataset (on the hub, where
            hf:NAME@REVISION names a branch, tag or commit, or a folder).
        corpus: corpus known by name, if no path is given. Without either it is classics, English
            children's books that come with this package; docs/data.md lists the others.
        mixture: several texts at once, each with its share of the rows: names of corpora, or what
            path takes, and their weights, such as {tinystories: 3, my.txt: 1}.
        validation_path: text to validate on; all of path, corpus or mixture is then for training.
        validation: held-out part for validation: a share of the documents, chosen by a hash of
            their text (with fewer than 20 documents, the last share of each one), or a whole number
            of documents at the end. Default: the corpus' own rule, else 0.05.
        tokenizer: bytes, characters, bpe (learnt from the training text), a tokenizer.json, a
            folder with one, GPT-2's or BERT's own files, or a hub name (gpt2).
        vocab_size: number of tokens that bpe learns, special ones included. Other tokenizers bring
            their own.
        length: tokens in a row, the length the model is trained for.
        packing: wrap: documents one behind the other, cut into full rows; document: one document a
            row, cut at the length, the rest padding that is neither scored nor looked at.
        bos_eos: begin every row with the beginning-of-text token and end it with the end-of-text
            token.
        eos: put the end of text behind each document.
        field: key or column with the text in JSON lines, CSV and Parquet files and Hugging Face
            datasets. Corpora know their own.
        prompt_field: key or column with the prompt of each text. A row is then a prompt and its
            text; the prompt has no noise and is not scored. Needs packing document.
        separator: what stands between two documents in a text file, taken literally. Without it a
            file is cut at <|endoftext|>, or is one document.
        streaming: read Hugging Face datasets from the network, without a copy of them on the disk.
        limit: use only the first N documents of each text.
        max_errors: largest number of malformed documents (not UTF-8, broken JSON, a missing field,
            a NUL byte, only white space, a line of JSON of more than 64 MiB) that are reported and
            left out.
        workers: threads that make tokens. Without it one a core.
        cache: folder for prepared tokens. Without it $SDDLM_CACHE, else ~/.cache/sddlm.
    """

    path: str | None = None
    corpus: str | None = None
    mixture: dict[str, float] | None = None
    validation_path: str | None = None
    validation: float | None = None
    tokenizer: str = "bpe"
    vocab_size: int = 4096
    length: int = 128
    packing: Literal["wrap", "document"] = "wrap"
    bos_eos: bool = False
    eos: bool = True
    field: str = "text"
    prompt_field: str | None = None
    separator: str | None = None
    streaming: bool = False
    limit: int | None = None
    max_errors: int = 0
    workers: int | None = None
    cache: str | None = None

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Check the options.

        Raises:
            ConfigError: an option has a wrong value.
        """
        check_choices(self)
        if self.length < 1:
            raise ConfigError(f"`length` is {self.length}, must be at least 1")
        if self.bos_eos and self.length < 3:
            raise ConfigError(f"`length` is {self.length}, must be at least 3 with `bos_eos=True`")
        if self.vocab_size < 2:
            raise ConfigError(f"`vocab_size` is {self.vocab_size}, must be at least 2")
        for name, least in (("limit", 1), ("workers", 1), ("max_errors", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"`{name}` is {value}, must be at least {least}")
        self._check_validation()
        if self.prompt_field is not None:
            self._check_pairs(self.prompt_field)
        if self.mixture is not None:
            self._check_mixture(self.mixture)
        elif self.path is None and self.sources[0] not in CORPORA:
            raise ConfigError(
                f"`corpus` is {self.corpus!r}, must be one of {', '.join(CORPORA)}; for your own "
                "text use `path='FILE'`"
            )

    def _check_pairs(self, prompt_field: str) -> None:
        if self.packing != "document":
            raise ConfigError(
                f"`prompt_field` is {prompt_field!r}: each prompt with its text is a row of its "
                "own; add `packing='document'`"
            )
        if prompt_field == self.field:
            raise ConfigError(
                f"`prompt_field` and `field` are both {prompt_field!r}; name the key of the prompt "
                "and that of the text"
            )
        if self.path is None:
            raise ConfigError(
                f"`prompt_field` is {prompt_field!r}, but no text with prompts is given: "
                "`path='FILE.jsonl'`"
            )

    def _check_validation(self) -> None:
        share = self.validation
        if share is None or 0 < share < 1 or (share >= 1 and share == int(share)):
            return
        raise ConfigError(
            f"`validation` is {share}, must be a share between 0 and 1, such as 0.05, or a number "
            "of documents, such as 1000"
        )

    def _check_mixture(self, mixture: dict[str, float]) -> None:
        if self.path is not None:
            raise ConfigError("`mixture` names its own texts; leave `path` out, or put it in there")
        if len(mixture) < 2 or not all(isfinite(w) and w > 0 for w in mixture.values()):
            raise ConfigError(
                f"`mixture` is {mixture}, must name at least 2 texts with weights above 0, such as "
                "{'tinystories': 3, 'my.txt': 1}"
            )

    @property
    def sources(self) -> list[str]:
        """Names of corpora, or values of ``path``, that are read."""
        return list(self.mixture) if self.mixture else [self.path or self.corpus or "classics"]

    @property
    def named(self) -> bool:
        """Whether a text is given."""
        return not (self.path is None and self.corpus is None and self.mixture is None)

    @property
    def cache_folder(self) -> Path:
        """Folder of prepared tokens."""
        folder = self.cache or os.environ.get("SDDLM_CACHE") or "~/.cache/sddlm"
        return Path(folder).expanduser()


def trained_on(place: Path) -> DataArgs | None:
    """Data options of a model's training, from its run's ``config.yaml``; None if there is none.

    Args:
        place: run or model directory.
    """
    return _trained_on(place)[0]


def all_trained_on(place: Path) -> list[DataArgs] | None:
    """Data options of a model and of all models it was started from; None if unknown."""
    found: dict[str, DataArgs] = {}
    name: str | None = str(place)
    while name is not None and name not in found:
        args, start = _trained_on(Path(name))
        if args is None:
            return None
        found[name], name = args, start
    return list(found.values())


def _trained_on(place: Path) -> tuple[DataArgs | None, str | None]:
    """Data options of a run, and the model that it was started from."""
    for path in (place / "config.yaml", place.resolve().parent / "config.yaml"):
        if path.is_file():
            config = current_names(read_yaml(path))
            args = config.get("data") if isinstance(config, dict) else None
            if isinstance(args, dict):
                known = {f.name for f in fields(DataArgs)}
                own = {name: value for name, value in args.items() if name in known}
                return DataArgs(**own), config.get("start")
    return None, None
