"""Detokenizers: ordinary text from corpora that are distributed as words or lines.

The old benchmarks hold ``the lobster , known as " red "``; a model of today reads ``the lobster,
known as "red"``. Published perplexities of such corpora are those of the text after one of these
tables, so the tables keep even the oddities of the convention: they are marked below. The rules are
applied in their order, each to the whole document.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Literal, NamedTuple

from sddlm.data.documents import Document
from sddlm.errors import ConfigError


class Rule(NamedTuple):
    """One replacement.

    Attributes:
        find: what to look for.
        put: what to put in its place; for a ``pattern`` with its groups.
        kind: ``text``: taken literally, from left to right, a blank that one place has used is not
            there for the next; ``pattern``: a regular expression; ``inside``: ``find`` is an
            opening and a closing sign, and blanks and line ends next to them go.
    """

    find: str
    put: str
    kind: Literal["text", "pattern", "inside"] = "text"

    def __call__(self, text: str) -> str:
        """Apply the replacement."""
        if self.kind == "text":
            return text.replace(self.find, self.put)
        if self.kind == "pattern":
            return _compiled(self.find).sub(self.put, text)
        first, last = self.find[0], self.find[1]
        end = text.rfind(last) + 1  # behind it every opening sign would search to the end in vain
        pattern = _compiled(f"{re.escape(first)}[^{re.escape(last)}]*{re.escape(last)}")
        return pattern.sub(lambda m: first + m[0][1:-1].strip() + last, text[:end]) + text[end:]


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


@dataclass(frozen=True)
class Detokenizer:
    """Replacement rules for a whole document.

    Attributes:
        name: name in the table of corpora.
        rules: rules in order.
    """

    name: str
    rules: tuple[Rule, ...]

    def __call__(self, text: str) -> str:
        """Apply all rules to a document."""
        for rule in self.rules:
            text = rule(text)
        return text

    @property
    def tag(self) -> str:
        """Identifier of the rules, for the cache key."""
        return f"{self.name}-{hashlib.sha256(repr(self.rules).encode()).hexdigest()[:12]}"


def _loses_left_space(signs: str) -> tuple[Rule, ...]:
    """Rules that attach a sign between two blanks to the word on its left."""
    return tuple(Rule(f" {sign} ", f"{sign} ") for sign in signs)


def _inside(*pairs: str) -> tuple[Rule, ...]:
    return tuple(Rule(pair, "", "inside") for pair in pairs)


wikitext = Detokenizer(
    "wikitext",
    (
        # oddity: an opening quote behind a word in s moves too: "was ' so'" gets "was' so'"
        Rule("s '", "s'"),
        Rule(" @-@ ", "-"),
        Rule(" @,@ ", ","),
        Rule(" @.@ ", "."),
        *_loses_left_space(":;.!?,"),
        # oddity: quotes are paired by counting in the whole document, not by opening and closing:
        # one apostrophe ("didn 't") and the ' that follows are a pair
        *_inside("()", "[]", "{}", '""', "''"),
        Rule("= = = =", "===="),
        Rule("= = =", "==="),
        Rule("= =", "=="),
        Rule(" ° ", "°"),  # oddity: "6 ° from" becomes "6°from"
        Rule(" \n", "\n"),
        Rule("\n ", "\n"),
        Rule(" N ", " 1 "),  # oddity: a number in Penn Treebank, here a point of the compass
        Rule(" 's", "'s"),
    ),
)

ptb = Detokenizer(
    "ptb",
    (
        Rule(" 's", "'s"),
        Rule("s ' ", "s' "),
        Rule(" n't", "n't"),
        Rule(" \n ", "\n"),
        Rule("\\/", "/"),
        # N is any number. The convention replaces " N " ten times over, since neighbors share a
        # blank; two times do for any row of them, and so does once without taking the blanks.
        # Oddity: a number at either end of the document stays N
        Rule(r"(?<= )N(?= )", "1", "pattern"),
        Rule("$ 1", "$1"),
        Rule("# 1", "#1"),  # the pound sterling is written # there
        Rule("<unk>", "?"),
    ),
)

lm1b = Detokenizer(
    "lm1b",
    (
        Rule("http : / / ", "http://"),
        Rule("https : / / ", "https://"),
        Rule(r" '(\w+)", r"'\1", "pattern"),  # oddity: opening quotes without a blank move too
        # oddity: only behind a plain word: "profit" has its full stop moved, "non-profit" not
        Rule(r" (\w+) \. ", r" \1. ", "pattern"),
        Rule(r" (\w+) \.$", r" \1.", "pattern"),
        Rule(" ? ", "? "),
        Rule(r" \?$", "?", "pattern"),
        Rule(" ! ", "! "),
        Rule(r" !$", "!", "pattern"),
        *_loses_left_space(",:;"),
        Rule(" / ", "/"),
        # pairs by counting, as above, but only where both blanks are there
        Rule(r'" ([^"]+) "', r'"\1"', "pattern"),
        Rule(r"' ([^']+) '", r"'\1'", "pattern"),
        Rule(r"\( ([^()]+) \)", r"(\1)", "pattern"),
        Rule(r"\[ ([^\[\]]+) \]", r"[\1]", "pattern"),
        Rule("$ ", "$"),
        Rule("£ ", "£"),
    ),
)

lambada = Detokenizer(
    "lambada",
    (
        Rule("“", '"'),
        Rule("”", '"'),
        Rule(r"(?<!\s)\s+\Z", "", "pattern"),
        Rule(r"\A\s*", "\n", "pattern"),  # every passage begins with a line end
    ),
)

scientific_papers = Detokenizer("scientific_papers", wikitext.rules + lm1b.rules)


# ------------------------------------------------------------------ rows that are no documents

_TITLE = re.compile(r" = [^=].* = \n")
_BLANK = "is empty or blank"  # in the problem of a row without text: here a blank line
_TEXT8 = (90_000_000, 5_000_000)  # characters of a split


def articles(rows: Iterator[Document]) -> Iterator[Document]:
    r"""Articles of WikiText, from its lines.

    An article goes from one title (`` = Title = `` between two blank lines) to the next; sections
    have more signs (`` = = Section = = ``), and a table's legend (`` = Played , W = ``) has no
    blank lines around it. The rows on the hub are lines; an empty one becomes the line with a blank
    that it is in the original file, of which the articles are cut without a loss.
    """
    found: list[Document] = []  # lines of the present article
    before, line = "", None
    for after in chain(map(_line, rows), [Document("")]):
        if line is not None:
            alone = not (before.strip() or after.text.strip())
            if alone and _TITLE.fullmatch(line.text):
                yield from _joined(found)
                found = []
            found.append(line)
            before = line.text
        line = after
    yield from _joined(found)


def _line(row: Document) -> Document:
    r"""A whole line with its ``\n``."""
    problem = "" if _BLANK in row.problem else row.problem
    return Document((row.text.removesuffix("\n") or " ") + "\n", problem)


def _joined(lines: list[Document]) -> Iterator[Document]:
    """An article, unless it is blank; its first problem, if it has one."""
    article = Document("".join(line.text for line in lines))
    problems = (Document("", line.problem) for line in lines if line.problem)
    if found := next(problems, article if article.text.strip() else None):
        yield found


def text8(rows: Iterator[Document]) -> Iterator[Document]:
    """Splits of text8: a row of 27 characters and of a known length each.

    Raises:
        ConfigError: a row is not text8.
    """
    for row in rows:
        other = re.search(r"[^a-z ]", row.text)
        if not row.problem and (other or len(row.text) not in _TEXT8):
            found = f"the character {other[0]!r}" if other else f"{len(row.text):,} characters"
            raise ConfigError(
                f"this is not text8: it has {found}, where {_TEXT8[0]:,} or {_TEXT8[1]:,} of a-z "
                "and blank are expected; give your own copy of the corpus as `data.path`"
            )
        yield row
