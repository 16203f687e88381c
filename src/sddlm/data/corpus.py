"""Named corpora: splits, and the conversion of their rows to documents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from sddlm.data.detokenizers import Detokenizer
from sddlm.data.documents import Document
from sddlm.data.files import digest
from sddlm.data.hf import HubDataset
from sddlm.data.sources import Mapped, Source
from sddlm.errors import ConfigError

Role = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Corpus:
    """A corpus known by name.

    Attributes:
        name: what the user types (`data.corpus`).
        description: one line for people.
        licence: as stated where it lies; of the text, where that is another.
        size: as published.
        hub: repository and configuration; None without a download.
        roles: sources of training, validation and test; each is called with ``streaming``.
        last: number of documents at the end of ``train`` that are held out, without a validation
            split.
        scored: split that evaluation uses by convention.
    """

    name: str
    description: str
    licence: str
    size: str
    hub: str | None
    roles: Mapping[Role, Callable[[bool], Source]]
    last: int | None = None
    scored: Role = "validation"

    def source(self, role: Role, *, streaming: bool = False) -> Source | None:
        """Source of a split; None if the corpus has no such split."""
        opened = self.roles.get(role)
        return None if opened is None else opened(streaming)

    def documents(self) -> Iterator[str]:
        """Iterate over the training documents.

        Raises:
            ConfigError: see `training` and `Source.documents`.
        """
        return self.training().documents()

    def training(self, *, streaming: bool = False) -> Source:
        """Source of the ``train`` split.

        Raises:
            ConfigError: the corpus is for evaluation only.
        """
        source = self.source("train", streaming=streaming)
        if source is None:
            raise ConfigError(
                f"`data.corpus` {self.name} is for evaluation and has nothing to train on; use "
                "another one (docs/data.md lists them) or your own text: `data.path='FILE'`"
            )
        return source


@dataclass(frozen=True)
class Split:
    """One split of a dataset of the Hugging Face hub, opened by calling it.

    Attributes:
        dataset: name on the hub, or a local folder.
        split: name of the split there.
        config: configuration of the repository.
        revision: branch or commit.
        field: column with the text.
        adapter: converts rows to documents, if a row is not a document.
        detokenizer: applied to each document.
    """

    dataset: str
    split: str
    config: str | None = None
    revision: str | None = None
    field: str = "text"
    adapter: Callable[[Source], Source] | None = None
    detokenizer: Detokenizer | None = None

    def __call__(self, streaming: bool) -> Source:
        """Open the source of the split."""
        source: Source = HubDataset(
            dataset=self.dataset,
            config=self.config,
            split=self.split,
            field=self.field,
            streaming=streaming,
            revision=self.revision,
        )
        if self.adapter:
            source = self.adapter(source)
        if self.detokenizer:
            source = Mapped(source, self.detokenizer, self.detokenizer.tag)
        return source


# ------------------------------------------------------------------ rows that are no documents


class Articles(Source):
    r"""Source of WikiText's articles, from its lines.

    An article goes from one title (`` = Title = `` between two blank lines) to the next; sections
    have more signs (`` = = Section = = ``), and a table's legend (`` = Played , W = ``) has no
    blank lines around it. The rows on the hub are lines; an empty one becomes the line with a blank
    that it is in the original file, of which the articles are cut without a loss.
    """

    _TITLE = re.compile(r" = [^=].* = \n")
    _BLANK = "is empty or blank"  # in the problem of a row without text: here a blank line

    def __init__(self, lines: Source) -> None:
        self._lines = lines
        self.name = lines.name
        self.once = lines.once

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        article: list[str] = []
        before = problem = ""
        row: Document | None = None
        for after in chain(map(self._line, self._lines.read()), [Document("")]):
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

    def _article(self, lines: list[str], problem: str) -> Iterator[Document]:
        text = "".join(lines)
        if problem:
            yield Document("", problem)
        elif text.strip():
            yield Document(text)

    def _line(self, row: Document) -> Document:
        r"""A whole line with its ``\n``."""
        problem = "" if self._BLANK in row.problem else row.problem
        return Document((row.text.removesuffix("\n") or " ") + "\n", problem)

    def signature(self) -> str | None:
        """See `Source.signature`; changes with that of the lines."""
        inner = self._lines.signature()
        return inner and digest("articles", inner)


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
