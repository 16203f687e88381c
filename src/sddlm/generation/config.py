"""The sampler configuration: one set of options and defaults wherever text is written."""

# no annotations from the future here: the command line reads those of inherited options in the
# module of each subclass, which need not know their names
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from sddlm.errors import ConfigError, check_choices
from sddlm.lm import LanguageModel
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
#: default mass of the nucleus
TOP_P = 0.9
#: option that only one sampler has: the sampler
OWN = {
    "kappa": "psi",
    "hold": "psi",
    "preset": "psi",
    "budget": "adaptive",
    "criterion": "adaptive",
}


@dataclass(frozen=True)
class SamplerConfig:
    """A sampler and its options; `build` makes the sampler for a model.

    Attributes:
        sampler: lazy calls the network only where its prediction can matter; ancestral always, with
            the same result; psi corrects earlier tokens on the way; adaptive takes long steps where
            little is uncertain; first_hitting is for masks alone, one call a token. Default: lazy,
            and left to right for an autoregressive model, which has no other sampler.
        steps: denoising steps; more is closer to the model's own distribution.
        tail: the last step draws (sample) or takes the most likely token (greedy).
        temperature: below 1 is sharper.
        top_p: keep the most likely tokens up to this mass; default: 0.9, where samples of small
            models have the entropy of real text (docs/generation.md), or the value of --preset; 1
            keeps all.
        top_k: keep this number of the most likely tokens.
        min_p: drop tokens less likely than this share of the most likely one.
        tail_cut: cut every probability below tail_cut / V to zero and lower the rest by as much;
            small models give such tokens too much.
        preset: of psi: published settings of kappa, hold and top_p.
        kappa: of psi: share of the posterior in a step, from 0 (all corrected) to 1, or cap:,
            rescale: or remdm: with a number (docs/samplers.md); default cap:0.01.
        hold: of psi: noise level at which the run rests for its middle part.
        budget: of adaptive: largest uncertainty among the positions that change on one prediction,
            in nats (criterion entropy) or tokens (confidence); more takes fewer calls; default 4.
        criterion: of adaptive: measure of uncertainty; default entropy.
        precision: of the draw from each prediction; float32 is to reproduce figures of public code:
            it loses rare tokens (docs/evaluation.md).
    """

    sampler: Literal["lazy", "ancestral", "psi", "adaptive", "first_hitting"] | None = None
    steps: int = 64
    tail: Literal["sample", "greedy"] = "sample"
    temperature: float = 1.0
    top_p: float | None = None
    top_k: int | None = None
    min_p: float = 0.0
    tail_cut: float = 0.0
    preset: Literal["cap", "rescale", "loop"] | None = None
    kappa: str | None = None
    hold: float | None = None
    budget: float | None = None
    criterion: Literal["entropy", "confidence"] | None = None
    precision: Literal["float64", "float32"] = "float64"

    def __post_init__(self) -> None:
        """Refuse contradictions before anything is loaded."""
        check_choices(self)
        for name, owner in OWN.items():
            if getattr(self, name) is not None and self.sampler != owner:
                raise ConfigError(
                    f"`{name}` belongs to another sampler: add `sampler={owner!r}`, or leave it out"
                )
        if self.precision == "float32" and self.sampler not in (None, "ancestral"):
            raise ConfigError(
                f"`precision` float32 draws ancestral steps, and `sampler` is {self.sampler}: "
                "leave one out"
            )
        self._diffusion(())

    def truncation(self, never: tuple[int, ...] = ()) -> Truncation:
        """The truncation of every prediction; ``never`` are tokens that are not written."""
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
        """The options that are set, and the ``top_p`` in force, for the record."""
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

    def build(self, lm: LanguageModel, *, never: tuple[int, ...] = ()) -> Sampler:
        """The sampler for a model; padding, unknown and mask tokens are never written.

        Args:
            lm: the model. An autoregressive one begins at the beginning-of-text token where its
                rows do, else at the end of text.
            never: further tokens that are not written.

        Raises:
            ConfigError: the model cannot be sampled so.
        """
        never = (*lm.tokenizer.not_sampled, *never)
        if lm.estimate.diffusion:
            if self.sampler == "first_hitting" and not isinstance(lm.process, MaskedProcess):
                raise ConfigError(
                    "`sampler` is first_hitting, which is for MaskedProcess, and this model has "
                    f"{type(lm.process).__name__}: try `sampler='lazy'`"
                )
            return self._diffusion(never)
        if self.precision == "float32":
            raise ConfigError("`precision` float32 is for diffusion models: leave it out")
        if self.sampler is not None:
            raise ConfigError(
                f"`sampler` is {self.sampler}, but an autoregressive model is written left to "
                "right: leave it out"
            )
        first = lm.tokenizer.bos_id if lm.bos_in_rows else lm.tokenizer.eos_id
        return Autoregressive(self.truncation(never), first)


#: How a text is corrected. One greedy call: of the errors in rows with a tenth of their tokens
#: replaced it leaves 70%, sampled steps leave 106% (docs/generation.md). No nucleus, which replaces
#: good tokens that the model would not have guessed.
CORRECTION = SamplerConfig(steps=1, tail="greedy", top_p=1.0)
