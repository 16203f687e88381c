"""Sweeps of sampler settings: one knob is turned at a time, and every setting is a point."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError, check_choices
from sddlm.eval.conventions import Convention
from sddlm.eval.diversity import entropies
from sddlm.eval.equal_entropy import SHARPNESS, Curves, Point
from sddlm.eval.evaluation import JudgedConfig
from sddlm.eval.generative import scored
from sddlm.eval.judge import Judge
from sddlm.eval.metrics import draw_samples, fingerprint
from sddlm.eval.resampling import mean, ratio, resamples
from sddlm.eval.texts import SampleSet
from sddlm.generation.config import SamplerConfig
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel


@dataclass(frozen=True)
class Sweep:
    """The settings that are drawn beside the neutral one, one knob turned at a time.

    Neutral is the chosen sampler without truncation. The defaults go in small steps from there,
    because lines join them, and as far as sharp samples do in practice. Temperature goes above 1
    too: samples of a model that is sharp by itself must be made blunter to have the entropy of real
    text. The result states where a line does not reach.

    Attributes:
        temperature: of every prediction.
        top_p: most likely tokens up to this mass.
        top_k: number of most likely tokens.
        min_p: share of the most likely token.
        tail_cut: every probability below tail_cut / V is cut to zero; 1 is what SDDLM-V1 with its
            weight of 1 learns to cut.
        steps: of diffusion samplers; not swept for autoregressive models.
        kappa: of psi.
        hold: of psi.
        budget: of adaptive.
    """

    temperature: list[float] = field(default_factory=lambda: [0.7, 0.8, 0.9, 1.1, 1.25, 1.5])
    top_p: list[float] = field(default_factory=lambda: [0.6, 0.8, 0.9, 0.95])
    top_k: list[int] = field(default_factory=list)
    min_p: list[float] = field(default_factory=list)
    tail_cut: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0, 4.0])
    steps: list[int] = field(default_factory=lambda: [16, 32, 64, 128])
    kappa: list[str] = field(default_factory=list)
    hold: list[float] = field(default_factory=list)
    budget: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_choices(self)

    def curves(
        self, how: SamplerConfig, *, diffusion: bool = True
    ) -> dict[str, list[SamplerConfig]]:
        """For each knob that is turned the settings along it, the neutral one in its place.

        Args:
            how: the neutral setting.
            diffusion: the model has steps.

        Raises:
            ConfigError: a value that its knob cannot have.
        """
        found = {}
        for knob in [each.name for each in fields(self)]:
            values = {*getattr(self, knob), getattr(how, knob)}
            if len(values) > 1 and (diffusion or knob in SHARPNESS):
                ordered = sorted(values, key=lambda value: (value is None, value))
                found[knob] = [_turned(how, knob, value) for value in ordered]
        return found


def _turned(how: SamplerConfig, knob: str, value: Any) -> SamplerConfig:
    try:
        return replace(how, **{knob: value})
    except ConfigError as error:
        raise ConfigError(
            f"`sweep.{knob}` has {value}: {error}; `sweep.{knob}=[]` leaves it alone"
        ) from error


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

    def point(self, texts: SampleSet, label: str, *, drawn: bool = False) -> Point:
        """Entropy and perplexity of a set of texts.

        Args:
            texts: the set.
            label: of the bar.
            drawn: they are samples; real text is resampled by itself.
        """
        found = scored(
            self.judge, texts, self.convention, self.batch, self.job, label,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        rows = texts.rows
        times = resamples(len(rows), stream=int(drawn))
        nats, tokens = found.nats.numpy(), found.tokens.double().numpy()
        # an autoregressive model's samples have no steps
        knobs = [each.name for each in fields(Sweep) if drawn and each.name in texts.origin]
        return Point(
            setting={knob: texts.origin[knob] for knob in knobs},
            entropy=mean(times, entropies(rows).numpy()),
            nll=ratio(times, nats, tokens),
            nfe=float(texts.origin.get("nfe", 0)),
            count=len(rows),
            length=sum(map(len, rows)) / len(rows),
        )


def model_curves(
    name: str, lm: LanguageModel, sweep: Sweep, config: JudgedConfig, scoring: Scoring
) -> Curves:
    """The points of a model along each knob; the neutral one is on every curve, and drawn once.

    Args:
        name: of the model, for the bars.
        lm: the model.
        sweep: the settings.
        config: the neutral setting, number of samples and seed.
        scoring: scores each set.
    """
    neutral_how, job = config.how, scoring.job.about(model=fingerprint(lm))

    def point(how: SamplerConfig, label: str) -> Point:
        drawn = draw_samples(
            lm, how, count=config.count, seed=config.seed, batch=config.batch, job=job, label=label
        )
        return scoring.point(drawn, f"judge {label}", drawn=True)

    neutral = point(neutral_how, f"{name} neutral")
    along = {
        knob: [
            neutral if how == neutral_how else point(how, f"{name} {knob} {getattr(how, knob)}")
            for how in settings
        ]
        for knob, settings in sweep.curves(neutral_how, diffusion=lm.estimate.diffusion).items()
    }
    return Curves(neutral, along)
