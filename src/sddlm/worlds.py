"""Worlds small enough to enumerate: exact predictions, exact laws of samplers, exact bounds.

A world is a law over all S = V^L sequences. Its noisy states are the same sequences, numbered with
the last position running fastest (`states`, `state_id`). What a network can at best learn is
computed here in closed form, so that samplers and objectives can be judged without training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from sddlm.models.vocab_head import VocabHead
from sddlm.process.uniform import UniformProcess

#: predictions ``[S, L, V]`` for every noisy state, when ``alpha`` of the data is left
Predictions = Callable[[float], Tensor]
#: ``posterior(p [S, L, V], x_t [S, L], alpha_t, alpha_s) -> [S, L, V]``
Posterior = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def states(vocab_size: int, length: int) -> Tensor:
    """All sequences in the order of their numbers ``[S, L]`` int64."""
    number = torch.arange(vocab_size**length)[:, None]
    return number // vocab_size ** torch.arange(length - 1, -1, -1) % vocab_size


def state_id(tokens: Tensor, vocab_size: int) -> Tensor:
    """Numbers ``[...]`` int64 of sequences ``[..., L]``."""
    length = tokens.shape[-1]
    place = vocab_size ** torch.arange(length - 1, -1, -1, device=tokens.device)
    return (tokens * place).sum(-1)


def total_variation(p: Tensor, q: Tensor) -> float:
    """Half the sum of the absolute differences of two laws ``[S]``."""
    return 0.5 * (p - q).abs().sum().item()


def entropy(p: Tensor) -> float:
    """Entropy of a law ``[S]`` in nats."""
    return -torch.special.xlogy(p, p).sum().item()


def _noise(law: Tensor, alpha: float, axis: int) -> Tensor:
    """Uniform noise on one axis (of length V) of a table."""
    return alpha * law + (1 - alpha) * law.mean(axis, keepdim=True)


@dataclass(frozen=True)
class World:
    """A law over all sequences.

    Attributes:
        probabilities: of each sequence ``[S]`` float64.
        vocab_size: V.
        length: L.
    """

    probabilities: Tensor
    vocab_size: int
    length: int

    def __post_init__(self) -> None:
        if self.probabilities.shape != (self.vocab_size**self.length,):
            raise ValueError(
                f"{self.vocab_size}^{self.length} probabilities are needed, "
                f"not {tuple(self.probabilities.shape)}"
            )

    @classmethod
    def random(
        cls, vocab_size: int, length: int, *, seed: int = 0, concentration: float = 0.15
    ) -> World:
        """A Dirichlet draw; the smaller the concentration, the more uneven."""
        gamma = np.random.default_rng(seed).gamma(concentration, size=vocab_size**length)
        weights = torch.from_numpy(gamma) + 1e-12
        return cls(weights / weights.sum(), vocab_size, length)

    @classmethod
    def zipf(cls, vocab_size: int, length: int, *, exponent: float = 1.0) -> World:
        """Independent positions; token v has a probability proportional to (v + 1)^-exponent."""
        one = torch.arange(1, vocab_size + 1, dtype=torch.float64) ** -exponent
        one = one / one.sum()
        return cls(one[states(vocab_size, length)].prod(1), vocab_size, length)

    @classmethod
    def correlated(cls, vocab_size: int, length: int, *, follow: float = 0.8) -> World:
        """A Markov chain: after v comes v + 1 (mod V) with ``follow``, else a uniform token."""
        x = states(vocab_size, length)
        follows = x[:, 1:] == (x[:, :-1] + 1) % vocab_size  # [S, L-1]
        step = (1 - follow) / vocab_size + follow * follows.double()
        return cls(step.prod(1) / vocab_size, vocab_size, length)

    @property
    def entropy(self) -> float:
        """Of the law, nats per sequence."""
        return entropy(self.probabilities)

    @property
    def nll(self) -> Tensor:
        """Exact -log p(x0) of every sequence ``[S]``, nats."""
        return -self.probabilities.log()

    def _table(self) -> Tensor:
        return self.probabilities.reshape([self.vocab_size] * self.length)

    def noisy(self, alpha: float) -> Tensor:
        """Law of x_t when ``alpha`` is left ``[S]``."""
        table = self._table()
        for axis in range(self.length):
            table = _noise(table, alpha, axis)
        return table.flatten()

    def leave_one_out(self, alpha: float) -> Tensor:
        """p(x0 at l | all noisy tokens but the one at l), for every state ``[S, L, V]``."""
        V, L = self.vocab_size, self.length
        predictions = []
        for own in range(L):
            joint = self._table()  # x0 at `own`, x_t elsewhere
            for axis in range(L):
                joint = joint if axis == own else _noise(joint, alpha, axis)
            joint = joint.movedim(own, -1)  # [V] * (L - 1) + [V of x0]
            p = joint / joint.sum(-1, keepdim=True)
            predictions.append(p.unsqueeze(own).expand([V] * (L + 1)).reshape(-1, V))
        return torch.stack(predictions, 1)

    def denoiser(self, alpha: float) -> Tensor:
        """p(x0 at l | all noisy tokens), for every state ``[S, L, V]``."""
        own = self._own()
        seen = torch.full(own.shape, (1 - alpha) / self.vocab_size, dtype=torch.float64)
        joint = self.leave_one_out(alpha) * (seen + alpha * own)
        return joint / joint.sum(-1, keepdim=True)

    def without_x_t(self, alpha: float) -> Tensor:
        """`leave_one_out` with the entry of x_t set to zero, renormalised ``[S, L, V]``.

        The optimum of training on changed positions only (Eq. 7 of arXiv:2510.22926).
        """
        p = self.leave_one_out(alpha) * (1 - self._own())
        return p / p.sum(-1, keepdim=True)

    def _own(self) -> Tensor:
        """One-hot of every state's tokens ``[S, L, V]`` float64."""
        x = states(self.vocab_size, self.length)
        return nn.functional.one_hot(x, self.vocab_size).double()

    def tokens(self, count: int, *, seed: int = 0) -> Tensor:
        """Independent sequences ``[count, L]`` int64."""
        u = torch.from_numpy(np.random.default_rng(seed).random(count))
        at = torch.searchsorted(self.probabilities.cumsum(0), u, right=True)
        return states(self.vocab_size, self.length)[at.clamp(max=len(self.probabilities) - 1)]


class TabularModel(nn.Module):
    """A "network" that looks its output up; it satisfies the contract of a model.

    Its hidden vectors are the logits themselves (D = V, float64) and its head is the identity.

    Args:
        predictions: probabilities ``[S, L, V]`` as a function of alpha, or a table of logits
            ``[S, L, V]`` used at every alpha, which becomes a parameter that can be trained.
    """

    def __init__(
        self,
        predictions: Predictions | Tensor,
        *,
        vocab_size: int,
        length: int,
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.length = length
        self.causal = False
        self.head = VocabHead(vocab_size, vocab_size, bias=False)
        self.head.weight = nn.Parameter(
            torch.eye(vocab_size, dtype=torch.float64), requires_grad=False
        )
        self._predictions: Predictions | None = None
        self._tables: dict[float, Tensor] = {}
        if isinstance(predictions, Tensor):
            self.table = nn.Parameter(predictions.clone())
        else:
            self._predictions = predictions

    def _logits(self, sigma: float) -> Tensor:
        """``[S, L, V]`` at a noise level."""
        if self._predictions is None:
            return self.table
        if sigma not in self._tables:
            p = self._predictions(float(np.exp(-sigma)))
            self._tables[sigma] = p.double().clamp(min=1e-300).log()
        return self._tables[sigma]

    def forward(self, x_t: Tensor, sigma: Tensor) -> Tensor:
        """Logits ``[B, L, V]`` of tokens ``[B, L]`` at noise levels ``[B]``."""
        at = state_id(x_t, self.vocab_size)  # [B]
        out = self.head.weight.new_empty(*x_t.shape, self.vocab_size)
        for level in sigma.unique():
            here = sigma == level
            out[here] = self._logits(level.item())[at[here]]
        return out


def law(
    process: UniformProcess,
    predictions: Predictions,
    steps: int,
    *,
    posterior: Posterior | None = None,
    tail: Literal["sample", "greedy"] = "sample",
) -> Tensor:
    """Exact law of what the ancestral sampler returns, for at most some 2,000 states.

    The reverse steps factorise over positions: K(x_s | x_t) = prod_l K_l(x_s^l | x_t).

    Args:
        process: of the noise.
        predictions: what the sampler is given at each step, after any conversion and truncation.
        steps: grid intervals.
        posterior: the kernel of a position; None is `UniformProcess.posterior`.
        tail: the last step, as of `Ancestral`.

    Returns:
        ``[S]`` float64.
    """
    kernel_of = process.posterior if posterior is None else posterior
    _, alphas = process.schedule.grid(steps)
    for step in range(steps):
        p = predictions(alphas[step].item())  # [S, L, V]
        S, L, V = p.shape
        if step == 0:
            now = torch.full((S,), 1 / S, dtype=torch.float64)
        if tail == "greedy" and step == steps - 1:
            kernel = nn.functional.one_hot(p.argmax(-1), V).double()
        else:
            kernel = kernel_of(p, states(V, L), alphas[step], alphas[step + 1])
        joint = now[:, None]  # [S, V^l]: the law of x_t and the first l tokens of x_s
        for at in range(L - 1):
            joint = (joint[:, :, None] * kernel[:, at, None, :]).flatten(1)
        now = (joint.T @ kernel[:, -1]).flatten()
    return now


def nelbo_integrand(
    p: Tensor, x0: Tensor, x_t: Tensor, alpha_t: Tensor, dalpha_t: Tensor
) -> Tensor:
    """Integrand of the continuous-time bound, the plain formula, per position.

        A = alpha [. = x0] + (1 - alpha)/V,   B = alpha p + (1 - alpha)/V,   z = x_t
        -alpha' / (V alpha A_z) * ( KL(A || B) + A_z/B_z - 1 - log(A_z/B_z) )

    equal pointwise to the bounds of UDLM (arXiv:2412.10193) and Duo (arXiv:2506.10892).

    Args:
        p: leave-one-out prediction ``[..., V]`` float64.
        x0: ``[...]`` int64.
        x_t: ``[...]`` int64.
        alpha_t: broadcastable to ``[...]``.
        dalpha_t: the same.

    Returns:
        nats ``[...]``.
    """
    V = p.shape[-1]
    a = alpha_t[..., None]
    A = a * nn.functional.one_hot(x0, V) + (1 - a) / V
    B = a * p + (1 - a) / V
    own = x_t[..., None].expand(*torch.broadcast_shapes(A.shape, B.shape)[:-1], 1)
    A_z = A.expand(*own.shape[:-1], V).gather(-1, own)[..., 0]
    ratio = A_z / B.expand(*own.shape[:-1], V).gather(-1, own)[..., 0]
    divergence = (A * (A / B).log()).sum(-1)
    return -dalpha_t / (V * alpha_t * A_z) * (divergence + ratio - 1 - ratio.log())


def nelbo(process: UniformProcess, predictions: Predictions, *, nodes: int = 48) -> Tensor:
    """The continuous-time bound on -log p(x0) of every sequence, prior term included.

    The integral over t and the sum over all noisy states of `nelbo_integrand`, by Gauss-Legendre
    quadrature in t^(1/3), which smooths the logarithm at t = 0.

    Args:
        process: of the noise.
        predictions: leave-one-out predictions.
        nodes: of the quadrature.

    Returns:
        ``[S]`` nats. Its mean over the world's law, for the world's own predictions, is the
        world's entropy and KL(law of x_1 || uniform) together.
    """
    points, weights = np.polynomial.legendre.leggauss(nodes)
    parts = []
    for point, weight in zip((points + 1) / 2, weights / 2, strict=True):
        t = torch.tensor(point**3, dtype=torch.float64)
        alpha, slope = process.schedule.alpha(t), process.schedule.dalpha(t)
        p = predictions(alpha.item())  # [S, L, V]
        parts.append(3 * point**2 * weight * _expected_integrand(p, alpha, slope))
    return torch.stack(parts).sum(0) + p.shape[1] * process.prior_kl(p.shape[2])


def _expected_integrand(p: Tensor, alpha: Tensor, slope: Tensor) -> Tensor:
    """Expectation over x_t given x0 of the integrand, summed over positions ``[S]``."""
    S, L, V = p.shape
    x_t = states(V, L)[:, :, None].expand(S, L, V)
    x0 = torch.arange(V).expand(S, L, V)
    loss = nelbo_integrand(p[:, :, None, :], x0, x_t, alpha, slope)  # [S, L, V of x0]
    seen = alpha * (x0 == x_t) + (1 - alpha) / V  # q(x_t | x0)
    weighted = (seen * loss).reshape(*[V] * L, L, V)
    total = torch.zeros([V] * L, dtype=torch.float64)
    for own in range(L):
        # sum over the own noisy token, whose axis x0 takes; average over the others
        table = weighted.select(L, own).sum(own).movedim(-1, own)
        for axis in range(L):
            table = table if axis == own else _noise(table, alpha.item(), axis)
        total = total + table
    return total.flatten()
