"""Token texts that are safe to show in a terminal or a page."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Protocol

#: what a part of a UTF-8 character decodes to
BROKEN = "\N{REPLACEMENT CHARACTER}"
#: stands for a token without text, such as the end of a text
EMPTY = "▫"
#: most tokens that make one character: its bytes
LONGEST = 4

_SHOWN = {"\n": "↵", "\t": "⇥", "\r": "␍", "\x7f": "␡"}


class Decodes(Protocol):
    """Protocol of the tokenizer for the demos."""

    def decode(self, ids: list[int], /) -> str:
        """Decode token ids."""
        ...


def printable(text: str) -> str:
    """Make every control, format and lone surrogate character of a text visible.

    A newline becomes ``↵``, other control characters their pictures (``␛`` for escape), characters
    that steer the direction or joining of text ``·``. What is left cannot move a cursor, colour a
    terminal or reorder a line.
    """
    return "".join(map(_printable, text))


def _printable(character: str) -> str:
    """Make one character visible (see `printable`)."""
    if character in _SHOWN:
        return _SHOWN[character]
    category = unicodedata.category(character)
    if category == "Cc":
        return chr(0x2400 + ord(character)) if ord(character) < 0x20 else "·"
    if category == "Cs":
        return BROKEN
    return "·" if category in {"Cf", "Zl", "Zp"} else character


class TokenTexts:
    """The text of single tokens, each decoded once."""

    def __init__(self, tokenizer: Decodes) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        """Text of a single token (part of a character may decode to ``�``)."""
        if token not in self._known:
            self._known[token] = self._tokenizer.decode([token])
        return self._known[token]

    def broken(self, token: int) -> bool:
        """Whether the token is, or holds, a part of a UTF-8 character."""
        return BROKEN in self(token)

    def whole(self, tokens: Sequence[int]) -> str | None:
        """Text of tokens that form whole characters only together; None if they do not."""
        if not all(map(self.broken, tokens)):
            return None
        text = self._tokenizer.decode(list(tokens))
        return None if BROKEN in text else text

    def line(self, tokens: Sequence[int], empty: str = "") -> list[str]:
        """Text of each token; tokens that form one character together have it at the first.

        Args:
            tokens: in order.
            empty: for tokens without text.
        """
        texts: list[str] = []
        while len(texts) < len(tokens):
            start = len(texts)
            texts.append(self(tokens[start]) or empty)
            if not self.broken(tokens[start]):
                continue
            for n in range(2, LONGEST + 1):
                run = tokens[start : start + n]
                whole = self.whole(run) if len(run) == n else None
                if whole is not None:
                    texts[start:] = [whole, *[""] * (n - 1)]
                    break
        return texts
