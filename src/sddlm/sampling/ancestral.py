"""The ancestral sampler: step by step from noise to text, the posterior at every position."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.errors import ConfigError
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.base import Model, Sampler, chunks, device_of, evaluating, pick
from sddlm.sampling.truncation import Truncation
from sddlm.types import OnStep, Samples


@dataclass(frozen=True)
class Transition:
    """One transition from t to s: what all its positions share."""

    process: Process
    estimate: Estimate
    truncation: Truncation
    draw: Draw
    alpha_t: Tensor  # scalar float64
    alpha_s: Tensor  # scalar float64
    greedy: bool

    def logits(self, model: Model, hidden: Tensor, own: Tensor) -> Tensor:
        """Leave-one-out logits ``[N, V]`` float64 of rows ``[N, D]`` whose tokens are ``own``."""
        logits: Tensor = model.head.logits(hidden).to(torch.float64, copy=True)
        return to_leave_one_out(logits, self.estimate, self.process, own, self.alpha_t)

    def move(self, logits: Tensor, own: Tensor, u: Tensor, noise: Tensor, v: Tensor) -> Tensor:
        """New tokens ``[N]`` by the mixture that the posterior is (see `Process.jump`).

        Args:
            logits: leave-one-out ``[N, V]``.
            own: the present tokens ``[N]``.
            u: decides whether a token is redrawn, predicted or stays ``[N]``.
            noise: fresh noise ``[N]``.
            v: picks from the prediction ``[N]``.
        """
        p = self.truncation(logits)  # [N, V]
        redraw, predict = self.process.jump(
            p.gather(1, own[:, None])[:, 0],
            own,
            self.alpha_t,
            self.alpha_s,
            vocab_size=p.shape[1],
        )
        new = torch.where(u < redraw, noise, own)
        predicted = ((u >= redraw) & (u < redraw + predict)).nonzero()[:, 0]
        new[predicted] = pick(p[predicted], v[predicted])
        return new


@dataclass
class Ancestral(Sampler):
    """Samples p(x_s | x_t) at every position on the grid t = 1, 1 - 1/steps, ..., 0.

    Each position is moved in two stages: a number u decides between fresh noise, a draw from
    the prediction and staying; only then is a token drawn. The law is the posterior's (Eq. 5 of
    arXiv:2510.22926), and in float64 rare tokens keep their probability at any number of steps.

    Attributes:
        steps: grid intervals, each one network call.
        tail: the last step: ``sample`` draws from p(x0 | x_t), ``greedy`` takes the most likely
            token of the leave-one-out prediction.
        truncation: temperature, nucleus and tail cut of every prediction.
    """

    steps: int = 128
    tail: Literal["sample", "greedy"] = "sample"
    truncation: Truncation = field(default_factory=Truncation)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ConfigError(f"--steps is {self.steps}, allowed is 1 and above: try --steps 128")
        if self.tail not in ("sample", "greedy"):
            raise ConfigError(
                f"--tail is {self.tail!r}, allowed is sample or greedy: try --tail sample"
            )

    def candidates(self, x: Tensor, u: Tensor, step: Transition, vocab_size: int) -> Tensor:
        """Positions at which the network is asked ``[B, L]`` bool; here all."""
        return torch.ones_like(x, dtype=torch.bool)

    def sample(
        self,
        model: Model,
        *,
        process: Process,
        estimate: Estimate,
        shape: tuple[int, int],
        seed: int = 0,
        first_index: int = 0,
        on_step: OnStep | None = None,
    ) -> Samples:
        """See `Sampler.sample`; a denoiser is converted to leave-one-out, exactly, at each step."""
        if not estimate.diffusion:
            raise ConfigError(
                f"{type(self).__name__} cannot sample a model whose estimate is "
                f"{estimate.value}, only a diffusion model: use Autoregressive"
            )
        started = time.perf_counter()
        device = device_of(model)
        times, alphas = process.schedule.grid(self.steps, device=device)
        index = first_index + torch.arange(shape[0], device=device)
        nfe = torch.zeros_like(index)
        rows = torch.zeros_like(index)
        with evaluating(model):
            start = Draw(seed, 0, index, shape[0])
            x = process.prior(start, shape[1], vocab_size=model.vocab_size)  # [B, L]
            for number in range(1, self.steps + 1):
                step = Transition(
                    process,
                    estimate,
                    self.truncation,
                    Draw(seed, number, index, shape[0]),
                    alphas[number - 1],
                    alphas[number],
                    self.tail == "greedy" and number == self.steps,
                )
                x, asked = self._advance(model, x, step)
                nfe += asked.any(1)
                rows += asked.sum(1)
                if on_step is not None:
                    on_step(number, times[number].item(), x)
        seconds = time.perf_counter() - started
        # a copy made outside inference mode can also be trained on
        return Samples(x.clone(), nfe, self.steps, seconds, rows)

    def _advance(self, model: Model, x: Tensor, step: Transition) -> tuple[Tensor, Tensor]:
        """The tokens after a step and the positions asked, both ``[B, L]``."""
        length = x.shape[1]
        u = step.draw.uniform("jump", length)  # [B, L]
        V = model.vocab_size
        asked = self.candidates(x, u, step, V)
        busy = asked.any(1)  # [B]
        if not busy.any():
            return x, asked
        sigma = -torch.log(step.alpha_t).float().expand(int(busy.sum()))
        hidden = model(x[busy], sigma)[asked[busy]]  # [N, D]
        own, u = x[asked], u[asked]  # [N]
        noise = step.process.noise(step.draw, "redraw", length, alpha=step.alpha_s, vocab_size=V)[
            asked
        ]
        v = step.draw.uniform("pick", length)[asked]
        new = own.clone()
        for at in chunks(len(own), V):
            logits = step.logits(model, hidden[at], own[at])
            if step.greedy:
                certain = step.process.certain(own[at], vocab_size=V)
                new[at] = torch.where(certain, own[at], logits.argmax(-1))
            else:
                new[at] = step.move(logits, own[at], u[at], noise[at], v[at])
        return x.masked_scatter(asked, new), asked
