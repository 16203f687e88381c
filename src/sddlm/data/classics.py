"""The corpus ``classics``: sixteen English children's books, which come with this package.

They are in the public domain: by Lewis Carroll, Robert Louis Stevenson, Mark Twain, Oscar Wilde,
L. Frank Baum, E. Nesbit, Frances Hodgson Burnett and Kenneth Grahame, published 1865 to 1911.
``classics.jsonl.xz`` has one line a book: title, author, year, and text with a paragraph a line.
"""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sddlm.data.cache import digest
from sddlm.data.documents import Document
from sddlm.data.sources import Source
from sddlm.io import sha256

_FILE = Path(__file__).with_name("classics.jsonl.xz")
#: least number of characters of a document, unless the book ends
_PASSAGE = 400


class Classics(Source):
    """The books as passages: the fewest whole paragraphs that have 400 characters together.

    Short documents, so that a small model sees many beginnings and ends of a text.
    """

    name = "classics"

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        for book in books():
            passage: list[str] = []
            for paragraph in book["text"].split("\n"):
                passage.append(paragraph)
                if sum(map(len, passage)) >= _PASSAGE:
                    yield Document("\n".join(passage))
                    passage = []
            if passage:
                yield Document("\n".join(passage))

    def signature(self) -> str:
        """See `Source.signature`."""
        return digest("classics", _PASSAGE, sha256(_FILE))


def books() -> Iterator[dict[str, Any]]:
    """Iterate over the books: ``title``, ``author``, ``year``, ``text``."""
    with lzma.open(_FILE, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)
