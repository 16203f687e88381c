"""Retention: which tokens a sampler keeps, and what a greedy last step does to them.

The last step of a run with n steps begins at t = 1/n. There held-out rows are corrupted, and the
most likely token is taken at every position: of the leave-one-out prediction, as public code does,
which forgets the token that is there, and of the denoiser p(x0 | x_t), one logit away from it. A
prediction that retains clean tokens and restores corrupted ones is what a last step needs. Beside
them is what the sampler itself does: tokens that it changes in a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Annotated, Any

import torch
from rich.table import Table
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.eval.evaluation import JudgedConfig, Subject, run
from sddlm.eval.generative import generative_perplexity
from sddlm.eval.judge import Judge
from sddlm.eval.result import Result
from sddlm.eval.samples import SampleSet
from sddlm.eval.texts import HeldOut
from sddlm.lm import LanguageModel
from sddlm.rng import Draw
from sddlm.sampling.base import chunks, device_of, evaluating, hidden_at, leave_one_out
from sddlm.types import before_padding

#: predictions whose most likely token is taken
TAILS = ("leave_one_out", "denoiser")


@dataclass(frozen=True)
class RetentionConfig(JudgedConfig):
    """Options of the retention; of the sampler all but its steps and its tail."""

    rows: int = 128
    """most held-out rows, spread evenly; 0 for all"""
    grid: str | list[int] = "4,8,16,32,64"
    """numbers of steps, comma-separated"""

    def __post_init__(self) -> None:
        super().__post_init__()
        grid_of(self.grid)


def grid_of(given: str | list[int]) -> list[int]:
    """The numbers of steps of a list such as ``4,8,16``, ascending.

    Raises:
        ConfigError: one is no whole number above 1, or is there twice.
    """
    try:
        grid = sorted(map(int, given.split(",") if isinstance(given, str) else given))
    except ValueError:
        grid = []
    if not grid or grid[0] < 2 or len({*grid}) < len(grid):
        raise ConfigError(f"`grid` is {given!r}, must be different numbers above 1: `grid='4,64'`")
    return grid


@dataclass(frozen=True)
class Tail:
    """A greedy last step from one prediction.

    Attributes:
        retained: share of the clean tokens that stay.
        restored: share of the corrupted tokens that become the original.
        revised: tokens of a sample that it changes.
        ppl: a judge's perplexity of the samples behind it; None without a judge.
    """

    retained: float
    restored: float
    revised: float
    ppl: float | None


@dataclass(frozen=True)
class RetentionPoint:
    """A number of steps.

    Attributes:
        steps: the number.
        corrupted: share of the tokens of held-out text that are corrupted at t = 1/steps.
        revised: tokens of a sample that the sampler changes in a step, mean over the steps.
        tails: a greedy last step from each prediction (`TAILS`).
    """

    steps: int
    corrupted: float
    revised: float
    tails: dict[str, Tail]


@dataclass(frozen=True, kw_only=True)
class Retention(Result):
    """Tokens that are kept, at several numbers of steps.

    Attributes:
        rows: held-out rows.
        count: samples of each number of steps.
        length: tokens of a sample.
        points: of each number of steps.
    """

    rows: int
    count: int
    length: int
    points: list[RetentionPoint]

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        for point in self.points:
            noise = f"in a step; {point.corrupted:.1%} of real tokens corrupted before the last one"
            table.add_row(f"{point.steps} steps", f"{point.revised:.1f} revised", noise)
            for name, own in point.tails.items():
                judged = "" if own.ppl is None else f", perplexity {own.ppl:.4g}"
                kept = f"{own.retained:.1%} retained, {own.restored:.1%} restored"
                more = f"{own.revised:.1f} tokens revised{judged}"
                table.add_row(f"  {name.replace('_', '-')} tail", kept, more)
        return [f"{self.rows} rows; {self.count} samples of {self.length} tokens"]


def evaluate_retention(
    model: str | LanguageModel,
    *,
    device: str = "auto",
    out: str | None = None,
    **options: Annotated[Any, RetentionConfig],
) -> Retention:
    """Measure which tokens a sampler revises, and which ones a greedy last step keeps.

    Args:
        model: run or model directory, or a loaded model (which needs a text: ``data``).
        device: cpu, cuda, or auto.
        out: the JSON file to write; on the command line retention.json in the model's directory.
        options: text, numbers of steps, judge, and the sampler.

    Returns:
        the shares at each number of steps; ``print`` shows a table, ``as_dict()`` is the JSON file.

    Raises:
        ConfigError: a wrong choice, or an autoregressive model.
    """
    return run("retention", _measure, RetentionConfig(**options), model, device, out)


def _measure(config: RetentionConfig, subject: Subject) -> Retention:
    lm = subject.lm
    if not lm.estimate.diffusion:
        raise ConfigError("an autoregressive model has no steps; give a diffusion model")
    text, _ = config.held_out(subject)
    judge = None if config.judge is None else Judge.load(config.judge, device=subject.device)
    points = []
    for steps in grid_of(config.grid):
        counts, corrupted = _on_text(config, subject, text, steps)
        revised, ends = _on_samples(config, subject, steps)
        tails = {}
        for k, name in enumerate(TAILS):
            texts = lm.tokenizer.decode_batch(ends[k + 1].tolist())
            drawn = SampleSet([*ends[k + 1]], texts, {})
            verdict = judge and generative_perplexity(
                judge, drawn, config.convention, tokenizer=lm.tokenizer, context=config.context
            )
            changed = float((ends[k + 1] != ends[0]).sum()) / config.count
            tails[name] = Tail(*counts[k], changed, verdict.ppl if verdict else None)
        points.append(RetentionPoint(steps, corrupted, revised, tails))
    return Retention(
        text=text.source,
        rows=len(text),
        count=config.count,
        length=lm.network.length,
        points=points,
    )


def _on_text(
    config: RetentionConfig, subject: Subject, text: HeldOut, steps: int
) -> tuple[list[tuple[float, float]], float]:
    """Retained and restored shares of each prediction, and the corrupted share of the tokens."""
    lm, t = subject.lm, 1 / steps
    sums = torch.zeros(3, 2, dtype=torch.int64)  # all tokens, and those hit; clean, corrupted
    for start in range(0, len(text), config.batch):
        index = torch.arange(start, min(start + config.batch, len(text)))
        x0, V = text.tokens[index], lm.network.vocab_size
        draw, times = Draw(config.seed, 0, index, len(index)), torch.full((len(index),), t)
        x_t = lm.process.corrupt(x0, times.double(), draw, vocab_size=V).x_t
        lengths = None if text.lengths is None else text.lengths[index]
        real = before_padding(
            torch.full((len(index),), x0.shape[1]) if lengths is None else lengths, x0.shape[1]
        )
        hit = (most_likely_tokens(lm, x_t, t, lengths) == x0) & real  # [2, B, L]
        for kind, at in enumerate(((x_t == x0) & real, (x_t != x0) & real)):
            sums[0, kind] += at.sum()
            sums[1:, kind] += (hit & at).sum((1, 2))
    clean, corrupted = sums[0].tolist()
    shares = [(float(a) / max(clean, 1), float(b) / max(corrupted, 1)) for a, b in sums[1:]]
    return shares, corrupted / (clean + corrupted)


def _on_samples(config: RetentionConfig, subject: Subject, steps: int) -> tuple[float, Tensor]:
    """Tokens that a sampler changes in a step; texts before and behind each tail ``[3, n, L]``."""
    lm, ends, changes = subject.lm, [], 0
    how = replace(config.how, steps=steps, tail="sample")
    sampler = how.build(lm)
    for start in range(0, config.count, config.batch):
        size, seen = min(config.batch, config.count - start), list[Tensor]()
        sampler.sample(
            lm, batch=size, seed=config.seed, index=start,
            on_step=lambda _, __, x: seen.append(x.clone()),  # noqa: B023
        )  # fmt: skip
        changes += sum(int((a != b).sum()) for a, b in pairwise(seen))
        ends.append(torch.cat((seen[-2][None], most_likely_tokens(lm, seen[-2], 1 / steps))))
    return changes / (steps - 1) / config.count, torch.cat(ends, 1)


def most_likely_tokens(
    lm: LanguageModel, x_t: Tensor, t: float, lengths: Tensor | None = None
) -> Tensor:
    """Most likely clean token at each position by both predictions (`TAILS`) ``[2, B, L]`` int64.

    Args:
        lm: the model.
        x_t: noisy tokens ``[B, L]``.
        t: their noise level.
        lengths: tokens before the padding ``[B]``; None where there is none.
    """
    device, network, process = device_of(lm.network), lm.network, lm.process
    x = x_t.to(device)
    found = torch.empty(len(TAILS), x.numel(), dtype=torch.int64)
    more = (
        {}
        if lengths is None
        else {"attention_mask": before_padding(lengths.to(device), x.shape[1])}
    )
    with evaluating(network):
        hidden, alpha = hidden_at(lm, x, t, **more)  # [B L, D], [1]
        own = x.flatten()
        for at in chunks(len(own), network.vocab_size):
            logits = leave_one_out(network, hidden[at], lm.estimate, process, own[at], alpha)
            p = logits.softmax(-1)
            denoiser = process.posterior(p, own[at], alpha, torch.ones_like(alpha))
            found[:, at] = torch.stack((p.argmax(-1), denoiser.argmax(-1))).cpu()
    return found.view(len(TAILS), *x.shape)
