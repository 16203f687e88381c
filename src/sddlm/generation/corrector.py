"""Corrects drafts: a text is taken for noise of level t and denoised from there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch

from sddlm.errors import ConfigError
from sddlm.generation.args import SamplerConfig
from sddlm.generation.drafts import Change, Draft, spliced
from sddlm.generation.levels import LEVELS, most_likely, read_at
from sddlm.generation.requests import digest
from sddlm.generation.windows import Batch, Text, batches, windows
from sddlm.lm import LanguageModel
from sddlm.process.masked import MaskedProcess
from sddlm.progress import bar
from sddlm.sampling.base import Sampler
from sddlm.sampling.condition import Condition


@dataclass(frozen=True)
class CorrectorConfig(SamplerConfig):
    """How a draft is denoised: other defaults than for writing, which restore more and damage less
    (docs/generation.md)."""

    steps: int = 1
    """denoising steps"""
    tail: Literal["sample", "greedy"] = "greedy"
    """the last step draws (sample) or takes the most likely token (greedy)"""
    top_p: float | None = 1.0
    """keep the most likely tokens up to this mass; below 1 good tokens that the model would not
    have guessed are replaced too"""


@dataclass(frozen=True)
class Correction:
    """A corrected text.

    Attributes:
        text: the whole of it.
        draft: what it was.
        t: noise level that the draft was taken for.
        changes: where the two differ.
        confidence: for each token of the draft its first character, the one behind it, and the
            probability that it is right, as read before anything was changed.
        nfe: network calls, those of the choice of t included.
        seconds: its share of the time of the batches that it was in.
    """

    text: str
    draft: str
    t: float
    changes: list[Change]
    confidence: list[tuple[int, int, float]]
    nfe: int
    seconds: float


@dataclass
class Corrector:
    """Corrects drafts, several at once.

    A result is a function of the model, the draft, what is protected in it, the settings and the
    seed: other drafts, their order and the size of a batch change no bit of it (on a CPU).

    Attributes:
        loaded: the model.
        how: sampler and knobs.
        t: noise level that drafts are taken for; None is the level at which the model finds a
            draft most likely (`levels.read_at`), one for a whole draft.
        seed: of all randomness.
        batch: windows that are seen together at most.
        source: where the drafts come from, for messages.

    Raises:
        ConfigError: for a model that cannot correct, or a value that cannot be used.
    """

    loaded: LanguageModel
    how: SamplerConfig = field(default_factory=CorrectorConfig)
    t: float | None = None
    seed: int = 0
    batch: int = 16
    source: str = "the draft"
    _sampler: Sampler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_level(self.t)
        if self.batch < 1:
            raise ConfigError(f"--batch is {self.batch}, must be at least 1")
        check_can_correct(self.loaded)
        # an end of text or the like in a draft would be no correction of it
        self._sampler = self.how.build(
            self.loaded, never=tuple(self.loaded.tokenizer.special.values())
        )

    def correct(
        self, texts: Sequence[str], *, protect: str | None = None, progress: bool = False
    ) -> list[Correction]:
        """Correct drafts.

        A result has as many tokens as its draft: words are replaced, never put in or taken out
        (but a token may be part of a word, or two of them stand for one). Text whose
        tokens stay is the same, byte for byte. A draft longer than the model is corrected in
        `windows`, the later ones seeing what was made of the earlier.

        Args:
            texts: the drafts.
            protect: regular expression; tokens that overlap a match are not changed.
            progress: show a bar on a terminal.

        Raises:
            ConfigError: for an empty draft, characters that the tokenizer lacks, or no expression.
        """
        pattern = protection(protect)
        begun = [self._begin(text, pattern) for text in texts]
        parts, levels = sum(len(text.windows) for text in begun), self._levels
        with bar("correcting", total=parts * (len(levels) + 1), show=progress) as advance:
            self._choose(begun, levels, advance)
            for number in range(max((len(text.windows) for text in begun), default=0)):
                live = [text for text in begun if len(text.windows) > number]
                for t in sorted({text.t for text in live}):
                    rows = [(text, text.windows[number]) for text in live if text.t == t]
                    for batch in batches(self.loaded, self.batch, rows):
                        self._denoise(batch, t, number)
                        advance(len(batch.rows))
        return [_result(text) for text in begun]

    def _begin(self, text: str, pattern: re.Pattern[str] | None) -> Text:
        draft = Draft.of(text, self.loaded.tokenizer, self.source)
        first = self.loaded.first_id
        front = [] if first is None else [first]
        tokens = torch.tensor([*front, *draft.tokens])
        known = torch.tensor(
            [True] * len(front) + draft.protected([] if pattern is None else [pattern])
        )
        width = self.loaded.network.length
        room = width - self.loaded.bos_in_rows if len(tokens) > width else width
        return Text(
            draft, tokens, known, len(front), windows(len(tokens), room),
            torch.ones(len(tokens), dtype=torch.float64),
        )  # fmt: skip

    @property
    def _levels(self) -> Sequence[float]:
        """Those to choose from."""
        return LEVELS if self.t is None else (self.t,)

    def _choose(
        self, texts: Sequence[Text], levels: Sequence[float], advance: Callable[..., None]
    ) -> None:
        """The level of each text, and how sure the model is of its tokens there."""
        scores = torch.zeros(len(levels), len(texts), dtype=torch.float64)
        right = [torch.ones(len(levels), len(text.tokens)).double() for text in texts]
        number = {id(text): i for i, text in enumerate(texts)}
        for batch in batches(
            self.loaded, self.batch, [(text, w) for text in texts for w in text.windows]
        ):
            started = time.perf_counter()
            for k, t in enumerate(levels):
                reading = read_at(self.loaded, batch.tokens, t, batch.lengths)
                for row, (text, _) in enumerate(batch.rows):
                    i, (mine, there) = number[id(text)], batch.own(row)
                    free = ~text.known[mine]
                    scores[k, i] += reading.fit[row, there][free].sum()
                    right[i][k, mine] = reading.right[row, there]
                    text.nfe += 1
                advance(len(batch.rows))
            batch.share(time.perf_counter() - started)
        for i, (text, best) in enumerate(zip(texts, most_likely(scores).tolist(), strict=True)):
            text.t, text.right = levels[best], right[i][best]

    def _denoise(self, batch: Batch, t: float, number: int) -> None:
        """Correct the windows of a batch, the ``number``-th of their texts."""
        keys = [digest([text.key, number]) for text, _ in batch.rows]
        condition = Condition(batch.tokens, batch.known, batch.lengths, t)
        drawn = self._sampler.sample(
            self.loaded, seed=self.seed, index=torch.tensor(keys), condition=condition
        )
        for row, (text, _) in enumerate(batch.rows):
            mine, there = batch.own(row)
            text.tokens[mine] = drawn.tokens[row, there].cpu()
            text.nfe += int(drawn.nfe[row])
        batch.share(drawn.seconds)


def check_level(t: float | None) -> None:
    """Refuse a noise level that is none."""
    if t is not None and not 0 < t <= 1:
        raise ConfigError(f"--t is {t}, allowed is above 0 and at most 1, or auto: try --t 0.1")


def check_can_correct(loaded: LanguageModel) -> None:
    """Refuse a model that changes no token that is written."""
    kind = "autoregressive" if not loaded.estimate.diffusion else "trained with masks alone"
    if not loaded.estimate.diffusion or isinstance(loaded.process, MaskedProcess):
        raise ConfigError(
            f"this model is {kind} and never changes a token that is written: give one of a "
            "uniform or hybrid process, such as --objective SDDLM trains"
        )


def protection(protect: str | None) -> re.Pattern[str] | None:
    """The expression, compiled; None protects nothing."""
    try:
        return None if protect is None else re.compile(protect)
    except re.error as error:
        raise ConfigError(
            f"--protect {protect!r} is no regular expression: {error}; try --protect 'Lily|Tom'"
        ) from error


def _result(text: Text) -> Correction:
    draft, front = text.draft, text.front
    changes = draft.changes(text.tokens[front:].tolist())
    right = text.right[front:].tolist()
    sure = [(unit.start, unit.end, min(right[unit.first : unit.stop])) for unit in draft.units]
    return Correction(
        text=spliced(draft.text, changes),
        draft=draft.text,
        t=text.t,
        changes=changes,
        confidence=sure,
        nfe=text.nfe,
        seconds=text.seconds,
    )
