"""A source in memory, for tests."""

from collections.abc import Iterator, Sequence

from sddlm.data.documents import Document
from sddlm.data.sources import Source


def read_texts(source: Source) -> list[str]:
    """The text of each document, or its problem."""
    return [document.problem or document.text for document in source.read()]


class MemorySource(Source):
    """Documents in memory; one that begins with ``!`` is a problem."""

    def __init__(self, texts: Sequence[str], signature: str | None = None) -> None:
        self.texts, self.state = texts, signature
        self.name = "memory"
        self.readings = 0

    def read(self) -> Iterator[Document]:
        self.readings += 1
        for text in self.texts:
            yield Document("", text) if text.startswith("!") else Document(text)

    def signature(self) -> str | None:
        return self.state
