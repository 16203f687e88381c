"""What every process is: corruption, its undoing, and the noise that it ends in."""

from __future__ import annotations

from torch import Tensor

from sddlm.draw import Draw
from sddlm.process.schedule import Schedule
from sddlm.types import Noisy


class Process:
    """How text is corrupted and how corruption is undone. Leaves are dataclasses."""

    schedule: Schedule

    def corrupt(self, x0: Tensor, t: Tensor, draw: Draw, *, vocab_size: int) -> Noisy:
        """Noise ``x0`` ``[B, L]`` up to the times ``t`` ``[B]``."""
        raise NotImplementedError

    def posterior(self, p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """p(x_s | x_t) ``[..., V]`` when ``p`` ``[..., V]`` is the leave-one-out prediction."""
        raise NotImplementedError

    def jump(
        self, p_own: Tensor, alpha_t: Tensor, alpha_s: Tensor, *, vocab_size: int
    ) -> tuple[Tensor, Tensor]:
        """The posterior as a mixture: probabilities of a uniform token and of a draw from p."""
        raise NotImplementedError

    def jump_bound(self, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """Largest probability that a position does not keep its token, whatever p is."""
        raise NotImplementedError

    def prior(self, draw: Draw, length: int, *, vocab_size: int) -> Tensor:
        """Pure noise ``[B, L]``."""
        raise NotImplementedError

    def prior_kl(self, vocab_size: int) -> float:
        """KL(q(x_1 | x0) || prior), nats per token."""
        raise NotImplementedError
