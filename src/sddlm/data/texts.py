"""Texts of the data options: which sources are read, and how each is split."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

from sddlm.data.cache import UNFINISHED
from sddlm.data.config import DataArgs
from sddlm.data.corpora import CORPORA
from sddlm.data.documents import Document
from sddlm.data.sources import Adapted, Source, open_source
from sddlm.data.split import FEW, Scan, assign, remembered, scan, valid_documents
from sddlm.errors import ConfigError

SHARE = 0.05  # default share that is held out


class Part(NamedTuple):
    """A source with its split.

    Attributes:
        source: the source, read again each time.
        rule: held-out part (see `assign`), or the name of the only split.
        only: the split to read; None is all.
    """

    source: Source
    rule: float | str
    only: str | None = None


@dataclass(frozen=True)
class DataSource:
    """One text of the data options.

    Attributes:
        name: name or path given by the user.
        weight: share in a mixture.
        parts: one source, or one for training and one for validation, with their scans.
    """

    name: str
    weight: float
    parts: list[tuple[Part, Scan]]

    @property
    def key(self) -> str:
        """Identifier of the documents and their splits."""
        found = [
            (scanned.key, part.rule if isinstance(part.rule, str) else f"{part.rule:g}", part.only)
            for part, scanned in self.parts
        ]
        return json.dumps(found)

    @property
    def splits(self) -> list[str]:
        """Names of the splits."""
        rules = [part.only or part.rule for part, _ in self.parts]
        both = any(not isinstance(rule, str) for rule in rules)
        return [name for name in ("train", "validation") if both or name in rules]

    @property
    def characters(self) -> int:
        """Number of characters of all documents."""
        return sum(scanned.characters for _, scanned in self.parts)

    @property
    def left_out(self) -> list[str]:
        """Problems of the documents that are left out."""
        return [problem for _, scanned in self.parts for problem in scanned.bad.values()]

    def documents(self) -> Iterator[tuple[str, str]]:
        """Iterate over the valid documents: split and text."""
        for part, scanned in self.parts:
            texts = valid_documents(part.source, scanned)
            if isinstance(part.rule, str):
                yield from ((part.rule, text) for text in texts)
            else:
                assigned = assign(texts, part.rule, scanned)
                yield from (found for found in assigned if part.only in (None, found[0]))


def data_sources(
    args: DataArgs, split: Literal["both", "validation", "all"], until_done: ExitStack
) -> list[DataSource]:
    """Scan the texts of the data options.

    Args:
        args: data options.
        split: ``both``, ``validation`` alone, or ``all`` for validation.
        until_done: holds temporary files until the texts are read for the last time.

    Raises:
        ConfigError: see `open_source` and `scan`.
    """
    if split == "all":
        found = [(args.sources[0], 1.0, [_scored(args)])]
    else:
        weights = args.mixture or {args.sources[0]: 1.0}
        found = [(name, weight, _trained(args, name)) for name, weight in weights.items()]
        if args.validation_path is not None:
            own = Part(_opened(args, args.validation_path), "validation")
            found.append((args.validation_path, 1.0, [own]))
    if split == "validation":
        found = [(name, weight, _held_out(parts)) for name, weight, parts in found]
    return [_scanned(args, *text, until_done) for text in found if text[2]]


def _scored(args: DataArgs) -> Part:
    """A text to score as a whole; for a corpus the split that is scored by convention."""
    for name in ("validation_path", "mixture"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"`data.{name}` has no place where a whole text is scored; give the text as "
                "`data.path` or `data.corpus`"
            )
    name = args.sources[0]
    if not is_corpus(args, name):
        return Part(_opened(args, name), "validation")
    corpus = CORPORA[name]
    source = corpus.source(corpus.scored, streaming=args.streaming)
    if source is not None:
        return Part(source, "validation")
    # no split of its own: what training would hold out, or all of it
    source = corpus.training(streaming=args.streaming)
    return Part(source, corpus.last, "validation") if corpus.last else Part(source, "validation")


def _trained(args: DataArgs, name: str) -> list[Part]:
    """A text to train on, and what is held out of it or beside it."""
    if not is_corpus(args, name):
        share = share_held_out(args, name)
        return [Part(_opened(args, name), share or "train")]
    corpus = CORPORA[name]
    source = corpus.training(streaming=args.streaming)
    parts = [Part(source, share_held_out(args, name) or "train")]
    own = corpus.source("validation", streaming=args.streaming)
    if own is not None and args.validation is None and args.validation_path is None:
        parts.append(Part(own, "validation"))
    return parts


def _held_out(parts: list[Part]) -> list[Part]:
    """The held-out documents of a text alone."""
    return [part._replace(only="validation") for part in parts if part.rule != "train"]


def share_held_out(args: DataArgs, name: str) -> float:
    """Held-out part of a source in training: a share, a number of documents, or 0."""
    if args.validation_path is not None:
        return 0.0
    if args.validation is not None or not is_corpus(args, name):
        return args.validation or SHARE
    corpus = CORPORA[name]
    return 0.0 if "validation" in corpus.roles else corpus.last or SHARE


def known_source(args: DataArgs, name: str) -> DataSource | None:
    """A text of local files from an earlier scan, if unchanged; without reading it.

    Raises:
        ConfigError: there are no such files.
    """
    if name.startswith("-"):  # standard input is another text each time
        return None
    found = []
    for part in _limited(args, _trained(args, name)):
        with suppress(ConfigError):
            if known := remembered(part.source, args.cache_folder):
                found.append((part, known))
                continue
        return None
    return DataSource(name, 1.0, found)


def is_remote(args: DataArgs, name: str) -> bool:
    """Whether a name is global: a named corpus, or a dataset of the hub."""
    on_hub = name.startswith("hf:") and not Path(name[3:].partition(":")[0]).expanduser().exists()
    return on_hub or is_corpus(args, name)


def is_corpus(args: DataArgs, name: str) -> bool:
    """Whether a source is a corpus known by name."""
    return args.path is None and name in CORPORA


def _opened(args: DataArgs, name: str) -> Source:
    return open_source(
        name,
        field=args.field,
        separator=args.separator,
        streaming=args.streaming,
        prompt_field=args.prompt_field,
    )


def _limited(args: DataArgs, parts: list[Part]) -> list[Part]:
    """The first documents of each source, malformed ones included."""
    if args.limit is None:
        return parts

    def first(documents: Iterator[Document]) -> Iterator[Document]:
        return islice(documents, args.limit)

    key = f"limit {args.limit}"
    return [part._replace(source=Adapted(part.source, first, key)) for part in parts]


def _scanned(
    args: DataArgs, name: str, weight: float, parts: list[Part], until_done: ExitStack
) -> DataSource:
    """Scan the sources of a text."""
    found = []
    for part in _limited(args, parts):
        if part.source.once:
            part = part._replace(source=_Copied(part.source, args.cache_folder, until_done))
        scanned = scan(part.source, args.max_errors, cache=args.cache_folder)
        share = not isinstance(part.rule, str) and part.rule < 1
        if args.prompt_field and share and scanned.documents < FEW:
            raise ConfigError(
                f"{part.source.name} has {scanned.documents} pairs, of which no share can be held "
                "out; give a number of them, such as `data.validation=1`, or `data.validation_path`"
            )
        if not isinstance(part.rule, str) and part.rule >= scanned.documents:
            raise ConfigError(
                f"`data.validation` {part.rule:g} holds out all {scanned.documents} documents of "
                f"{part.source.name}; give fewer, or a share such as 0.05"
            )
        found.append((part, scanned))
    return DataSource(name, weight, found)


class _Copied(Source):
    """A source that is read only once: its first reading writes what the others read."""

    def __init__(self, source: Source, cache: Path, until_done: ExitStack) -> None:
        self.name, self._source = source.name, source
        cache.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(dir=cache, prefix=UNFINISHED)
        self._copy = Path(until_done.enter_context(folder), "documents.jsonl")

    def read(self) -> Iterator[Document]:
        if self._copy.exists():
            with self._copy.open(encoding="utf-8") as file:
                for line in file:
                    yield Document(*json.loads(line))
            return
        with self._copy.open("x", encoding="utf-8") as file:
            for document in self._source.read():
                file.write(json.dumps(document) + "\n")
                yield document

    def signature(self) -> str | None:
        return self._source.signature()
