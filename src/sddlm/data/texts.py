"""Data sources of ``DataArgs``: texts to read, each with its split."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from sddlm.data.args import DataArgs
from sddlm.data.cache import UNFINISHED
from sddlm.data.corpora import CORPORA
from sddlm.data.documents import Document
from sddlm.data.sources import Limited, Source, open_source
from sddlm.data.split import Scan, Split, remembered, scan, valid_documents
from sddlm.errors import ConfigError

SHARE = 0.05  # default share that is held out


@dataclass(frozen=True)
class SplitSource:
    """A source with its scan and its split.

    Attributes:
        source: the source, read again for each call of `documents`.
        scan: scan of the source.
        rule: `Split`, or the name of a single split.
        only: the split to read; None is all.
    """

    source: Source
    scan: Scan
    rule: Split | str
    only: str | None = None

    def documents(self) -> Iterator[tuple[str, str]]:
        """Iterate over the valid documents: split and text."""
        texts = valid_documents(self.source, self.scan)
        if isinstance(self.rule, str):
            return ((self.rule, text) for text in texts)
        assigned = self.rule.assign(texts)
        return (found for found in assigned if self.only in (None, found[0]))


@dataclass(frozen=True)
class DataSource:
    """One text of the data options.

    Attributes:
        name: name or path given by the user.
        weight: share in a mixture.
        split_sources: one source, or one for training and one for validation.
        splits: names of the splits.
    """

    name: str
    weight: float
    split_sources: tuple[SplitSource, ...]
    splits: tuple[str, ...]

    @property
    def key(self) -> str:
        """Identifier of the documents and their splits."""
        return json.dumps([(r.scan.key, str(r.rule), r.only) for r in self.split_sources])

    @property
    def characters(self) -> int:
        """Number of characters of all documents."""
        return sum(part.scan.characters for part in self.split_sources)

    @property
    def left_out(self) -> list[str]:
        """Problems of the documents that are left out."""
        return [problem for part in self.split_sources for problem in part.scan.bad.values()]

    def documents(self) -> Iterator[tuple[str, str]]:
        """Iterate over the valid documents: split and text."""
        for part in self.split_sources:
            yield from part.documents()


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
        return [_whole(args, until_done)]
    weights = args.mixture or {args.sources[0]: 1.0}
    read = partial(_split_source, until_done=until_done)
    found = [_data_source(args, name, weight, read) for name, weight in weights.items()]
    if split == "validation":
        return [_held_out(text) for text in found]
    if args.validation_path is None:
        return found
    source = _opened(args, args.validation_path)
    only = read(args, source, "validation")
    return [*found, DataSource(args.validation_path, 1.0, (only,), ("validation",))]


def _held_out(text: DataSource) -> DataSource:
    """The validation split of a text alone."""
    split_sources = (replace(r, only="validation") for r in text.split_sources if r.rule != "train")
    return replace(text, split_sources=tuple(split_sources), splits=("validation",))


def share_held_out(args: DataArgs, name: str) -> float:
    """Held-out part of a source in training: a share, a number of documents, or 0."""
    if args.validation_path is not None:
        return 0.0
    if args.validation is not None or not is_corpus(args, name):
        return args.validation or SHARE
    corpus = CORPORA[name]
    return 0.0 if "validation" in corpus.roles else corpus.last or SHARE


def _whole(args: DataArgs, until_done: ExitStack) -> DataSource:
    """A text to score as a whole; for a corpus the split that is scored by convention."""
    for name in ("validation_path", "mixture"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"`data.{name}` has no place where a whole text is scored; give the text as "
                "`data.path` or `data.corpus`"
            )
    name = args.sources[0]
    only = ("validation",)
    if not is_corpus(args, name):
        whole = _split_source(args, _opened(args, name), "validation", until_done)
        return DataSource(name, 1.0, (whole,), only)
    corpus = CORPORA[name]
    source = corpus.source(corpus.scored, streaming=args.streaming)
    rule: float | str = "validation"
    if source is None:  # no split of its own: what training would hold out, or all of it
        source, rule = corpus.training(streaming=args.streaming), corpus.last or rule
    scored = _split_source(args, source, rule, until_done, only="validation")
    return DataSource(name, 1.0, (scored,), only)


def known_source(args: DataArgs, name: str) -> DataSource | None:
    """A text of local files from an earlier scan, if unchanged; without reading it.

    Raises:
        ConfigError: there are no such files.
    """
    if name.startswith("-"):  # standard input is another text each time
        return None
    _opened(args, name)
    with ExitStack() as nothing, suppress(ConfigError):
        read = partial(_split_source, until_done=nothing, find=remembered)
        return _data_source(args, name, 1.0, read)
    return None


def _data_source(
    args: DataArgs, name: str, weight: float, read: Callable[..., SplitSource]
) -> DataSource:
    rule = args.validation or SHARE
    held_out: Source | None = None
    if is_corpus(args, name):
        corpus = CORPORA[name]
        train = corpus.training(streaming=args.streaming)
        if args.validation is None:
            held_out = corpus.source("validation", streaming=args.streaming)
            rule = corpus.last or rule
    else:
        train = _opened(args, name)
    if args.validation_path is not None:
        only = read(args, train, "train")
        return DataSource(name, weight, (only,), ("train",))
    both = ("train", "validation")
    if held_out is None:
        return DataSource(name, weight, (read(args, train, rule),), both)
    split_sources = zip((train, held_out), both, strict=True)
    return DataSource(name, weight, tuple(read(args, s, r) for s, r in split_sources), both)


def is_remote(args: DataArgs, name: str) -> bool:
    """Whether a name is global: a named corpus, or a dataset of the hub."""
    on_hub = name.startswith("hf:") and not Path(name[3:].partition(":")[0]).expanduser().exists()
    return on_hub or is_corpus(args, name)


def is_corpus(args: DataArgs, name: str) -> bool:
    """Whether a source is a corpus known by name."""
    return args.path is None and name in CORPORA


def _opened(args: DataArgs, name: str) -> Source:
    return open_source(name, field=args.field, separator=args.separator, streaming=args.streaming)


def _split_source(
    args: DataArgs,
    source: Source,
    rule: float | str,
    until_done: ExitStack,
    only: str | None = None,
    find: Callable[..., Scan] = scan,
) -> SplitSource:
    """Scan a source and apply its split."""
    if args.limit is not None:
        source = Limited(source, args.limit)
    if source.once:
        source = _Copied(source, _temporary(args.cache_folder, until_done))
    found = find(source, args.max_errors, remember=args.cache_folder)
    if isinstance(rule, str):
        return SplitSource(source, found, rule)
    if rule >= found.documents:
        raise ConfigError(
            f"`data.validation` {rule:g} holds out all {found.documents} documents of "
            f"{source.name}; give fewer, or a share such as 0.05"
        )
    return SplitSource(source, found, Split(rule, found), only)


class _Copied(Source):
    """A source that can be read only once: its first reading writes what the others read."""

    def __init__(self, source: Source, folder: Path) -> None:
        self.name, self._source = source.name, source
        self._copy = folder / "documents.jsonl"

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


def _temporary(cache: Path, until_done: ExitStack) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=cache, prefix=UNFINISHED)
    return Path(until_done.enter_context(folder))
