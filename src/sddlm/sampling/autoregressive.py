"""Left to right, for the baseline."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from sddlm.errors import ConfigError, check_choices
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.rng import Draw
from sddlm.sampling.base import Drawn, Sampler, chunks, sample_categorical
from sddlm.sampling.condition import Condition
from sddlm.sampling.context import Model, SamplingContext
from sddlm.sampling.truncation import Truncation
from sddlm.types import before_padding


@dataclass
class Autoregressive(Sampler):
    """One token after the other, each from p(token | tokens before it); L - 1 network calls.

    A network that offers a cache (``new_cache``) is asked for one new position in each call.

    Attributes:
        truncation: temperature, nucleus and tail cut of every prediction.
        bos_id: the token at position 0.
    """

    truncation: Truncation = field(default_factory=Truncation)
    bos_id: int = 0

    def __post_init__(self) -> None:
        check_choices(self)

    def calls(self, length: int) -> int:
        """See `Sampler.calls`: one for each token but the first."""
        return length - 1

    def check(self, model: Model, process: Process, estimate: Estimate) -> None:
        """See `Sampler.check`; the process is not used."""
        if estimate is not Estimate.NEXT_TOKEN or not getattr(model, "causal", False):
            raise ConfigError(
                f"Autoregressive samples only a causal model with estimate "
                f"{Estimate.NEXT_TOKEN.value}, this one has {estimate.value}: use Lazy or Ancestral"
            )
        if not 0 <= self.bos_id < model.vocab_size:
            raise ConfigError(
                f"`bos_id` is {self.bos_id}, must be from 0 to {model.vocab_size - 1}: "
                "try `bos_id=0`"
            )

    def keep(self, condition: Condition | None) -> Condition | None:
        """See `Sampler.keep`: only what comes first can be known, and no text is changed."""
        if condition is None:
            return None
        if condition.t < 1:
            raise ConfigError("an autoregressive model cannot change a text: use a diffusion model")
        behind = condition.free.cumsum(1) > 0  # [B, L]: something before is unknown
        if condition.lengths is not None:
            behind &= before_padding(condition.lengths, behind.shape[1])
        if (condition.known & behind).any():
            raise ConfigError(
                "an autoregressive model reads only what is before: give it a `prompt` alone, "
                "for a suffix or blanks use a diffusion model"
            )
        return condition

    def draw(self, run: SamplingContext) -> Drawn:
        """See `Sampler.draw`."""
        model, condition, device = run.model, run.condition, run.index.device
        B, L = len(run.index), run.length
        x = run.start(torch.full((B, L), self.bos_id, device=device))
        sigma = torch.zeros(B, device=device)
        new_cache = getattr(model, "new_cache", None)
        more = {"cache": new_cache(L)} if new_cache else {}
        for place in range(1, L):
            start = place - 1 if more else 0
            hidden = model(x[:, start:place], sigma, **more)[:, -1]  # [B, D]
            u = Draw(run.seed, place, run.index, B).uniform("pick")  # [B]
            for at in chunks(B, model.vocab_size):
                p = self.truncation(model.head.logits(hidden[at]))
                x[at, place] = sample_categorical(p, u[at])
            if condition is not None:
                drawn = condition.free[:, place]
                x[:, place] = torch.where(drawn, x[:, place], condition.given[:, place])
            if run.on_step is not None:
                run.on_step(place, 1 - place / (L - 1), x)
        calls = torch.full_like(run.index, L - 1)
        if condition is not None and condition.lengths is not None:
            calls = condition.lengths - 1
        return Drawn(x, calls, L - 1, calls)
