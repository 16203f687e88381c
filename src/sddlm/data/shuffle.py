"""Order of the training rows: a keyed permutation, evaluated position by position.

Ten billion tokens are millions of rows; an array of their order would take seconds and gigabytes
before the first step. A Feistel network (Luby and Rackoff 1988) permutes a power of four without
memory; walking its cycles (Black and Rogaway 2002) makes that any number of rows. Its rounds hash
with SplitMix64's finaliser, as `sddlm.rng` does. Nothing but arithmetic of unsigned 64-bit
integers happens, so an order is the same in every version and on every machine.
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NAME = np.uint64(zlib.crc32(b"order"))  # keeps these numbers apart from any `Draw`'s
#: up to here each permutation is as likely as any other; a Feistel network reaches even ones only
#: of 16, which one sees in the orders of 5 rows: some come up 13% too often
_RANKED = 64
_ROUNDS = 8


def order(seed: int, epoch: int, n: int) -> npt.NDArray[np.int64]:
    """Permutation of n rows in an epoch ``[n]`` int64."""
    return shuffled(seed, np.full(n, epoch), np.arange(n), n)


def shuffled(
    seed: int, epoch: npt.NDArray[Any], place: npt.NDArray[Any], n: int
) -> npt.NDArray[np.int64]:
    """Row at each position of an epoch's permutation of n rows ``[m]`` int64.

    Args:
        seed: seed of the order.
        epoch: epoch of each position ``[m]``; each epoch has its own permutation.
        place: position in its epoch, 0 to n - 1 ``[m]``.
        n: number of rows.
    """
    key = np.full(len(place), seed & 0xFFFFFFFFFFFFFFFF, np.uint64)  # [m]
    for word in (np.uint64(0), _NAME, epoch.astype(np.uint64)):
        key = _mix((key ^ word) + _GAMMA)
    if n <= _RANKED:
        bits = _mix(key[:, None] + np.arange(1, n + 1, dtype=np.uint64) * _GAMMA)  # [m, n]
        ranks = np.argsort(bits, axis=1, kind="stable")
        return np.take_along_axis(ranks, place[:, None], 1)[:, 0].astype(np.int64, copy=False)
    half = ((n - 1).bit_length() + 1) // 2
    x = _feistel(key, place.astype(np.uint64), half)
    out = np.flatnonzero(x >= n)
    while len(out):  # on along the cycle until it is back among the rows
        x[out] = _feistel(key[out], x[out], half)
        out = out[x[out] >= n]
    return x.astype(np.int64)


def _feistel(key: Words, x: Words, half: int) -> Words:
    """Feistel permutation of the integers of 2 * half bits, one for each key ``[m]``."""
    bits, mask = np.uint64(half), np.uint64((1 << half) - 1)
    left, right = x >> bits, x & mask
    for turn in range(1, _ROUNDS + 1):
        word = (np.uint64(turn) << bits) | right
        left, right = right, left ^ (_mix(key + word * _GAMMA) & mask)
    return (left << bits) | right


def _mix(z: Words) -> Words:
    """SplitMix64's finaliser: 64 well-mixed bits for each of 64 bits."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))
