"""From requests to texts: batches of unequal lengths, long texts block by block, ends of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.generation.args import SamplerConfig
from sddlm.generation.batching import lengths_of_samples
from sddlm.generation.blocks import Blocks, Text
from sddlm.generation.filling import fill, filled_width
from sddlm.generation.requests import Request, lay_out
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.progress import bar
from sddlm.sampling.base import Sampler
from sddlm.sampling.condition import Condition
from sddlm.types import OnStep, Samples


@dataclass(frozen=True)
class Generation:
    """A text that was asked for.

    Attributes:
        request: number of the request.
        copy: number of the text among those of the request.
        text: the whole of it, up to its end.
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


#: of all texts: some gigabytes of memory
MOST_TOKENS = 1 << 28


@dataclass(frozen=True)
class Batch:
    """Blocks of texts that are sampled together.

    Attributes:
        condition: what is given to the sampler.
        index: of each block ``[B]`` int64.
        closed: no text may end in it.
        texts: which they are ``[B]``.
        windows: beginning and end of each block in its text.
        front: tokens that stand before each block.
    """

    condition: Condition
    index: Tensor
    closed: bool
    texts: list[int]
    windows: list[tuple[int, int]]
    front: int


@dataclass
class Generator:
    """Writes what is asked for.

    A text is a function of the model, its request and the seed: other requests, their order and
    the size of a batch change no bit of it (on a CPU; on a GPU a batch of one is the safe way).

    Attributes:
        loaded: the model.
        requests: what is asked for.
        how: sampler and knobs.
        seed: of all randomness.
        batch: texts that are sampled together at most.
        overlap: tokens of what is written that the next block of a long text sees; None is half of
            the model's length.
    """

    loaded: LanguageModel
    requests: Sequence[Request]
    how: SamplerConfig
    seed: int = 0
    batch: int = 16
    overlap: int | None = None
    _texts: list[Text] = field(init=False, repr=False)
    _samplers: dict[bool, Sampler] = field(init=False, repr=False)
    _blocks: Blocks = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse what cannot be written, before anything is."""
        loaded = self.loaded
        if self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}, must be at least 1")
        front = [loaded.tokenizer.bos_id] if loaded.bos_in_rows else []
        self._blocks = Blocks(loaded.network.length, self.overlap, front)
        eos = loaded.tokenizer.eos_id
        self._samplers = {
            closed: self.how.build(loaded, never=(eos,) if closed else ())
            for closed in (False, True)
        }
        tokens = sum((each.length or loaded.network.length) * each.count for each in self.requests)
        if tokens > MOST_TOKENS:
            raise ConfigError(
                f"{tokens} tokens are asked for in all, at most {MOST_TOKENS} at once are kept in "
                "memory: lower --count or --length, or write in several runs with other seeds"
            )
        self._texts = []
        for number, request in enumerate(self.requests):
            try:
                self._texts += self._begun(number, request)
            except ConfigError as error:
                raise ConfigError(f"{request.where}{error}") from error

    def _begun(self, number: int, request: Request) -> list[Text]:
        """The texts of a request, nothing written."""
        loaded, width = self.loaded, self.loaded.network.length
        lengths = lengths_of_samples(loaded, request.count, request.length, documents=request.free)
        first, texts = loaded.first_id, []
        for copy, length in enumerate(lengths):
            layout = lay_out(
                request, copy, loaded.tokenizer, first=first, length=length, seed=self.seed
            )
            longest = max(end - start for start, end in layout.spans)
            if request.infill is not None and longest >= width:
                raise ConfigError(
                    f"--infill: a blank of {longest} tokens is more than the model, which sees "
                    f"{width} at once, can write beside what it is given: make it shorter"
                )
            tokens = torch.tensor(layout.tokens)
            texts.append(Text(number, copy, request.key, layout, tokens))
        return texts

    def sampler(self, batch: Batch) -> Sampler:
        """That of a batch."""
        return self._samplers[batch.closed]

    def round(self) -> list[Batch]:
        """The next block of every text that is not finished, in batches."""
        groups: dict[tuple[int, bool, bool, int], list[int]] = {}
        for i, text in enumerate(self._texts):
            if text.first is not None:
                start, end = text.window(self._blocks)
                front = len(self._blocks.front) if start > 0 else 0
                wide = end - start + front
                even = filled_width(wide, self._blocks.width)
                key = (even, even != wide, not text.layout.open, front)
                groups.setdefault(key, []).append(i)
        return [
            self._batch(which[at : at + self.batch], *key)
            for key, which in groups.items()
            for at in range(0, len(which), self.batch)
        ]

    def _batch(self, which: list[int], wide: int, padded: bool, closed: bool, front: int) -> Batch:
        texts = [self._texts[i] for i in which]
        windows = [text.window(self._blocks) for text in texts]
        parts = [
            (text.tokens[start:end], text.known(start, end))
            for text, (start, end) in zip(texts, windows, strict=True)
        ]
        given, known, lengths = fill(
            parts, wide, front=self._blocks.front[:front], pad=self.loaded.tokenizer.pad_id
        )
        condition = Condition(given, known, lengths if padded else None)
        index = torch.tensor([text.index for text in texts])
        return Batch(condition, index, closed, which, windows, front)

    def draw(self, batch: Batch, on_step: OnStep | None = None) -> Samples:
        """Sample a batch."""
        return self.sampler(batch).sample(
            self.loaded,
            seed=self.seed,
            index=batch.index,
            condition=batch.condition,
            on_step=on_step,
        )

    def take(self, batch: Batch, tokens: Tensor, nfe: Sequence[int], seconds: float) -> None:
        """Put what was sampled into the texts.

        Args:
            batch: of which it is.
            tokens: ``[B, L]`` int64.
            nfe: network calls ``[B]``.
            seconds: of the whole batch.
        """
        for row, (i, (start, end)) in enumerate(zip(batch.texts, batch.windows, strict=True)):
            text = self._texts[i]
            own = slice(batch.front, batch.front + end - start)
            text.tokens[start:end] = tokens[row, own].cpu()
            text.nfe += int(nfe[row])
            text.seconds += seconds / len(batch.texts)
            text.done, text.block = end, text.block + 1
            if self._end(text) is not None:
                text.done = len(text.tokens)

    def _end(self, text: Text) -> int | None:
        """Where the model wrote an end of text."""
        return text.end(self.loaded.tokenizer.eos_id, self.loaded.tokenizer.bos_id)

    def written(self, *, whole: bool = False) -> list[Generation]:
        """The texts, in the order of the requests.

        Args:
            whole: keep what stands behind an end of text.
        """
        decode = self.loaded.tokenizer.decode
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

    def write(self, work: ResumableJob | None = None, *, progress: bool = True) -> None:
        """Write all of them.

        Args:
            work: keeps batches that are finished and shares them among processes; None does not.
            progress: show a bar on a terminal.
        """
        work, number = work or ResumableJob(), 0
        show = progress and work.team.first
        with bar("sampling", total=self._steps(), show=show) as advance:
            while batches := self.round():

                def unit(k: int, batches: list[Batch] = batches) -> dict[str, Any]:
                    drawn = self.draw(batches[k], lambda *_: advance(work.team.world))
                    kept = {name: getattr(drawn, name).tolist() for name in ("tokens", "nfe")}
                    return {**kept, "seconds": drawn.seconds}

                found = work.run(f"texts {number}", len(batches), unit)
                for batch, result in zip(batches, found, strict=True):
                    self.take(
                        batch, torch.tensor(result["tokens"]), result["nfe"], result["seconds"]
                    )
                number += 1

    def _steps(self) -> int:
        """Steps of all batches, if no text ends early."""
        before = [text.done for text in self._texts]
        total = 0
        while batches := self.round():
            for batch in batches:
                total += self.sampler(batch).calls(batch.condition.given.shape[1])
                for i, (_, end) in zip(batch.texts, batch.windows, strict=True):
                    self._texts[i].done = end
        for text, done in zip(self._texts, before, strict=True):
            text.done = done
        return total
