"""Continuations in windows that fit into a network's rows, each after the text before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.sampling.base import device_of
from sddlm.sampling.context import Trained


@dataclass(frozen=True)
class Window:
    """A piece of a continuation and the tokens before it that the network sees.

    Attributes:
        choice: number of the choice that it is of.
        number: its own, within the choice.
        context: clean tokens right before it.
        scored: its tokens.
    """

    choice: int
    number: int
    context: list[int]
    scored: list[int]

    @property
    def shape(self) -> tuple[int, int]:
        """Lengths of both."""
        return len(self.context), len(self.scored)


def all_windows(
    lm: Trained, pairs: Sequence[tuple[list[int], list[int]]]
) -> tuple[list[Window], list[int]]:
    """The windows of all choices, and how much of each prompt is cut.

    Args:
        lm: the model.
        pairs: prompt and continuation of each choice.

    Raises:
        ConfigError: a next-token model and an empty prompt.
    """
    ahead = 0 if lm.estimate.diffusion else 1
    found: list[Window] = []
    cuts = []
    for number, (prompt, continuation) in enumerate(pairs):
        if ahead and not prompt and continuation:
            raise ConfigError(
                "a next-token model cannot score the first token of a text: put its begin-of-text "
                "token in front (`LanguageModel.prompt_ids`)"
            )
        pieces = windows(prompt, continuation, lm.network.length, ahead)
        found += [Window(number, i, *piece) for i, piece in enumerate(pieces)]
        cuts.append(len(prompt) - len(pieces[0][0]) if pieces else 0)
    return found, cuts


def windows(
    prompt: list[int], continuation: list[int], length: int, ahead: int
) -> list[tuple[list[int], list[int]]]:
    """A continuation in pieces, each with the tokens before it that fit into a row.

    Args:
        prompt: tokens before it.
        continuation: tokens; one piece if they and ``ahead`` tokens fit, else the first piece
            with at most half a row of the prompt, the others of half a row each.
        length: of a row.
        ahead: tokens that must be before each piece; the prompt has as many.

    Returns:
        (context, piece) of each; context and piece are together at most ``length`` tokens.
    """
    whole, at = prompt + continuation, len(prompt)
    step = max(1, length // 2)
    found = []
    fits = len(continuation) + ahead <= length
    stop = len(whole) if fits else at + length - min(at, length - step)
    while at < len(whole):
        found.append((whole[max(0, stop - length) : at], whole[at:stop]))
        at, stop = stop, min(stop + step, len(whole))
    return found


def next_tokens(lm: Trained, some: list[Window], batch: int) -> Iterator[tuple[Window, Tensor]]:
    """Each window with the hidden states ``[M, D]`` that predict its tokens; model is causal."""
    device = device_of(lm.network)
    for first in range(0, len(some), batch):
        alike = some[first : first + batch]
        rows = [(window.context + window.scored)[:-1] for window in alike]
        longest = max(map(len, rows))
        # padding on the right, which no position before it sees
        x = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
        hidden = lm.network(x, torch.zeros(len(alike), device=device))  # [b, longest, D]
        for window, one in zip(alike, hidden, strict=True):
            K, M = window.shape
            yield window, one[K - 1 : K - 1 + M]
