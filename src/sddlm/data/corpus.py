"""Named corpora: splits, and their conversion to documents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from sddlm.data.detokenizers import Detokenizer
from sddlm.data.hub import HubDataset
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
        kind: class of the source.
        adapter: converts rows to documents, if a row is not a document.
        detokenizer: applied to each document.
    """

    dataset: str
    split: str
    config: str | None = None
    revision: str | None = None
    field: str = "text"
    kind: type[HubDataset] = HubDataset
    adapter: Callable[[Source], Source] | None = None
    detokenizer: Detokenizer | None = None

    def __call__(self, streaming: bool) -> Source:
        """Open the source of the split."""
        source: Source = self.kind(
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
