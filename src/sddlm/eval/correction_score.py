"""How well a model corrects: tokens of real text are replaced at random, and outcomes counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sddlm.eval.texts import HeldOut
from sddlm.generation.config import CORRECTION, SamplerConfig
from sddlm.generation.corrector import check_can_correct
from sddlm.generation.levels import LEVELS, most_likely, score_tokens
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.rng import Draw
from sddlm.sampling.condition import Condition
from sddlm.types import before_padding

#: what became of a token: replaced and the original again, replaced and another wrong one, replaced
#: and left; or right before and not after
_OUTCOMES = ("restored", "other", "left", "damaged")


@dataclass(frozen=True)
class CorruptedBatch:
    """Rows of which tokens were replaced.

    Attributes:
        x0: the original rows ``[B, L]`` int64.
        x: the corrupted rows ``[B, L]``.
        free: positions of text, the others being padding and special tokens ``[B, L]`` bool.
        drawn: positions that were given another token, perhaps the same ``[B, L]`` bool.
    """

    x0: Tensor
    x: Tensor
    free: Tensor
    drawn: Tensor

    @property
    def wrong(self) -> Tensor:
        """Positions that differ ``[B, L]`` bool."""
        return self.x != self.x0

    def counts(self, y: Tensor) -> Tensor:
        """Positions of each row by their outcome (`_OUTCOMES`) ``[B, 4]`` int64.

        Args:
            y: the corrected rows ``[B, L]``.
        """
        right, wrong = y == self.x0, self.wrong
        outcomes = (
            wrong & right,
            wrong & ~right & (y != self.x),
            wrong & (y == self.x),
            ~wrong & ~right,
        )
        return torch.stack([each.sum(1) for each in outcomes], 1)


def corrupt(
    x0: Tensor,
    lengths: Tensor | None,
    share: float,
    *,
    seed: int,
    index: Tensor,
    words: Tensor,
) -> CorruptedBatch:
    """Replace tokens at random; those of a smaller share are also replaced at a larger one.

    Args:
        x0: rows ``[B, L]``.
        lengths: tokens before their padding ``[B]``, or None.
        share: probability that a token is given a random one.
        seed: of the randomness.
        index: number of each row ``[B]`` int64.
        words: tokens of text; each is as likely, and others are left alone ``[W]`` int64.
    """
    draw, L = Draw(seed, 0, index, len(index)), x0.shape[1]
    free = torch.isin(x0, words)
    if lengths is not None:
        free &= before_padding(lengths, L)
    drawn = free & (draw.uniform("damaged", L) < share)
    noise = words[draw.integers("damage", L, high=len(words))]
    return CorruptedBatch(x0, torch.where(drawn, noise, x0), free, drawn)


@dataclass(frozen=True)
class CorrectionPoint:
    """Outcomes at one noise level, as shares; NaN where there were no such tokens.

    Attributes:
        t: the level; of levels that the model chose their mean.
        counts: tokens by outcome.
        restored: replaced tokens that are the original again.
        restored_stderr: its standard error, of independent tokens.
        other: replaced tokens that are another wrong token.
        damaged: right tokens that are wrong after.
        damaged_stderr: its standard error.
        wrong_after: tokens that are wrong after.
        precision: changed tokens that had been replaced.
        recall: replaced tokens that were changed.
        nfe: network calls per row; None for levels that the model chose.
        t_quartiles: of levels that the model chose.
    """

    t: float
    counts: dict[str, int]
    restored: float
    restored_stderr: float
    other: float
    damaged: float
    damaged_stderr: float
    wrong_after: float
    precision: float
    recall: float
    nfe: float | None = None
    t_quartiles: list[float] | None = None

    @classmethod
    def of(
        cls, counts: Sequence[int], tokens: int, wrong: int, t: float, **more: Any
    ) -> CorrectionPoint:
        """From counts by outcome.

        Args:
            counts: in the order of `_OUTCOMES`.
            tokens: all of the text.
            wrong: those that had been replaced by another.
            t: the level.
            more: further attributes.
        """
        restored, other, left, damaged = counts
        good, changed = tokens - wrong, restored + other + damaged
        return cls(
            t=t,
            counts=dict(zip(_OUTCOMES, counts, strict=True)),
            restored=_part(restored, wrong),
            restored_stderr=_stderr(restored, wrong),
            other=_part(other, wrong),
            damaged=_part(damaged, good),
            damaged_stderr=_stderr(damaged, good),
            wrong_after=_part(other + left + damaged, tokens),
            precision=_part(restored + other, changed),
            recall=_part(restored + other, wrong),
            **more,
        )

    def as_dict(self) -> dict[str, Any]:
        """Without what does not apply."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def row(self, name: str) -> tuple[str, str, str]:
        """A row of the table."""
        restored, damaged = (
            "-" if math.isnan(value) else f"{value:.2%} ± {error:.2%}"
            for value, error in (
                (self.restored, self.restored_stderr), (self.damaged, self.damaged_stderr)
            )
        )  # fmt: skip
        return name, restored, f"damaged {damaged}, wrong {self.wrong_after:.2%}"


@dataclass(frozen=True)
class ShareScore:
    """The score for one share of replaced tokens.

    Attributes:
        share: probability that a token was replaced by a random one.
        tokens: tokens of text.
        drawn: those that were replaced, perhaps by the same token.
        wrong: those that were replaced by another.
        base_bits: entropy of which tokens are wrong, bits per token, given their share alone.
        confidence_bits: cross-entropy of which tokens are wrong, bits per token, by the model.
        points: at each noise level.
        auto: at the level that the model chooses for each row.
    """

    share: float
    tokens: int
    drawn: int
    wrong: int
    base_bits: float
    confidence_bits: float
    points: list[CorrectionPoint]
    auto: CorrectionPoint


@dataclass(frozen=True)
class CorrectionScore:
    """What a model restores and damages.

    Attributes:
        rows: number of rows.
        sampler: how they were corrected.
        shares: a score for each share of replaced tokens.
    """

    rows: int
    sampler: SamplerConfig
    shares: list[ShareScore]


def score_correction(
    lm: LanguageModel,
    text: HeldOut,
    shares: Sequence[float],
    *,
    seed: int,
    batch: int,
    job: ResumableJob,
) -> CorrectionScore:
    """Corrupt held-out rows, correct them as ``sddlm correct`` does at every level, and count.

    Args:
        lm: the model.
        text: the rows.
        shares: of tokens that are replaced.
        seed: of the corruption and of the correction.
        batch: rows per network call.
        job: does the batches, each of one share.

    Raises:
        ConfigError: for a model that cannot correct.
    """
    check_can_correct(lm)
    how, special = CORRECTION, sorted(lm.tokenizer.special.values())
    sampler = how.build(lm, never=tuple(special))
    vocabulary = torch.arange(lm.tokenizer.vocab_size)
    words = vocabulary[~torch.isin(vocabulary, torch.tensor(special))]
    starts = range(0, len(text), batch)

    def shard(number: int) -> dict[str, Any]:
        share, start = shares[number // len(starts)], starts[number % len(starts)]
        index = torch.arange(start, min(start + batch, len(text)))
        lengths = None if text.lengths is None else text.lengths[index]
        rows = corrupt(text.tokens[index], lengths, share, seed=seed, index=index, words=words)
        fit, right, counts, nfe = [], [], [], []
        for t in LEVELS:
            reading = score_tokens(lm, rows.x, t, lengths)
            fit.append((reading.fit * rows.free).sum(1))
            right.append(reading.right)
            condition = Condition(rows.x, ~rows.free, lengths, t)
            drawn = sampler.sample(lm, seed=seed, index=index, condition=condition)
            counts.append(rows.counts(drawn.tokens.cpu()))
            nfe.append(int(drawn.nfe.sum()))
        best, each = most_likely(torch.stack(fit)), torch.arange(len(index))
        return {
            "free": int(rows.free.sum()),
            "drawn": int(rows.drawn.sum()),
            "wrong": int(rows.wrong.sum()),
            "counts": torch.stack(counts).sum(1).tolist(),
            "nfe": nfe,
            "auto": torch.stack(counts)[best, each].sum(0).tolist(),
            "chosen": best.tolist(),
            "nats": _surprise(torch.stack(right)[best, each], rows),
        }

    found = job.about(text=text.fingerprint).run(
        "correction",
        len(shares) * len(starts),
        shard,
        {"shares": list(shares), "levels": LEVELS, "seed": seed, "batch": batch}
        | {"how": asdict(how)},
    )
    n = len(starts)
    scores = [
        _share(share, found[k * n : (k + 1) * n], len(text)) for k, share in enumerate(shares)
    ]
    return CorrectionScore(len(text), how, scores)


def _surprise(right: Tensor, rows: CorruptedBatch) -> float:
    """Nats that it takes to identify the wrong tokens of text, by the model's confidence."""
    p = torch.where(rows.wrong, 1 - right, right).clamp(min=1e-12)
    return -float(p[rows.free].log().sum())


def _share(share: float, shards: Sequence[dict[str, Any]], rows: int) -> ShareScore:
    """Sum the counts of the batches up."""
    free, wrong = (sum(shard[name] for shard in shards) for name in ("free", "wrong"))
    levels = [LEVELS[k] for shard in shards for k in shard["chosen"]]
    chosen = torch.tensor(levels, dtype=torch.float64)
    points = []
    for k, t in enumerate(LEVELS):
        counts = _summed([shard["counts"][k] for shard in shards])
        nfe = sum(shard["nfe"][k] for shard in shards) / rows
        points.append(CorrectionPoint.of(counts, free, wrong, t, nfe=nfe))
    return ShareScore(
        share=share,
        tokens=free,
        drawn=sum(shard["drawn"] for shard in shards),
        wrong=wrong,
        base_bits=_entropy(wrong / free),
        confidence_bits=sum(shard["nats"] for shard in shards) / free / math.log(2),
        points=points,
        auto=CorrectionPoint.of(
            _summed([shard["auto"] for shard in shards]),
            free,
            wrong,
            float(chosen.mean()),
            t_quartiles=chosen.quantile(chosen.new_tensor([0.25, 0.5, 0.75])).tolist(),
        ),
    )


def _summed(counts: Sequence[Sequence[int]]) -> list[int]:
    return [sum(column) for column in zip(*counts, strict=True)]


def _part(some: int, whole: int) -> float:
    return some / whole if whole else math.nan


def _stderr(some: int, whole: int) -> float:
    """Standard error of a share, of tokens that are independent."""
    p = _part(some, whole)
    return math.sqrt(p * (1 - p) / whole) if whole else math.nan


def _entropy(p: float) -> float:
    """Bits of a coin."""
    return sum(q * math.log2(1 / q) for q in (p, 1 - p) if q > 0)
