"""Detokenizers: ordinary text from corpora that are distributed as words.

The old benchmarks hold ``the lobster , known as " red "``; a model of today reads ``the lobster,
known as "red"``. Published perplexities of such corpora are those of the text after one of these
tables, so the tables keep even the oddities of the convention: they are marked below. The rules are
applied in their order, each to the whole document.
"""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from typing import Literal, NamedTuple


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
