"""The lazy sampler: the ancestral one, without the work whose outcome is known beforehand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.rng import CellDraw
from sddlm.sampling.ancestral import Ancestral, Updates
from sddlm.sampling.context import SamplingContext
from sddlm.types import OnStep

#: cells of the grid whose numbers are drawn at once
PLAN_CELLS = 1 << 20


@dataclass
class Lazy(Ancestral):
    """Asks the network only where its answer can matter; same numbers, same law as `Ancestral`.

    Whatever the network says, a position changes with probability at most

        b = [a_s - a_t + (1 - a_ts)(1 - a_s)] / (1 - a_t)

    (for other processes `Process.jump_bound`). So u is drawn first, and only cells (positions at
    a step) with u < b can change: about 2 ln(steps) of a position's ``steps``. They are all known
    before the first call. Each sequence goes from one of its own candidate steps to the next, so
    that every call is of sequences that need it, at whatever step each stands. Of a network that
    is not told the time (``model.time_free``) a prediction stays valid until a token changes.
    Truncation keeps the bound; a greedy last step needs every position once.
    """

    def _run(self, run: SamplingContext, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ancestral._run`."""
        times, alphas = self.grid(run.process.schedule, device=x.device, t=run.t)
        plan = self._plan(run, alphas)
        predictions = _Predictions(run)
        replay = _Replay(run.on_step, times, x) if run.on_step else None
        x = x.clone()
        rows = torch.zeros_like(run.index)
        visit = plan.first.clone()  # [B]
        while True:
            live = (visit < plan.last).nonzero()[:, 0]
            if replay:
                replay.until(int(plan.next_step(visit).min()) - 1)
            if not len(live):
                return x, predictions.nfe, rows
            at = self._next(run, x, plan, visit, predictions.in_turn(live))  # [N]
            if not len(at):
                continue
            row, place, cells = plan.row[at], plan.place[at], plan.cells[at]
            own = x[row, place]
            hidden = predictions.hidden(x, row, place, cells.alpha_t)  # [N, D]
            new = self._answers(run, hidden, own, cells)
            x[row, place] = new
            predictions.forget(row[new != own])
            rows.index_add_(0, row, torch.ones_like(row))
            if replay:
                replay.add(plan.step[at], row, place, new)

    def _plan(self, run: SamplingContext, alphas: Tensor) -> EventPlan:
        """All cells that can change whatever the network says, drawn before its first call."""
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
            at, place = ((u < bound[step, None]) & free).nonzero().unbind(1)
            found.append((step[at] + 1, at % B, place, u[at, place]))
        step, row, place, u = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = (row * (self.steps + 1) + step).argsort(stable=True)
        step, row, place, u = step[order], row[order], place[order], u[order]
        draw = CellDraw.of(run.seed, step, run.index[row], place)
        alpha_s = alphas[step]
        noise = run.process.noise(draw, "redraw", 1, alpha=alpha_s[:, None], vocab_size=V)[:, 0]
        greedy = (step == self.steps) & (self.tail == "greedy")
        v = draw.uniform("pick", 1)[:, 0]
        cells = Updates(alphas[step - 1], alpha_s, u, noise, v, greedy)
        return EventPlan.of(step, row, place, cells, steps=self.steps, batch=B)

    def _next(
        self, run: SamplingContext, x: Tensor, plan: EventPlan, visit: Tensor, live: Tensor
    ) -> Tensor:
        """Positions ``[N]`` of the next visit of each live sequence, and ``visit`` moves behind it.

        The plan knows no tokens. Where they differ (a mask can change, a revealed token cannot),
        cells that cannot change are left out, and visits that have only such.
        """
        found = []
        while len(live):
            at = plan.cells_of(visit[live])
            visit[live] += 1
            if not run.process.extra_tokens:  # all tokens are alike
                return at
            cells, row = plan.cells[at], plan.row[at]
            own = x[row, plan.place[at]]
            bound = run.process.jump_bound(
                own, cells.alpha_t, cells.alpha_s, vocab_size=run.vocab_size
            )
            can = (cells.u < bound) | (cells.greedy & (bound > 0))
            found.append(at[can])
            empty = torch.ones_like(visit, dtype=torch.bool)
            empty[row[can]] = False
            live = live[(empty & (visit < plan.last))[live]]
        return torch.cat(found).sort().values


@dataclass(frozen=True)
class EventPlan:
    """Positions that can change, by sequence and step; those of one of each are a *visit*.

    Attributes:
        step: of each cell, from 1 ``[C]``.
        row: its sequence in the batch ``[C]``.
        place: its position ``[C]``.
        cells: its numbers ``[C]``.
        visit_step: step of each visit, and ``steps + 1`` behind the last ``[W + 1]``.
        start: its first cell ``[W]``.
        size: how many cells it has ``[W]``.
        first: first visit of each sequence ``[B]``.
        last: the visit behind its last ``[B]``.
        steps: of the run.
    """

    step: Tensor
    row: Tensor
    place: Tensor
    cells: Updates
    visit_step: Tensor
    start: Tensor
    size: Tensor
    first: Tensor
    last: Tensor
    steps: int

    @classmethod
    def of(
        cls, step: Tensor, row: Tensor, place: Tensor, cells: Updates, *, steps: int, batch: int
    ) -> EventPlan:
        """The plan of cells that are sorted by sequence, then step."""
        visits, size = (row * (steps + 1) + step).unique_consecutive(return_counts=True)
        visit_row = visits // (steps + 1)
        rows = torch.arange(batch, device=row.device)
        return cls(
            step,
            row,
            place,
            cells,
            torch.nn.functional.pad(visits % (steps + 1), (0, 1), value=steps + 1),
            size.cumsum(0) - size,
            size,
            torch.searchsorted(visit_row, rows),
            torch.searchsorted(visit_row, rows, right=True),
            steps,
        )

    def cells_of(self, visits: Tensor) -> Tensor:
        """The cells of some visits, one visit behind the other ``[N]``."""
        size = self.size[visits]
        ends = size.cumsum(0)
        shift = self.start[visits] - (ends - size)  # from a place in the result to a cell
        return torch.arange(int(ends[-1]), device=size.device) + shift.repeat_interleave(size)

    def next_step(self, visit: Tensor) -> Tensor:
        """The step at which each sequence stands ``[B]``; behind the last one when it is done."""
        return torch.where(visit == self.last, self.steps + 1, self.visit_step[visit])


class _Predictions:
    """Asks the network for hidden vectors, and of a time-free one remembers them.

    Attributes:
        nfe: network calls of each sequence ``[B]``.
    """

    def __init__(self, run: SamplingContext) -> None:
        self.run = run
        self.nfe = torch.zeros_like(run.index)
        self.keep = bool(getattr(run.model, "time_free", False))
        self._valid = torch.zeros_like(run.index, dtype=torch.bool)  # [B]
        self._memory: Tensor | None = None  # [B, L, D]

    def in_turn(self, live: Tensor) -> Tensor:
        """Which of the sequences move now: first those that need no call, so calls are full."""
        if not self.keep:
            return live
        known = live[self._valid[live]]
        return known if len(known) else live

    def forget(self, rows: Tensor) -> None:
        """Tokens of these sequences have changed."""
        self._valid[rows] = False

    def hidden(self, x: Tensor, row: Tensor, place: Tensor, alpha_t: Tensor) -> Tensor:
        """Hidden vectors ``[N, D]`` of cells, those of a sequence being of one time.

        Args:
            x: tokens ``[B, L]``.
            row: sequence of each cell ``[N]``, ascending.
            place: its position ``[N]``.
            alpha_t: of its sequence ``[N]`` float64.
        """
        if self.keep and self._valid[row[0]]:  # `in_turn` does not mix
            assert self._memory is not None
            return self._memory[row, place]
        here, count = row.unique_consecutive(return_counts=True)  # [A]
        self.nfe[here] += 1
        sigma = -torch.log(alpha_t[count.cumsum(0) - 1]).float()  # [A]
        if not self.keep:
            which = torch.arange(len(here), device=row.device).repeat_interleave(count)
            return self.run.hidden(x, sigma, here, rows=which * self.run.length + place)
        hidden = self.run.hidden(x, sigma, here)  # [A, L, D]
        if self._memory is None:
            self._memory = hidden.new_empty(*x.shape, hidden.shape[-1])
        self._memory[here] = hidden
        self._valid[here] = True
        return self._memory[row, place]


class _Replay:
    """Shows a run step by step, though its sequences stand at different steps."""

    def __init__(self, on_step: OnStep, times: Tensor, x: Tensor) -> None:
        self.on_step, self.times, self.x = on_step, times.tolist(), x
        self.shown = 0
        self._pending = torch.empty(0, 4, dtype=torch.int64, device=x.device)

    def add(self, step: Tensor, row: Tensor, place: Tensor, token: Tensor) -> None:
        """Changes to be shown at their step."""
        self._pending = torch.cat((self._pending, torch.stack((step, row, place, token), 1)))

    def until(self, step: int) -> None:
        """Show all steps up to ``step``, which every sequence has done."""
        if step <= self.shown:
            return
        due = self._pending[:, 0] <= step
        changes = self._pending[due]
        self._pending = self._pending[~due]
        for number in range(self.shown + 1, step + 1):
            _, row, place, token = changes[changes[:, 0] == number].unbind(1)
            self.x = self.x.index_put((row, place), token)
            self.on_step(number, self.times[number], self.x)
        self.shown = step
