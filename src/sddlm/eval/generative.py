"""Generative perplexity: what another language model, the judge, thinks of samples.

How it reads them is a `Convention`; with all its fields it is part of every result, because
figures of different conventions are not comparable.

Low is not good by itself: repetitive text scores low. Print it beside ``entropy`` and beside the
same judge's figure for real text of the same length, read in the same way.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.conventions import (
    Convention,
    JudgeInput,
    Samples,
    convention_of,
    encode_for_judge,
    judge_inputs,
    longest_read,
)
from sddlm.eval.judge import Judge, padded
from sddlm.eval.perplexity import exp
from sddlm.jobs import ResumableJob, digest
from sddlm.sampling.base import finite


@dataclass(frozen=True)
class Scored:
    """A judge's nats for each text.

    Attributes:
        nats: of the tokens that count ``[n]`` float64.
        tokens: how many these are ``[n]`` int64; 0 for a text without any.
        empty: texts without a token.
        cut: texts that were longer than the convention reads.
        characters: of the texts as read, whether cut or not.
        whole: every token of every text counts, so that characters and nats belong together.
        convention: with the context that was used.
    """

    nats: Tensor
    tokens: Tensor
    empty: int
    cut: int
    characters: int
    whole: bool
    convention: Convention


@dataclass(frozen=True)
class GenerativePerplexity:
    """A judge's verdict with the convention it was reached under.

    Attributes:
        ppl: generative perplexity (``gen_ppl``), exp(sum of nats / sum of tokens).
        ppl_stderr: its standard error over texts; NaN for one text.
        nll: its logarithm, nats per token of the judge.
        nll_stderr: its standard error.
        nats_per_character: nats of all tokens per character of the texts; NaN unless every token
            of every text was scored.
        tokens: tokens of the judge that count.
        samples: texts with any.
        empty: texts without a token.
        cut: texts that were longer than the convention reads.
        judge: its name.
        context: most tokens that it saw at once.
        precision: of the numbers that the samples were drawn with.
        convention: its fields.
    """

    ppl: float
    ppl_stderr: float
    nll: float
    nll_stderr: float
    nats_per_character: float
    tokens: int
    samples: int
    empty: int
    cut: int
    judge: str
    context: int
    precision: str
    convention: Convention


def generative_perplexity(
    judge: Judge,
    samples: Samples,
    convention: Convention | str = "sddlm",
    *,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
    batch: int = 8,
    job: ResumableJob | None = None,
    precision: str = "unknown",
) -> GenerativePerplexity:
    """Perplexity of ``samples`` under ``judge``, float64 sums.

    The standard error treats texts as independent draws. For a ratio of two sums
    N and T over texts, it is that of the delta method: the spread of ``N_i - nll T_i`` over texts,
    divided by the mean of ``T_i`` and the root of n; that of ``ppl`` is ``ppl`` times as large.

    Args:
        judge: the scoring model.
        samples: texts, or samples with their tokens, which some conventions need.
        convention: how they are read, by name or as an object.
        tokenizer: the sampler's, for conventions that need tokens.
        context: most tokens that the judge sees at once; None for the convention's own.
        batch: rows per call of the judge; changes nothing but time and memory.
        job: does the batches.
        precision: of the numbers that the samples were drawn with, for the record.

    Raises:
        ConfigError: see `scored`.
    """
    found = scored(judge, samples, convention, batch, job, tokenizer=tokenizer, context=context)
    some = found.tokens > 0
    nats, tokens = found.nats[some], found.tokens[some].double()  # [n]
    total = float(nats.sum())
    nll = total / float(tokens.sum())
    error = float((nats - nll * tokens).std()) / math.sqrt(len(nats)) if len(nats) > 1 else math.nan
    nll_stderr = error / float(tokens.mean())
    return GenerativePerplexity(
        ppl=exp(nll),
        ppl_stderr=exp(nll) * nll_stderr,
        nll=nll,
        nll_stderr=nll_stderr,
        nats_per_character=total / found.characters if found.whole else math.nan,
        tokens=int(tokens.sum()),
        samples=len(nats),
        empty=found.empty,
        cut=found.cut,
        judge=judge.name,
        context=found.convention.context or judge.limit,
        precision=precision,
        convention=found.convention,
    )


def scored(
    judge: Judge,
    samples: Samples,
    convention: Convention | str = "sddlm",
    batch: int = 8,
    job: ResumableJob | None = None,
    label: str = "judge",
    *,
    tokenizer: Tokenizer | None = None,
    context: int | None = None,
) -> Scored:
    """Score each sample by itself.

    Args:
        judge: the scoring model.
        samples: texts, or samples with their tokens, which some conventions need.
        convention: how they are read, by name or as an object.
        batch: rows per call of the judge; changes nothing but time and memory.
        job: does the batches.
        label: of the bar.
        tokenizer: the sampler's, for conventions that need tokens.
        context: most tokens that the judge sees at once; None for the convention's own.

    Raises:
        ConfigError: no text with a token that counts, a judge or samples that the convention
            cannot be applied to, or a context or a batch that is impossible.
    """
    rules = convention_of(convention) if isinstance(convention, str) else convention
    judge.checked_context(context, batch)
    rules = rules.at(context, judge.limit, judge.name)
    if rules.eos != "scored" and judge.eos is None:
        raise ConfigError(
            f"`convention` {rules.name} counts only the first end of text, and judge {judge.name} "
            "has none: set `convention` to sddlm"
        )
    encoded, characters = encode_for_judge(judge, samples, rules, tokenizer)
    most = longest_read(samples, rules)
    rows = [row[:most] for row in encoded]
    windows = judge_inputs(judge, rows, rules)
    if not windows:
        raise ConfigError("generative perplexity needs text; every sample is empty")
    nats = _score(judge, windows, rules, batch, job or ResumableJob(), label)
    sums = torch.zeros(len(rows), dtype=torch.float64)
    tokens = torch.zeros(len(rows), dtype=torch.int64)
    where = torch.tensor([window.row for window in windows])
    sums.index_add_(0, where, torch.tensor(nats, dtype=torch.float64))
    tokens.index_add_(0, where, torch.tensor([len(window.at) for window in windows]))
    lengths = torch.tensor([len(row) for row in encoded])
    return Scored(
        nats=sums,
        tokens=tokens,
        empty=int((lengths == 0).sum()),
        cut=sum(len(whole) > len(row) for whole, row in zip(encoded, rows, strict=True)),
        characters=sum(characters),
        whole=bool((tokens == lengths).all()),
        convention=rules,
    )


def _score(
    judge: Judge,
    windows: list[JudgeInput],
    rules: Convention,
    batch: int,
    job: ResumableJob,
    label: str,
) -> list[float]:
    """Nats of what counts in each window, a batch a shard."""
    order = sorted(range(len(windows)), key=lambda k: len(windows[k].ids))
    parts = [order[k : k + batch] for k in range(0, len(order), batch)]

    def one(number: int) -> list[float]:
        chosen = [windows[k] for k in parts[number]]
        ids, mask = padded([window.ids for window in chosen], judge.start or 0)
        nats = judge.score(ids, mask).double()  # [B, L - 1], of the tokens from the second on
        return [
            finite(row[torch.tensor(window.at) - 1].sum()).item()
            for row, window in zip(nats, chosen, strict=True)
        ]

    cache_key = {
        "judge": judge.name,
        "version": judge.version,
        "text": digest([[window.ids, window.at] for window in windows]),
        "convention": asdict(rules),
        "batch": batch,
    }
    found = [0.0] * len(windows)
    for part, nats in zip(parts, job.run(label, len(parts), one, cache_key), strict=True):
        for k, value in zip(part, nats, strict=True):
            found[k] = value
    return found
