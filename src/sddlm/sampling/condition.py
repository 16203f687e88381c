"""Conditions of a sampler: known tokens, padding, a text to begin from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.types import before_padding


@dataclass(frozen=True, eq=False)
class Condition:
    """Known tokens of each sequence, clean at every step and never changed.

    With exact predictions the law sampled is p(unknown | known). A network that was trained on
    whole noisy sequences sees one noise level and has to infer which tokens are clean
    (docs/generation.md).

    Attributes:
        given: known tokens at their positions ``[B, L]`` int64. At the others: the tokens to begin
            from; ignored at ``t`` = 1, where a run begins with noise.
        known: positions whose token is known ``[B, L]`` bool.
        lengths: positions of each sequence before its padding ``[B]`` int64; None is all. Padding
            is not attended to and stays unchanged.
        t: noise level in (0, 1] of the tokens to begin from; 1 is pure noise.
    """

    given: Tensor
    known: Tensor
    lengths: Tensor | None = None
    t: float = 1.0

    def __post_init__(self) -> None:
        given, known, lengths = self.given, self.known, self.lengths
        if known.dtype != torch.bool or given.dim() != 2 or given.shape != known.shape:
            raise ValueError(
                f"given and known must be [B, L] and known bool, got {list(given.shape)} and "
                f"{list(known.shape)} {known.dtype}"
            )
        if lengths is not None and (
            lengths.shape != given.shape[:1] or not (lengths > 0).all()
            or not (lengths <= given.shape[1]).all()
        ):  # fmt: skip
            raise ValueError(
                f"lengths must be [{len(given)}], each 1 to {given.shape[1]}, got {lengths}"
            )
        if not 0 < self.t <= 1:
            raise ConfigError(f"`t` is {self.t}, must be above 0 and at most 1: try `t=0.3`")

    @property
    def free(self) -> Tensor:
        """Positions that are to be sampled ``[B, L]`` bool."""
        if self.lengths is None:
            return ~self.known
        return ~self.known & before_padding(self.lengths, self.known.shape[1])

    def begin(self, noise: Tensor) -> Tensor:
        """The tokens at the start of a run ``[B, L]``, ``noise`` being those of t = 1."""
        return torch.where(self.free, noise, self.given) if self.t == 1 else self.given.clone()

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        lengths = None if self.lengths is None else self.lengths.to(device)
        return Condition(self.given.to(device), self.known.to(device), lengths, self.t)

    def attention_mask(self, which: Tensor) -> dict[str, Tensor]:
        """The network's ``attention_mask`` argument ``[A, L]`` bool for sequences ``which [A]``.

        Empty where there is no padding.
        """
        if self.lengths is None:
            return {}
        return {"attention_mask": before_padding(self.lengths[which], self.given.shape[1])}


def checked(
    condition: Condition | None, shape: tuple[int, int], device: torch.device
) -> Condition | None:
    """The condition on the device.

    Raises:
        ValueError: if it is not one of ``shape``.
    """
    if condition is None:
        return None
    if condition.given.shape != shape:
        raise ValueError(
            f"the condition is {list(condition.given.shape)}, but shape is {list(shape)}"
        )
    return condition.to(device)


def indices(index: int | Tensor, count: int, device: torch.device) -> Tensor:
    """The index of each sequence ``[B]`` int64, on the device."""
    if isinstance(index, int):
        return index + torch.arange(count, device=device)
    return index.to(device)
