"""The ancestral sampler: step by step from noise to text, the posterior at every position."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, warn_of_bias
from sddlm.process.schedule import Schedule
from sddlm.rng import Draw
from sddlm.sampling.base import Drawn, Sampler, chunks, leave_one_out, sample_categorical
from sddlm.sampling.context import Model, SamplingContext
from sddlm.sampling.truncation import Truncation

#: of a grid, which is held whole; a law does not change any more long before
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Updates:
    """Positions about to make a step, each with its own beginning, end and random numbers.

    Attributes:
        alpha_t: at the beginning of the step ``[N]`` float64.
        alpha_s: at its end ``[N]`` float64.
        u: decides whether a token is redrawn, predicted or stays ``[N]`` float64.
        noise: fresh noise ``[N]`` int64.
        v: picks from the prediction ``[N]`` float64.
        greedy: takes the most likely clean token instead ``[N]`` bool.
    """

    alpha_t: Tensor
    alpha_s: Tensor
    u: Tensor
    noise: Tensor
    v: Tensor
    greedy: Tensor

    def __getitem__(self, at: slice | Tensor) -> Updates:
        return Updates(**{f.name: getattr(self, f.name)[at] for f in fields(self)})


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
        check_choices(self)
        if not 1 <= self.steps <= MOST_STEPS:
            raise ConfigError(
                f"--steps is {self.steps}, allowed is 1 to {MOST_STEPS:,}: try --steps 128"
            )

    def grid(
        self, schedule: Schedule, *, device: torch.device | str = "cpu", t: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Times from ``t`` to 0 and alphas ``[steps + 1]`` float64; the last alpha is 1 exactly."""
        return schedule.grid(self.steps, device=device, t=t)

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

    def check(self, model: Model, process: Process, estimate: Estimate) -> None:
        """See `Sampler.check`; a denoiser is converted to leave-one-out, exactly, at each step."""
        if not estimate.diffusion:
            raise ConfigError(
                f"{type(self).__name__} cannot sample a model whose estimate is "
                f"{estimate.value}, only a diffusion model: use Autoregressive"
            )
        warn_of_bias(estimate, model.vocab_size)

    def draw(self, run: SamplingContext) -> Drawn:
        """See `Sampler.draw`."""
        x, nfe, rows = self._run(run, run.begin(run.noise()))
        return Drawn(x, nfe, self.steps, rows)

    def _run(self, run: SamplingContext, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """From noise to text: tokens ``[B, L]``, network calls and head rows, each ``[B]``."""
        times, alphas = self.grid(run.process.schedule, device=x.device, t=run.t)
        kappas = self.kappas(alphas).tolist()
        nfe, rows = torch.zeros_like(run.index), torch.zeros_like(run.index)
        for number in range(1, self.steps + 1):
            kappa = 1.0 if self._greedy(number) else kappas[number - 1]
            x, asked = self._advance(run, x, number, alphas, kappa)
            nfe += asked.any(1)
            rows += asked.sum(1)
            if run.on_step is not None:
                run.on_step(number, times[number].item(), x)
        return x, nfe, rows

    def _advance(
        self, run: SamplingContext, x: Tensor, number: int, alphas: Tensor, kappa: float
    ) -> tuple[Tensor, Tensor]:
        """The tokens after step ``number`` and the positions asked, both ``[B, L]``."""
        draw = Draw(run.seed, number, run.index, len(run.index))
        alpha_t, alpha_s = alphas[number - 1 : number + 1].expand(*x.shape, 2).unbind(-1)
        cells = Updates(
            alpha_t=alpha_t,
            alpha_s=alpha_s,
            u=draw.uniform("jump", run.length),
            noise=run.process.noise(
                draw, "redraw", run.length, alpha=alpha_s, vocab_size=run.vocab_size
            ),
            v=draw.uniform("pick", run.length),
            greedy=torch.full_like(x, self._greedy(number), dtype=torch.bool),
        )  # [B, L] each
        cells, asked, fresh = self.ask(run, x, cells, kappa, draw)
        asked, fresh = asked & run.free, fresh & run.free
        # the network sees x as it was, so that noise is laid over the result
        new = x
        busy = asked.any(1)  # [B]
        if busy.any():
            at = asked[busy].flatten().nonzero()[:, 0]  # [N]
            sigma = -torch.log(alpha_t[busy, 0]).float()
            hidden = run.hidden(x, sigma, busy.nonzero()[:, 0], rows=at)  # [N, D]
            new = x.masked_scatter(asked, self._answers(run, hidden, x[asked], cells[asked]))
        return torch.where(fresh, cells.noise, new), asked

    def ask(
        self, run: SamplingContext, x: Tensor, cells: Updates, kappa: float, draw: Draw
    ) -> tuple[Updates, Tensor, Tensor]:
        """The cells of a step, which of them the network is asked for, which become noise.

        Here all and none; both are ``[B, L]`` bool. ``kappa`` is the probability of the posterior.
        """
        return cells, torch.ones_like(cells.greedy), torch.zeros_like(cells.greedy)

    def _answers(self, run: SamplingContext, hidden: Tensor, own: Tensor, cells: Updates) -> Tensor:
        """New tokens ``[N]`` in place of ``own [N]``, given the hidden vectors ``[N, D]``."""
        new = torch.empty_like(own)
        for at in chunks(len(new), run.vocab_size):
            logits = leave_one_out(
                run.model, hidden[at], run.estimate, run.process, own[at], cells.alpha_t[at]
            )
            new[at] = posterior_step(self.truncation(logits), own[at], run.process, cells[at])
        return new


def posterior_step(p: Tensor, own: Tensor, process: Process, cells: Updates) -> Tensor:
    """New tokens ``[N]`` by the mixture that the posterior is (see `Process.jump`).

    Args:
        p: leave-one-out prediction ``[N, V]`` float64.
        own: the present tokens ``[N]``.
        process: of the noise.
        cells: how each moves ``[N]``.
    """
    p_own = p.gather(1, own[:, None])[:, 0]
    redraw, predict = process.jump(p_own, own, cells.alpha_t, cells.alpha_s, vocab_size=p.shape[1])
    new = torch.where(cells.u < redraw, cells.noise, own)
    predicted = (cells.u >= redraw) & (cells.u < redraw + predict) & ~cells.greedy
    at = predicted.nonzero()[:, 0]
    new[at] = sample_categorical(p[at], cells.v[at])
    at = cells.greedy.nonzero()[:, 0]
    if len(at):
        alpha_t = cells.alpha_t[at]
        guess = process.posterior(p[at], own[at], alpha_t, torch.ones_like(alpha_t))
        new[at] = guess.argmax(-1)
    return new


def _one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """``[...]`` int64 to ``[..., V]`` float64."""
    return torch.nn.functional.one_hot(tokens, vocab_size).double()
