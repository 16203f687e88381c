"""Differences of a draft and its correction: unchanged text stays verbatim.

Decoding what was encoded need not give the text again (BERT's tokenizers lose capitals and spaces),
so a corrected text is the draft with the changed places replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.text import Text

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, visible

#: decoding of a part of a UTF-8 character
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Change:
    """A replaced part of a text.

    Attributes:
        start: its first character in the draft.
        end: the character behind it.
        old: its text in the draft.
        new: the text in its place.
    """

    start: int
    end: int
    old: str
    new: str


@dataclass(frozen=True)
class TokenSpan:
    """Tokens that can only be replaced together, as those of one UTF-8 character.

    Attributes:
        first: the first token.
        stop: the token behind the last.
        gap: the character behind the span before; from there to ``start`` is space without a token.
        start: the first character.
        end: the character behind the last.
    """

    first: int
    stop: int
    gap: int
    start: int
    end: int


@dataclass(frozen=True)
class Draft:
    """A text and its tokens.

    Attributes:
        text: verbatim.
        tokens: its tokens.
        spans: their places in the text, in order.
        tokenizer: of the model.
    """

    text: str
    tokens: list[int]
    spans: list[TokenSpan]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, source: str) -> Draft:
        """Encode a text.

        Args:
            text: verbatim.
            tokenizer: of the model.
            source: names the text in messages.

        Raises:
            ConfigError: the text is empty, or the tokenizer has no token for a character.
        """
        ids, offsets = _encode(text, tokenizer, source)
        spans: list[TokenSpan] = []
        for i, (start, end) in enumerate(offsets):
            last = spans[-1] if spans else TokenSpan(0, 0, 0, 0, 0)
            if spans and start < last.end:
                spans[-1] = TokenSpan(last.first, i + 1, last.gap, last.start, max(last.end, end))
            else:
                spans.append(TokenSpan(i, i + 1, last.end, start, max(start, end)))
        draft = cls(text, ids, spans, tokenizer)
        draft._check(source)
        return draft

    def _check(self, source: str) -> None:
        if not self.tokens:
            raise ConfigError(f"{source} has no text: give some to correct")
        unknown = [
            self.text[span.start : span.end]
            for span in self.spans
            if set(self.tokens[span.first : span.stop]) & set(self.tokenizer.not_sampled)
        ]
        if unknown:
            shown = ", ".join(map(repr, list(dict.fromkeys(unknown))[:5]))
            raise ConfigError(
                f"{source}: the model's tokenizer does not know {shown}; write it in characters "
                "that the training text has"
            )

    def protected(self, patterns: Sequence[re.Pattern[str]]) -> list[bool]:
        """Which tokens overlap a match of one of the patterns, or are line ends of Windows.

        Few models have seen such line ends, and would replace them all.
        """
        covered = bytearray(len(self.text))
        for pattern in patterns:
            for found in pattern.finditer(self.text):
                covered[found.start() : found.end()] = b"\1" * (found.end() - found.start())
        known = [False] * len(self.tokens)
        for span in self.spans:
            if any(covered[span.gap : span.end]) or "\r" in self.text[span.start : span.end]:
                known[span.first : span.stop] = [True] * (span.stop - span.first)
        return known

    def changes(self, tokens: Sequence[int]) -> list[Change]:
        """Changes of the text when its tokens are replaced by others.

        Tokens that decode to no whole UTF-8 character leave the draft unchanged there.

        Args:
            tokens: one for each token of the draft.
        """
        found = []
        for first, last in self._runs(tokens):
            start, end = first.gap, last.end
            old, new = self.text[start:end], self._written(tokens, first, last)
            if new != old and (_BROKEN not in new or _BROKEN in old):
                found.append(_trimmed(Change(start, end, old, new)))
        return found

    def _runs(self, tokens: Sequence[int]) -> Iterator[tuple[TokenSpan, TokenSpan]]:
        """First and last span of each run of spans with a new token."""
        for changed, run in groupby(
            self.spans,
            lambda span: (
                list(tokens[span.first : span.stop]) != self.tokens[span.first : span.stop]
            ),
        ):
            spans = list(run)
            if changed:
                yield spans[0], spans[-1]

    def _written(self, tokens: Sequence[int], first: TokenSpan, last: TokenSpan) -> str:
        """The text of a run of new tokens behind the token before, with the space of the draft."""
        decode = self.tokenizer.decode
        left = list(tokens[first.first - 1 : first.first]) if first.first else []
        before, whole = decode(left), decode([*left, *tokens[first.first : last.stop]])
        new = whole[len(before) :] if whole.startswith(before) else whole
        gap = self.text[first.gap : first.start]
        if gap and (new.startswith(" ") or not left):
            return gap + new.removeprefix(" ")
        return new


def _trimmed(change: Change) -> Change:
    """The change without common spaces at its beginning."""
    same = 0
    while change.old[same : same + 1].isspace() and change.new[same : same + 1] == change.old[same]:
        same += 1
    return Change(change.start + same, change.end, change.old[same:], change.new[same:])


def apply_changes(text: str, changes: Sequence[Change]) -> str:
    """The text after its changes, which are in order."""
    return "".join(new for _, new in pieces(text, changes))


def pieces(text: str, changes: Sequence[Change]) -> Iterator[tuple[str, str]]:
    """Old and new text of each part; unchanged and changed parts alternate."""
    at = 0
    for change in changes:
        yield text[at : change.start], text[at : change.start]
        yield change.old, change.new
        at = change.end
    yield text[at:], text[at:]


def _encode(
    text: str, tokenizer: Tokenizer, source: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens, and first and last character of each."""
    try:
        ids = tokenizer.encode_batch([text])[0]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return ids, tokenizer.spans(text)


def rendered(text: str, changes: Sequence[Change], *, colour: bool) -> Text:
    """The draft with deleted text in red and inserted text in green, safe on a terminal.

    Args:
        text: the draft.
        changes: in order.
        colour: without it they are ``[-deleted-]`` and ``{+inserted+}``.
    """
    shown = Text()
    for old, new in pieces(text, changes):
        if old == new:
            shown.append(visible(old))
            continue
        for part, style, marks in ((old, "strike red", "[--]"), (new, "underline green", "{++}")):
            if part:
                marked = f"{marks[:2]}{visible(part)}{marks[2:]}"
                shown.append(visible(part) if colour else marked, style)
    return shown
