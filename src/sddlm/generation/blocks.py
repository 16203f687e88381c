"""A text on its way: what is written, which block comes next, where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.generation.requests import Layout, digest


@dataclass(frozen=True)
class Blocks:
    """How long texts are cut into blocks.

    Attributes:
        width: tokens that the model was trained to see.
        overlap: tokens of what is written that the next block sees; None is half of the width.
        front: tokens that rows begin with, and that a block from the middle of a text is given.

    Raises:
        ConfigError: for an overlap that leaves nothing to write.
    """

    width: int
    overlap: int | None
    front: Sequence[int]

    def __post_init__(self) -> None:
        most = self.width - 1 - len(self.front)
        if self.overlap is not None and not 1 <= self.overlap <= most:
            raise ConfigError(
                f"--overlap is {self.overlap}, allowed is 1 to {most}, less than the model's "
                f"{self.width} tokens: try --overlap {self.width // 2}"
            )

    def window(self, first: int, whole: int) -> tuple[int, int]:
        """Beginning and end of the next block.

        Args:
            first: the first place that is to be written.
            whole: tokens of the text.
        """
        overlap = self.width // 2 if self.overlap is None else self.overlap
        if whole <= self.width or first <= overlap:
            return 0, min(self.width, whole)
        own = self.width - len(self.front)
        end = min(first - overlap + own, whole)
        return end - own, end


@dataclass
class Text:
    """A text that is being written.

    Attributes:
        request: number of its request.
        copy: its number among those of the request.
        key: of its randomness.
        layout: what it is to be.
        tokens: those known and written so far ``[n]`` int64.
        done: up to where it is written.
        block: how many blocks it has had.
        nfe: network calls that it took part in.
        seconds: its share of the time of the batches that it was in.
    """

    request: int
    copy: int
    key: int
    layout: Layout
    tokens: Tensor
    done: int = 0
    block: int = 0
    nfe: int = 0
    seconds: float = 0.0

    @property
    def first(self) -> int | None:
        """The first place that is still to be written; None if there is none."""
        places = range(self.done, len(self.tokens))
        return next((i for i in places if not self.layout.known[i]), None)

    def window(self, blocks: Blocks) -> tuple[int, int]:
        """Beginning and end of its next block."""
        return blocks.window(self.first or 0, len(self.tokens))

    def known(self, start: int, end: int) -> Tensor:
        """Which tokens of a block are given or already written ``[n]`` bool."""
        known = torch.tensor(self.layout.known[start:end])
        known[: max(0, self.done - start)] = True
        return known

    @property
    def index(self) -> int:
        """Names the randomness of its next block."""
        if self.block == 0:
            return self.key + self.copy
        return digest([self.key, self.copy, self.block])

    def end(self, eos: int, bos: int) -> int | None:
        """Where the model wrote an end of text.

        Those before the first word are none, nor is any where the text goes on behind a blank.

        Args:
            eos: the end-of-text token.
            bos: the beginning-of-text token.
        """
        words = False
        for i, token in enumerate(self.tokens[: self.done].tolist() if self.layout.open else ()):
            if words and token == eos:
                return i
            words |= token not in (eos, bos)
        return None
