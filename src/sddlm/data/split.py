"""Scan of a source, and the split of its documents into training and validation."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sddlm.data.cache import build_once, damage
from sddlm.data.documents import cut_near
from sddlm.data.sources import Source
from sddlm.errors import ConfigError
from sddlm.progress import bar

logger = logging.getLogger(__name__)

FEW = 20  # with fewer documents, each is cut instead of choosing among them
_SHOWN = 10  # malformed documents that are logged individually
_FORMAT = 4  # of the file; count up when the same source would give other figures


# ------------------------------------------------------------------ one reading


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


def _sha256(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


def scan(source: Source, max_errors: int = 0, *, cache: Path | None = None) -> Scan:
    """Scan a source, or load an earlier scan from the cache.

    Args:
        source: the source.
        max_errors: largest number of malformed documents, which are logged and left out.
        cache: cache folder, for sources with a `Source.signature`.

    Raises:
        ConfigError: more malformed documents than ``max_errors``, or no valid one.
    """
    folder = _folder(source, cache)  # before it is read, as it may change meanwhile
    if folder is None:
        found = _read(source, max_errors)
    else:
        with build_once(folder) as temporary:
            if temporary is not None:
                content = json.dumps(asdict(_read(source, max_errors)))
                (temporary / "scan.json").write_text(content, encoding="utf-8")
        found = _loaded(folder)
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
    return found


def _folder(source: Source, cache: Path | None) -> Path | None:
    """Folder of the scan of a source in the cache; None if only reading it finds a change."""
    signature = source.signature() if cache else None
    return cache / f"scan-{_FORMAT}-{signature[:32]}" if cache and signature else None


def remembered(source: Source, cache: Path) -> Scan | None:
    """Load an earlier `scan` of the source, without reading it; None if it may have changed."""
    folder = _folder(source, cache)
    return None if folder is None or damage(folder) else _loaded(folder)


def _loaded(folder: Path) -> Scan:
    known = json.loads((folder / "scan.json").read_text(encoding="utf-8"))
    return Scan(**known | {"bad": {int(n): problem for n, problem in known["bad"].items()}})


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
            digest = _sha256(document.text)
            key.update(digest)
            least = min(least, hash_fraction(digest))
            documents += 1
            characters += len(document.text)
    if not documents:
        why = f"{len(bad)} with problems; {bad[0]}" if bad else "nothing but white space"
        raise ConfigError(f"no documents in {source.name}: {why}; give `data.path` text")
    return Scan(key.hexdigest(), documents, characters, least, bad)


def _too_many(problems: list[str], max_errors: int) -> ConfigError:
    return ConfigError(
        f"{problems[-1]} (bad document number {len(problems)}, `data.max_errors` {max_errors}: "
        "repair it, or leave up to N such documents out with `data.max_errors=N`)"
    )


def valid_documents(source: Source, found: Scan) -> Iterator[str]:
    """Iterate over the valid documents of a source, and verify that they are the scanned ones.

    Raises:
        ConfigError: the source has changed since the scan.
    """
    key, changed = hashlib.sha256(), f"{source.name} has changed while it was being read"
    for number, document in enumerate(source.read()):
        if number not in found.bad:
            if document.problem:
                raise ConfigError(f"{changed}; start again")
            key.update(_sha256(document.text))
            yield document.text
    if key.hexdigest() != found.key:
        raise ConfigError(f"{changed}; start again")


# ------------------------------------------------------------------ the split


def assign(texts: Iterable[str], held_out: float, found: Scan) -> Iterator[tuple[str, str]]:
    """Assign each document to ``train`` or ``validation``, in the given order.

    A whole ``held_out`` of 1 or more selects that number of documents at the end for validation. A
    share in (0, 1) selects documents by the SHA-256 of their text alone, so the same document is
    never in both splits, whatever the order. If it selects none, the document with the smallest
    hash is selected. With fewer than 20 documents the last ``share`` of each is held out instead,
    cut after a line end or a blank if one is near.

    Args:
        texts: the valid documents (`valid_documents`).
        held_out: the share or the number.
        found: scan of the documents.
    """
    if held_out >= 1:
        first = found.documents - int(held_out)
        for number, text in enumerate(texts):
            yield ("train" if number < first else "validation"), text
    elif found.documents >= FEW:
        limit = max(held_out, found.least)
        for text in texts:
            yield ("train" if hash_fraction(_sha256(text)) > limit else "validation"), text
    else:
        for text in texts:
            at = cut_near(text, round(len(text) * (1 - held_out)))
            if at:
                yield "train", text[:at]
            if text[at:]:
                yield "validation", text[at:]
