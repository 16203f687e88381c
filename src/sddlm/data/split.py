"""Scan of a source, and the split of its documents into training and validation."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sddlm.data.documents import cut_near
from sddlm.data.sources import Source
from sddlm.errors import ConfigError
from sddlm.io import atomic_write
from sddlm.progress import bar

logger = logging.getLogger(__name__)

_FEW = 20  # with fewer documents, each is cut instead of choosing among them
_SHOWN = 10  # malformed documents that are logged individually
_FORMAT = 3  # of the file; count up when the same source would give other figures


@dataclass(frozen=True)
class Scan:
    """Result of scanning a source; its size does not grow with the source.

    Attributes:
        key: SHA-256 (hex) of the documents, in order.
        documents: number of valid documents.
        characters: number of their characters.
        least: the smallest `hash_fraction` of a document.
        bad: index and problem of each document that is left out; indices count these too.
    """

    key: str
    documents: int
    characters: int
    least: float
    bad: dict[int, str] = field(default_factory=dict)


def hash_fraction(digest: bytes) -> float:
    """Map a document's SHA-256 to [0, 1), so that its split depends on its text alone."""
    return int.from_bytes(digest[:6], "big") / 2**48


def sha256(text: str) -> bytes:
    """SHA-256 of a document."""
    return hashlib.sha256(text.encode()).digest()


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
            file.write(f"{sha256(content).hex()} {content}\n")
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


def valid_documents(source: Source, found: Scan) -> Iterator[str]:
    """Iterate over the valid documents of a source, and verify that they are the scanned ones.

    Raises:
        ConfigError: the source has changed since the scan.
    """
    key = hashlib.sha256()
    for number, document in enumerate(source.read()):
        if number not in found.bad:
            if document.problem:
                raise _changed(source)
            key.update(sha256(document.text))
            yield document.text
    if key.hexdigest() != found.key:
        raise _changed(source)


def _read(source: Source, max_errors: int) -> Scan:
    documents = characters = 0
    least, key = 1.0, hashlib.sha256()
    bad: dict[int, str] = {}
    with bar(f"reading {source.name}", total=None) as advance:
        for number, document in enumerate(source.read()):
            advance(len(document.text))
            if document.problem:
                bad[number] = document.problem
                if len(bad) > max_errors:
                    raise _too_many(list(bad.values()), max_errors)
                continue
            digest = sha256(document.text)
            key.update(digest)
            least = min(least, hash_fraction(digest))
            documents += 1
            characters += len(document.text)
    if not documents:
        raise ConfigError(
            f"no documents in {source.name}: nothing but white space; give `data.path` text"
        )
    return Scan(key.hexdigest(), documents, characters, least, bad)


def _too_many(problems: list[str], max_errors: int) -> ConfigError:
    return ConfigError(
        f"{problems[-1]} (bad document number {len(problems)}, `data.max_errors` {max_errors}: "
        "repair it, or leave up to N such documents out with `data.max_errors=N`)"
    )


def _changed(source: Source) -> ConfigError:
    return ConfigError(f"{source.name} has changed while it was being read; start again")


def _file(folder: Path, signature: str) -> Path:
    return folder / f"scan-{_FORMAT}-{signature[:32]}.json"


def _known(folder: Path | None, signature: str | None) -> Scan | None:
    """Load an earlier scan from the cache, or None."""
    if folder is None or signature is None or not _file(folder, signature).is_file():
        return None
    line = _file(folder, signature).read_text(encoding="utf-8", errors="replace")
    checksum, _, content = line.removesuffix("\n").partition(" ")
    if checksum != sha256(content).hex():
        logger.warning("%s is damaged: the text is read again", _file(folder, signature))
        return None
    known = json.loads(content)
    known["bad"] = {int(number): problem for number, problem in known["bad"].items()}
    return Scan(**known)


# ------------------------------------------------------------------ the split


@dataclass(frozen=True)
class Split:
    """Rule that selects the validation documents.

    A whole ``held_out`` of 1 or more selects that number of documents at the end. A share in (0, 1)
    selects documents by the SHA-256 of their text alone, so the same document is never in both
    splits, whatever the order. If it selects none, the document with the smallest hash is selected.
    With fewer than 20 documents the last ``share`` of each is held out instead, cut after a line
    end or a blank if one is near.

    Attributes:
        held_out: the share or the number.
        scan: scan of the documents.
    """

    held_out: float
    scan: Scan

    def __str__(self) -> str:
        return f"{self.held_out:g}"

    def assign(self, texts: Iterable[str]) -> Iterator[tuple[str, str]]:
        """Assign each document to ``train`` or ``validation``, in the given order.

        Args:
            texts: the valid documents (`valid_documents`).
        """
        if self.held_out >= 1:
            first = self.scan.documents - int(self.held_out)
            for number, text in enumerate(texts):
                yield ("train" if number < first else "validation"), text
        elif self.scan.documents >= _FEW:
            limit = max(self.held_out, self.scan.least)
            for text in texts:
                yield ("train" if hash_fraction(sha256(text)) > limit else "validation"), text
        else:
            for text in texts:
                at = cut_near(text, round(len(text) * (1 - self.held_out)))
                if at:
                    yield "train", text[:at]
                if text[at:]:
                    yield "validation", text[at:]
