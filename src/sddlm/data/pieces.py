"""Splitting long texts into chunks that tokenise independently."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MIN_CHUNK = 1 << 20  # least number of characters of a chunk
MAX_CHUNK = 1 << 22  # largest number: longer words are cut anywhere

_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")  # before a lone blank no byte-level word can end elsewhere


class TextChunk(NamedTuple):
    """A chunk of a document.

    Long documents come in several chunks, whose concatenation is the document.

    Attributes:
        text: characters; empty if there is a problem.
        is_last: whether the document ends with this chunk.
        problem: what is wrong with the document that ends here, with file and line. The document
            must not be used, nor its earlier chunks.
    """

    text: str
    is_last: bool = True
    problem: str = ""


def cut(text: str, size: int, longest: int = 1 << 60) -> Iterator[str]:
    """Cut a text into pieces of at least ``size`` characters, and a rest.

    A piece ends before a lone blank or line end between two other characters: there the words of a
    byte-level tokenizer end as well, so the ids of the pieces are the ids of the text.

    Args:
        text: the text.
        size: least number of characters of a piece.
        longest: largest number of characters; a piece is cut there without a better position.
    """
    start = 0
    while end := first_cut(text, start, size, longest):
        yield text[start:end]
        start = end
    yield text[start:]


def first_cut(text: str, start: int, size: int, longest: int) -> int:
    """End of the piece that begins at ``start``; 0 if the text is too short to decide."""
    # two more characters, so that later text cannot change the result
    place = _CUT.search(text, start + size, min(start + longest + 2, len(text)))
    if place:
        return place.start()
    return start + longest if len(text) >= start + longest + 2 else 0


def text_chunks(text: str) -> Iterator[TextChunk]:
    """Split a whole document into chunks."""
    if len(text) <= MIN_CHUNK:
        yield TextChunk(text)
        return
    *head, last = cut(text, MIN_CHUNK, MAX_CHUNK)
    yield from (TextChunk(piece, is_last=False) for piece in head)
    yield TextChunk(last)
