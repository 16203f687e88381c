"""Scan of a source: counts, malformed documents, and the key of its contents."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sddlm.data.sources import Source, TextChunk
from sddlm.errors import ConfigError
from sddlm.io import atomic_write
from sddlm.progress import bar

logger = logging.getLogger(__name__)

FEW = 20  # with fewer documents, each is cut instead of choosing among them
_SHOWN = 10  # malformed documents that are logged individually
_FORMAT = 2  # of the file; count up when the same source would give other figures


@dataclass(frozen=True)
class Scan:
    """Result of scanning a source; its size does not grow with the source.

    Attributes:
        key: SHA-256 (hex) of the documents, in order.
        documents: number of valid documents.
        characters: number of their characters.
        least: the smallest `hash_fraction` of a document.
        lengths: characters of each document, if there are fewer than `FEW`.
        long: index of each document in several chunks, and its `hash_fraction`, since its split
        must
            be known before its end.
        bad: index and problem of each document that is left out; indices count these too.
    """

    key: str
    documents: int
    characters: int
    least: float
    lengths: list[int] = field(default_factory=list)
    long: dict[int, float] = field(default_factory=dict)
    bad: dict[int, str] = field(default_factory=dict)


def hash_fraction(digest: bytes) -> float:
    """Map a document's SHA-256 to [0, 1), so that its split depends on its text alone."""
    return int.from_bytes(digest[:6], "big") / 2**48


def scan(source: Source, max_errors: int = 0, *, remember: Path | None = None) -> Scan:
    """Scan a source, or load an earlier scan from the cache.

    Args:
        source: the source.
        max_errors: largest number of malformed documents, which are logged and left out.
        remember: cache folder, for sources with a `Source.signature`.

    Raises:
        ConfigError: more malformed documents than ``max_errors``, or no valid one.
    """
    signature = source.signature() if remember else None
    known = _known(remember, signature)
    found = known or _read(source, max_errors)
    if len(found.bad) > max_errors:
        raise _too_many(list(found.bad.values()), max_errors)
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


def remembered(source: Source, max_errors: int = 0, *, remember: Path | None = None) -> Scan:
    """Load an earlier `scan` of the source, without reading it.

    Raises:
        ConfigError: there was none, or the source may have changed since.
    """
    found = _known(remember, source.signature())
    if found is None or len(found.bad) > max_errors:
        raise ConfigError(f"{source.name} has not been read before; see sddlm prepare")
    return found


def valid_documents(source: Source, found: Scan) -> Iterator[TextChunk]:
    """Iterate over the valid documents of a source, and verify that they are the scanned ones.

    Raises:
        ConfigError: the source has changed since the scan.
    """
    number, names = 0, _Names()
    for chunk in source.chunks():
        if number not in found.bad:
            if chunk.problem:
                raise _changed(source)
            names.add(chunk)
            yield chunk
        number += chunk.is_last
    if names.key != found.key:
        raise _changed(source)


def _read(source: Source, max_errors: int) -> Scan:
    number = documents = characters = length = parts = 0
    least, names = 1.0, _Names()
    lengths: list[int] = []
    long: dict[int, float] = {}
    bad: dict[int, str] = {}
    with bar(f"reading {source.name}", total=None) as advance:
        for chunk in source.chunks():
            length += len(chunk.text)
            parts += 1
            advance(len(chunk.text))
            if not chunk.problem:
                names.add(chunk)
            if not chunk.is_last:
                continue
            if chunk.problem:
                names.drop()
                bad[number] = chunk.problem
                if len(bad) > max_errors:
                    raise _too_many(list(bad.values()), max_errors)
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
    """Running SHA-256 of each document, and of all in order."""

    def __init__(self) -> None:
        self.all = hashlib.sha256()
        self.one = hashlib.sha256()
        self.last = 0.0

    def add(self, chunk: TextChunk) -> None:
        self.one.update(chunk.text.encode())
        if chunk.is_last:
            digest = self.one.digest()
            self.last = hash_fraction(digest)
            self.all.update(digest)
            self.drop()

    def drop(self) -> None:
        self.one = hashlib.sha256()

    @property
    def key(self) -> str:
        return self.all.hexdigest()


def _too_many(problems: list[str], max_errors: int) -> ConfigError:
    return ConfigError(
        f"{problems[-1]} (bad document number {len(problems)}, `data.max_errors` {max_errors}: "
        "repair it, or leave up to N such documents out with `data.max_errors=N`)"
    )


def _changed(source: Source) -> ConfigError:
    return ConfigError(f"{source.name} has changed while it was being read; start again")


def _file(folder: Path, signature: str) -> Path:
    return folder / f"scan-{_FORMAT}-{signature[:32]}.json"


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _known(folder: Path | None, signature: str | None) -> Scan | None:
    """Load an earlier scan from the cache, or None."""
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
