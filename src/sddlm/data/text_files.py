"""Reader of text files of any size, in chunks."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from sddlm.data import pieces
from sddlm.data.pieces import TextChunk, first_cut
from sddlm.data.streams import Input, chunks, texts
from sddlm.data.tokenizers import END_OF_TEXT

_WRONG = re.compile("[\0\udc80-\udcff]")  # NUL, and what `texts` makes of bytes that are no UTF-8


def text(file: Input, field: str, separator: str | None) -> Iterator[TextChunk]:
    r"""Read the documents of a text file, holding one chunk at a time.

    Args:
        file: UTF-8; ``\r\n`` and ``\r`` are line ends like ``\n``.
        field: not used here.
        separator: what stands between two documents, taken literally; None is ``<|endoftext|>``.
    """
    mark = (separator or END_OF_TEXT).replace("\r\n", "\n").replace("\r", "\n")
    line = 1
    document = _Document(file.name)
    for piece, ends in _split(texts(chunks(file)), mark):
        yield from document.add(piece, ends, line)
        line += piece.count("\n")
        if ends:
            line += mark.count("\n")
            document = _Document(file.name)


class _Document:
    """State of a document that is being read."""

    __slots__ = ("_begun", "_blank", "_held", "_name", "_spoilt")

    def __init__(self, name: str) -> None:
        self._name = name
        self._held = ""  # what was read and not handed on
        self._begun = False  # a part was handed on
        self._blank = True  # that was nothing but white space
        self._spoilt = False  # the problem was handed on

    def add(self, text: str, ends: bool, line: int) -> Iterator[TextChunk]:
        """Add text that begins at ``line``; yield the chunks that are complete."""
        if self._spoilt:
            return
        problem = wrong_characters(text, line)
        if problem:
            self._spoilt = True
            yield self._problem(*problem)
            return
        self._held += text
        if len(self._held) > pieces.MIN_CHUNK:
            yield from self._parts()
        if ends:
            yield from self._last(line)

    def _parts(self) -> Iterator[TextChunk]:
        start = 0
        while end := first_cut(self._held, start, pieces.MIN_CHUNK, pieces.MAX_CHUNK):
            part = self._held[start:end]
            self._begun = True
            self._blank = self._blank and part.isspace()
            yield TextChunk(part, is_last=False)
            start = end
        self._held = self._held[start:]

    def _last(self, line: int) -> Iterator[TextChunk]:
        if not self._blank or (self._held and not self._held.isspace()):
            yield TextChunk(self._held)
        elif self._begun:  # too much white space to wait for its end
            what = (
                f"the document that ends here is more than {pieces.MAX_CHUNK} blanks and line ends"
            )
            yield self._problem(line, f"{what}; remove them")

    def _problem(self, line: int, what: str) -> TextChunk:
        return TextChunk("", True, f"{self._name}, line {line}: {what}")


def wrong_characters(text: str, line: int = 1) -> tuple[int, str] | None:
    """Find the first invalid character: its line, and the problem; None if there is none.

    Args:
        text: text from ``streams.texts``.
        line: line of the first character.
    """
    if "\0" not in text and (text.isascii() or _encodes(text)):
        return None
    place = _WRONG.search(text)
    if place is None:
        raise ValueError("a surrogate that stands for no byte: this text is not from `texts`")
    line += text.count("\n", 0, place.start())
    if place[0] == "\0":
        return line, "a NUL byte, which no text holds; convert the file to UTF-8, or leave it out"
    return line, (
        f"not UTF-8 (byte 0x{ord(place[0]) - 0xDC00:02x}); convert the file, for example: "
        "iconv -f LATIN1 -t UTF-8"
    )


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _split(texts: Iterable[str], mark: str) -> Iterator[tuple[str, bool]]:
    """Stream ``"".join(texts).split(mark)`` in pieces, each with whether its document ends."""
    rest = ""
    for text in texts:
        *whole, rest = (rest + text).split(mark)
        for document in whole:
            yield document, True
        ready = max(0, len(rest) - len(mark) + 1)  # behind it the mark may have begun
        yield rest[:ready], False
        rest = rest[ready:]
    yield rest, True
