"""Texts on their way, the windows of them that a model sees at once, and batches of windows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from sddlm.lm import LanguageModel
from sddlm.sampling.condition import Condition

#: windows of unequal lengths are padded to a multiple of this, so that they share batches
MULTIPLE = 32


@dataclass
class TextState:
    """A text that is being written or corrected.

    Attributes:
        tokens: all of them, what stands in front of the text included ``[n]`` int64.
        known: which of them never change ``[n]`` bool.
        nfe: network calls that it took part in.
        seconds: its share of the time of the batches that it was in.
    """

    tokens: Tensor
    known: Tensor
    nfe: int = 0
    seconds: float = 0.0


State = TypeVar("State", bound=TextState)


@dataclass(frozen=True)
class Window:
    """Part of a text that the model sees at once.

    Attributes:
        start: its first token.
        end: the token behind its last.
        first: the first token that it writes; those before are context and known.
        stop: the token behind the last that it writes; those after are context.
    """

    start: int
    end: int
    first: int
    stop: int


def next_window(first: int, total: int, width: int, *, before: int, after: int = 0) -> Window:
    """The window that writes a text from the token ``first`` on, as full as the text allows.

    Args:
        first: the first token to write.
        total: tokens of the text.
        width: tokens of a window.
        before: tokens of context before ``first``; more at the end of a text, fewer at its front.
        after: tokens of context behind what is written, unless the text ends in the window.
    """
    start = max(0, min(first - before, total - width))
    end = min(start + width, total)
    return Window(start, end, first, end if end == total else end - after)


@dataclass(frozen=True)
class WindowBatch(Generic[State]):
    """Windows of one width that are sampled together.

    Attributes:
        texts: whose windows they are ``[B]``.
        windows: one of each text ``[B]``.
        condition: their tokens, those that are known, and their lengths where there is padding.
        front: tokens that stand before each window, and are none of its text.
    """

    texts: list[State]
    windows: list[Window]
    condition: Condition
    front: int

    def slices(self) -> Iterable[tuple[State, slice, slice]]:
        """Each text, with what its window writes: positions in the text, and in the batch's row."""
        for text, window in zip(self.texts, self.windows, strict=True):
            shift = self.front - window.start
            own = slice(window.first, window.stop)
            yield text, own, slice(window.first + shift, window.stop + shift)

    def apply(self, tokens: Tensor, nfe: Sequence[int] | Tensor, seconds: float) -> None:
        """Put what was sampled into the texts.

        Args:
            tokens: ``[B, L]`` int64.
            nfe: network calls ``[B]``.
            seconds: of the whole batch.
        """
        for row, (text, own, there) in enumerate(self.slices()):
            text.tokens[own] = tokens[row, there].cpu()
            text.nfe += int(nfe[row])
            text.seconds += seconds / len(self.texts)


def window_batches(
    lm: LanguageModel, windows: Iterable[tuple[State, Window]], size: int
) -> list[WindowBatch[State]]:
    """Windows in batches of one width.

    The width of a window's row is a function of the window alone, so that other windows do not
    matter: it is padded to a multiple of `MULTIPLE`, or to the model's length. A window from the
    middle of a text gets the token in front that rows of the model begin with.

    Args:
        lm: the model.
        windows: texts, each with the window that is next.
        size: windows in a batch at most.
    """
    most = lm.network.length
    groups: dict[tuple[int, bool, int], list[tuple[State, Window]]] = {}
    for text, window in windows:
        front = int(lm.bos_in_rows and window.start > 0)
        wide = window.end - window.start + front
        width = min(most, -(-wide // MULTIPLE) * MULTIPLE)
        groups.setdefault((width, width != wide, front), []).append((text, window))
    batches = []
    for (width, padded, front), rows in groups.items():
        for start in range(0, len(rows), size):
            texts, parts = map(list, zip(*rows[start : start + size], strict=True))
            condition = pad_batch(
                [_seen(text, window) for text, window in zip(texts, parts, strict=True)],
                width, front=[lm.tokenizer.bos_id] * front, pad=lm.tokenizer.pad_id, padded=padded,
            )  # fmt: skip
            batches.append(WindowBatch(texts, parts, condition, front))
    return batches


def _seen(text: TextState, window: Window) -> tuple[Tensor, Tensor]:
    """Tokens of a window, and which of them are known, ``[n]`` each."""
    known = text.known[window.start : window.end].clone()
    known[: window.first - window.start] = True
    return text.tokens[window.start : window.end], known


def pad_batch(
    rows: Sequence[tuple[Tensor, Tensor]],
    width: int,
    *,
    front: Sequence[int] = (),
    pad: int,
    padded: bool = True,
) -> Condition:
    """Rows of unequal lengths as the condition of one batch.

    Args:
        rows: tokens and which of them are known, ``[n]`` each.
        width: L of the batch.
        front: tokens that stand before each row, known.
        pad: token behind each row, known.
        padded: keep the lengths of the rows, so that the network does not see the padding.
    """
    tokens = torch.full((len(rows), width), pad)  # [B, L]
    known = torch.ones(len(rows), width, dtype=torch.bool)  # [B, L]
    tokens[:, : len(front)] = torch.tensor(front, dtype=torch.int64)
    for row, (own, given) in enumerate(rows):
        at = slice(len(front), len(front) + len(own))
        tokens[row, at], known[row, at] = own, given
    lengths = torch.tensor([len(front) + len(own) for own, _ in rows])
    return Condition(tokens, known, lengths if padded else None)
