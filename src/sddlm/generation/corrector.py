"""Corrects drafts: a text is taken for noise of level t and denoised from there."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.generation.config import CORRECTION, SamplerConfig
from sddlm.generation.diff import Change, Draft, apply_changes
from sddlm.generation.levels import LEVELS, most_likely, score_tokens
from sddlm.generation.request import digest
from sddlm.generation.windows import TextState, Window, WindowBatch, next_window, window_batches
from sddlm.lm import LanguageModel
from sddlm.process.masked import MaskedProcess
from sddlm.progress import bar
from sddlm.sampling.base import Sampler


@dataclass(frozen=True)
class Correction:
    """A corrected text.

    Attributes:
        text: the whole text.
        draft: the text before.
        t: noise level that the draft was taken for.
        changes: where the two differ.
        confidence: for each token of the draft its first character, the one behind it, and the
            probability that it is right, before anything was changed.
        nfe: network calls, those for the choice of t included.
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
class CorrectionState(TextState):
    """A draft that is being corrected.

    Attributes:
        draft: the draft.
        windows: the parts that it is corrected in.
        right: probability of each token that it is right ``[n]`` float64.
        t: noise level that it is taken for.
    """

    draft: Draft = field(kw_only=True)
    windows: list[Window] = field(kw_only=True)
    right: Tensor = field(init=False)
    t: float = math.nan

    @cached_property
    def key(self) -> int:
        """Names the randomness, which depends on the draft alone."""
        return digest(self.draft.tokens)

    @property
    def result(self) -> Correction:
        """The corrected text so far."""
        front = len(self.tokens) - len(self.draft.tokens)
        changes = self.draft.changes(self.tokens[front:].tolist())
        right = self.right[front:].tolist()
        return Correction(
            text=apply_changes(self.draft.text, changes),
            draft=self.draft.text,
            t=self.t,
            changes=changes,
            confidence=[
                (span.start, span.end, min(right[span.first : span.stop]))
                for span in self.draft.spans
            ],
            nfe=self.nfe,
            seconds=self.seconds,
        )


@dataclass
class Corrector:
    """Corrects drafts, several at once.

    A result is a function of the model, the draft, what is protected in it, the settings and the
    seed: other drafts, their order and the size of a batch change no bit of it (on a CPU).

    Attributes:
        lm: the model.
        config: sampler and its options.
        t: noise level that drafts are taken for; None is the level at which the model finds a
            draft most likely (`levels.score_tokens`), one level for a whole draft.
        seed: of all randomness.
        batch: windows per network call at most.
        source: names the drafts in messages.

    Raises:
        ConfigError: for a model that cannot correct, or a value that cannot be used.
    """

    lm: LanguageModel
    config: SamplerConfig = CORRECTION
    t: float | None = None
    seed: int = 0
    batch: int = 16
    source: str = "the draft"
    _sampler: Sampler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        check_level(self.t)
        if self.batch < 1:
            raise ConfigError(f"`batch` is {self.batch}, must be at least 1")
        check_can_correct(self.lm)
        # an end of text or the like in the middle of a draft would be no correction of it
        self._sampler = self.config.build(self.lm, never=(*self.lm.tokenizer.special.values(),))

    def correct(
        self, texts: Sequence[str], *, protect: str | None = None, progress: bool = False
    ) -> list[Correction]:
        """Correct drafts.

        A result has as many tokens as its draft: tokens are replaced, never inserted or deleted
        (but a token may be part of a word, or two of them stand for one). Text whose
        tokens stay is the same, byte for byte. A draft longer than the model is corrected in
        windows, the later ones seeing the corrected text of the earlier.

        Args:
            texts: the drafts.
            protect: regular expression; tokens that overlap a match are not changed.
            progress: show a bar on a terminal.

        Raises:
            ConfigError: for an empty draft, characters that the tokenizer lacks, or no expression.
        """
        pattern = protection(protect)
        states = [self._begin(text, pattern) for text in texts]
        levels = LEVELS if self.t is None else (self.t,)
        counts = [len(state.windows) for state in states]
        with bar("correcting", total=sum(counts) * (len(levels) + 1), show=progress) as advance:
            self._choose(states, levels, advance)
            for number in range(max(counts, default=0)):
                live = [state for state in states if len(state.windows) > number]
                for t in sorted({state.t for state in live}):
                    windows = [(state, state.windows[number]) for state in live if state.t == t]
                    for batch in window_batches(self.lm, windows, self.batch):
                        self._denoise(batch, t, number)
                        advance(len(batch.texts))
        return [state.result for state in states]

    def _begin(self, text: str, pattern: re.Pattern[str] | None) -> CorrectionState:
        lm = self.lm
        draft = Draft.of(text, lm.tokenizer, self.source)
        front = [] if lm.first_id is None else [lm.first_id]
        known = [True] * len(front) + draft.protected([] if pattern is None else [pattern])
        tokens = torch.tensor([*front, *draft.tokens])
        width = lm.network.length
        width -= lm.bos_in_rows and len(tokens) > width
        windows = list(correction_windows(len(tokens), width))
        return CorrectionState(tokens, torch.tensor(known), draft=draft, windows=windows)

    def _choose(
        self,
        states: Sequence[CorrectionState],
        levels: Sequence[float],
        advance: Callable[..., None],
    ) -> None:
        """The level of each text, and the probability that its tokens are right there."""
        scores = torch.zeros(len(levels), len(states), dtype=torch.float64)
        right = [torch.ones(len(levels), len(state.tokens)).double() for state in states]
        number = {id(state): i for i, state in enumerate(states)}
        windows = [(state, window) for state in states for window in state.windows]
        for batch in window_batches(self.lm, windows, self.batch):
            started, seen = time.perf_counter(), batch.condition
            for k, t in enumerate(levels):
                found = score_tokens(self.lm, seen.given, t, seen.lengths)
                for row, (state, own, there) in enumerate(batch.slices()):
                    i, free = number[id(state)], ~state.known[own]
                    scores[k, i] += found.fit[row, there][free].sum()
                    right[i][k, own] = found.right[row, there]
                    state.nfe += 1
                advance(len(batch.texts))
            for state in batch.texts:
                state.seconds += (time.perf_counter() - started) / len(batch.texts)
        for i, (state, best) in enumerate(zip(states, most_likely(scores).tolist(), strict=True)):
            state.t, state.right = levels[best], right[i][best]

    def _denoise(self, batch: WindowBatch[CorrectionState], t: float, number: int) -> None:
        """Correct the windows of a batch, the ``number``-th of their texts."""
        keys = torch.tensor([digest([state.key, number]) for state in batch.texts])
        drawn = self._sampler.sample(
            self.lm, seed=self.seed, index=keys, condition=replace(batch.condition, t=t)
        )
        batch.apply(drawn.tokens, drawn.nfe, drawn.seconds)


def correction_windows(total: int, width: int) -> Iterator[Window]:
    """Windows that correct each of ``total`` tokens once, all of them ``width`` wide or one.

    A quarter of the width is seen on either side of what a window corrects, as far as there is
    text: before it the corrected text, behind it the draft.
    """
    done = 0
    while done < total:
        window = next_window(done, total, width, before=width // 4, after=width // 4)
        yield window
        done = window.stop


def check_level(t: float | None) -> None:
    """Refuse a noise level outside (0, 1]."""
    if t is not None and not 0 < t <= 1:
        raise ConfigError(f"`t` is {t}, must be above 0 and at most 1, or auto: try `t=0.1`")


def check_can_correct(lm: LanguageModel) -> None:
    """Refuse a model that never changes a token of a text."""
    kind = "autoregressive" if not lm.estimate.diffusion else "trained with masks alone"
    if not lm.estimate.diffusion or isinstance(lm.process, MaskedProcess):
        raise ConfigError(
            f"this model is {kind} and never changes a token that is written: give one of a "
            "uniform or hybrid process, such as `objective=SDDLM()` trains"
        )


def protection(protect: str | None) -> re.Pattern[str] | None:
    """The expression, compiled; None protects nothing."""
    try:
        return None if protect is None else re.compile(protect)
    except re.error as error:
        raise ConfigError(
            f"`protect` is {protect!r}, which is no regular expression: {error}; "
            "try `protect='Lily|Tom'`"
        ) from error
