"""What is done to a prediction before it is sampled from: temperature, nucleus, tail cut."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.errors import ConfigError


@dataclass(frozen=True)
class Truncation:
    """Sharpens the prediction p(x0) of a position, in this order.

    The result is another normalised distribution, so that the reverse step stays a proper one.

    Attributes:
        temperature: divides the logits; below 1 is sharper. > 0.
        top_p: keep the most likely tokens up to this mass, and the one that crosses it (as Duo
            does). In (0, 1]; 1 keeps all.
        tail_cut: subtract ``tail_cut / V`` from every probability and drop what falls below zero:
            the distribution that the contrastive loss of Eq. 9 of arXiv:2510.22926 is minimised
            by, with ``tail_cut`` in place of its weight. >= 0; 0 cuts nothing.
        never: tokens that are not text and so are never written (padding, masks).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    tail_cut: float = 0.0
    never: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ConfigError(
                f"--temperature is {self.temperature}, allowed is any number above 0: "
                "for the most likely token try --temperature 0.01"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(
                f"--top_p is {self.top_p}, allowed is more than 0 and at most 1: try --top_p 0.9"
            )
        if not 0 <= self.tail_cut < float("inf"):
            raise ConfigError(
                f"--tail_cut is {self.tail_cut}, allowed is 0 and above: try --tail_cut 0.5"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Probabilities to sample from.

        Args:
            logits: ``[..., V]``; not written to.

        Returns:
            ``[..., V]`` float64, normalised.
        """
        logits = logits.double()
        if self.never:
            never = torch.tensor(self.never, device=logits.device)
            logits = logits.index_fill(-1, never, -torch.inf)
        if self.temperature != 1:
            logits = logits / self.temperature
        p = logits.softmax(-1)
        if self.top_p < 1:
            p = _nucleus(p, self.top_p)
        return _cut_tail(p, self.tail_cut / p.shape[-1]) if self.tail_cut > 0 else p


def _nucleus(p: Tensor, top_p: float) -> Tensor:
    """Keep a token if the mass of the more likely ones does not exceed ``top_p``."""
    ranked, order = p.sort(-1, descending=True)
    before = torch.zeros_like(ranked)
    before[..., 1:] = ranked.cumsum(-1)[..., :-1]
    kept = torch.zeros_like(p).scatter_(-1, order, ranked.masked_fill(before > top_p, 0.0))
    return kept / kept.sum(-1, keepdim=True)


def _cut_tail(p: Tensor, cut: float) -> Tensor:
    """``max(p - cut, 0)`` renormalised; the most likely token alone where nothing is left."""
    left = (p - cut).clamp(min=0)
    best = torch.zeros_like(p).scatter_(-1, p.argmax(-1, keepdim=True), 1.0)
    total = left.sum(-1, keepdim=True)
    return torch.where(total > 0, left / total.where(total > 0, 1.0), best)
