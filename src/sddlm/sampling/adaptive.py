"""The adaptive sampler: the network is asked again when it could say something else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.sampling.ancestral import Updates, posterior_step
from sddlm.sampling.base import chunks, leave_one_out
from sddlm.sampling.context import SamplingContext
from sddlm.sampling.lazy import Lazy, _Replay


@dataclass
class Adaptive(Lazy):
    """Keeps a prediction over several steps, until what happened since is worth a call.

    The posterior at a position, with a prediction p of its clean token that is kept, composes over
    steps: made step by step or in one, it is the same law. What goes wrong is that positions do not
    hear of each other. What they would hear can be counted, in nats: of a position that redraws
    its token, KL(p || p(x0 | x_t)), because its clean token is now distributed as p; of one that
    draws it from the prediction, the entropy of p besides; and of one that stays, no more than

        -log P(stays | noise) = log(nu(t) / nu(s)),    nu the noise odds,

    which is counted once for all. The network is asked at the first step that needs it after the
    sum since its last call has reached ``budget``. With masks these are the entropies of the tokens
    revealed, as in entropy-bounded unmasking (arXiv:2505.24857), whose order is that of certainty;
    here it is that of the process, so the law is `Lazy`'s but for what the budget allows.

    A sequence whose predictions are certain is thus finished without another call, and one call
    is enough where the budget is infinite. The steps and all random numbers are those of `Lazy`:
    a budget of 0 draws what it draws, with its calls, and a cell that cannot change meets no
    vocabulary. Each sequence decides by itself.

    Attributes:
        budget: what may be missed between two calls of a sequence, 0 or more; nats for
            ``entropy``.
        by: ``entropy`` as above. ``confidence`` counts probabilities in place of nats: of not
            having drawn the likeliest token (1 - max p), the total variation between p and
            p(x0 | x_t), and P(leaves | noise).
    """

    budget: float = 4.0
    by: Literal["entropy", "confidence"] = "entropy"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.budget >= 0:
            raise ConfigError(
                f"--budget is {self.budget}, allowed is 0 and above: try --budget 4, or 0 to ask "
                "at every step"
            )

    def _run(self, run: SamplingContext, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ancestral._run`."""
        times, alphas = self.grid(run.process.schedule, device=x.device, t=run.t)
        plan = self._plan(run, alphas)
        kept = _Kept(run, self, alphas[0])
        replay = _Replay(run.on_step, times, x) if run.on_step else None
        x = x.clone()
        rows = torch.zeros_like(run.index)
        visit = plan.first.clone()  # [B]
        while True:
            step = plan.next_step(visit)  # [B]
            live = (visit < plan.last).nonzero()[:, 0]
            if replay:
                replay.until(int(step.min()) - 1)
            if not len(live):
                return x, kept.nfe, rows
            # those that need no call first, so that calls are full
            ready = live[kept.valid(live, alphas[step[live] - 1])]
            at = self._next(run, x, plan, visit, ready if len(ready) else live)  # [N]
            if not len(at):
                continue
            row, place, cells = plan.row[at], plan.place[at], plan.cells[at]
            kept.renew(x, row, cells.alpha_t)
            own = x[row, place]
            new, cost = self._moves(run, kept, row, place, own, cells)
            x[row, place] = new
            kept.spend(row, place, cost, new != own)
            rows.index_add_(0, row, torch.ones_like(row))
            if replay:
                replay.add(plan.step[at], row, place, new)

    def _moves(
        self,
        run: SamplingContext,
        kept: _Kept,
        row: Tensor,
        place: Tensor,
        own: Tensor,
        cells: Updates,
    ) -> tuple[Tensor, Tensor]:
        """New tokens in place of ``own``, and what each tells the other positions, ``[N]`` each."""
        new, cost = torch.empty_like(own), torch.zeros_like(cells.u)
        for at in chunks(len(new), run.vocab_size):
            hidden, seen, alpha = kept.about(row[at], place[at])
            # what the network was asked says what its answer means
            logits = leave_one_out(run.model, hidden, run.estimate, run.process, seen, alpha)
            p = self.truncation(logits)
            new[at] = posterior_step(p, own[at], run.process, cells[at])
            cost[at] = self._told(run, p, own[at], new[at], cells[at])
        return new, cost

    def _told(
        self, run: SamplingContext, p: Tensor, own: Tensor, new: Tensor, cells: Updates
    ) -> Tensor:
        """What moves from ``own`` to ``new [N]`` tell, by the predictions ``p [N, V]``: ``[N]``."""
        V = p.shape[1]
        p_own = p.gather(1, own[:, None])[:, 0]
        redraw, _ = run.process.jump(p_own, own, cells.alpha_t, cells.alpha_s, vocab_size=V)
        nu = run.process.odds_at(own, cells.alpha_t, V)
        moved, told = new != own, torch.zeros_like(p_own)
        at = moved.nonzero()[:, 0]
        told[at] = self._doubted(p_own[at], nu[at])
        at = (moved & (cells.u >= redraw)).nonzero()[:, 0]
        told[at] += self._spread(p[at])
        return told

    def _spread(self, p: Tensor) -> Tensor:
        """How uncertain predictions ``[N, V]`` are ``[N]``."""
        if self.by == "confidence":
            return 1 - p.amax(-1)
        # a sum in order, which does not depend on how many rows there are
        return torch.special.entr(p).cumsum(-1)[:, -1]

    def _doubted(self, p_own: Tensor, nu: Tensor) -> Tensor:
        """How far p is from p(x0 | x_t), which has the odds 1 + 1 / nu more at x_t: ``[N]``."""
        if self.by == "confidence":
            return p_own * (1 + nu) / (p_own + nu) - p_own
        rest = torch.log1p(p_own / nu)
        return (rest - p_own * torch.log1p(1 / nu)).clamp(min=0)

    def aged(self, run: SamplingContext, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
        """What staying from ``alpha_t [A]`` to ``alpha_s [A]`` tells at most: ``[A]``."""
        if getattr(run.model, "time_free", False):
            return torch.zeros_like(alpha_t)
        leaves = run.process.largest_jump_bound(alpha_t, alpha_s, vocab_size=run.vocab_size)
        return leaves if self.by == "confidence" else -torch.log1p(-leaves)


class _Kept:
    """The last prediction of each sequence, and what happened since.

    Attributes:
        nfe: network calls of each sequence ``[B]``.
    """

    def __init__(self, run: SamplingContext, sampler: Adaptive, alpha: Tensor) -> None:
        self.run, self.sampler = run, sampler
        self.nfe = torch.zeros_like(run.index)
        self._hidden: Tensor | None = None  # [B, L, D]
        self._x = run.index[:, None].repeat(1, run.length)  # [B, L]: tokens asked about
        self._alpha = alpha.repeat(len(run.index))  # [B]: when
        self._spent = torch.full_like(self._alpha, torch.inf)
        self._changed = torch.ones_like(run.index, dtype=torch.bool)

    def valid(self, rows: Tensor, alpha: Tensor) -> Tensor:
        """Which of the sequences ``[A]`` need no call at ``alpha [A]``: ``[A]`` bool."""
        age = self.sampler.aged(self.run, self._alpha[rows], alpha)
        same = ~self._changed[rows] & (age == 0)
        return same | (self._spent[rows] + age < self.sampler.budget)

    def renew(self, x: Tensor, row: Tensor, alpha_t: Tensor) -> None:
        """Ask the network about the sequences of cells ``row [N]`` that need it.

        Args:
            x: tokens ``[B, L]``.
            row: ascending; the cells of a sequence are of one time.
            alpha_t: of that time ``[N]``.
        """
        rows, count = row.unique_consecutive(return_counts=True)  # [A]
        alpha = alpha_t[count.cumsum(0) - 1]  # [A]
        need = ~self.valid(rows, alpha)
        rows, alpha = rows[need], alpha[need]
        if not len(rows):
            return
        hidden = self.run.hidden(x, -torch.log(alpha).float(), rows)  # [A, L, D]
        if self._hidden is None:
            self._hidden = hidden.new_empty(*x.shape, hidden.shape[-1])
        self._hidden[rows] = hidden
        self._x[rows], self._alpha[rows] = x[rows], alpha
        self._spent[rows], self._changed[rows] = 0.0, False
        self.nfe[rows] += 1

    def about(self, row: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of cells: hidden vectors ``[N, D]``, tokens then and alpha then, both ``[N]``."""
        assert self._hidden is not None
        return self._hidden[row, place], self._x[row, place], self._alpha[row]

    def spend(self, row: Tensor, place: Tensor, cost: Tensor, changed: Tensor) -> None:
        """Add what a move of positions ``[N]`` reveals, and mark the sequences that it changed."""
        told = torch.zeros_like(self._x, dtype=torch.float64)
        told[row, place] = cost
        # a sum in order of places, which does not depend on the batch
        self._spent += told.cumsum(1)[:, -1]
        self._changed[row[changed]] = True
