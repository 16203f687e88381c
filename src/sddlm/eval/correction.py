"""How well a model corrects: real text with a known share of tokens replaced at random.

Restored tokens alone can be had at will, by changing much. So every figure has its price beside it:
good tokens that were damaged, at each noise level that the text is taken for, and at the level
that the model chooses for each row.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.errors import ConfigError
from sddlm.eval.texts import HeldOut
from sddlm.generation.config import CORRECTION
from sddlm.generation.corrector import check_can_correct
from sddlm.generation.levels import LEVELS, most_likely, score_tokens
from sddlm.lm import LanguageModel
from sddlm.sampling.condition import Condition
from sddlm.types import before_padding
from sddlm.work import ResumableJob, digest

#: what a token became: it was replaced and is the original again, another wrong one, or as it was;
#: or it was good and is not any more
_COUNTED = ("restored", "other", "left", "damaged")


def shares_of(asked: str) -> list[float]:
    """The shares of a list such as ``0.05,0.1,0.2``, ascending.

    Raises:
        ConfigError: if one is no number from 0 to 1, or is there twice.
    """
    try:
        shares = sorted(float(part) for part in asked.split(","))
    except ValueError:
        shares = [math.nan]
    if not all(0 <= share <= 1 for share in shares) or len(set(shares)) < len(shares):
        raise ConfigError(
            f"--correction is {asked!r}, must be different shares of tokens from 0 to 1: try "
            "--correction 0.05,0.1,0.2"
        )
    return shares


@dataclass(frozen=True)
class CorruptedBatch:
    """Rows of which tokens were replaced.

    Attributes:
        x0: the rows as they were ``[B, L]`` int64.
        x: as they are ``[B, L]``.
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
        """How many positions of each row became what `_COUNTED` says ``[B, 4]`` int64.

        Args:
            y: the rows as corrected ``[B, L]``.
        """
        right, wrong = y == self.x0, self.wrong
        fates = (
            wrong & right,
            wrong & ~right & (y != self.x),
            wrong & (y == self.x),
            ~wrong & ~right,
        )
        return torch.stack([fate.sum(1) for fate in fates], 1)


def damage(
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


def measure_correction(
    loaded: LanguageModel,
    text: HeldOut,
    shares: Sequence[float],
    *,
    seed: int,
    batch: int,
    work: ResumableJob,
) -> dict[str, Any]:
    """Damage held-out rows, correct them at every level, and count.

    Rows are corrected as ``sddlm correct`` does it, with its settings.

    Args:
        loaded: the model.
        text: the rows.
        shares: of tokens that are replaced.
        seed: of the damage and of the correction.
        batch: rows per network call.
        work: does the batches, each of one share.

    Raises:
        ConfigError: for a model that cannot correct.
    """
    check_can_correct(loaded)
    how, special = CORRECTION, sorted(loaded.tokenizer.special.values())
    sampler = how.build(loaded, never=tuple(special))
    vocabulary = torch.arange(loaded.tokenizer.vocab_size)
    words = vocabulary[~torch.isin(vocabulary, torch.tensor(special))]
    starts = range(0, len(text), batch)

    def unit(number: int) -> dict[str, Any]:
        share, start = shares[number // len(starts)], starts[number % len(starts)]
        index = torch.arange(start, min(start + batch, len(text)))
        lengths = None if text.lengths is None else text.lengths[index]
        rows = damage(text.tokens[index], lengths, share, seed=seed, index=index, words=words)
        fit, right, counts, nfe = [], [], [], []
        for t in LEVELS:
            reading = score_tokens(loaded, rows.x, t, lengths)
            fit.append((reading.fit * rows.free).sum(1))
            right.append(reading.right)
            condition = Condition(rows.x, ~rows.free, lengths, t)
            drawn = sampler.sample(loaded, seed=seed, index=index, condition=condition)
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

    lengths = [] if text.lengths is None else text.lengths.tolist()
    found = work.about(text=digest(text.tokens, lengths)).run(
        "correction",
        len(shares) * len(starts),
        unit,
        {"shares": list(shares), "levels": LEVELS, "seed": seed, "batch": batch}
        | {"how": asdict(how)},
    )
    n = len(starts)
    return {
        "rows": len(text),
        "sampler": asdict(how),
        "shares": [
            _share(share, found[k * n : (k + 1) * n], len(text)) for k, share in enumerate(shares)
        ],
    }


def _surprise(right: Tensor, rows: CorruptedBatch) -> float:
    """Nats that it takes to say which tokens of text are wrong, by the model's confidence."""
    p = torch.where(rows.wrong, 1 - right, right).clamp(min=1e-12)
    return -float(p[rows.free].log().sum())


def _share(share: float, units: Sequence[dict[str, Any]], rows: int) -> dict[str, Any]:
    """The figures of one share."""
    free, wrong = (sum(unit[name] for unit in units) for name in ("free", "wrong"))
    levels = [LEVELS[k] for unit in units for k in unit["chosen"]]
    chosen = torch.tensor(levels, dtype=torch.float64)
    low, middle, high = chosen.quantile(chosen.new_tensor([0.25, 0.5, 0.75])).tolist()
    points = []
    for k, t in enumerate(LEVELS):
        counts = [sum(unit["counts"][k][c] for unit in units) for c in range(len(_COUNTED))]
        nfe = sum(unit["nfe"][k] for unit in units) / rows
        points.append({"t": t, "nfe": nfe} | figures(counts, free, wrong))
    counts = [sum(unit["auto"][c] for unit in units) for c in range(len(_COUNTED))]
    level = {"t": float(chosen.mean()), "t_quartiles": [low, middle, high]}
    return {
        "share": share,
        "tokens": free,
        "drawn": sum(unit["drawn"] for unit in units),
        "wrong": wrong,
        "base_bits": _entropy(wrong / free),
        "confidence_bits": sum(unit["nats"] for unit in units) / free / math.log(2),
        "points": points,
        "auto": level | figures(counts, free, wrong),
    }


def figures(counts: Sequence[int], tokens: int, wrong: int) -> dict[str, Any]:
    """Shares of what became of tokens; NaN where there were none.

    Args:
        counts: of `_COUNTED`.
        tokens: all of the text.
        wrong: those that had been replaced by another.
    """
    restored, other, left, damaged = counts
    good, changed = tokens - wrong, restored + other + damaged
    return {
        "counts": dict(zip(_COUNTED, counts, strict=True)),
        "restored": _part(restored, wrong),
        "restored_stderr": _stderr(restored, wrong),
        "other": _part(other, wrong),
        "damaged": _part(damaged, good),
        "damaged_stderr": _stderr(damaged, good),
        "wrong_after": _part(other + left + damaged, tokens),
        "precision": _part(restored + other, changed),
        "recall": _part(restored + other, wrong),
    }


def _part(some: int, whole: int) -> float:
    return some / whole if whole else math.nan


def _stderr(some: int, whole: int) -> float:
    """Standard error of a share, of tokens that are independent."""
    p = _part(some, whole)
    return math.sqrt(p * (1 - p) / whole) if whole else math.nan


def _entropy(p: float) -> float:
    """Bits of a coin."""
    return sum(q * math.log2(1 / q) for q in (p, 1 - p) if q > 0)
