"""Conventions of generative perplexity: how a judge reads samples.

Published figures differ in all of these choices, by more than the models do. A figure is comparable
only to one of the same convention and the same judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, did_you_mean
from sddlm.eval.judge import Judge


@dataclass(frozen=True)
class Convention:
    """From tokens of a sampler to tokens of a judge, and which of these are scored.

    Attributes:
        name: of the preset.
        special_tokens: samples are decoded with their special tokens written out.
        clean_up_spaces: spaces before punctuation and contractions are removed from the decoded
            text, as transformers before 4.45 did by default.
        bos: ``always``, the judge's begin-of-text token (else end-of-text) stands in front, and
            every token of the text is scored; ``tokenizer``, what the judge's tokenizer adds:
            nothing for GPT-2, whose first token is then context and not scored.
        sample_length: text is first cut to as many tokens of the judge as the longest sample has of
            its own.
        context: most tokens that the judge sees at once, a token in front not counted; None is
            the judge's limit.
        chunked: text beyond the context is scored in further chunks, each without context;
            otherwise it is cut off.
        eos: end-of-text tokens of the judge (not the one in front) are ``scored`` like any other,
            or only the ``first`` of a context is, even where it is padding.
        batch_size: number of samples that are padded together, with end-of-text tokens up to the
            longest of them; None is all. It matters only where padding counts (``eos`` is first).
    """

    name: str
    special_tokens: bool = False
    clean_up_spaces: bool = False
    bos: Literal["always", "tokenizer"] = "always"
    sample_length: bool = False
    context: int | None = None
    chunked: bool = False
    eos: Literal["scored", "first"] = "scored"
    batch_size: int | None = None

    def at(self, context: int | None, limit: int, judge: str) -> Convention:
        """This convention with the context that is used.

        Args:
            context: what the user wants; None for the convention's own.
            limit: most that the judge can.
            judge: its name.

        Raises:
            ConfigError: the convention needs more context than the judge has.
        """
        used = context or self.context or limit
        if context is None and used > limit:
            raise ConfigError(
                f"`convention` {self.name} reads {used} tokens at once but judge {judge} can "
                f"{limit}: set `context` to {limit}, and state it beside the figure"
            )
        return replace(self, context=used)


#: Duo's, as of s-sahoo/duo (metrics.py at 547fb15, main.py, scripts/gen_ppl_owt_duo.sh, read):
#: `batch_decode` with its defaults (transformers is pinned to 4.38.2, which cleans up spaces); the
#: judge's tokenizer with its defaults, truncation to the sampler's length and padding on the right
#: to the longest of the batch (GPT-2 has no padding token and gets end-of-text); chunks of 1024
#: tokens; the mean over all tokens. A target counts if it is no end-of-text, or if exactly one
#: end-of-text stands up to it and itself included. A text without one that is shorter than the
#: longest of its batch therefore gets its first padding counted. Its scripts draw and judge 8
#: samples at a time. MDLM's (kuleshov-group/mdlm, diffusion.py, of which copies in other
#: repositories were read) has the same lines.
_DUO = Convention(
    "duo", special_tokens=True, clean_up_spaces=True, bos="tokenizer", sample_length=True,
    context=1024, chunked=True, eos="first", batch_size=8,
)  # fmt: skip

#: by name; ours is the first
CONVENTIONS: dict[str, Convention] = {
    convention.name: convention for convention in (Convention("sddlm"), _DUO)
}


def convention_of(name: str) -> Convention:
    """The preset of a name; ``mdlm`` is another name of ``duo``.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {**CONVENTIONS, "mdlm": _DUO}
    if name in known:
        return known[name]
    meant = did_you_mean(name, known)
    raise ConfigError(f"`convention` is {name!r}, must be {', '.join(known)}{meant}")


#: what transformers' `clean_up_tokenization` replaces, in its order
_SPACED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up_spaces(text: str) -> str:
    """Remove spaces before punctuation, as transformers does in decoded text."""
    for spaced, clean in _SPACED:
        text = text.replace(spaced, clean)
    return text


class WithTokens(Protocol):
    """Samples as a sampler drew them, such as `sddlm.eval.samples.SampleSet`."""

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
class JudgeInput:
    """What a judge sees at once, and which of it counts.

    Attributes:
        row: of the text.
        ids: its tokens.
        at: places in ``ids`` of the tokens that count, none of them 0.
    """

    row: int
    ids: list[int]
    at: list[int]


def encode_for_judge(
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


def judge_inputs(judge: Judge, rows: list[list[int]], rules: Convention) -> list[JudgeInput]:
    """What the judge sees, row by row; windows in which nothing counts are left out."""
    found: list[JudgeInput] = []
    size = rules.batch_size or max(len(rows), 1)
    for first in range(0, len(rows), size):
        batch = range(first, min(first + size, len(rows)))  # padded together
        longest = max(len(rows[k]) for k in batch)
        for k in batch:
            row = rows[k]
            if rules.eos == "first" and judge.eos is not None:  # where padding can count
                row = row + [judge.eos] * (longest - len(row))
            found += _inputs_of(judge, k, row, rules)
    return found


def _inputs_of(judge: Judge, number: int, row: list[int], rules: Convention) -> list[JudgeInput]:
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
            found.append(JudgeInput(number, (front + text)[: at[-1] + 1], at))
    return found
