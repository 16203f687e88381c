"""From samples to what a judge sees: text, tokens and windows, as a `Convention` says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.conventions import Convention, tidied
from sddlm.eval.judge import Judge, numbering


class WithTokens(Protocol):
    """Samples as a sampler drew them, such as `sddlm.eval.texts.SampleSet`."""

    @property
    def rows(self) -> list[Tensor]:
        """The sampler's tokens of each ``[l]`` int64."""

    @property
    def texts(self) -> list[str]:
        """Each decoded without special tokens."""


#: plain texts will do where a convention needs no tokens
Samples = WithTokens | Sequence[str]


def counted(ids: Tensor, eos: int | None, rule: str) -> Tensor:
    """Which targets of a context count, as far as ends of text decide it.

    Args:
        ids: tokens ``[.., l]``; all but the first are targets.
        eos: end-of-text; without one everything counts.
        rule: `Convention.eos`. ``first`` is Duo's: no end-of-text, or exactly one up to it and
            itself included.

    Returns:
        ``[.., l - 1]`` bool.
    """
    if rule == "scored" or eos is None:
        return torch.ones_like(ids[..., 1:], dtype=torch.bool)
    end = ids.eq(eos)
    counts = ~end
    if rule == "first":
        counts = counts | (end.cumsum(-1) == 1)
    return counts[..., 1:]


@dataclass(frozen=True)
class Window:
    """What a judge sees at once, and which of it counts.

    Attributes:
        row: of the text.
        ids: its tokens.
        at: places in ``ids`` of the tokens that count, none of them 0.
    """

    row: int
    ids: list[int]
    at: list[int]


def read(
    judge: Judge, samples: Samples, rules: Convention, tokenizer: Tokenizer | None
) -> tuple[list[list[int]], list[int]]:
    """Tokens of the judge for each sample, and characters of the text that it reads."""
    texts: list[str] = []
    if not isinstance(samples, Sequence):
        texts, own = list(samples.texts), [row.tolist() for row in samples.rows]
    elif rules.special or rules.own_length or not rules.retokenise:
        raise ConfigError(
            f"convention {rules.name} needs the tokens of the samples, and only their text is "
            'there; give {"text": ..., "tokens": [...]}, or use --convention sddlm'
        )
    else:
        texts, own = list(samples), []
    if (rules.special or not rules.retokenise) and tokenizer is None:
        raise ValueError(f"convention {rules.name} needs the tokenizer of the samples")
    if not rules.retokenise and tokenizer is not None:
        if numbering(tokenizer.to_json()) != judge.numbering:
            raise ConfigError(
                f"judge {judge.name} has another tokenizer than the samples, so it cannot read "
                "their tokens; use a convention that retokenises"
            )
        return own, [len(text) for text in texts]
    if rules.special and tokenizer is not None:
        texts = tokenizer.decode_batch(own, skip_special=False)
    if rules.tidy:
        texts = [tidied(text) for text in texts]
    encoded = judge.encode(texts, rules.front == "tokenizer") if texts else []
    return encoded, [len(text) for text in texts]


def longest_read(samples: Samples, rules: Convention) -> int | None:
    """Most tokens that are read of a text; None is all."""
    limits = [] if rules.stride is not None else [rules.context]
    if rules.own_length and not isinstance(samples, Sequence):
        limits.append(max(map(len, samples.rows), default=0))
    return min((limit for limit in limits if limit is not None), default=None)


def _calls(count: int, rules: Convention) -> list[range]:
    """Which texts are read and padded together."""
    size = rules.call or max(count, 1)
    return [range(k, min(k + size, count)) for k in range(0, count, size)]


def kept_samples(count: int, rules: Convention) -> list[int]:
    """The samples that the convention does not leave out."""
    kept: list[int] = []
    for call in _calls(count, rules):
        batch = min(rules.multiple, len(call))
        kept += call[: len(call) // batch * batch]
    return kept


def all_windows(judge: Judge, rows: list[list[int]], rules: Convention) -> list[Window]:
    """What the judge sees, row by row; windows in which nothing counts are left out."""
    found: list[Window] = []
    for call in _calls(len(rows), rules):
        longest = max(len(rows[k]) for k in call)
        for k in call:
            row = rows[k]
            if rules.eos == "first" and judge.eos is not None:  # where padding can count
                row = row + [judge.eos] * (longest - len(row))
            found += _windows_of(judge, k, row, rules)
    return found


def _windows_of(judge: Judge, number: int, row: list[int], rules: Convention) -> list[Window]:
    """The windows of one row."""
    assert rules.context is not None
    stride = rules.stride or rules.context
    front = [judge.start] if rules.front == "start" and judge.start is not None else []
    found = []
    for start in range(0, len(row), stride):
        known = 0 if start == 0 else rules.context - stride  # those before have been scored
        text = row[start : start + rules.context]
        # what stands in front is no token of the text, so no end of it either: -1
        counts = counted(torch.tensor([-1] * len(front) + text), judge.eos, rules.eos)
        scored_from = known + len(front)
        at = [k for k, counts_too in enumerate(counts, 1) if counts_too and k >= scored_from]
        if at:
            found.append(Window(number, (front + text)[: at[-1] + 1], at))
    return found
