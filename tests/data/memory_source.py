"""A source in memory, for tests: documents, cut into parts where the test says."""

from collections.abc import Iterator, Sequence

from sddlm.data.sources import Source, TextChunk


class MemorySource(Source):
    """Documents as lists of pieces; a piece that begins with ``!`` is a problem."""

    def __init__(self, documents: Sequence[Sequence[str] | str], name: str = "memory") -> None:
        self.pieces = [[doc] if isinstance(doc, str) else list(doc) for doc in documents]
        self.name = name
        self.readings = 0
        self.state: str | None = None

    def chunks(self) -> Iterator[TextChunk]:
        self.readings += 1
        for pieces in self.pieces:
            for i, piece in enumerate(pieces):
                problem = piece if piece.startswith("!") else ""
                yield TextChunk("" if problem else piece, i == len(pieces) - 1, problem)

    def signature(self) -> str | None:
        return self.state
