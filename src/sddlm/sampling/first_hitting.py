"""The first-hitting sampler: masked diffusion in continuous time, one token after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sddlm.errors import ConfigError, check_choices
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.masked import MaskedProcess
from sddlm.rng import Draw
from sddlm.sampling.base import Drawn, Sampler, chunks, leave_one_out, sample_categorical
from sddlm.sampling.context import Model, SamplingContext
from sddlm.sampling.truncation import Truncation


@dataclass
class FirstHitting(Sampler):
    """First-hitting sampler of masked models: no time grid, hence no discretisation error.

    A position is still masked at noise level 1 - alpha with probability (1 - alpha) over that of
    t = 1, whatever the network predicts: the level at which it is revealed is uniform
    (arXiv:2409.02908). Levels are drawn first; then the network is asked once for each token, at
    the level at which it is revealed, every sequence at its own.

    Attributes:
        truncation: temperature, nucleus and tail cut of every prediction.
    """

    truncation: Truncation = field(default_factory=Truncation)

    def __post_init__(self) -> None:
        check_choices(self)

    def calls(self, length: int) -> int:
        """See `Sampler.calls`: one for each token."""
        return length

    def check(self, model: Model, process: Process, estimate: Estimate) -> None:
        """See `Sampler.check`."""
        if not isinstance(process, MaskedProcess) or not estimate.diffusion:
            raise ConfigError(
                f"FirstHitting samples only a diffusion model of MaskedProcess, this one has "
                f"{type(process).__name__} and estimate {estimate.value}: "
                f"use {'Lazy or Psi' if estimate.diffusion else 'Autoregressive'}"
            )

    def draw(self, run: SamplingContext) -> Drawn:
        """See `Sampler.draw`; ``on_step`` gets the share of masks as the time."""
        model, process = run.model, run.process
        (B, L), device = (len(run.index), run.length), run.index.device
        x = run.start()
        masked = run.free & ~process.certain(x, vocab_size=model.vocab_size)  # [B, L]
        calls = masked.sum(1)  # [B]
        top = torch.full((1,), run.t, dtype=torch.float64, device=device)
        most = 1 - process.schedule.alpha(top)
        # 1 - alpha when it is revealed [B, L]
        level = Draw(run.seed, 0, run.index, B).uniform("level", L) * most
        level = level.masked_fill(~masked, -1)  # behind all that are
        level, order = level.sort(dim=1, descending=True, stable=True)
        for number in range(1, int(calls.max()) + 1):
            rows = (calls >= number).nonzero()[:, 0]  # [A]
            alpha_t, place = 1 - level[rows, number - 1], order[rows, number - 1]  # [A]
            sigma = -torch.log(alpha_t).float()
            among = torch.arange(len(rows), device=device) * L + place
            hidden = run.hidden(x, sigma, rows, rows=among)  # [A, D]
            u = Draw(run.seed, number, run.index[rows], B).uniform("pick")  # [A]
            own = x[rows, place]  # [A]: masks
            token = torch.empty_like(own)
            for at in chunks(B, model.vocab_size):
                logits = leave_one_out(
                    model, hidden[at], run.estimate, process, own[at], alpha_t[at]
                )
                token[at] = sample_categorical(self.truncation(logits), u[at])
            x = x.index_put((rows, place), token)
            if run.on_step is not None:
                run.on_step(number, 1 - number / L, x)
        return Drawn(x, calls, L, calls)
