"""Duo's training curriculum: soft Gaussian noise first, then the NELBO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.models.row_losses import RowLoss
from sddlm.objectives.base import DiffusionObjective, Model
from sddlm.objectives.bound import bound_term
from sddlm.process.estimate import Estimate
from sddlm.process.gaussian import ALPHA_RANGE, gaussian_map
from sddlm.process.latent import dense_latent, top_latent
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Loss, Noisy, SoftTokens

HARD_TAU = 1e-10
"""Temperature at which a soft token is one-hot."""


@dataclass
class DuoCurriculum(DiffusionObjective):
    """Duo (arXiv:2506.10892): NELBO of uniform noise sampled through a Gaussian latent.

    Up to step ``until`` the network sees softmax(w / tau) of the latent w, whose argmax is x_t,
    and the loss is the NELBO's integrand at x_t. From then on, and in validation, it is `NELBO`.
    During the curriculum the network sees more than x_t, and times stop at ``alpha_min`` and
    ``alpha_max``. Its loss is therefore no bound, and its optimum not exactly that of the NELBO.

    Differs from the published code: x_t is x0 only if x0 is the largest (there, if it is among the
    ``top_k``), alpha' is exact, and the range of gamma follows from that of alpha for any V.

    Attributes:
        process: forward process after the curriculum and in every validation.
        until: training step at which the curriculum ends; in Duo half of the training.
        tau_start: temperature of the soft tokens up to step ``tau_from``.
        tau_end: temperature at the end; its logarithm is linear in between.
        tau_from: training step at which the temperature begins to change.
        alpha_min: alpha at t = 1 of the curriculum.
        alpha_max: alpha at t = 0 of the curriculum.
        top_k: number of noise tokens in a soft token beside x0, the largest ones; None is all, in
            memory of [B, L, V]. With 50,257 tokens, 10 omit nothing at tau 1e-3, 0.01% of the
            weight at 0.01 and most of it at 0.1.
    """

    estimate: ClassVar[Estimate] = Estimate.LEAVE_ONE_OUT
    process: UniformProcess = field(default_factory=UniformProcess)
    until: int = 500_000
    tau_start: float = 1e-3
    tau_end: float = 1e-3
    tau_from: int = 0
    alpha_min: float = 0.05
    alpha_max: float = 0.945
    top_k: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.until < 0:
            raise ConfigError(
                f"`until` is {self.until}, allowed is 0 or more: "
                "try half of `train.steps`, or `objective=NELBO()` for no curriculum"
            )
        if not 0 <= self.tau_from <= self.until:
            raise ConfigError(
                f"`tau_from` is {self.tau_from}, allowed is 0 to `until` ({self.until}): "
                "try `tau_from=0`"
            )
        for name, tau in (("tau_start", self.tau_start), ("tau_end", self.tau_end)):
            if not HARD_TAU <= tau <= 1 / HARD_TAU:
                raise ConfigError(
                    f"`{name}` is {tau}, allowed is {HARD_TAU} to {1 / HARD_TAU:g}: "
                    f"try `{name}=0.001`"
                )
        low, high = ALPHA_RANGE
        if not low <= self.alpha_min < self.alpha_max <= high:
            raise ConfigError(
                f"`alpha_min` is {self.alpha_min} and `alpha_max` is "
                f"{self.alpha_max}, allowed is {low} <= alpha_min < alpha_max <= {high}: "
                "try 0.05 and 0.945"
            )
        self._check_top_k(None)

    def _check_top_k(self, vocab_size: int | None) -> None:
        """Check ``top_k``; V is not known before the first batch."""
        k = self.top_k
        if k is None or (k >= 1 and (vocab_size is None or k < vocab_size)):
            return
        most = "V - 1" if vocab_size is None else f"{vocab_size - 1} (the vocabulary less one)"
        raise ConfigError(
            f"`top_k` is {k}, allowed is 1 to {most}: "
            "leave it out for a small vocabulary, else try `top_k=10`"
        )

    def term(self, noisy: Noisy, at: Tensor, draw: Draw) -> RowLoss:
        """Integrand of the NELBO."""
        return bound_term(self.process, noisy, at, self.estimate)

    def in_curriculum(self, step: int) -> bool:
        """Whether ``step`` uses soft tokens; validation, step -1, does not."""
        return 0 <= step < self.until

    def tau(self, step: int) -> float:
        """Temperature of the soft tokens at a training step; the hard limit after the end."""
        if step >= self.until:
            return HARD_TAU
        done = max(step - self.tau_from, 0) / max(self.until - self.tau_from, 1)
        return float(self.tau_start * (self.tau_end / self.tau_start) ** done)

    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """See `Objective.loss`.

        Raises:
            ConfigError: if ``top_k`` does not fit the model's vocabulary.
        """
        if not self.in_curriculum(draw.step):
            return super().loss(model, x0, draw, loss_mask)
        noisy, soft = self.soften(x0, draw, vocab_size=model.vocab_size)
        return self.score(model, noisy, draw, loss_mask, x=soft)

    def soften(self, x0: Tensor, draw: Draw, *, vocab_size: int) -> tuple[Noisy, SoftTokens]:
        """Corrupt through the Gaussian latent: hard tokens for the loss, soft ones for the network.

        Args:
            x0: clean tokens ``[B, L]`` int64.
            draw: randomness; its step sets the temperature. Times begin at 0, because the range of
                alpha ends far from 1.
            vocab_size: V.

        Returns:
            the batch, and the input of the network. ``resampled`` is ``changed``, because a latent
            has no such flag.
        """
        self._check_top_k(vocab_size)
        path = gaussian_map(vocab_size, self.alpha_min, self.alpha_max)
        t = draw.times(0.0)
        gamma, tau = path.gamma(t), self.tau(draw.step)
        if self.top_k is None:
            soft, x_t = dense_latent(x0, gamma, tau, draw, vocab_size=vocab_size)
        else:
            soft, x_t = top_latent(x0, gamma, tau, draw, vocab_size=vocab_size, top_k=self.top_k)
        alpha_t, dalpha_t = path.alpha(t)[:, None], path.dalpha(t)[:, None]  # each [B, 1]
        return Noisy(x0, x_t, t, alpha_t, dalpha_t, x_t != x0, vocab_size), soft
