"""Adapters for corpora whose rows are not documents."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

from sddlm.data.hub import HubDataset
from sddlm.data.parquet_files import column_records
from sddlm.data.paths import digest
from sddlm.data.pieces import TextChunk, text_chunks
from sddlm.data.sources import Mapped, Source
from sddlm.errors import ConfigError

_BLANK = "is empty or blank"  # in the problem of a row without text


class Articles(Source):
    r"""Source of WikiText's articles, from its lines.

    An article goes from one title (`` = Title = `` between two blank lines) to the next; sections
    have more signs (`` = = Section = = ``), and a table's legend (`` = Played , W = ``) has no
    blank lines around it. The rows on the hub are lines; an empty one becomes the line with a blank
    that it is in the original file, of which the articles are cut without a loss.
    """

    _TITLE = re.compile(r" = [^=].* = \n")

    def __init__(self, lines: Source) -> None:
        self._lines = lines
        self.name = lines.name
        self.once = lines.once

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`."""
        article: list[str] = []
        before = problem = ""
        row: TextChunk | None = None
        for after in chain(self._rows(), [TextChunk("")]):
            if row is not None:
                alone = not (before.strip() or after.text.strip())
                if alone and self._TITLE.fullmatch(row.text):
                    yield from self._article(article, problem)
                    article, problem = [], ""
                article.append(row.text)
                problem = problem or row.problem
                before = row.text
            row = after
        yield from self._article(article, problem)

    def _article(self, lines: list[str], problem: str) -> Iterator[TextChunk]:
        text = "".join(lines)
        if problem:
            yield TextChunk("", True, problem)
        elif text.strip():
            yield from text_chunks(text)

    def _rows(self) -> Iterator[TextChunk]:
        r"""Iterate over whole lines, each with its ``\n``."""
        line = ""
        for chunk in self._lines.chunks():
            line += chunk.text
            if chunk.is_last:
                # a row without text is a problem elsewhere; here it is how blank lines come
                problem = "" if _BLANK in chunk.problem else chunk.problem
                yield TextChunk((line.removesuffix("\n") or " ") + "\n", True, problem)
                line = ""

    def signature(self) -> str | None:
        """See `Source.signature`; changes with that of the lines."""
        inner = self._lines.signature()
        return inner and digest("articles", inner)


class LongRows(HubDataset):
    """Hub dataset with rows of any length; other sources limit a record."""

    def chunks(self) -> Iterator[TextChunk]:
        """See `Source.chunks`."""
        for number, text, wrong in column_records(self._columns()):
            if isinstance(text, str):
                yield from text_chunks(text)
            else:
                yield TextChunk("", True, f"{self.name}, row {number}: {wrong or 'no text'}")


@dataclass(frozen=True)
class Text8:
    """Checks that a source is text8: one document of the expected length and 27 characters.

    Attributes:
        characters: expected length.
    """

    characters: int

    def __call__(self, source: Source) -> Source:
        """The source with each document checked."""
        return Mapped(source, self.checked, f"text8-{self.characters}")

    def checked(self, text: str) -> str:
        """Return the text if it is text8.

        Raises:
            ConfigError: it is not.
        """
        other = re.search(r"[^a-z ]", text)
        if other or len(text) != self.characters:
            found = f"the character {other[0]!r}" if other else f"{len(text):,} characters"
            raise ConfigError(
                f"this is not text8: it has {found}, where {self.characters:,} of a-z and blank "
                "are expected; give your own copy of the corpus as `data.path`"
            )
        return text
