"""The first reading of a source: how much there is, what is wrong with it, and what names it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sddlm.data.sources import Part, Source
from sddlm.errors import ConfigError
from sddlm.files import atomic_write
from sddlm.progress import bar

logger = logging.getLogger(__name__)

FEW = 20  # with fewer documents, each is cut instead of choosing among them
_SHOWN = 10  # bad documents that are told of one by one
_FORMAT = 2  # of the file; count up when the same source would give other figures


@dataclass(frozen=True)
class Scan:
    """What one reading of a source tells; its size does not grow with the source.

    Attributes:
        key: SHA-256 (hex) of the documents, in order.
        documents: how many can be used.
        characters: in them.
        least: the smallest `place` of a document.
        lengths: characters of each document, if there are fewer than `FEW`.
        long: number of each document that came in several parts, and its place: where it belongs
            must be known before its end.
        bad: number and problem of each document that is left out; numbers count these too.
    """

    key: str
    documents: int
    characters: int
    least: float
    lengths: list[int] = field(default_factory=list)
    long: dict[int, float] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)


def place(digest: bytes) -> float:
    """A number in [0, 1) that depends on a document's text alone (its SHA-256)."""
    return int.from_bytes(digest[:6], "big") / 2**48


def scan(source: Source, max_bad: int = 0, *, remember: Path | None = None) -> Scan:
    """Read a source once, or find in the cache what an earlier reading told.

    Args:
        source: what to read.
        max_bad: so many bad documents are reported and left out.
        remember: folder for what was found, of sources that tell without a reading whether they
            have changed.

    Raises:
        ConfigError: more bad documents than ``max_bad``, or not a single good one.
    """
    signature = source.signature() if remember else None
    known = _known(remember, signature)
    found = known or _read(source, max_bad)
    if len(found.bad) > max_bad:
        raise _too_many(list(found.bad.values()), max_bad)
    if not found.documents:
        raise ConfigError(
            f"no documents in {source.name}: nothing but white space; give `data.path` text"
        )
    for problem in list(found.bad.values())[:_SHOWN]:
        logger.warning("left out: %s", problem)
    if found.bad:
        logger.warning(
            "%d bad documents of %d were left out of %s",
            len(found.bad),
            len(found.bad) + found.documents,
            source.name,
        )
    if remember and signature and not known:
        remember.mkdir(parents=True, exist_ok=True)
        with atomic_write(_file(remember, signature)) as file:
            content = json.dumps(asdict(found))
            file.write(f"{_sha256(content)} {content}\n")
    return found


def remembered(source: Source, max_bad: int = 0, *, remember: Path | None = None) -> Scan:
    """What an earlier `scan` of the source found; nothing is read.

    Raises:
        ConfigError: there was none, or the source may have changed since.
    """
    found = _known(remember, source.signature())
    if found is None or len(found.bad) > max_bad:
        raise ConfigError(f"{source.name} has not been read before; see sddlm prepare")
    return found


def good(source: Source, found: Scan) -> Iterator[Part]:
    """The documents of a source without the bad ones, and the proof that they are the scanned ones.

    Raises:
        ConfigError: the source has changed since the scan.
    """
    number, names = 0, _Names()
    for part in source.parts():
        if number not in found.bad:
            if part.problem:
                raise _changed(source)
            names.add(part)
            yield part
        number += part.ends
    if names.key != found.key:
        raise _changed(source)


def _read(source: Source, max_bad: int) -> Scan:
    number = documents = characters = length = parts = 0
    least, names = 1.0, _Names()
    lengths: list[int] = []
    long: dict[int, float] = {}
    bad: dict[int, str] = {}
    with bar(f"reading {source.name}", total=None) as advance:
        for part in source.parts():
            length += len(part.text)
            parts += 1
            advance(len(part.text))
            if not part.problem:
                names.add(part)
            if not part.ends:
                continue
            if part.problem:
                names.drop()
                bad[number] = part.problem
                if len(bad) > max_bad:
                    raise _too_many(list(bad.values()), max_bad)
            else:
                least = min(least, names.last)
                documents += 1
                characters += length
                if documents <= FEW:
                    lengths.append(length)
                if parts > 1:
                    long[number] = names.last
            number += 1
            length = parts = 0
    return Scan(
        key=names.key,
        documents=documents,
        characters=characters,
        least=least,
        lengths=lengths if documents < FEW else [],
        long=long,
        bad=bad,
    )


class _Names:
    """SHA-256 of each document, and of all of them in order."""

    def __init__(self) -> None:
        self.all = hashlib.sha256()
        self.one = hashlib.sha256()
        self.last = 0.0

    def add(self, part: Part) -> None:
        self.one.update(part.text.encode())
        if part.ends:
            digest = self.one.digest()
            self.last = place(digest)
            self.all.update(digest)
            self.drop()

    def drop(self) -> None:
        self.one = hashlib.sha256()

    @property
    def key(self) -> str:
        return self.all.hexdigest()


def _too_many(problems: list[str], max_bad: int) -> ConfigError:
    return ConfigError(
        f"{problems[-1]} (bad document number {len(problems)}, `data.max_bad` {max_bad}: repair "
        "it, or leave up to N such documents out with `data.max_bad=N`)"
    )


def _changed(source: Source) -> ConfigError:
    return ConfigError(f"{source.name} has changed while it was being read; start again")


def _file(folder: Path, signature: str) -> Path:
    return folder / f"scan-{_FORMAT}-{signature[:32]}.json"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known(folder: Path | None, signature: str | None) -> Scan | None:
    """What an earlier reading found."""
    if folder is None or signature is None or not _file(folder, signature).is_file():
        return None
    line = _file(folder, signature).read_text(encoding="utf-8", errors="replace")
    sha256, _, content = line.removesuffix("\n").partition(" ")
    if sha256 != _sha256(content):
        logger.warning("%s is damaged: the text is read again", _file(folder, signature))
        return None
    told = json.loads(content)
    for name in ("long", "bad"):
        told[name] = {int(number): value for number, value in told[name].items()}
    return Scan(**told)
