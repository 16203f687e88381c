"""Samples of Duo's Gaussian latent: soft tokens for the network and the hard token x_t.

    w = A onehot(x0) + B eps,     soft = softmax(w / tau),     hard = argmax w

`dense_latent` samples all V components. `top_latent` samples only the k largest and that of x0, and
never builds a tensor of size V: the efficient curriculum of Duo (arXiv:2506.10892). There the hard
token is x0 whenever x0 is *among* the k largest; here x0 must be the largest.
"""

from __future__ import annotations

from math import log, sqrt

import torch
from torch import Tensor

from sddlm.rng import Draw
from sddlm.types import SoftTokens

_HALF_STEP = 2.0**-54


def _inside(u: Tensor) -> Tensor:
    """Move uniform numbers on the 53-bit grid of [0, 1) strictly inside (0, 1), in place."""
    return u.add_(_HALF_STEP).clamp_(max=1 - 2 * _HALF_STEP)  # the largest would round to 1


def normals(draw: Draw, name: str, *shape: int) -> Tensor:
    """Standard normal numbers ``[B, *shape]`` float64, by inverse transform sampling."""
    return torch.special.ndtri(_inside(draw.uniform(name, *shape)))


def amplitudes(gamma: Tensor) -> tuple[Tensor, Tensor]:
    """Amplitudes A of the data and B of the noise for ``gamma [B]``: each ``[B, 1]`` float64."""
    gamma = gamma.double()[:, None]
    return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()


def latent(x0: Tensor, gamma: Tensor, noise: Tensor) -> Tensor:
    """``w = A onehot(x0) + B noise``, written over ``noise [B, L, V]``.

    Args:
        x0: clean tokens ``[B, L]`` int64.
        gamma: of each sequence ``[B]``.
        noise: standard normal ``[B, L, V]`` float64.
    """
    A, B = amplitudes(gamma)
    w = noise.mul_(B[..., None])  # [B, L, V]
    return w.scatter_add_(-1, x0[..., None], A.expand(x0.shape)[..., None])


def dense_latent(
    x0: Tensor, gamma: Tensor, tau: float, draw: Draw, *, vocab_size: int
) -> tuple[SoftTokens, Tensor]:
    """Sample soft and hard tokens from all V components; several buffers of 8 B L V bytes.

    Args:
        x0: clean tokens ``[B, L]`` int64.
        gamma: of each sequence ``[B]``.
        tau: temperature, > 0; far below the gaps of w, such as 1e-10, the soft token is one-hot.
        draw: randomness; the name used is "latent".
        vocab_size: V.

    Returns:
        the input of the network, float32 weights, and argmax w ``[B, L]``.
    """
    w = latent(x0, gamma, normals(draw, "latent", x0.shape[1], vocab_size))  # [B, L, V]
    hard = w.argmax(-1)  # [B, L]
    return SoftTokens(w.div_(tau).softmax(-1).float()), hard


def top_latent(
    x0: Tensor, gamma: Tensor, tau: float, draw: Draw, *, vocab_size: int, top_k: int
) -> tuple[SoftTokens, Tensor]:
    """Sample soft and hard tokens from x0 and the k largest of the others.

    The hard token, the values and their ids are distributed as in `dense_latent`. In the softmax's
    normaliser the remaining components are replaced by their expectation given that they are
    smaller. Their own weights are omitted, so a row sums to slightly less than 1, and to much less
    if tau is large; then increase ``top_k``.

    Args:
        x0: clean tokens ``[B, L]`` int64.
        gamma: of each sequence ``[B]``.
        tau: temperature, > 0.
        draw: randomness; the names used are "latent top", "latent x0", "latent ids" and
            "latent ids order".
        vocab_size: V.
        top_k: k, from 1 to V - 1.

    Returns:
        the input of the network, K = k + 1 float32 weights, x0 first, and argmax w ``[B, L]``.
    """
    length, others = x0.shape[1], vocab_size - 1
    A, B = amplitudes(gamma)  # each [B, 1]
    own = A + B * normals(draw, "latent x0", length)  # [B, L]
    top = largest_normals(draw, "latent top", length, k=top_k, of=others)  # [B, L, k]
    values = torch.cat([own[..., None], B[..., None] * top], -1)  # [B, L, k + 1]
    ids = distinct_from(x0, draw, "latent ids", k=top_k, vocab_size=vocab_size)  # [B, L, k + 1]
    hard = ids.gather(-1, values.argmax(-1, keepdim=True))[..., 0]  # [B, L]
    last = top[..., -1]  # [B, L]
    logits = values / tau
    rest = logits[..., -1] + _log_rest(last, B / tau, others - top_k)  # [B, L]
    norm = torch.cat([logits, rest[..., None]], -1).logsumexp(-1, keepdim=True)
    return SoftTokens((logits - norm).exp().float(), ids), hard


def largest_normals(draw: Draw, name: str, length: int, *, k: int, of: int) -> Tensor:
    """The k largest of ``of`` standard normal numbers, descending ``[B, L, k]`` float64.

    By order statistics of uniform numbers: the largest of N is ``u^(1/N)``, the next is the largest
    of N - 1 below it, and so on. Computed in logarithms, because the numbers crowd at 1.
    """
    u = _inside(draw.uniform(name, length, k))
    left = of - torch.arange(k, device=u.device, dtype=u.dtype)  # N, N - 1, ...
    log_u = (u.log() / left).cumsum(-1)  # [B, L, k]
    # each tail from its own side, where the argument is small and has full relative precision
    upper = -torch.special.ndtri(-torch.expm1(log_u))
    return torch.where(log_u > -log(2), upper, torch.special.ndtri(log_u.exp()))


def distinct_from(x0: Tensor, draw: Draw, name: str, *, k: int, vocab_size: int) -> Tensor:
    """Sample k distinct tokens other than x0, after x0 itself ``[B, L, k + 1]`` int64.

    Floyd's subset sampling (CACM 30(9), 1987), whose order is not random, then a random
    permutation. Memory and random numbers grow with k, time with k^2; nothing grows with V.
    """
    u = draw.uniform(name, x0.shape[1], k)
    ids = torch.empty_like(u, dtype=torch.int64)  # among the V - 1 tokens other than x0  [B, L, k]
    for i in range(k):
        last = vocab_size - 1 - k + i
        token = (u[..., i] * (last + 1)).long().clamp(max=last)  # [B, L]
        taken = (ids[..., :i] == token[..., None]).any(-1)
        ids[..., i] = token.masked_fill(taken, last)
    order = draw.uniform(f"{name} order", x0.shape[1], k).argsort(-1)
    ids = ids.gather(-1, order)
    own = x0[..., None]
    return torch.cat([own, ids + (ids >= own)], -1)


def _log_rest(last: Tensor, s: Tensor, count: int) -> Tensor:
    """``log(count E[exp(s (X - last)) | X < last])``, X standard normal; -inf if count is 0.

    E[exp(s X) | X < c] = exp(s^2 / 2) Phi(c - s) / Phi(c). With s = B / tau up to 1e10 the first
    two factors cancel, so both are in erfcx.
    """
    if count == 0:
        return torch.full_like(last, -torch.inf)
    log_mean = torch.special.erfcx((s - last) / sqrt(2)).log() - log(2) - last**2 / 2
    return log(count) + log_mean - torch.special.log_ndtr(last)
