"""Exact distributions of samplers and exact bounds, by enumeration of all noisy sequences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sddlm.exact.world import Predictions, states
from sddlm.process.base import Process
from sddlm.process.schedule import Schedule

#: largest number of float64 values of a joint law held at once
CHUNK = 2**24


class Stepwise(Protocol):
    """A sampler on a grid whose steps factorise over positions, such as `Ancestral` or `Psi`."""

    def grid(self, schedule: Schedule, *, t: float = 1.0) -> tuple[Tensor, Tensor]:
        """Times and alphas ``[steps + 1]`` from ``t``."""

    def kernel(
        self,
        number: int,
        process: Process,
        p: Tensor,
        x_t: Tensor,
        alpha_t: Tensor,
        alpha_s: Tensor,
    ) -> Tensor:
        """Distribution of step ``number`` at each position ``[..., V]``."""


def law(
    sampler: Stepwise,
    process: Process,
    predictions: Predictions,
    *,
    known: Mapping[int, int] | None = None,
    begin: Tensor | None = None,
    t: float = 1.0,
) -> Tensor:
    """Exact distribution of a sampler's output.

    Its steps factorise over positions, K(x_s | x_t) = prod_l K_l(x_s^l | x_t); they are composed
    over all noisy sequences. A step costs S^2 multiplications: a second at S = 20,000.

    Args:
        sampler: a sampler with ``grid`` and ``kernel``.
        process: the forward process.
        predictions: leave-one-out predictions at each alpha, after conversion and truncation
            ``[..., S, L, V]``; leading dimensions are several networks, with one result each.
        known: clean tokens by position, which never change.
        begin: distribution of the initial noisy sequences ``[S]``; None is noise beside the known
            tokens.
        t: initial time.

    Returns:
        ``[..., S]`` float64, over sequences of clean tokens.
    """
    _, alphas = sampler.grid(process.schedule, t=t)
    known = known or {}
    now = torch.ones(0)
    for number in range(1, len(alphas)):
        alpha_t, alpha_s = alphas[number - 1], alphas[number]
        p = predictions(alpha_t.item())
        *several, S, L, V = p.shape
        x_t = states(V, L).expand(*several, S, L)
        if number == 1:
            now = _prior(process, V, L, known) if begin is None else begin
            now = now.expand(*several, S)
        kernel = sampler.kernel(number, process, p, x_t, alpha_t, alpha_s)
        for at in known:
            kernel[..., at, :] = nn.functional.one_hot(x_t[..., at], V)
        now = _step(now, kernel)
    clean = V - process.extra_tokens
    now = now.reshape(*several, *[V] * L)
    for axis in range(-L, 0):
        now = now.narrow(axis, 0, clean)
    return now.flatten(-L)


def _prior(process: Process, vocab_size: int, length: int, known: Mapping[int, int]) -> Tensor:
    """Law of the noise that a sampler starts from, beside what is known ``[S]``."""
    odds = process.odds(process.schedule.alpha(torch.ones((), dtype=torch.float64)), vocab_size)
    each = (odds / odds.sum()).repeat(length, 1)  # [L, V]
    for at, token in known.items():
        each[at] = nn.functional.one_hot(torch.tensor(token), vocab_size)
    return each[torch.arange(length), states(vocab_size, length)].prod(-1)


def _step(now: Tensor, kernel: Tensor) -> Tensor:
    """The law ``[..., S]`` after a step with the kernels ``[..., S, L, V]``."""
    *several, S, L, V = kernel.shape
    after = torch.zeros(*several, S // V, V, dtype=torch.float64)
    live = now.reshape(-1, S).any(0).nonzero()[:, 0]
    for rows in live.split(max(1, CHUNK * V // now.numel())):
        each = kernel[..., rows, :, :]
        joint = now[..., rows, None]  # [..., n, V^l]: of x_t and of the first l tokens of x_s
        for at in range(L - 1):
            joint = (joint[..., None] * each[..., at, None, :]).flatten(-2)
        after += joint.mT @ each[..., -1, :]
    return after.flatten(-2)


def nelbo_integrand(
    process: Process, p: Tensor, x0: Tensor, x_t: Tensor, alpha_t: Tensor, dalpha_t: Tensor
) -> Tensor:
    """Integrand of the continuous-time bound, the plain formula, per position.

        A = alpha ([. = x0] + nu),   B = alpha (p + nu),   z = x_t
        rate(z) / A_z * ( KL(A || B) + A_z/B_z - 1 - log(A_z/B_z) )

    equal pointwise to the bounds of UDLM (arXiv:2412.10193), Duo (arXiv:2506.10892) and MDLM
    (arXiv:2406.07524).

    Args:
        process: of the noise.
        p: leave-one-out prediction ``[..., V]`` float64.
        x0: ``[...]`` int64.
        x_t: ``[...]`` int64.
        alpha_t: scalar.
        dalpha_t: scalar.

    Returns:
        nats ``[...]``, 0 where x_t is certain.
    """
    V = p.shape[-1]
    nu = process.odds(alpha_t, V)
    A = alpha_t * (nn.functional.one_hot(x0, V) + nu)
    A, B = torch.broadcast_tensors(A, alpha_t * (p + nu))
    own = x_t.expand(A.shape[:-1])[..., None]
    A_z, B_z = A.gather(-1, own)[..., 0], B.gather(-1, own)[..., 0]
    rate = (-dalpha_t * alpha_t * process.odds_slope(alpha_t, V))[own[..., 0]]
    divergence = torch.where(A > 0, A * (A / B).log(), 0.0).sum(-1)
    value = rate / A_z * (divergence + A_z / B_z - 1 - (A_z / B_z).log())
    return torch.where(rate > 0, value, 0.0)


def nelbo(process: Process, predictions: Predictions, *, nodes: int = 48) -> Tensor:
    """The continuous-time bound on -log p(x0) of every sequence, prior term included.

    The integral over t and the sum over all noisy sequences of `nelbo_integrand`, by Gauss-Legendre
    quadrature in t^(1/3), which smooths the logarithm at t = 0.

    Args:
        process: of the noise.
        predictions: leave-one-out predictions.
        nodes: of the quadrature.

    Returns:
        ``[S]`` nats. Its mean over the world's law, for the world's own predictions, is the
        world's entropy and KL(law of x_1 || p(x_1)) together.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    total = torch.zeros(())
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        t = torch.tensor(point**3, dtype=torch.float64)
        alpha, slope = process.schedule.alpha(t), process.schedule.dalpha(t)
        p = predictions(alpha.item())  # [S, L, V]
        x_t, x0 = _every(p, process)
        loss = nelbo_integrand(process, p[:, :, None, :], x0, x_t, alpha, slope)
        total = total + 3 * point**2 * weight * _expected(loss, process, alpha)
    return total + p.shape[1] * process.prior_kl(p.shape[2])


def elbo(process: Process, predictions: Predictions, steps: int) -> Tensor:
    """The bound of the chain of ``steps`` steps, term by term ``[S, steps + 1]`` nats.

    Column 0 is -log p(x0 | x_1), column k the divergence of step k + 1 -> k, the last the prior
    term (D3PM, arXiv:2107.03006).

    Args:
        process: of the noise.
        predictions: leave-one-out predictions at the alphas of the grid.
        steps: T.
    """
    _, alphas = process.schedule.grid(steps)
    parts = []
    for number in range(steps, 0, -1):
        alpha_t, alpha_s = alphas[number - 1], alphas[number]
        p = predictions(alpha_t.item())  # [S, L, V]
        x_t, x0 = _every(p, process)
        clean = nn.functional.one_hot(x0, p.shape[-1]).double()
        true = process.posterior(clean, x_t, alpha_t, alpha_s)
        model = process.posterior(p[:, :, None].expand_as(clean), x_t, alpha_t, alpha_s)
        loss = torch.where(true > 0, true * (true / model).log(), 0.0).sum(-1)
        parts.append(_expected(loss, process, alpha_t))
    prior = torch.full_like(parts[0], p.shape[1] * process.prior_kl(p.shape[2]))
    return torch.stack([*parts, prior], 1)


def _every(p: Tensor, process: Process) -> tuple[Tensor, Tensor]:
    """x_t and every clean token beside it, both ``[S, L, clean tokens]``."""
    S, L, V = p.shape
    clean = V - process.extra_tokens
    return states(V, L)[:, :, None].expand(S, L, clean), torch.arange(clean).expand(S, L, clean)


def _expected(loss: Tensor, process: Process, alpha: Tensor) -> Tensor:
    """Expectation over x_t given x0 of a loss ``[S, L, x0]``, summed over positions ``[S]``."""
    _, L, clean = loss.shape
    V = clean + process.extra_tokens
    seen = alpha * (torch.eye(clean, V, dtype=torch.float64) + process.odds(alpha, V))  # [x0, x_t]
    total = torch.zeros([clean] * L, dtype=torch.float64)
    for own in range(L):
        table = loss[:, own].reshape(*[V] * L, clean).movedim(own, -2)  # [.., own x_t, own x0]
        # impossible pairs have no weight, whatever their loss is
        table = torch.where(seen.T > 0, table * seen.T, 0.0).sum(-2).movedim(-1, own)
        for axis in range(L):
            if axis != own:
                table = torch.tensordot(table, seen, dims=([axis], [1])).movedim(-1, axis)
        total = total + table
    return total.flatten()
