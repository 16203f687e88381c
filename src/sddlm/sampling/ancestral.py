"""The ancestral sampler: step by step from noise to text, the posterior at every position."""

from __future__ import annotations

from collections.abc import Iterator
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
from sddlm.sampling.cache import Prediction
from sddlm.sampling.context import Model, SamplingContext
from sddlm.sampling.truncation import Truncation

#: of a grid, which is held whole; a law does not change any more long before
MOST_STEPS = 1_000_000


@dataclass(frozen=True)
class Updates:
    """Positions about to make a step, each with its own noise levels and random numbers.

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
    """Ancestral sampler: p(x_s | x_t) at every position on the grid t = 1, 1 - 1/steps, ..., 0.

        sddlm.Ancestral(steps=128).sample(lm, batch=8, length=128).tokens  # [8, 128]

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
                f"`steps` is {self.steps}, must be from 1 to {MOST_STEPS:,}: try `steps=128`"
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
        x, nfe, rows = self._run(run, run.start())
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
        updates = Updates(
            alpha_t=alpha_t,
            alpha_s=alpha_s,
            u=draw.uniform("jump", run.length),
            noise=run.process.noise(
                draw, "redraw", run.length, alpha=alpha_s, vocab_size=run.vocab_size
            ),
            v=draw.uniform("pick", run.length),
            greedy=torch.full_like(x, self._greedy(number), dtype=torch.bool),
        )  # [B, L] each
        updates, asked, fresh = self.ask(run, x, updates, kappa, draw)
        asked, fresh = asked & run.free, fresh & run.free
        # the network sees x before the step, so that noise is laid over the result
        new = x
        busy = asked.any(1)  # [B]
        if busy.any():
            at = asked[busy].flatten().nonzero()[:, 0]  # [N]
            sigma = -torch.log(alpha_t[busy, 0]).float()
            hidden = run.hidden(x, sigma, busy.nonzero()[:, 0], rows=at)  # [N, D]
            current, own = x[asked], updates[asked]
            seen = Prediction(hidden, current, own.alpha_t)
            new = x.masked_scatter(asked, self._update(run, seen, current, own))
        return torch.where(fresh, updates.noise, new), asked

    def ask(
        self, run: SamplingContext, x: Tensor, updates: Updates, kappa: float, draw: Draw
    ) -> tuple[Updates, Tensor, Tensor]:
        """The updates of a step, which of them the network is asked for, which become noise.

        Here all and none; both are ``[B, L]`` bool. ``kappa`` is the probability of the posterior.
        """
        return updates, torch.ones_like(updates.greedy), torch.zeros_like(updates.greedy)

    def _predict(self, run: SamplingContext, seen: Prediction) -> Tensor:
        """Leave-one-out probabilities, truncated ``[N, V]``."""
        parts = (run.model, seen.hidden, run.estimate, run.process, seen.x_t, seen.alpha_t)
        return self.truncation(leave_one_out(*parts))

    def _update(
        self,
        run: SamplingContext,
        seen: Prediction,
        current: Tensor,
        updates: Updates,
        cost: Tensor | None = None,
    ) -> Tensor:
        """New tokens in place of ``current [N]``.

        ``cost [N]``, if given, is filled with what each update reveals to other positions.
        """
        new = torch.empty_like(current)
        for at in self._chunks(len(new), run.vocab_size):
            p = self._predict(run, seen[at])
            new[at] = self._draw(run, p, current[at], updates[at])
            if cost is not None:
                cost[at] = self._cost(run, p, current[at], new[at], updates[at])
        return new

    def _chunks(self, rows: int, vocab_size: int) -> Iterator[slice]:
        """Parts of the rows that are updated at once."""
        return chunks(rows, vocab_size)

    def _draw(self, run: SamplingContext, p: Tensor, current: Tensor, updates: Updates) -> Tensor:
        """New tokens ``[N]`` by the predictions ``p [N, V]``."""
        return posterior_step(p, current, run.process, updates)

    def _cost(
        self, run: SamplingContext, p: Tensor, current: Tensor, new: Tensor, updates: Updates
    ) -> Tensor:
        """What updates from ``current`` to ``new [N]`` reveal, by the predictions ``p [N, V]``.

        Only asked of samplers that use a prediction after a token has changed.
        """
        raise NotImplementedError


def posterior_step(p: Tensor, own: Tensor, process: Process, updates: Updates) -> Tensor:
    """New tokens ``[N]`` by the mixture that the posterior is (see `Process.jump`).

    Args:
        p: leave-one-out prediction ``[N, V]`` float64.
        own: the present tokens ``[N]``.
        process: of the noise.
        updates: how each moves ``[N]``.
    """
    p_own = p.gather(1, own[:, None])[:, 0]
    redraw, predict = process.jump(
        p_own, own, updates.alpha_t, updates.alpha_s, vocab_size=p.shape[1]
    )
    new = torch.where(updates.u < redraw, updates.noise, own)
    predicted = (updates.u >= redraw) & (updates.u < redraw + predict) & ~updates.greedy
    at = predicted.nonzero()[:, 0]
    new[at] = sample_categorical(p[at], updates.v[at])
    at = updates.greedy.nonzero()[:, 0]
    if len(at):
        alpha_t = updates.alpha_t[at]
        guess = process.posterior(p[at], own[at], alpha_t, torch.ones_like(alpha_t))
        new[at] = guess.argmax(-1)
    return new


def _one_hot(tokens: Tensor, vocab_size: int) -> Tensor:
    """``[...]`` int64 to ``[..., V]`` float64."""
    return torch.nn.functional.one_hot(tokens, vocab_size).double()
