"""Long texts in pieces that lose nothing: where to cut, and what a reader hands on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

PART = 1 << 20  # characters of a part, at least
LONGEST = 1 << 22  # characters of a part, at most: longer words are cut anywhere

_CUT = re.compile(r"(?<=\S)(?=[ \n]\S)")  # before a lone blank no byte-level word can end elsewhere


class Part(NamedTuple):
    """A piece of a document.

    Long documents come in several parts, whose texts one after another are the document.

    Attributes:
        text: characters; nothing where there is a problem.
        ends: the document ends with this part.
        problem: what is wrong with the document that ends here, with file and line. The document
            is not to be used, nor are the parts of it that came before.
    """

    text: str
    ends: bool = True
    problem: str = ""


def cut(text: str, size: int, longest: int = 1 << 60) -> Iterator[str]:
    """``text`` in pieces of at least ``size`` characters, and whatever is left.

    A piece ends before a lone blank or line end between two other characters: there the words of a
    byte-level tokenizer end as well, so the ids of the pieces are the ids of the text.

    Args:
        text: what to cut.
        size: characters of a piece, at least.
        longest: characters of a piece, at most. It is cut there if there is no better place.
    """
    start = 0
    while end := first_cut(text, start, size, longest):
        yield text[start:end]
        start = end
    yield text[start:]


def first_cut(text: str, start: int, size: int, longest: int) -> int:
    """Where the piece that begins at ``start`` ends; 0 if the text is too short to tell."""
    # two more characters, so that what follows later cannot change the answer
    place = _CUT.search(text, start + size, min(start + longest + 2, len(text)))
    if place:
        return place.start()
    return start + longest if len(text) >= start + longest + 2 else 0


def parts(text: str) -> Iterator[Part]:
    """A whole document as parts."""
    if len(text) <= PART:
        yield Part(text)
        return
    *head, last = cut(text, PART, LONGEST)
    yield from (Part(piece, ends=False) for piece in head)
    yield Part(last)
