"""How to sample, as options: the same for every verb that writes text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError, check_choices
from sddlm.lm import LanguageModel
from sddlm.process.estimate import Estimate
from sddlm.process.masked import MaskedProcess
from sddlm.sampling.adaptive import Adaptive
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.base import Sampler
from sddlm.sampling.first_hitting import FirstHitting
from sddlm.sampling.float32 import Float32
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.psi import PRESETS, Psi
from sddlm.sampling.truncation import Truncation

_KINDS: dict[str, Callable[..., Sampler]] = {
    "lazy": Lazy,
    "ancestral": Ancestral,
    "psi": Psi,
    "adaptive": Adaptive,
}
#: mass of the nucleus, where it is not said
TOP_P = 0.9
#: options that only one sampler has
OWN = {"kappa": "psi", "hold": "psi", "preset": "psi", "budget": "adaptive", "by": "adaptive"}


@dataclass(frozen=True)
class SamplerConfig:
    """How text is drawn from a model."""

    sampler: Literal["lazy", "ancestral", "psi", "adaptive", "first_hitting"] | None = None
    """lazy asks the network only where its answer can matter; ancestral always, with the same
    result; psi corrects while it goes; adaptive takes long steps where little is open;
    first_hitting is for masks alone, a call a token. Default: lazy, and for an autoregressive
    model left to right, the only way it has"""
    steps: int = 64
    """denoising steps; more is closer to the model's own law"""
    tail: Literal["sample", "greedy"] = "sample"
    """the last step draws (sample) or takes the most likely token (greedy)"""
    temperature: float = 1.0
    """below 1 is sharper"""
    top_p: float | None = None
    """keep the most likely tokens up to this mass; default: 0.9, where samples of small models have
    the entropy of real text (docs/generation.md), or what --preset says; 1 keeps all"""
    top_k: int | None = None
    """keep so many of the most likely tokens"""
    min_p: float = 0.0
    """drop tokens less likely than this share of the most likely one"""
    tail_cut: float = 0.0
    """cut every probability below tail_cut / V to zero and lower the rest by as much; small models
    give such tokens too much"""
    preset: Literal["cap", "rescale", "loop"] | None = None
    """of psi: published settings of kappa, hold and top_p"""
    kappa: str | None = None
    """of psi: share of the posterior in a step, from 0 (all corrected) to 1, or cap:, rescale: or
    remdm: with a number (docs/samplers.md); default cap:0.01"""
    hold: float | None = None
    """of psi: noise level at which the run rests for its middle part"""
    budget: float | None = None
    """of adaptive: how much may be open among the positions that change together, in nats (by
    entropy) or tokens (by confidence); more takes fewer steps"""
    by: Literal["entropy", "confidence"] | None = None
    """of adaptive: what is counted as open"""
    precision: Literal["float64", "float32"] = "float64"
    """of the draw from each prediction; float32 is to reproduce figures of public code: it loses
    rare tokens (docs/evaluation.md)"""

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, before anything is loaded."""
        check_choices(self)
        for name, owner in OWN.items():
            if getattr(self, name) is not None and self.sampler != owner:
                raise ConfigError(
                    f"--{name} belongs to another sampler: add --sampler {owner}, or leave it out"
                )
        if self.precision == "float32" and self.sampler not in (None, "ancestral"):
            raise ConfigError(
                f"--precision float32 draws ancestral steps, and --sampler is {self.sampler}: "
                "leave one out"
            )
        self._diffusion(())

    def truncation(self, never: tuple[int, ...] = ()) -> Truncation:
        """What is done to every prediction; ``never`` are tokens that are not written."""
        usual = PRESETS[self.preset][1] if self.preset else TOP_P
        top_p = usual if self.top_p is None else self.top_p
        return Truncation(
            temperature=self.temperature,
            top_p=top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            tail_cut=self.tail_cut,
            never=never,
        )

    def settings(self) -> dict[str, Any]:
        """The options that apply, with the ``top_p`` that they amount to, for the record."""
        own = asdict(self) | {"top_p": self.truncation().top_p}
        return {name: value for name, value in own.items() if value is not None}

    def _diffusion(self, never: tuple[int, ...]) -> Sampler:
        """The sampler of a diffusion model."""
        truncation = self.truncation(never)
        if self.sampler == "first_hitting":
            return FirstHitting(truncation)
        more: dict[str, Any] = {"steps": self.steps, "tail": self.tail, "truncation": truncation}
        if self.precision == "float32":
            return Float32(**more)
        more |= {name: value for name in OWN if (value := getattr(self, name)) is not None}
        if more.pop("preset", None):
            return Psi.preset(str(self.preset), **more)
        return _KINDS[self.sampler or "lazy"](**more)

    def build(self, loaded: LanguageModel, *, never: tuple[int, ...] = ()) -> Sampler:
        """The sampler for a model; padding, unknown and mask tokens are never written.

        Args:
            loaded: the model.
            never: further tokens that are not written.

        Raises:
            ConfigError: if the model cannot be sampled so.
        """
        if not loaded.estimate.diffusion:
            if self.precision == "float32":
                raise ConfigError("--precision float32 is for diffusion models; leave it out")
            if self.sampler is not None:
                raise ConfigError(
                    f"--sampler is {self.sampler}, but an autoregressive model is written left to "
                    "right: leave it out"
                )
            return sampler_for(
                loaded.estimate,
                loaded.tokenizer,
                truncation=self.truncation(never),
                ends=loaded.bos_in_rows,
            )
        if self.sampler == "first_hitting" and not isinstance(loaded.process, MaskedProcess):
            raise ConfigError(
                f"--sampler is first_hitting, which is for MaskedProcess, and this model has "
                f"{type(loaded.process).__name__}: try --sampler lazy"
            )
        return self._diffusion((*loaded.tokenizer.not_sampled, *never))


def sampler_for(
    estimate: Estimate,
    tokenizer: Tokenizer,
    *,
    steps: int = 128,
    tail: Literal["sample", "greedy"] = "sample",
    truncation: Truncation | None = None,
    ends: bool = False,
) -> Sampler:
    """The library's sampler for a kind of model: lazy for diffusion, left to right else.

    Args:
        estimate: what the model's output means.
        tokenizer: an autoregressive model begins at its end-of-text token; padding, unknown and
            mask tokens are never written.
        steps: of a diffusion sampler.
        tail: of a diffusion sampler.
        truncation: of every prediction.
        ends: the model's rows begin with the beginning-of-text token.
    """
    truncation = truncation or Truncation()
    truncation = replace(truncation, never=(*tokenizer.not_sampled, *truncation.never))
    if estimate.diffusion:
        return Lazy(steps, tail, truncation)
    return Autoregressive(truncation, tokenizer.bos_id if ends else tokenizer.eos_id)
