"""Drafts: text to tokens and back, so that what is not changed stays as it was typed.

Decoding what was encoded need not give the text again (BERT's tokenizers lose capitals and spaces),
so a corrected text is the draft with the changed places replaced.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError

#: what a part of a UTF-8 character decodes to
_BROKEN = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Change:
    """A place where a text was changed.

    Attributes:
        start: its first character in the draft.
        end: the character behind it.
        old: what stood there.
        new: what stands there now.
    """

    start: int
    end: int
    old: str
    new: str


@dataclass(frozen=True)
class Unit:
    """Tokens that can only be replaced together, as those of one UTF-8 character.

    Attributes:
        first: the first of them.
        stop: the one behind.
        gap: where their place begins: behind the unit before.
        start: their first character; what lies between, if anything, is space without a token.
        end: the character behind.
    """

    first: int
    stop: int
    gap: int
    start: int
    end: int


@dataclass(frozen=True)
class Draft:
    """A text with its tokens.

    Attributes:
        text: as it was typed.
        tokens: of it.
        units: what they stand for, in order.
        tokenizer: made them.
    """

    text: str
    tokens: list[int]
    units: list[Unit]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, text: str, tokenizer: Tokenizer, source: str) -> Draft:
        """The draft of a text.

        Args:
            text: as it was typed.
            tokenizer: of the model.
            source: where the text comes from, for messages.

        Raises:
            ConfigError: if there is nothing in it, or the tokenizer has no token for a character.
        """
        ids, offsets = _encode(text, tokenizer, source)
        units: list[Unit] = []
        for i, (start, end) in enumerate(offsets):
            last = units[-1] if units else Unit(0, 0, 0, 0, 0)
            if units and start < last.end:
                units[-1] = Unit(last.first, i + 1, last.gap, last.start, max(last.end, end))
            else:
                units.append(Unit(i, i + 1, last.end, start, max(start, end)))
        draft = cls(text, ids, units, tokenizer)
        draft._check(source)
        return draft

    def _check(self, source: str) -> None:
        if not self.tokens:
            raise ConfigError(f"{source} has no text: give some to correct")
        unknown = [
            self.text[unit.start : unit.end]
            for unit in self.units
            if set(self.tokens[unit.first : unit.stop]) & set(self.tokenizer.not_sampled)
        ]
        if unknown:
            shown = ", ".join(map(repr, list(dict.fromkeys(unknown))[:5]))
            raise ConfigError(
                f"{source}: the model's tokenizer does not know {shown}; write it in characters "
                "that the training text has"
            )

    def protected(self, patterns: Sequence[re.Pattern[str]]) -> list[bool]:
        """Which tokens overlap what one of the patterns matches, or are line ends of Windows.

        Few models have seen those, and would replace them all.
        """
        covered = bytearray(len(self.text))
        for pattern in patterns:
            for found in pattern.finditer(self.text):
                covered[found.start() : found.end()] = b"\1" * (found.end() - found.start())
        known = [False] * len(self.tokens)
        for unit in self.units:
            if any(covered[unit.gap : unit.end]) or "\r" in self.text[unit.start : unit.end]:
                known[unit.first : unit.stop] = [True] * (unit.stop - unit.first)
        return known

    def changes(self, tokens: Sequence[int]) -> list[Change]:
        """What replacing the tokens by others changes in the text.

        Tokens that make no whole UTF-8 character are no text; the draft stays as it is there.

        Args:
            tokens: as many.
        """
        found = []
        for first, last in self._runs(tokens):
            start, end = first.gap, last.end
            old, new = self.text[start:end], self._written(tokens, first, last)
            if new != old and (_BROKEN not in new or _BROKEN in old):
                found.append(_trimmed(Change(start, end, old, new)))
        return found

    def _runs(self, tokens: Sequence[int]) -> Iterator[tuple[Unit, Unit]]:
        """First and last unit of each run of units with a new token."""
        for changed, run in groupby(
            self.units,
            lambda unit: (
                list(tokens[unit.first : unit.stop]) != self.tokens[unit.first : unit.stop]
            ),
        ):
            units = list(run)
            if changed:
                yield units[0], units[-1]

    def _written(self, tokens: Sequence[int], first: Unit, last: Unit) -> str:
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
    """Without the spaces at the beginning that both have."""
    same = 0
    while change.old[same : same + 1].isspace() and change.new[same : same + 1] == change.old[same]:
        same += 1
    return Change(change.start + same, change.end, change.old[same:], change.new[same:])


def spliced(text: str, changes: Sequence[Change]) -> str:
    """The text with its changes, which are in order, made."""
    return "".join(new for _, new in pieces(text, changes))


def pieces(text: str, changes: Sequence[Change]) -> Iterator[tuple[str, str]]:
    """The old and new text of each part, those that stay and those that change in turn."""
    at = 0
    for change in changes:
        yield text[at : change.start], text[at : change.start]
        yield change.old, change.new
        at = change.end
    yield text[at:], text[at:]


def _encode(
    text: str, tokenizer: Tokenizer, source: str
) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokens, and the characters that each stands for."""
    try:
        ids = tokenizer.encode_batch([text])[0]
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    return ids, tokenizer.spans(text)
