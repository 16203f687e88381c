"""Truncation of a prediction before it is sampled from: temperature and four cuts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.sampling.base import finite

#: temperature at which no logit of float32 overflows
_COLDEST = 1e-30


@dataclass(frozen=True)
class Truncation:
    """Truncation of a prediction p(x0): temperature, top_k, top_p, min_p, tail_cut.

    Applied in this order (that of the ``transformers`` library), each on the normalised result of
    the one before. The result is normalised, so the reverse step stays a proper one and the bound
    of `Lazy` holds. Of equally likely tokens the one with the lower id counts as the more likely.

    Attributes:
        temperature: divides the logits; below 1 is sharper. At least 1e-30.
        top_p: keep the most likely tokens up to this mass, and the one that crosses it (nucleus
            sampling, arXiv:1904.09751; the crossing token as Duo does). In (0, 1]; 1 keeps all.
        tail_cut: subtract ``tail_cut / V`` from every probability and drop what falls below zero:
            the distribution that the contrastive loss of Eq. 9 of arXiv:2510.22926 is minimised
            by, with ``tail_cut`` in place of its weight. >= 0; 0 cuts nothing.
        top_k: number of most likely tokens to keep (arXiv:1805.04833). From 1; None, or V and
            more, keeps all.
        min_p: drop tokens that are less likely than ``min_p`` times the most likely one
            (arXiv:2407.01082). In [0, 1); 0 keeps all.
        never: ids of tokens that are never sampled, because they are no text (padding, masks).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    tail_cut: float = 0.0
    top_k: int | None = None
    min_p: float = 0.0
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_choices(self)
        if not _COLDEST <= self.temperature < float("inf"):
            raise ConfigError(
                f"`temperature` is {self.temperature}, must be at least {_COLDEST}: "
                "for the most likely token try `temperature=0.01`"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"`top_p` is {self.top_p}, must be above 0 and at most 1: try `top_p=0.9`"
            )
        if not 0 <= self.tail_cut < float("inf"):
            raise ConfigError(
                f"`tail_cut` is {self.tail_cut}, must be at least 0: try `tail_cut=0.5`"
            )
        if self.top_k is not None and (type(self.top_k) is not int or self.top_k < 1):
            raise ConfigError(
                f"`top_k` is {self.top_k}, must be a whole number from 1, or None for all "
                "tokens: try `top_k=50`"
            )
        if not 0 <= self.min_p < 1:
            raise ConfigError(
                f"`min_p` is {self.min_p}, must be at least 0 and below 1: try `min_p=0.05`"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities to sample from.

        Args:
            logits: ``[..., V]``; not written to.

        Returns:
            ``[..., V]`` float64, normalised.

        Raises:
            ConfigError: ``never`` has an id that is not below V.
            FloatingPointError: a row has logits that are not finite.
        """
        logits = logits.double()
        if self.never:
            if not 0 <= min(self.never) <= max(self.never) < logits.shape[-1]:
                raise ConfigError(
                    f"`never` is {self.never}, must be tokens from 0 to {logits.shape[-1] - 1}"
                )
            never = torch.tensor(self.never, device=logits.device)
            logits = logits.index_fill(-1, never, -torch.inf)
        if self.temperature != 1:
            logits = logits / self.temperature
        p = logits.softmax(-1)
        finite(p[..., 0])
        if self.top_k is not None and self.top_k < p.shape[-1]:
            p = _largest(p, self.top_k)
        if self.top_p < 1:
            p = _nucleus(p, self.top_p)
        if self.min_p > 0:
            p = _kept(p, p >= self.min_p * p.amax(-1, keepdim=True))
        return _cut_tail(p, self.tail_cut / p.shape[-1]) if self.tail_cut > 0 else p


def _kept(p: Tensor, keep: Tensor) -> Tensor:
    """The tokens ``keep [..., V]`` alone, renormalised."""
    p = p.masked_fill(~keep, 0.0)
    return p / p.sum(-1, keepdim=True)


def _largest(p: Tensor, k: int) -> Tensor:
    """Keep the ``k`` largest, of equal ones the first."""
    return _most_likely(p, k, p.topk(k, dim=-1).values[..., -1:])


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Keep a token if the mass of the more likely ones does not exceed ``top_p``."""
    if p.device.type != "cpu":
        ranked = p.sort(dim=-1, descending=True).values
    else:  # numpy sorts six times as fast as torch
        ranked = torch.from_numpy(np.sort(p.numpy(), axis=-1)).flip(-1)
    before = F.pad(ranked.cumsum(-1)[..., :-1], (1, 0))
    count = (before <= top_p).sum(-1, keepdim=True)  # [..., 1]
    return _most_likely(p, count, ranked.gather(-1, count - 1))


def _most_likely(p: Tensor, count: Tensor | int, least: Tensor) -> Tensor:
    """Keep ``count`` tokens, none below the probability ``least [..., 1]``, of equal the first."""
    keep = p >= least
    if (keep.sum(-1, keepdim=True) > count).any():
        ties = p == least
        room = count - (p > least).sum(-1, keepdim=True)
        keep = keep & (~ties | (ties.cumsum(-1) <= room))
    return _kept(p, keep)


def _cut_tail(p: Tensor, cut: float) -> Tensor:
    """``max(p - cut, 0)`` renormalised; the most likely token alone where nothing is left."""
    left = (p - cut).clamp(min=0)
    best = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.where(total > 0, 1.0), best)
