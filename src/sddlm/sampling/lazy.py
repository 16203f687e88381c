"""The lazy sampler: the ancestral one without network calls that cannot change a token."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.rng import CellDraw
from sddlm.sampling.ancestral import Ancestral, Updates
from sddlm.sampling.cache import PredictionCache
from sddlm.sampling.context import SamplingContext
from sddlm.types import OnStep

#: positions times steps of the grid whose numbers are drawn at once
PLAN_CELLS = 1 << 20


@dataclass
class Lazy(Ancestral):
    """Sampler with the tokens of `Ancestral` that calls the network only where it can matter.

    Whatever the network predicts, a position changes with probability at most

        b = [a_s - a_t + (1 - a_ts)(1 - a_s)] / (1 - a_t),    a_ts = a_t / a_s, a = alpha

    (for other processes `Process.jump_bound`). So u is drawn first, and only updates (positions at
    a step) with u < b can change a token: about 2 ln(steps) of a position's ``steps``. All are
    known before the first call. Each sequence goes from one of its own candidate steps to the
    next, so that every call is of sequences that need it, at whatever step each stands. With a
    network that does not see the time (``model.time_free``) a prediction stays valid until a token
    changes.
    Truncation keeps the bound; a greedy last step needs every position once.
    """

    def _cache(self, run: SamplingContext) -> PredictionCache:
        """Decides when the network is called."""
        return PredictionCache(run)

    def _run(self, run: SamplingContext, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ancestral._run`."""
        times, alphas = self.grid(run.process.schedule, device=x.device, t=run.t)
        plan, cache = self._plan(run, alphas), self._cache(run)
        replay = _Replay(run.on_step, times, x) if run.on_step else None
        x = x.clone()
        rows = torch.zeros_like(run.index)
        event = plan.first.clone()  # [B]
        while True:
            step = plan.next_step(event)  # [B]
            live = (event < plan.last).nonzero()[:, 0]
            if replay:
                replay.until(int(step.min()) - 1)
            if not len(live):
                return x, cache.nfe, rows
            # sequences that need no call go first, so that calls are full
            ready = live[cache.valid(live, alphas[step[live] - 1])]
            at = self._next(run, x, plan, event, ready if len(ready) else live)  # [N]
            if not len(at):
                continue
            row, position, updates = plan.row[at], plan.position[at], plan.updates[at]
            current = x[row, position]
            seen = cache.predict(x, row, position, updates.alpha_t)
            cost = torch.zeros_like(updates.u) if cache.budget > 0 else None
            new = self._update(run, seen, current, updates, cost)
            x[row, position] = new
            if cache.keeps:
                cache.add_cost(row, position, new != current, cost)
            rows.index_add_(0, row, torch.ones_like(row))
            if replay:
                replay.add(plan.step[at], row, position, new)

    def _plan(self, run: SamplingContext, alphas: Tensor) -> EventPlan:
        """All updates that can change a token, drawn before the first call."""
        B, V = len(run.index), run.vocab_size
        bound = run.process.largest_jump_bound(alphas[:-1], alphas[1:], vocab_size=V)  # [steps]
        if self.tail == "greedy":
            bound[-1] = torch.inf
        found = []
        for steps in torch.arange(self.steps, device=alphas.device).split(
            max(1, PLAN_CELLS // (B * run.length))
        ):
            step, index = steps.repeat_interleave(B), run.index.repeat(len(steps))
            draw = CellDraw.of(run.seed, step + 1, index, torch.zeros_like(step))
            u = draw.uniform("jump", run.length)  # [n B, L]
            free = run.free[torch.arange(len(step), device=step.device) % len(run.free)]  # [n B, L]
            at, position = ((u < bound[step, None]) & free).nonzero().unbind(1)
            found.append((step[at] + 1, at % B, position, u[at, position]))
        step, row, position, u = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = (row * (self.steps + 1) + step).argsort(stable=True)
        step, row, position, u = step[order], row[order], position[order], u[order]
        draw = CellDraw.of(run.seed, step, run.index[row], position)
        alpha_s = alphas[step]
        noise = run.process.noise(draw, "redraw", 1, alpha=alpha_s[:, None], vocab_size=V)[:, 0]
        greedy = (step == self.steps) & (self.tail == "greedy")
        v = draw.uniform("pick", 1)[:, 0]
        updates = Updates(alphas[step - 1], alpha_s, u, noise, v, greedy)
        return EventPlan.of(step, row, position, updates, steps=self.steps, batch=B)

    def _next(
        self, run: SamplingContext, x: Tensor, plan: EventPlan, event: Tensor, live: Tensor
    ) -> Tensor:
        """Positions ``[N]`` of the next event of each live sequence, and ``event`` moves behind it.

        The plan knows no tokens. Where they differ (a mask can change, a revealed token cannot),
        updates that cannot change a token are left out, and events that have only such.
        """
        found = []
        while len(live):
            at = plan.updates_of(event[live])
            event[live] += 1
            if not run.process.extra_tokens:  # all tokens are alike
                return at
            updates, row = plan.updates[at], plan.row[at]
            current = x[row, plan.position[at]]
            bound = run.process.jump_bound(
                current, updates.alpha_t, updates.alpha_s, vocab_size=run.vocab_size
            )
            can = (updates.u < bound) | (updates.greedy & (bound > 0))
            found.append(at[can])
            empty = torch.ones_like(event, dtype=torch.bool)
            empty[row[can]] = False
            live = live[(empty & (event < plan.last))[live]]
        return torch.cat(found).sort().values


@dataclass(frozen=True)
class EventPlan:
    """Positions that can change; those of one sequence at one step are an *event*.

    Attributes:
        step: number of each, from 1 ``[C]``.
        row: its sequence in the batch ``[C]``.
        position: its position ``[C]``.
        updates: its noise levels and random numbers ``[C]``.
        event_step: step of each event, and ``steps + 1`` behind the last ``[W + 1]``.
        start: first update of each event ``[W]``.
        size: number of its updates ``[W]``.
        first: first event of each sequence ``[B]``.
        last: the event behind its last ``[B]``.
        steps: of the run.
    """

    step: Tensor
    row: Tensor
    position: Tensor
    updates: Updates
    event_step: Tensor
    start: Tensor
    size: Tensor
    first: Tensor
    last: Tensor
    steps: int

    @classmethod
    def of(
        cls,
        step: Tensor,
        row: Tensor,
        position: Tensor,
        updates: Updates,
        *,
        steps: int,
        batch: int,
    ) -> EventPlan:
        """The plan of updates that are sorted by sequence, then step."""
        events, size = (row * (steps + 1) + step).unique_consecutive(return_counts=True)
        event_row = events // (steps + 1)
        rows = torch.arange(batch, device=row.device)
        return cls(
            step,
            row,
            position,
            updates,
            torch.nn.functional.pad(events % (steps + 1), (0, 1), value=steps + 1),
            size.cumsum(0) - size,
            size,
            torch.searchsorted(event_row, rows),
            torch.searchsorted(event_row, rows, right=True),
            steps,
        )

    def updates_of(self, events: Tensor) -> Tensor:
        """Indices of the updates of some events, in their order ``[N]``."""
        size = self.size[events]
        ends = size.cumsum(0)
        shift = self.start[events] - (ends - size)  # from an index of the result to an update
        return torch.arange(int(ends[-1]), device=size.device) + shift.repeat_interleave(size)

    def next_step(self, event: Tensor) -> Tensor:
        """The step at which each sequence stands ``[B]``; behind the last one when it is done."""
        return torch.where(event == self.last, self.steps + 1, self.event_step[event])


class _Replay:
    """Calls ``on_step`` step by step, though the sequences are at different steps."""

    def __init__(self, on_step: OnStep, times: Tensor, x: Tensor) -> None:
        self.on_step, self.times, self.x = on_step, times.tolist(), x
        self.shown = 0
        self._pending = torch.empty(0, 4, dtype=torch.int64, device=x.device)

    def add(self, step: Tensor, row: Tensor, position: Tensor, token: Tensor) -> None:
        """Keep changes until their step is reported."""
        self._pending = torch.cat((self._pending, torch.stack((step, row, position, token), 1)))

    def until(self, step: int) -> None:
        """Report all steps up to ``step``, which every sequence has done."""
        if step <= self.shown:
            return
        due = self._pending[:, 0] <= step
        changes = self._pending[due]
        self._pending = self._pending[~due]
        for number in range(self.shown + 1, step + 1):
            _, row, position, token = changes[changes[:, 0] == number].unbind(1)
            self.x = self.x.index_put((row, position), token)
            self.on_step(number, self.times[number], self.x)
        self.shown = step
