"""Sweeps of sampler settings: one knob is turned at a time, and every setting is a point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, did_you_mean
from sddlm.eval.conventions import Convention
from sddlm.eval.equal_entropy import SHARPNESS, Curves, Point
from sddlm.eval.evaluation import JudgedConfig, fingerprint
from sddlm.eval.generative import scored
from sddlm.eval.judge import Judge
from sddlm.eval.resampling import mean, ratio, resamples
from sddlm.eval.samples import SampleSet, draw_samples
from sddlm.generation.config import OWN, SamplerConfig
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.sampling.entropy import entropies

#: Knobs that are turned unless a sweep leaves them alone. In small steps from the neutral setting,
#: because lines join them, and as far as sharp samples do in practice. Temperature goes above 1
#: too: samples of a model that is sharp by itself must be made blunter to have the entropy of real
#: text. A tail cut of 1 is what SDDLM-V1 with its weight of 1 learns to cut.
SWEEP: Mapping[str, list[Any]] = {
    "temperature": [0.7, 0.8, 0.9, 1.1, 1.25, 1.5],
    "top_p": [0.6, 0.8, 0.9, 0.95],
    "tail_cut": [0.5, 1.0, 2.0, 4.0],
    "steps": [16, 32, 64, 128],
}
_KNOBS = [each.name for each in fields(SamplerConfig)]


def settings(sweep: Mapping[str, list[Any]], how: SamplerConfig) -> dict[str, list[SamplerConfig]]:
    """For each knob that is turned the settings along it, the neutral one in its place.

    Args:
        sweep: values by knob.
        how: the neutral setting.

    Raises:
        ConfigError: an unknown knob, or a value that it cannot have.
    """
    for knob in sweep:
        if knob not in _KNOBS:
            raise ConfigError(
                f"`sweep` turns {knob}, must turn options of the sampler: {', '.join(_KNOBS)}"
                f"{did_you_mean(knob, _KNOBS)}"
            )
    found = {}
    for knob, values in sweep.items():
        along = list(dict.fromkeys([how, *(_turned(how, knob, value) for value in values)]))
        if len(along) > 1:
            named = any(isinstance(getattr(each, knob), str) for each in along)
            found[knob] = along if named else sorted(along, key=partial(_place, knob))
    return found


def _place(knob: str, how: SamplerConfig) -> tuple[bool, Any]:
    """Sorting key of a setting along a knob with numbers; no number stands behind all of them."""
    value = getattr(how, knob)
    return value is None, value


def _turned(how: SamplerConfig, knob: str, value: Any) -> SamplerConfig:
    """The setting with another value of a knob; another sampler drops the options of its own."""
    change: dict[str, Any] = {
        knob: str(value) if knob == "kappa" else value
    }  # YAML reads .5 as a number
    if knob == "sampler":
        change |= {name: None for name, owner in OWN.items() if owner != value}
    try:
        return replace(how, **change)
    except ConfigError as error:
        raise ConfigError(f"`sweep` turns {knob} to {value!r}, but {error}") from error


def settings_of(
    lm: LanguageModel, sweep: Mapping[str, list[Any]], how: SamplerConfig
) -> tuple[SamplerConfig, dict[str, list[SamplerConfig]]]:
    """The neutral setting of a model, and those along each knob that make it another sampler.

    An autoregressive model has the knobs of sharpness alone.

    Args:
        lm: the model.
        sweep: values by knob, over `SWEEP`.
        how: the neutral setting of a diffusion model.

    Raises:
        ConfigError: the model cannot be sampled so.
    """
    sweep = {**SWEEP, **sweep}
    if not lm.estimate.diffusion:
        how = SamplerConfig(**{knob: getattr(how, knob) for knob in SHARPNESS})
        sweep = {knob: values for knob, values in sweep.items() if knob in SHARPNESS}
    neutral = how.build(lm)
    found = {
        knob: [each for each in along if each == how or each.build(lm) != neutral]
        for knob, along in settings(sweep, how).items()
    }
    return how, {knob: along for knob, along in found.items() if len(along) > 1}


@dataclass(frozen=True)
class Scoring:
    """How every set of texts of a frontier is scored.

    Attributes:
        judge: the scoring model.
        convention: how it reads them.
        tokenizer: of the samples.
        batch: rows per call of the judge.
        job: does the batches.
    """

    judge: Judge
    convention: Convention
    tokenizer: Tokenizer
    batch: int
    job: ResumableJob

    def point(
        self, texts: SampleSet, label: str, setting: Mapping[str, Any] | None = None
    ) -> Point:
        """Entropy and perplexity of a set of texts.

        Args:
            texts: the set.
            label: of the bar.
            setting: of samples; None for real text, which is resampled by itself.
        """
        found = scored(
            self.judge, texts, self.convention, self.batch, self.job, label,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        rows = texts.rows
        times = resamples(len(rows), stream=int(setting is not None))
        nats, tokens = found.nats.numpy(), found.tokens.double().numpy()
        return Point(
            setting=setting or {},
            entropy=mean(times, entropies(rows).numpy()),
            nll=ratio(times, nats, tokens),
            nfe=float(texts.origin.get("nfe", 0)),
            count=len(rows),
            length=sum(map(len, rows)) / len(rows),
        )


def model_curves(
    name: str,
    lm: LanguageModel,
    neutral: SamplerConfig,
    along: Mapping[str, list[SamplerConfig]],
    config: JudgedConfig,
    scoring: Scoring,
) -> Curves:
    """The points of a model along each knob; the neutral one is on every curve, and drawn once.

    Args:
        name: of the model, for the bars.
        lm: the model.
        neutral: its neutral setting.
        along: its settings by knob (`settings_of`).
        config: number of samples and seed.
        scoring: scores each set.
    """
    job = scoring.job.about(model=fingerprint(lm))
    shown = _KNOBS if lm.estimate.diffusion else SHARPNESS

    def point(how: SamplerConfig, label: str) -> Point:
        drawn = draw_samples(
            lm, how, count=config.count, seed=config.seed, batch=config.batch, job=job, label=label
        )
        setting = {knob: drawn.origin[knob] for knob in shown if knob in drawn.origin}
        return scoring.point(drawn, f"judge {label}", setting)

    first = point(neutral, f"{name} neutral")
    curves = {
        knob: [
            first if how == neutral else point(how, f"{name} {knob} {getattr(how, knob)}")
            for how in settings
        ]
        for knob, settings in along.items()
    }
    return Curves(first, curves)
