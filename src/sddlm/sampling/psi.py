"""Psi-samplers: a share kappa of posterior steps, the rest corrected by noising a guess anew.

Duo's second paper (arXiv:2602.21185). For a mask they are the samplers of ReMDM (arXiv:2503.00307),
which mask a clean token again with probability sigma = (1 - kappa) (1 - alpha_s).

The functions below know a run as P points in time; Duo's P = steps + 1 points end at t = 1e-5 and
are followed by one more call, those of `Psi` end at t = 0 exactly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.process.base import Process
from sddlm.process.schedule import Schedule
from sddlm.rng import Draw
from sddlm.sampling.ancestral import Ancestral, Updates
from sddlm.sampling.context import SamplingContext
from sddlm.sampling.truncation import Truncation

#: Duo's settings for OpenWebText: fields of `Psi`, and the nucleus that goes with them
PRESETS: dict[str, tuple[dict[str, Any], float]] = {
    "cap": ({"kappa": "cap:0.01"}, 0.9),
    "rescale": ({"kappa": "rescale:0.05"}, 0.9),
    "loop": ({"kappa": "1+remdm:0.01+1", "segments": (0.45, 0.5), "hold": 0.1}, 0.95),
}
_ETA_MODES = ("cap", "rescale", "remdm")


def parts(points: int, segments: tuple[float, float]) -> tuple[int, int, int]:
    """Points of the high, middle and low segment of a run of ``points`` (halves to even)."""
    high, middle = (round(share * points) for share in segments)
    middle = min(middle, points - high)
    return high, middle, points - high - middle


def profile(
    points: int, *, hold: float | None, segments: tuple[float, float], t_end: float
) -> Tensor:
    """Times of a run, falling ``[points]`` float64.

    Args:
        points: P.
        hold: where time rests during the middle segment; None falls evenly from 1 to ``t_end``.
            An empty high segment then begins at ``hold``, a low one of a point ends there.
        segments: shares of the high and the middle segment.
        t_end: last time.
    """
    if hold is None:
        return torch.linspace(1, t_end, points, dtype=torch.float64)
    high, middle, low = parts(points, segments)
    return torch.cat(
        (
            torch.linspace(1, hold, high, dtype=torch.float64),
            torch.full((middle,), hold, dtype=torch.float64),
            torch.linspace(hold, t_end, low, dtype=torch.float64),
        )
    )


def schedule_of_kappas(kappa: str, alphas: Tensor, segments: tuple[float, float]) -> Tensor:
    """Probability of the posterior in the step that begins at each point ``[P]`` float64.

    The modes with an eta are given by the probability sigma to noise a clean token again,
    kappa = 1 - sigma / (1 - alpha_s) clipped to [0, 1], and 1 at the last point of a segment:

        cap      sigma = min(eta, (1 - alpha_s) / alpha_t)
        rescale  sigma = eta min(eta, (1 - alpha_s) / alpha_t)
        remdm    sigma = eta

    ``rescale`` is what Duo's code does; ReMDM's is ``eta min(1, (1 - alpha_s) / alpha_t)``.

    Args:
        kappa: a mode, or three joined by ``+``, see `Psi`.
        alphas: what is left of the data at each point ``[P]``.
        segments: shares of the high and the middle segment.

    Raises:
        ConfigError: for an unknown mode.
    """
    modes = _modes(kappa)
    sizes = [len(alphas)] if len(modes) == 1 else list(parts(len(alphas), segments))
    return torch.cat(
        [_segment(*mode, part) for mode, part in zip(modes, alphas.split(sizes), strict=True)]
    )


def _segment(name: str, value: float, alphas: Tensor) -> Tensor:
    """Kappas ``[P]`` of one segment."""
    if name == "":
        return torch.full_like(alphas, value)
    alpha_t, alpha_s = alphas[:-1], alphas[1:]
    cap = (1 - alpha_s) / alpha_t
    sigma = {
        "cap": cap.clamp(max=value),
        "rescale": value * cap.clamp(max=value),
        "remdm": torch.full_like(cap, value),
    }[name]
    # 0 / 0 at alpha_s = 1, where the posterior and the corrector are one
    kappa = torch.where(alpha_s < 1, 1 - sigma / (1 - alpha_s), 1.0).clamp(0, 1)
    return torch.nn.functional.pad(kappa, (0, len(alphas) - len(kappa)), value=1.0)


def _modes(kappa: str) -> list[tuple[str, float]]:
    """Name ("" for a constant) and number of each mode."""
    found = []
    for mode in kappa.split("+"):
        name, colon, number = mode.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if (name not in _ETA_MODES and (name or colon)) or not 0 <= value <= 1:
            raise ConfigError(
                f"`kappa` is {kappa!r}: {mode!r} is no mode; it must be a number from 0 (all "
                "corrector) to 1 (all posterior), or cap:, rescale: or remdm: with such a number: "
                "try `kappa='cap:0.01'`"
            )
        found.append((name, value))
    if len(found) not in (1, 3):
        raise ConfigError(
            f"`kappa` is {kappa!r}, must be one mode or three joined by +, of the high, middle "
            "and low segment: try `kappa='1+remdm:0.01+1'`"
        )
    return found


@dataclass
class Psi(Ancestral):
    """Predictor-corrector sampler (Psi-samplers, arXiv:2602.21185; for masks ReMDM, 2503.00307).

    With probability kappa a position takes the posterior step, else a corrector step

        x_s ~ alpha_s p(x0 | x_t) + (1 - alpha_s) noise

    which undoes mistakes of earlier steps. The corrector keeps the law of each token, but not that
    of pairs, because all corrected tokens are redrawn at once (docs/samplers.md). A token that is
    certainly clean may become a mask again. The network is called for posterior positions as in
    `Lazy`, for corrected ones only where they become a guess of x0. The last step draws from
    p(x0 | x_t), whatever kappa is.

    Attributes:
        kappa: one mode, or three joined by ``+`` for the high, middle and low segment of the
            run. A number in [0, 1] is kappa itself (1 the posterior, 0 the corrector);
            ``cap:eta``, ``rescale:eta`` and ``remdm:eta`` follow the noise level
            (`schedule_of_kappas`).
        segments: shares of the steps in the high and the middle segment; the rest is low.
        hold: time in (0, 1) at which the run rests during the middle segment (only the corrector
            moves tokens there); None falls evenly. Duo's ``linear-constant-linear-0.9-inv`` is 0.1.
    """

    kappa: str = "cap:0.01"
    segments: tuple[float, float] = (0.2, 0.6)
    hold: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _modes(self.kappa)
        high, middle = self.segments
        if not (high >= 0 and middle >= 0 and high + middle <= 1):
            raise ConfigError(
                f"`segments` is {self.segments}, must be two shares whose sum is at most 1: "
                "try `segments=(0.2, 0.6)`"
            )
        if self.hold is None:
            return
        if not 0 < self.hold < 1:
            raise ConfigError(
                f"`hold` is {self.hold}, must be a time above 0 and below 1: try `hold=0.1`"
            )
        if parts(self.steps + 1, self.segments)[0] == 0:
            raise ConfigError(
                f"`hold` {self.hold} with `segments` {self.segments} and {self.steps} steps has no "
                f"high segment and begins at t = {self.hold}, but a run begins at t = 1, from pure "
                "noise: try `segments=(0.2, 0.6)`"
            )

    @classmethod
    def preset(cls, name: str, *, steps: int = 256, **fields: Any) -> Psi:
        """Duo's settings for OpenWebText.

        Args:
            name: cap, rescale or loop.
            steps: grid intervals.
            fields: others of `Psi`; they replace the preset's.

        Raises:
            ConfigError: for another name.
        """
        if name not in PRESETS:
            raise ConfigError(f"`preset` is {name!r}, must be one of {', '.join(PRESETS)}")
        chosen, top_p = PRESETS[name]
        return cls(**{"steps": steps, "truncation": Truncation(top_p=top_p), **chosen, **fields})

    def grid(
        self, schedule: Schedule, *, device: torch.device | str = "cpu", t: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Times and alphas ``[steps + 1]``; the last time is 0 wherever the profile ends.

        A run that begins at ``t < 1`` has the same profile, lower by that factor.
        """
        times = t * profile(self.steps + 1, hold=self.hold, segments=self.segments, t_end=0.0)
        times[-1] = 0
        alphas = schedule.alpha(times)
        alphas[-1] = 1
        return times.to(device), alphas.to(device)

    def kappas(self, alphas: Tensor) -> Tensor:
        """See `Ancestral.kappas`."""
        return schedule_of_kappas(self.kappa, alphas, self.segments)[:-1]

    def ask(
        self, run: SamplingContext, x: Tensor, updates: Updates, kappa: float, draw: Draw
    ) -> tuple[Updates, Tensor, Tensor]:
        """See `Ancestral.ask`; asked is where the answer can matter, as in `Lazy`."""
        fresh = torch.zeros_like(updates.greedy)
        if kappa < 1:
            w = draw.uniform("part", run.length)  # [B, L]
            fresh = w >= kappa + (1 - kappa) * updates.alpha_s
            # p(x0 | x_t) is the posterior at alpha_s = 1, and is drawn from in the same way
            guessed = (w >= kappa) & ~fresh
            updates = replace(updates, alpha_s=updates.alpha_s.masked_fill(guessed, 1.0))
        bound = run.process.jump_bound(
            x, updates.alpha_t, updates.alpha_s, vocab_size=run.vocab_size
        )
        return updates, ((updates.u < bound) | (updates.greedy & (bound > 0))) & ~fresh, fresh

    def kernel(
        self,
        number: int,
        process: Process,
        p: Tensor,
        x_t: Tensor,
        alpha_t: Tensor,
        alpha_s: Tensor,
    ) -> Tensor:
        """``kappa K(x_s | x_t) + (1 - kappa) alpha_s (p(x0 | x_t) + nu(alpha_s))``.

        K is the posterior, nu are the noise odds; kappa is that of step ``number`` on the grid of
        the process. See `Ancestral.kernel`.
        """
        moved = super().kernel(number, process, p, x_t, alpha_t, alpha_s)
        if self._greedy(number):
            return moved
        kappa = self.kappas(self.grid(process.schedule)[1])[number - 1]
        guess = process.posterior(p, x_t, alpha_t, torch.ones_like(alpha_s))  # p(x0 | x_t)
        noised = alpha_s * (guess + process.odds(alpha_s.double(), p.shape[-1]))
        return kappa * moved + (1 - kappa) * noised
