"""The frontier: generative perplexity against entropy, as the sharpness of sampling is turned.

A judge's perplexity alone can be had at will: sharper samples score lower and are less diverse. So
each knob is turned by itself, every setting is a point (entropy, perplexity), and models are
compared at equal entropy: that of real text, and that of each other's neutral samples. The last
one shows whether sharpness learnt in training, as by SDDLM-V1, is worth more than the same
sharpness chosen while sampling.

No area under the curve is computed. It depends on how far the knobs are turned, so it cannot be
compared with anything; the perplexity at an entropy does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from rich.table import Table

from sddlm.errors import ConfigError
from sddlm.eval.conventions import Convention, convention_of
from sddlm.eval.equal_entropy import (
    BEST,
    SHARPNESS,
    Difference,
    ModelFigures,
    PointFigures,
    differences,
)
from sddlm.eval.evaluation import JudgedConfig, Subject, names_in, run
from sddlm.eval.judge import Judge
from sddlm.eval.pictures import draw_frontier
from sddlm.eval.resampling import LEVEL, RESAMPLES
from sddlm.eval.result import Plotted, SeenByJudge
from sddlm.eval.samples import SampleSet, reference_rows
from sddlm.eval.sweep import SWEEP, Scoring, model_curves, settings, settings_of
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.model_dir import is_model_dir, packaged


@dataclass(frozen=True)
class FrontierConfig(JudgedConfig):
    """Options of the frontier; those of the sampler are the neutral setting."""

    top_p: float = 1.0
    """of the neutral setting, which is without truncation by default"""
    against: str | list[str] | None = None
    """more model directories, comma-separated"""
    sweep: dict[str, list[Any]] | None = None
    """values of any options of the sampler, such as --sweep.sampler '[ancestral, psi]', each option
    turned by itself from the neutral setting; temperature, top_p, tail_cut and steps are swept
    unless their values are []"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.judge is None:
            raise ConfigError("`judge` is missing: `judge='gpt2-large'`, or a directory")
        if not settings({**SWEEP, **(self.sweep or {})}, self.how):
            raise ConfigError(
                "`sweep` has no setting beside the neutral one; leave it out, or try "
                "`sweep={'temperature': [0.9]}`"
            )
        if self.count < 2:
            raise ConfigError(f"`count` is {self.count}; the frontier needs at least 2: try 256")
        for place in self.others:
            if not (is_model_dir(place) or place in packaged()):
                raise ConfigError(f"{place} is no model directory; `against` takes those of runs")
            if self.others.count(place) > 1:
                raise ConfigError(f"`against` has {place} twice; name each model once")

    @property
    def others(self) -> list[str]:
        """The directories of the other models."""
        return names_in(self.against) if self.against else []


@dataclass(frozen=True, kw_only=True)
class Frontier(Plotted):
    """Perplexity of samples against their entropy, of one or several models.

    Attributes:
        real_text: whether the judge was trained on the real text.
        judge: its name.
        convention: how it read the texts.
        precision: of the draws.
        steps: of the neutral setting.
        resamples: number of them behind each interval.
        level: of the intervals.
        real: real text.
        models: by name.
        differences: of the first model and each of the others, at equal entropy.
    """

    real_text: SeenByJudge | None = None
    judge: str
    convention: Convention
    precision: str
    steps: int
    resamples: int = RESAMPLES
    level: float = LEVEL
    real: PointFigures
    models: Mapping[str, ModelFigures]
    differences: list[Difference]

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        real = f"real {self.real.gen_ppl}, entropy {self.real.entropy.value:.3f}"
        for name, model in self.models.items():
            best = model.ppl_at_real_entropy.get(BEST)
            if best is not None:
                by = f"by {model.best_knob}; {real}" if model.best_knob else best.reason
                table.add_row(f"{name}: perplexity at real entropy", str(best.ppl), by)
        for one in self.differences:
            if one.knob == BEST:
                why = one.reason or f"times its perplexity, at the entropy of {one.at}"
                table.add_row(f"{one.model} against {one.against}", str(one.nats.exp()), why)
        for name, model in self.models.items():
            for knob, points in model.curves.items():
                for point in points if knob not in SHARPNESS else ():  # drawn, not compared
                    calls = f"entropy {point.entropy.value:.3f}, {point.nfe:g} calls"
                    at = point.setting.get(knob, "by default")
                    table.add_row(f"{name}: {knob} {at}", str(point.gen_ppl), calls)
        judge = f"judge {self.judge}, convention {self.convention.name}; intervals of 95%"
        return [judge, *([str(self.real_text)] if self.real_text else [])]

    def plot(self, path: Path) -> None:
        """Draw `draw_frontier`'s picture, a PNG."""
        draw_frontier(self, path)


def evaluate_frontier(
    model: str | LanguageModel,
    *,
    device: str = "auto",
    out: str | None = None,
    **options: Annotated[Any, FrontierConfig],
) -> Frontier:
    """Draw the perplexity of samples against their entropy, over a sweep of sampler settings.

    Args:
        model: run or model directory, or a loaded model (which needs a text: ``data``).
        device: cpu, cuda, or auto.
        out: the JSON file to write, with a picture beside it; on the command line frontier.json in
            the model's directory.
        options: text, judge, sweep, and the sampler, without truncation by default.

    Returns:
        the points and, for each knob, the perplexity at the entropy of real text; ``print`` shows a
            table, ``as_dict()`` is the JSON file.

    Raises:
        ConfigError: a wrong choice, before anything is loaded where that is possible; models that
            cannot be compared.
    """
    config = FrontierConfig(**options)
    if model in config.others:
        raise ConfigError(f"`against` has {model}, the model itself; name each model once")
    return run("frontier", _measure, config, model, device, out, picture=True)


def _measure(config: FrontierConfig, subject: Subject) -> Frontier:
    first = "model" if subject.place is None else str(subject.place)
    short = {place: Path(place).name for place in (first, *config.others)}
    if len(set(short.values())) < len(short):
        short = {place: place for place in short}
    models = {short[first]: subject.lm} | {
        short[place]: LanguageModel.load(place, device=subject.device) for place in config.others
    }
    text, _ = config.held_out(subject)
    rows, seen = config.real_text(subject, text)
    judge = Judge.load(config.judge or "", device=subject.device)
    rules = convention_of(config.convention).at(config.context, judge.limit, judge.name)
    real = reference_rows(rows, len(rows), subject.lm.network.length)
    found = sweep_models(models, judge, rules, real, config, subject.job)
    return replace(found, text=text.source, real_text=seen)


def sweep_models(
    models: Mapping[str, LanguageModel],
    judge: Judge,
    convention: Convention,
    real: SampleSet,
    config: FrontierConfig,
    job: ResumableJob,
) -> Frontier:
    """Draw and judge every setting of every model, and compare them.

    Sample k has the same noise in all models and settings, and all sets are resampled alike, so
    models are compared in pairs. Every setting is a job of its own, which an interrupted frontier
    does not repeat.

    Args:
        models: name to model.
        judge: the scoring model.
        convention: how it reads; its context already chosen, or its own.
        real: as many rows of real text, as long as the samples.
        config: the settings.
        job: does the shards.

    Raises:
        ConfigError: models that cannot be compared.
    """
    comparable(models)
    # refuses before the work
    plans = {name: settings_of(lm, config.sweep or {}, config.how) for name, lm in models.items()}
    rules = convention.at(None, judge.limit, judge.name)
    scoring = Scoring(judge, rules, next(iter(models.values())).tokenizer, config.batch, job)
    truth = scoring.point(real, "judge real text")
    curves = {
        name: model_curves(name, lm, *plans[name], config, scoring) for name, lm in models.items()
    }
    return Frontier(
        judge=judge.name,
        convention=rules,
        precision=config.precision,
        steps=config.steps,
        real=truth.figures(),
        models={name: each.figures(truth.entropy) for name, each in curves.items()},
        differences=differences(truth, curves),
    )


def comparable(models: Mapping[str, LanguageModel]) -> None:
    """Refuse models whose entropies are of different things.

    Raises:
        ConfigError: another tokenizer or another length than the first model's.
    """
    (first, one), *others = models.items()
    for name, other in others:
        if other.tokenizer.fingerprint != one.tokenizer.fingerprint:
            raise ConfigError(
                f"{first} and {name} have different tokenizers, so their entropies cannot be "
                "compared; evaluate each by itself"
            )
        lengths = [(m.network.length, m.data.get("row_lengths")) for m in (one, other)]
        if lengths[0] != lengths[1]:
            raise ConfigError(
                f"{first} writes {one.network.length} tokens and {name} {other.network.length} or "
                "documents of other lengths, so their entropies cannot be compared; evaluate each "
                "by itself"
            )
