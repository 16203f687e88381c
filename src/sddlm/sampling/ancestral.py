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
from sddlm.process.estimate import Estimate, warn_of_bias
from sddlm.process.schedule import Schedule
from sddlm.sampling.base import (
    Model,
    Sampler,
    chunks,
    device_of,
    evaluating,
    leave_one_out,
    pick,
)
from sddlm.sampling.truncation import Truncation
from sddlm.types import OnStep, Samples


@dataclass(frozen=True)
class Transition:
    """One transition from t to s: what all its positions share.

    With probability ``kappa`` a position is moved by the posterior, else it is corrected: noised
    anew from a guess of the clean token, x_s ~ q(x_s | x0), x0 ~ p(x0 | x_t).
    """

    process: Process
    estimate: Estimate
    truncation: Truncation
    draw: Draw
    alpha_t: Tensor  # scalar float64
    alpha_s: Tensor  # scalar float64
    kappa: float
    greedy: bool

    def corrected(self, length: int) -> tuple[Tensor, Tensor]:
        """Positions ``[B, L]`` bool that become noise, and those that become a guess of x0."""
        if self.kappa == 1:  # a posterior step is spared the draw
            none = self.draw.index.new_zeros(len(self.draw.index), length, dtype=torch.bool)
            return none, none
        w = self.draw.uniform("part", length)  # [B, L]
        fresh = w >= self.kappa + (1 - self.kappa) * self.alpha_s
        return fresh, (w >= self.kappa) & ~fresh

    def bound(self, x: Tensor, guessed: Tensor, vocab_size: int) -> Tensor:
        """Probability ``[B, L]`` beyond which a token stays whatever the network says."""
        at_s = self.process.jump_bound(x, self.alpha_t, self.alpha_s, vocab_size=vocab_size)
        if self.kappa == 1:
            return at_s
        alpha_0 = torch.ones_like(self.alpha_s)
        at_0 = self.process.jump_bound(x, self.alpha_t, alpha_0, vocab_size=vocab_size)
        return torch.where(guessed, at_0, at_s)

    def move(
        self, logits: Tensor, own: Tensor, guessed: Tensor, u: Tensor, noise: Tensor, v: Tensor
    ) -> Tensor:
        """New tokens ``[N]`` by the mixture that the posterior is (see `Process.jump`).

        p(x0 | x_t) is the posterior at alpha_s = 1, and is drawn from in the same way.

        Args:
            logits: leave-one-out ``[N, V]``.
            own: the present tokens ``[N]``.
            guessed: draw from p(x0 | x_t) in place of p(x_s | x_t) ``[N]`` bool.
            u: decides whether a token is redrawn, predicted or stays ``[N]``.
            noise: fresh noise ``[N]``.
            v: picks from the prediction ``[N]``.
        """
        p = self.truncation(logits)  # [N, V]
        p_own = p.gather(1, own[:, None])[:, 0]
        V = p.shape[1]
        redraw, predict = self.process.jump(p_own, own, self.alpha_t, self.alpha_s, vocab_size=V)
        if self.kappa < 1:
            # a second call: with an alpha_s of each position the odds would take [N, V]
            alpha_0 = torch.ones_like(self.alpha_s)
            at_0 = self.process.jump(p_own, own, self.alpha_t, alpha_0, vocab_size=V)
            redraw = torch.where(guessed, at_0[0], redraw)
            predict = torch.where(guessed, at_0[1], predict)
        new = torch.where(u < redraw, noise, own)
        predicted = ((u >= redraw) & (u < redraw + predict)).nonzero()[:, 0]
        new[predicted] = pick(p[predicted], v[predicted])
        return new

    def most_likely(self, logits: Tensor, own: Tensor) -> Tensor:
        """The most likely clean token given everything, ``own`` included ``[N]``."""
        p = self.truncation(logits)  # [N, V]
        alpha_0 = torch.ones_like(self.alpha_s)
        return self.process.posterior(p, own, self.alpha_t, alpha_0).argmax(-1)


@dataclass
class Ancestral(Sampler):
    """Samples p(x_s | x_t) at every position on the grid t = 1, 1 - 1/steps, ..., 0.

    Each position is moved in two stages: a number u decides between fresh noise, a draw from
    the prediction and staying; only then is a token drawn. The law is the posterior's (Eq. 5 of
    arXiv:2510.22926), and in float64 rare tokens keep their probability at any number of steps.

    Attributes:
        steps: grid intervals, each one network call.
        tail: the last step: ``sample`` draws from p(x0 | x_t), ``greedy`` takes the most likely
            token of p(x0 | x_t). (Public code takes that of the leave-one-out prediction, which
            forgets the token that is already there: docs/samplers.md.)
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

    def grid(
        self, schedule: Schedule, *, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, Tensor]:
        """Times and alphas of a run ``[steps + 1]`` float64 each; it ends at alpha = 1 exactly."""
        return schedule.grid(self.steps, device=device)

    def kernel(
        self,
        number: int,
        process: Process,
        p: Tensor,
        x_t: Tensor,
        alpha_t: Tensor,
        alpha_s: Tensor,
    ) -> Tensor:
        """The exact law of one step at one position, given the prediction.

        Args:
            number: of the step, from 1.
            process: of the noise.
            p: leave-one-out prediction, converted and truncated ``[..., V]``.
            x_t: tokens ``[...]`` int64.
            alpha_t: at the beginning of the step, scalar float64.
            alpha_s: at its end, scalar float64.

        Returns:
            ``[..., V]`` float64, normalised.
        """
        if self._greedy(number):
            guess = process.posterior(p, x_t, alpha_t, torch.ones_like(alpha_s))
            return _one_hot(guess.argmax(-1), p.shape[-1])
        return process.posterior(p, x_t, alpha_t, alpha_s)

    def _greedy(self, number: int) -> bool:
        """Whether step ``number`` takes the most likely token."""
        return self.tail == "greedy" and number == self.steps

    def kappas(self, alphas: Tensor) -> Tensor:
        """Probability of the posterior in each step of a grid ``[steps + 1]``: ``[steps]``."""
        return torch.ones_like(alphas[1:])

    def calls(self, length: int) -> int:
        """See `Sampler.calls`."""
        return self.steps

    def candidates(
        self, x: Tensor, u: Tensor, guessed: Tensor, step: Transition, vocab_size: int
    ) -> Tensor:
        """Positions at which the network is asked, if they do not become noise ``[B, L]`` bool.

        Here all.
        """
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
        warn_of_bias(estimate, model.vocab_size)
        started = time.perf_counter()
        device = device_of(model)
        times, alphas = self.grid(process.schedule, device=device)
        kappas = self.kappas(alphas).tolist()
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
                    1.0 if self._greedy(number) else kappas[number - 1],
                    self._greedy(number),
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
        length, V = x.shape[1], model.vocab_size
        fresh, guessed = step.corrected(length)  # [B, L]
        u = step.draw.uniform("jump", length)  # [B, L]
        asked = self.candidates(x, u, guessed, step, V) & ~fresh
        busy = asked.any(1)  # [B]
        if step.kappa == 1 and not busy.any():
            return x, asked
        noise = step.process.noise(step.draw, "redraw", length, alpha=step.alpha_s, vocab_size=V)
        # the network sees x as it was, so that noise is laid over the result
        if not busy.any():
            return torch.where(fresh, noise, x), asked
        sigma = -torch.log(step.alpha_t).float().expand(int(busy.sum()))
        hidden = model(x[busy], sigma)[asked[busy]]  # [N, D]
        v = step.draw.uniform("pick", length)[asked]  # [N]
        own, guessed, u, redrawn = x[asked], guessed[asked], u[asked], noise[asked]  # [N]
        new = own.clone()
        for at in chunks(len(own), V):
            logits = leave_one_out(
                model, hidden[at], step.estimate, step.process, own[at], step.alpha_t
            )
            if step.greedy:
                new[at] = step.most_likely(logits, own[at])
            else:
                new[at] = step.move(logits, own[at], guessed[at], u[at], redrawn[at], v[at])
        return torch.where(fresh, noise, x.masked_scatter(asked, new)), asked


def _one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """``[...]`` int64 to ``[..., V]`` float64."""
    return torch.nn.functional.one_hot(tokens, vocab_size).double()
