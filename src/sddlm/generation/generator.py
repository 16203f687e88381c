"""From requests to texts: batches of unequal lengths, long texts window by window, ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.generation.config import SamplerConfig
from sddlm.generation.request import Layout, Request, digest, lay_out
from sddlm.generation.windows import TextState, Window, WindowBatch, next_window, window_batches
from sddlm.lm import LanguageModel
from sddlm.sampling.base import Sampler
from sddlm.types import OnStep, Samples


@dataclass(frozen=True)
class Generation:
    """A text that was asked for.

    Attributes:
        request: number of the request.
        copy: number of the text among those of the request.
        text: the whole text, up to its end.
        tokens: its tokens, the end-of-text token included where it ``ended``.
        known: which of them were given.
        blanks: the text of each blank.
        ended: the model wrote an end of text.
        nfe: network calls that it took part in.
        seconds: its share of the time of the batches that it was in.
    """

    request: int
    copy: int
    text: str
    tokens: list[int]
    known: list[bool]
    blanks: list[str]
    ended: bool
    nfe: int
    seconds: float


@dataclass
class GenerationState(TextState):
    """A text that is being written.

    Attributes:
        request: number of its request.
        copy: its number among those of the request.
        key: of its randomness.
        layout: what it is to be.
        done: number of tokens, from the first on, that are written.
        block: number of windows that it has had.
    """

    request: int = 0
    copy: int = 0
    key: int = 0
    layout: Layout = field(default_factory=lambda: Layout([], [], [], 0, open=True))
    done: int = 0
    block: int = 0

    @property
    def first(self) -> int | None:
        """The first position that is still to be written; None if there is none."""
        unknown = (~self.known[self.done :]).nonzero()
        return self.done + int(unknown[0]) if len(unknown) else None

    @property
    def index(self) -> int:
        """Names the randomness of its next window."""
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


#: tokens of all texts together: some gigabytes of memory
MOST_TOKENS = 1 << 28


@dataclass
class Generator:
    """Generator of the texts of a list of requests.

        Generator(lm, [Request(prompt="The"), Request(infill="A {3} fox.")]).generate()

    A text is a function of the model, its request and the seed: other requests, their order and
    the batch size change no bit of it (on a CPU; on a GPU use a batch of one). Callers that keep,
    share or show batches call `next_batches`, `draw` and `apply` in place of `generate` until there
    is no batch left, and then `generations`.

    Attributes:
        lm: the model.
        requests: the requests.
        config: sampler and its options.
        seed: seed of all randomness.
        batch: largest number of texts that are sampled together.
        overlap: tokens of the text before that the next window of a long text sees; None is half of
            the model's length.

    Raises:
        ConfigError: a request does not fit the model; raised before any text is generated.
    """

    lm: LanguageModel
    requests: Sequence[Request]
    config: SamplerConfig = field(default_factory=SamplerConfig)
    seed: int = 0
    batch: int = 16
    overlap: int | None = None
    _texts: list[GenerationState] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ConfigError(f"`batch` is {self.batch}, must be at least 1")
        width = self.lm.network.length
        most = width - 1 - self.lm.bos_in_rows
        if self.overlap is not None and not 1 <= self.overlap <= most:
            raise ConfigError(
                f"`overlap` is {self.overlap}, must be from 1 to {most}, less than the model's "
                f"{width} tokens: try `overlap={width // 2}`"
            )
        tokens = sum((each.length or width) * each.count for each in self.requests)
        if tokens > MOST_TOKENS:
            raise ConfigError(
                f"{tokens} tokens are asked for in all, at most {MOST_TOKENS} at once are kept in "
                "memory: lower `count` or `length`, or write in several runs with other seeds"
            )
        _ = self._samplers  # refuses a model that cannot be sampled so
        self._texts = []
        for number, request in enumerate(self.requests):
            try:
                self._texts += self._begin(number, request)
            except ConfigError as error:
                raise ConfigError(f"{request.where}{error}") from error

    @cached_property
    def _samplers(self) -> dict[bool, Sampler]:
        """By whether a text may end: where it may not, no end of text is written."""
        eos = self.lm.tokenizer.eos_id
        return {
            is_open: self.config.build(self.lm, never=() if is_open else (eos,))
            for is_open in (True, False)
        }

    def _begin(self, number: int, request: Request) -> list[GenerationState]:
        """The texts of a request, nothing written."""
        lm, width = self.lm, self.lm.network.length
        texts = []
        for copy, length in enumerate(sample_lengths(lm, request)):
            layout = lay_out(
                request, copy, lm.tokenizer, first=lm.first_id, length=length, seed=self.seed
            )
            longest = max(end - start for start, end in layout.spans)
            if request.infill is not None and longest >= width:
                raise ConfigError(
                    f"`infill`: a blank of {longest} tokens is more than the model, which sees "
                    f"{width} at once, can write beside what it is given: make it shorter"
                )
            tokens, known = torch.tensor(layout.tokens), torch.tensor(layout.known)
            texts.append(
                GenerationState(
                    tokens, known, request=number, copy=copy, key=request.key, layout=layout
                )
            )
        return texts

    def next_batches(self) -> list[WindowBatch[GenerationState]]:
        """The next window of every text that is not finished, in batches."""
        live = [text for text in self._texts if text.first is not None]
        return [
            batch
            for is_open in (True, False)
            for batch in window_batches(
                self.lm,
                [(text, self._window(text)) for text in live if text.layout.open is is_open],
                self.batch,
            )
        ]

    def _window(self, text: GenerationState) -> Window:
        """The next window of a text, which sees what is written before."""
        first, total, width = text.first or 0, len(text.tokens), self.lm.network.length
        overlap = width // 2 if self.overlap is None else self.overlap
        if total > width and first > overlap:
            width -= self.lm.bos_in_rows
        return next_window(first, total, width, before=overlap)

    def sampler(self, batch: WindowBatch[GenerationState]) -> Sampler:
        """The sampler of a batch."""
        return self._samplers[batch.texts[0].layout.open]

    def draw(self, batch: WindowBatch[GenerationState], on_step: OnStep | None = None) -> Samples:
        """Sample a batch; the texts do not change until `apply`."""
        index = torch.tensor([text.index for text in batch.texts])
        return self.sampler(batch).sample(
            self.lm, seed=self.seed, index=index, condition=batch.condition, on_step=on_step
        )

    def apply(
        self,
        batch: WindowBatch[GenerationState],
        tokens: Tensor,
        nfe: Sequence[int] | Tensor,
        seconds: float,
    ) -> None:
        """Put what was sampled into the texts; see `WindowBatch.apply`."""
        batch.apply(tokens, nfe, seconds)
        for text, window in zip(batch.texts, batch.windows, strict=True):
            text.done, text.block = window.end, text.block + 1
            if self._end(text) is not None:
                text.done = len(text.tokens)

    def generate(self, *, whole: bool = False, on_step: OnStep | None = None) -> list[Generation]:
        """Write all texts.

        Args:
            whole: keep what stands behind an end of text.
            on_step: called after each step of each batch.
        """
        while batches := self.next_batches():
            for batch in batches:
                drawn = self.draw(batch, on_step)
                self.apply(batch, drawn.tokens, drawn.nfe, drawn.seconds)
        return self.generations(whole=whole)

    def generations(self, *, whole: bool = False) -> list[Generation]:
        """The texts, in the order of the requests.

        Args:
            whole: keep what stands behind an end of text.
        """
        decode = self.lm.tokenizer.decode
        found = []
        for text in self._texts:
            layout, tokens, end = text.layout, text.tokens.tolist(), self._end(text)
            stop = len(tokens) if whole or end is None else end + 1
            found.append(
                Generation(
                    request=text.request,
                    copy=text.copy,
                    text=decode(tokens[layout.front : stop]),
                    tokens=tokens[layout.front : stop],
                    known=layout.known[layout.front : stop],
                    blanks=[decode(tokens[a : min(b, stop)]) for a, b in layout.spans],
                    ended=end is not None,
                    nfe=text.nfe,
                    seconds=text.seconds,
                )
            )
        return found

    def _end(self, text: GenerationState) -> int | None:
        return text.end(self.lm.tokenizer.eos_id, self.lm.tokenizer.bos_id)

    def steps(self) -> int:
        """Steps of all batches that are left, if no text ends early; for a progress bar."""
        before, total = [text.done for text in self._texts], 0
        while batches := self.next_batches():
            for batch in batches:
                total += self.sampler(batch).calls(batch.condition.given.shape[1])
                for text, window in zip(batch.texts, batch.windows, strict=True):
                    text.done = window.end
        for text, done in zip(self._texts, before, strict=True):
            text.done = done
        return total


def sample_lengths(lm: LanguageModel, request: Request) -> Iterable[int]:
    """Tokens of each text of a request.

    They are what it asks for, else what the model was trained for. Texts without a condition, of a
    model whose rows were single documents, have the documents' lengths: evenly spaced quantiles,
    the longest first, without documents in which the tokenizer finds no token.
    """
    rows = lm.data.get("row_lengths")  # how many have each length
    if request.length is not None or rows is None or not request.free:
        return [request.length or lm.network.length] * request.count
    below = torch.tensor([0, *rows[1:]], dtype=torch.float64).cumsum(0)
    quantiles = (torch.arange(request.count, dtype=torch.float64) + 0.5) / request.count
    return map(int, torch.searchsorted(below, quantiles * below[-1]).flip(0))
