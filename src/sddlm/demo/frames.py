"""Recording of a denoising, to be replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.errors import ConfigError


@dataclass(frozen=True)
class Frames:
    """Frames of a denoising.

    Attributes:
        tokens: ``[F, B, L]`` int64, F moments in order.
        steps: the sampler's step at each moment ``[F]``.
        times: the diffusion time at each moment ``[F]``.
    """

    tokens: Tensor
    steps: list[int]
    times: list[float]


@dataclass(frozen=True)
class Recording:
    """A sampler's denoising of a batch, shown on one side of a page.

    Attributes:
        label: name (sampler, steps).
        frames: from `Recorder`.
        notes: facts of this side alone (network calls, seconds).
        known: positions that were given and never noisy ``[B, L]`` bool; None for none.
    """

    label: str
    frames: Frames
    notes: Sequence[str] = ()
    known: Tensor | None = None


class Recorder:
    """An ``OnStep`` that records at most ``limit`` evenly spaced steps, and the last one.

    The number of steps need not be known: when the limit is reached, every other frame is dropped
    and the stride doubles.

    Attributes:
        limit: largest number of frames, at least 2.
        samples: number of sequences of the batch that are recorded; None is all.
    """

    def __init__(self, limit: int = 200, *, samples: int | None = None) -> None:
        if limit < 2:
            raise ConfigError(f"a recorder must keep at least 2 frames, not {limit}")
        self.limit = limit
        self.samples = samples
        self._kept: list[tuple[int, float, Tensor]] = []
        self._last: tuple[int, float, Tensor] | None = None
        self._stride = 1
        self._seen = 0

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        """Record the tokens ``[B, L]`` after a step (see ``sddlm.types.OnStep``)."""
        self._last = (step, t, x[: self.samples].to("cpu", torch.int32, copy=True))
        if self._seen % self._stride == 0:
            self._kept.append(self._last)
            if len(self._kept) == self.limit:  # one place stays free for the last step
                self._kept = self._kept[::2]
                self._stride *= 2
        self._seen += 1

    def frames(self) -> Frames:
        """Return the recorded frames, including the last step.

        Raises:
            ConfigError: if nothing was recorded.
        """
        if self._last is None:
            raise ConfigError("nothing was recorded: pass the recorder to a sampler as on_step")
        kept = list(self._kept)
        if kept[-1] is not self._last:
            kept.append(self._last)
        steps, times, tokens = zip(*kept, strict=True)
        return Frames(torch.stack(tokens).long(), list(steps), list(times))
