"""What ``DataArgs`` name: texts to read, each with the rule for what of it is held out."""

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
from sddlm.data.scan import Scan, good, remembered, scan
from sddlm.data.sources import Limited, Part, Source, open_source
from sddlm.data.split import Split
from sddlm.errors import ConfigError
from sddlm.progress import bar

_SHARE = 0.05  # held out where neither the user nor the corpus says otherwise


@dataclass(frozen=True)
class Reading:
    """A source, what a scan told of it, and which of its documents are for what.

    Attributes:
        source: read again for each `parts`.
        scan: of it.
        rule: `Split`, or the name of the one split that all of it is for.
        only: the split that is wanted; None is every one.
    """

    source: Source
    scan: Scan
    rule: Split | str
    only: str | None = None

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Parts of the good documents, each with its split."""
        parts = good(self.source, self.scan)
        if isinstance(self.rule, str):
            return ((self.rule, part) for part in parts)
        sides = self.rule.sides(parts)
        return (found for found in sides if self.only in (None, found[0]))


@dataclass(frozen=True)
class Text:
    """One text: what is read for it, in turn.

    Attributes:
        name: what the user called it.
        weight: its share in a mixture.
        readings: one, or one for training and one for validation.
        splits: names of the splits.
    """

    name: str
    weight: float
    readings: tuple[Reading, ...]
    splits: tuple[str, ...]

    @property
    def key(self) -> str:
        """What names the documents and their splits."""
        return json.dumps([(r.scan.key, str(r.rule), r.only) for r in self.readings])

    @property
    def characters(self) -> int:
        """Of all documents."""
        return sum(reading.scan.characters for reading in self.readings)

    @property
    def left_out(self) -> list[str]:
        """What was wrong with the documents that are left out."""
        return [problem for reading in self.readings for problem in reading.scan.bad.values()]

    def parts(self) -> Iterator[tuple[str, Part]]:
        """All parts of the good documents, each with its split."""
        for reading in self.readings:
            yield from reading.parts()


def texts(
    args: DataArgs, split: Literal["both", "validation", "all"], until_done: ExitStack
) -> list[Text]:
    """The texts to prepare, scanned.

    Args:
        args: what the user asked for.
        split: ``both``, ``validation`` alone, or ``all`` for validation.
        until_done: what must be kept until the texts have been read for the last time.

    Raises:
        ConfigError: see `open_source` and `scan`.
    """
    if split == "all":
        return [_whole(args, until_done)]
    weights = args.mixture or {args.sources[0]: 1.0}
    read = partial(_reading, until_done=until_done)
    found = [_text(args, name, weight, read) for name, weight in weights.items()]
    if split == "validation":
        return [_held_out(text) for text in found]
    if args.validation_path is None:
        return found
    source = _opened(args, args.validation_path)
    only = read(args, source, "validation")
    return [*found, Text(args.validation_path, 1.0, (only,), ("validation",))]


def _held_out(text: Text) -> Text:
    """The held-out part of a text alone."""
    readings = (replace(r, only="validation") for r in text.readings if r.rule != "train")
    return replace(text, readings=tuple(readings), splits=("validation",))


def share_held_out(args: DataArgs, name: str) -> float:
    """What training on a source holds out of its documents: a share, a number, or 0 for none."""
    if args.validation_path is not None:
        return 0.0
    if args.validation is not None or not is_corpus(args, name):
        return args.validation or _SHARE
    corpus = CORPORA[name]
    return 0.0 if "validation" in corpus.roles else corpus.last or _SHARE


def _whole(args: DataArgs, until_done: ExitStack) -> Text:
    """A text that is scored as a whole; of a corpus the part that is scored by convention."""
    for name in ("validation_path", "mixture"):
        if getattr(args, name) is not None:
            raise ConfigError(
                f"`data.{name}` has no place where a whole text is scored; give the text as "
                "`data.path` or `data.corpus`"
            )
    name = args.sources[0]
    only = ("validation",)
    if not is_corpus(args, name):
        reading = _reading(args, _opened(args, name), "validation", until_done)
        return Text(name, 1.0, (reading,), only)
    corpus = CORPORA[name]
    source = corpus.source(corpus.scored, streaming=args.streaming)
    rule: float | str = "validation"
    if source is None:  # no split of its own: what training would hold out, or all of it
        source, rule = corpus.training(streaming=args.streaming), corpus.last or rule
    return Text(name, 1.0, (_reading(args, source, rule, until_done, only="validation"),), only)


def known_text(args: DataArgs, name: str) -> Text | None:
    """A text of local files, if it has been read before and has not changed; nothing is read.

    Raises:
        ConfigError: there are no such files.
    """
    if name.startswith("-"):  # standard input is another text each time
        return None
    _opened(args, name)
    with ExitStack() as nothing, suppress(ConfigError):
        return _text(args, name, 1.0, partial(_reading, until_done=nothing, find=remembered))
    return None


def _text(args: DataArgs, name: str, weight: float, read: Callable[..., Reading]) -> Text:
    rule = args.validation or _SHARE
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
        return Text(name, weight, (only,), ("train",))
    both = ("train", "validation")
    if held_out is None:
        return Text(name, weight, (read(args, train, rule),), both)
    readings = zip((train, held_out), both, strict=True)
    return Text(name, weight, tuple(read(args, s, r) for s, r in readings), both)


def is_remote(args: DataArgs, name: str) -> bool:
    """Whether the name means one text wherever it is used: a corpus, or a dataset of the hub."""
    on_hub = name.startswith("hf:") and not Path(name[3:].partition(":")[0]).expanduser().exists()
    return on_hub or is_corpus(args, name)


def is_corpus(args: DataArgs, name: str) -> bool:
    """Whether a source is a corpus known by name."""
    return args.path is None and name in CORPORA


def _opened(args: DataArgs, name: str) -> Source:
    return open_source(name, field=args.field, separator=args.separator, streaming=args.streaming)


def _reading(
    args: DataArgs,
    source: Source,
    rule: float | str,
    until_done: ExitStack,
    only: str | None = None,
    find: Callable[..., Scan] = scan,
) -> Reading:
    """A source and its scan."""
    if args.limit is not None:
        source = Limited(source, args.limit)
    if source.once:
        source = _copied(source, args, until_done)
    found = find(source, args.max_bad, remember=args.cache_folder)
    if isinstance(rule, str):
        return Reading(source, found, rule)
    if rule >= found.documents:
        raise ConfigError(
            f"`data.validation` {rule:g} holds out all {found.documents} documents of "
            f"{source.name}; give fewer, or a share such as 0.05"
        )
    return Reading(source, found, Split(rule, found), only)


class _Copy(Source):
    """A source that can be read once only, copied to a file, problems included."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path

    def parts(self) -> Iterator[Part]:
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                yield Part(*json.loads(line))


def _copied(source: Source, args: DataArgs, until_done: ExitStack) -> Source:
    cache = args.cache_folder
    cache.mkdir(parents=True, exist_ok=True)
    folder = tempfile.TemporaryDirectory(dir=cache, prefix=UNFINISHED)
    copy = _Copy(source.name, Path(until_done.enter_context(folder)) / "parts.jsonl")
    with (
        copy.path.open("w", encoding="utf-8") as file,
        bar(f"copying {source.name}", total=None) as advance,
    ):
        for part in source.parts():
            file.write(json.dumps(part) + "\n")
            advance(len(part.text))
    return copy
