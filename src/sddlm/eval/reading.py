"""From samples to what a judge sees: text, tokens and windows, by the rules of a `Convention`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.conventions import Convention, clean_up_spaces
from sddlm.eval.judge import Judge


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
    return (~end | (end.cumsum(-1) == 1))[..., 1:]


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
    elif rules.special_tokens or rules.sample_length:
        raise ConfigError(
            f"`convention` {rules.name} needs the tokens of the samples, and only their text is "
            'there; give {"text": ..., "tokens": [...]}, or set `convention` to sddlm'
        )
    else:
        texts, own = list(samples), []
    if rules.special_tokens and tokenizer is None:
        raise ValueError(f"convention {rules.name} needs the tokenizer of the samples")
    if rules.special_tokens and tokenizer is not None:
        texts = tokenizer.decode_batch(own, skip_special=False)
    if rules.clean_up_spaces:
        texts = [clean_up_spaces(text) for text in texts]
    encoded = judge.encode(texts, rules.bos == "tokenizer") if texts else []
    return encoded, [len(text) for text in texts]


def longest_read(samples: Samples, rules: Convention) -> int | None:
    """Most tokens that are read of a text; None is all."""
    limits = [] if rules.chunked else [rules.context]
    if rules.sample_length and not isinstance(samples, Sequence):
        limits.append(max(map(len, samples.rows), default=0))
    return min((limit for limit in limits if limit is not None), default=None)


def all_windows(judge: Judge, rows: list[list[int]], rules: Convention) -> list[Window]:
    """What the judge sees, row by row; windows in which nothing counts are left out."""
    found: list[Window] = []
    size = rules.batch_size or max(len(rows), 1)
    for first in range(0, len(rows), size):
        batch = range(first, min(first + size, len(rows)))  # padded together
        longest = max(len(rows[k]) for k in batch)
        for k in batch:
            row = rows[k]
            if rules.eos == "first" and judge.eos is not None:  # where padding can count
                row = row + [judge.eos] * (longest - len(row))
            found += _windows_of(judge, k, row, rules)
    return found


def _windows_of(judge: Judge, number: int, row: list[int], rules: Convention) -> list[Window]:
    """The windows of one row."""
    assert rules.context is not None
    front = [judge.start] if rules.bos == "always" and judge.start is not None else []
    found = []
    for start in range(0, len(row), rules.context):
        text = row[start : start + rules.context]
        # what stands in front is no token of the text, so no end of it either: -1
        counts = counted(torch.tensor([-1] * len(front) + text), judge.eos, rules.eos)
        at = [k for k, counts_too in enumerate(counts, 1) if counts_too]
        if at:
            found.append(Window(number, (front + text)[: at[-1] + 1], at))
    return found
