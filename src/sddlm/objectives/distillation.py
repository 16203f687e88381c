"""Discrete consistency distillation: match the teacher's prediction at a lower noise level.

Duo (arXiv:2506.10892) makes a pair of noisy sequences from one Gaussian eps: z = argmax w with
w = A onehot(x0) + B eps, at two noise levels. Here no Gaussian is sampled, because only two of its
properties matter. With m the largest eps of the other tokens, z is x0 if eps_x0 - m > -A / B, and
otherwise the token of m. That token is uniform over the others, the same at both levels, and
independent of eps_x0 - m. So the pair is distributed as `Process.corrupt` with the *same* uniform
number and the *same* noise token at alpha_t and alpha_s. This takes two numbers per position
instead of V, and works for any process.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.lm import LanguageModel
from sddlm.models.padding import PaddingMasked
from sddlm.models.row_losses import AutogradRowLoss, RowLoss
from sddlm.objectives.base import Model, Objective
from sddlm.objectives.bound import bound
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.process.schedule import below_one
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw
from sddlm.types import Loss, Noisy

Direction = Literal["reverse", "forward"]
Prediction = Literal["denoiser", "leave_one_out"]


def divergence(log_p: Tensor, log_q: Tensor, direction: Direction) -> Tensor:
    """KL(p || q), or for ``forward`` KL(q || p), of each row ``[..., V]`` -> ``[...]`` nats.

    A token that both exclude (a mask) contributes 0.
    """
    a, b = (log_p, log_q) if direction == "reverse" else (log_q, log_p)
    there = a > -torch.inf
    return (a.exp() * (a - b).where(there, 0.0)).sum(-1)


@dataclass(frozen=True)
class Divergence:
    """Row loss: `divergence` of the prediction p from a target q, with a hand-written gradient.

    Attributes:
        target: returns ``log q`` of a chunk of rows ``[n, V]``; computed chunk by chunk.
        direction: reverse is KL(p || q), forward KL(q || p).
        own: token whose logit is shifted first ``[N]`` int64, or None.
        shift: added to that logit ``[N]``, or None.
    """

    target: Callable[[slice], Tensor]
    direction: Direction
    own: Tensor | None = None
    shift: Tensor | None = None

    def __call__(self, logits: Tensor, at: slice, grad: bool) -> tuple[Tensor, Tensor | None]:
        """See `RowLoss`."""
        if self.own is not None and self.shift is not None:
            logits.scatter_add_(1, self.own[at, None], self.shift[at, None].to(logits.dtype))
        log_p = torch.log_softmax(logits, 1, out=logits)  # [n, V]
        log_q = self.target(at).to(log_p.dtype)
        if self.direction == "forward":
            values = divergence(log_p, log_q, "forward")
            return values, log_p.exp_().sub_(log_q.exp()) if grad else None
        p = log_p.exp()
        gap = log_p.sub_(log_q).masked_fill_(p == 0, 0.0)  # 0 log 0 = 0, also where q is 0
        values = (p * gap).sum(1)
        return values, gap.sub_(values[:, None]).mul_(p) if grad else None


@dataclass
class DCD(Objective):
    """Discrete consistency distillation (Duo, arXiv:2506.10892) from a trained diffusion model.

    The student sees x_t. The frozen teacher sees the same text with less noise, x_s with s = t -
    dt, from the same random numbers. The loss is the unweighted divergence of the student's
    prediction from the teacher's, at positions that are certain in neither. The student has its
    teacher's estimate. The teacher is always in evaluation mode and in no checkpoint (in the
    published code its dropout is active).

    Differs from the published code: denoisers are compared (``compare``); t is uniform on the
    process's own schedule, where Duo's gamma is uniform from -4 to -1 (with 50 thousand tokens
    alpha from 0.999 to 0.006); no Gaussian is sampled.

    Attributes:
        teacher: run or model directory of the teacher; the student has its vocabulary, length and
            process.
        dt: time difference between the inputs of student and teacher, in (0, 1].
        divergence: reverse: KL(student || teacher), as in Duo, makes the student sharper; forward:
            KL(teacher || student), makes it the teacher's average.
        compare: denoiser: the full prediction, including the evidence of the position's own token,
            so that the student learns a token that is hidden at t and visible at s; leave_one_out:
            without that evidence, as published. The former reaches few steps sooner.
        process: forward process; must be the teacher's.
    """

    teacher: str = ""
    dt: float = 1 / 512
    divergence: Direction = "reverse"
    compare: Prediction = "denoiser"
    process: Process = field(default_factory=UniformProcess)

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 < self.dt <= 1:
            raise ConfigError(f"`dt` is {self.dt}, must be above 0 and at most 1: try 0.01")

    @cached_property
    def _loaded(self) -> LanguageModel:
        """The teacher, in evaluation mode and without gradients; no module registers it.

        Raises:
            ConfigError: it is missing, autoregressive, or has another process.
        """
        if not self.teacher:
            raise ConfigError(
                "`teacher` is missing: give the directory of a trained diffusion model"
            )
        try:
            loaded = LanguageModel.load(Path(self.teacher))
        except ConfigError as error:
            raise ConfigError(f"`teacher`: {error}") from error
        if not loaded.estimate.diffusion:
            raise ConfigError(
                f"`teacher` {self.teacher} is an autoregressive model, which has no "
                "noise levels to distil; give a diffusion model"
            )
        if loaded.process != self.process:
            raise ConfigError(
                f"`objective.process` is {self.process}, but `teacher` {self.teacher} "
                f"was trained with {loaded.process}; give the same"
            )
        loaded.network.eval().requires_grad_(False)
        return loaded

    @property
    def estimate(self) -> Estimate:
        """The teacher's estimate."""
        return self._loaded.estimate

    def check(self, *, length: int, tokenizer: str | None = None) -> None:
        """See `Objective.check`; length and tokenizer must be the teacher's."""
        its_length, its_tokenizer = self._loaded.network.length, self._loaded.tokenizer.fingerprint
        if length != its_length:
            raise ConfigError(
                f"`data.length` is {length}, but `teacher` {self.teacher} was trained for "
                f"{its_length}: type `data.length={its_length}`"
            )
        if tokenizer not in (None, its_tokenizer):
            raise ConfigError(
                f"the text's tokenizer is not that of `teacher` {self.teacher}: add "
                f"`start={self.teacher!r}`, or `data.tokenizer` with the teacher's own"
            )

    def setup(self, vocab_size: int, counts: Callable[[], Tensor]) -> None:
        """See `Objective.setup`; loads the teacher.

        Raises:
            ConfigError: the teacher has another vocabulary.
        """
        if self._loaded.network.vocab_size != vocab_size:
            raise ConfigError(
                f"the network has {vocab_size} tokens, but `teacher` {self.teacher} "
                f"{self._loaded.network.vocab_size}; train with the teacher's tokenizer"
            )

    def pair(self, x0: Tensor, draw: Draw, *, vocab_size: int) -> tuple[Noisy, Noisy]:
        """Inputs of student and teacher, from the same random numbers.

        Args:
            x0: clean tokens ``[B, L]`` int64.
            draw: randomness; t is its time plus dt, clamped to 1.
            vocab_size: V.
        """
        t = (draw.times() + self.dt).clamp(max=1.0)
        s = (t - self.dt).clamp(min=0.0)
        noisy, cleaner = (
            self.process.corrupt(x0, time, draw, vocab_size=vocab_size) for time in (t, s)
        )
        return noisy, cleaner

    def loss(self, model: Model, x0: Tensor, draw: Draw, loss_mask: Tensor | None = None) -> Loss:
        """See `Objective.loss`; ``count`` is that of all scored positions."""
        V = model.vocab_size
        noisy, cleaner = self.pair(x0, draw, vocab_size=V)
        counted = self.loss_positions(x0, loss_mask)
        # under masks a network predicts masked positions only; its other outputs are undefined
        at = counted & ~self.process.certain(noisy.x_t, vocab_size=V)
        at = at & ~self.process.certain(cleaner.x_t, vocab_size=V)  # [B, L]
        rows = at.flatten().nonzero()[:, 0]  # [N]
        teacher: Any = self._loaded.network.to(x0.device)
        seen = replace(model, model=teacher) if isinstance(model, PaddingMasked) else teacher
        with torch.no_grad():
            taught = seen(cleaner.x_t, cleaner.sigma, rows=rows)  # [N, D]
        read = self._reader(cleaner, at)

        def target(part: slice) -> Tensor:
            with torch.no_grad():
                return read(teacher.head.logits(taught[part]), part).log_softmax(1)

        hidden = model(noisy.x_t, noisy.sigma, rows=rows)  # [N, D]
        out = model.head(hidden, self._term(noisy, at, target))
        return Loss(out.total, counted.sum())

    def _reader(self, noisy: Noisy, at: Tensor) -> Callable[[Tensor, slice], Tensor]:
        """Conversion of a chunk of selected rows of logits, in place, to those compared."""
        own, alpha_t = noisy.x_t[at], below_one(noisy.alpha_t).expand_as(noisy.x_t)[at]  # [N]
        evidence = self.process.own_token_logit(own, alpha_t, noisy.vocab_size)  # [N]

        def read(logits: Tensor, part: slice) -> Tensor:
            z = own[part]
            logits = to_leave_one_out(logits, self.estimate, self.process, z, alpha_t[part])
            if self.compare == "leave_one_out":
                return logits
            return logits.scatter_add(1, z[:, None], evidence[part, None].to(logits.dtype))

        return read

    def _term(self, noisy: Noisy, at: Tensor, target: Callable[[slice], Tensor]) -> RowLoss:
        """Row loss; but for scores, the compared prediction differs in at most one logit."""
        if self.estimate is Estimate.SCORE:
            read = self._reader(noisy, at)

            def function(logits: Tensor, part: slice) -> Tensor:
                log_p = read(logits.clone(), part).log_softmax(1)
                return divergence(log_p, target(part), self.divergence)

            return AutogradRowLoss(function)
        sign = (self.compare == "denoiser") - (self.estimate is Estimate.DENOISER)
        if not sign:
            return Divergence(target, self.divergence)
        own, alpha_t = noisy.x_t[at], below_one(noisy.alpha_t).expand_as(noisy.x_t)[at]  # [N]
        evidence = self.process.own_token_logit(own, alpha_t, noisy.vocab_size)
        return Divergence(target, self.divergence, own, sign * evidence)

    def bound(self, model: Model, x0: Tensor, draw: Draw) -> Tensor:
        """Integrand of the NELBO at one time per sequence ``[B, L]``."""
        return bound(model, self.process, self.estimate, x0, draw)
