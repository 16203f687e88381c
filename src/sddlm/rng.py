"""Counter-based random numbers, functions of (seed, step, sample, name, position) alone.

There is no generator state. Training noise is therefore independent of the number of processes,
micro-batches and restarts, and a resumed run restores no random state. The hash is the finaliser of
SplitMix64 (Steele, Lea, Flood 2014), computed on int64 tensors, which wrap on every device.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return value - (1 << 64) if value >= 1 << 63 else value


_GAMMA = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser: 64 well-mixed bits for each int64."""
    z = (z ^ _shift(z, 30)) * _MIX_1
    z = (z ^ _shift(z, 27)) * _MIX_2
    return z ^ _shift(z, 31)


def _hash(seed: int, name: str, step: int | Tensor, index: Tensor, place: Tensor) -> Tensor:
    """64 random bits for each sequence and position.

    Args:
        seed: seed of the run.
        name: purpose of the numbers.
        step: step of all sequences, or of each ``[B]`` int64.
        index: index of each sequence ``[B]``.
        place: positions ``[P]``, or those of each sequence ``[B, P]``.

    Returns:
        ``[B, P]`` int64.
    """
    index = index.to(torch.int64)
    key = _mix(torch.tensor(seed, dtype=torch.int64, device=index.device) + _GAMMA)
    for word in (zlib.crc32(name.encode()), step):
        key = _mix((key ^ word) + _GAMMA)
    row = _mix((key ^ index) + _GAMMA)  # [B]
    return _mix(row[:, None] + (place + 1) * _GAMMA)  # [B, P]


@dataclass(frozen=True)
class Draw:
    """Randomness of one step (of training, validation or sampling).

        draw = Draw.simple(seed=0, step=0, batch=len(x0))

    A number depends on the seed, the step, the index of its sequence, its name and its position
    alone, hence not on batches, processes or restarts. There is no state.

    Attributes:
        seed: the run's seed.
        step: optimiser step, validation batch or sampling step.
        index: index of each sequence in the *global* batch ``[B]`` int64.
        batch: size of the global batch over which ``times`` are stratified.
        t_max: largest time drawn (a noise curriculum lets it grow to 1).
    """

    seed: int
    step: int
    index: Tensor
    batch: int
    t_max: float = 1.0

    @classmethod
    def simple(cls, seed: int, step: int, batch: int, *, device: str = "cpu") -> Draw:
        """Draw for a whole batch on one process."""
        return cls(seed, step, torch.arange(batch, device=device), batch)

    def _bits(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """64 random bits for each position ``[B, *shape]`` int64."""
        place = torch.arange(prod(shape), device=self.index.device)
        return _hash(self.seed, name, self.step, self.index, place).reshape(-1, *shape)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1), 53 bits ``[B, *shape]`` float64.

        Args:
            name: purpose of the numbers; another name gives independent ones.
            shape: shape after the batch dimension.
        """
        return _shift(self._bits(name, shape), 11).double() * 2.0**-53

    def integers(self, name: str, *shape: int, high: int) -> Tensor:
        """Uniform integers in [0, high) ``[B, *shape]`` int64."""
        return (self.uniform(name, *shape) * high).long().clamp(max=high - 1)

    def times(self, t_min: float = 1e-3) -> Tensor:
        """Stratified times in [t_min, t_max) ``[B]`` float64, one in each stratum.

        Sequence i of the global batch gets ``(i + u_i) / batch`` of the range, on any
        process.
        """
        u = (self.index.double() + self.uniform("t")) / self.batch
        return t_min + (max(self.t_max, t_min) - t_min) * u


@dataclass(frozen=True)
class CellDraw(Draw):
    """The numbers of `Draw` for single cells, each at its own step and position.

    ``index`` is the sequence of each cell ``[N]``; ``step`` is unused.

    Attributes:
        steps: step of each cell ``[N]`` int64.
        places: position of each cell ``[N]`` int64.
    """

    steps: Tensor = field(kw_only=True)
    places: Tensor = field(kw_only=True)

    @classmethod
    def of(cls, seed: int, steps: Tensor, index: Tensor, places: Tensor) -> CellDraw:
        """Draw for cells ``[N]``; a length of 1 gives the number of the cell itself."""
        return cls(seed, 0, index, 1, steps=steps, places=places)

    def _bits(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """64 random bits for each cell and the positions after it ``[N, *shape]`` int64."""
        place = self.places[:, None] + torch.arange(prod(shape), device=self.index.device)
        return _hash(self.seed, name, self.steps, self.index, place).reshape(-1, *shape)
