"""The frontier: generative perplexity against entropy, as the sharpness of sampling is turned.

A judge's perplexity alone can be had at will: sharper samples score lower and say less. So each
knob is turned by itself, every setting is a point (entropy, perplexity), and models are compared
at equal entropy: that of real text, and that of each other's samples as they are. The last one
says whether sharpness learnt in training, as by SDDLM-V1, is worth more than the same sharpness
chosen while sampling.

No area under the curve is computed. It depends on how far the knobs are turned, so it cannot be
compared with anything; the perplexity at an entropy does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError, check_choices
from sddlm.eval.conventions import Convention
from sddlm.eval.diversity import entropies
from sddlm.eval.drawing import Drawing, draw_set
from sddlm.eval.equal_entropy import NEUTRAL, SHARPNESS, Curves, Point, report
from sddlm.eval.generative import scored
from sddlm.eval.judge import Judge
from sddlm.eval.measures import fingerprint
from sddlm.eval.resampling import mean, ratio, resamples
from sddlm.eval.texts import SampleSet
from sddlm.files import check_writable
from sddlm.lm import LanguageModel
from sddlm.work import ResumableJob


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

    def curves(self, drawing: Drawing, *, diffusion: bool = True) -> dict[str, list[Drawing]]:
        """For each knob that is turned the drawings along it, the neutral one in its place.

        Args:
            drawing: the neutral one.
            diffusion: the model has steps.

        Raises:
            ConfigError: a value that its knob cannot have.
        """
        found = {}
        for knob in [each.name for each in fields(self)]:
            values = {*getattr(self, knob), getattr(drawing.how, knob)}
            if len(values) > 1 and (diffusion or knob in SHARPNESS):
                ordered = sorted(values, key=lambda value: (value is None, value))
                found[knob] = [_turned(drawing, knob, value) for value in ordered]
        return found


def _turned(drawing: Drawing, knob: str, value: Any) -> Drawing:
    try:
        return replace(drawing, how=replace(drawing.how, **{knob: value}))
    except ConfigError as error:
        raise ConfigError(
            f"--sweep.{knob} has {value}: {error}; --sweep.{knob} '[]' leaves it alone"
        ) from error


@dataclass(frozen=True)
class Scoring:
    """How every set of texts of a frontier is scored.

    Attributes:
        judge: the scoring model.
        convention: how it reads them.
        tokenizer: of the samples.
        batch: rows per call of the judge.
        work: does the batches.
    """

    judge: Judge
    convention: Convention
    tokenizer: Tokenizer
    batch: int
    work: ResumableJob

    def point(self, texts: SampleSet, drawing: Drawing | None, label: str) -> Point:
        """Where a set of texts lies.

        Args:
            texts: the set.
            drawing: how it was drawn; None for real text, which is resampled by itself.
            label: of the bar.
        """
        found = scored(
            self.judge, texts, self.convention, self.batch, self.work, label,
            tokenizer=self.tokenizer,
        )  # fmt: skip
        rows = [texts.rows[k] for k in found.kept]
        times = resamples(len(rows), stream=0 if drawing is None else 1)
        nats, tokens = found.nats.numpy(), found.tokens.double().numpy()
        if self.convention.mean == "corpus":
            nll = ratio(times, nats, tokens)
        else:
            some = (tokens > 0).astype(float)
            nll = np.log(ratio(times, some * np.exp(nats / np.maximum(tokens, 1)), some))
        # an autoregressive model's samples have no steps
        setting = {
            each.name: texts.origin[each.name]
            for each in fields(Sweep)
            if drawing and each.name in texts.origin
        }
        return Point(
            setting=setting,
            entropy=mean(times, entropies(rows).numpy()),
            nll=nll,
            nfe=float(texts.origin.get("nfe", 0)),
            count=len(rows),
            length=sum(map(len, rows)) / len(rows),
        )


def check(models: Sequence[str], sweep: Sweep, drawing: Drawing, picture: Path) -> None:
    """Refuse what cannot be done, before anything is loaded.

    Args:
        models: their names.
        sweep: the settings.
        drawing: the neutral one.
        picture: the PNG to write.

    Raises:
        ConfigError: a drawing that is not neutral, a sweep of nothing else, too few samples, a
            model named twice, or a picture that cannot be written.
    """
    for knob, neutral in NEUTRAL.items():
        value = getattr(drawing.how, knob)
        if value != neutral:
            raise ConfigError(
                f"--{knob} is {value}, but --frontier turns it itself, from {neutral}: leave it "
                f"out, or try --sweep.{knob} '[{value}]'"
            )
    if not sweep.curves(drawing):
        raise ConfigError(
            "--sweep has no setting beside the neutral one; leave it out, or try "
            "--sweep.temperature '[0.9]'"
        )
    if drawing.count < 2:
        raise ConfigError(f"--count is {drawing.count}; --frontier needs at least 2: try 256")
    twice = sorted({name for name in models if models.count(name) > 1})
    if twice:
        raise ConfigError(f"--frontier has {twice[0]} twice; name each model once")
    if picture.suffix != ".png":
        raise ConfigError(f"cannot draw {picture}: pictures are PNG; name it {picture.stem}.png")
    check_writable(picture)


def run_frontier(
    loaded: Mapping[str, LanguageModel],
    judge: Judge,
    convention: Convention,
    real: SampleSet,
    sweep: Sweep,
    drawing: Drawing,
    work: ResumableJob,
) -> dict[str, Any]:
    """Draw and judge every setting of every model, and compare them.

    Sample k has the same noise in all models and settings, and all sets are resampled alike, so
    models are compared in pairs. Every setting is a work of its own, which an interrupted frontier
    does not do again.

    Args:
        loaded: name of a model to the model.
        judge: the scoring model.
        convention: how it reads; its context already chosen, or its own.
        real: as many rows of real text, as long as the samples.
        sweep: the settings.
        drawing: the neutral one.
        work: does the units.

    Returns:
        what belongs in the file (see `report`).

    Raises:
        ConfigError: models that cannot be compared.
    """
    comparable(loaded)
    tokenizer = next(iter(loaded.values())).tokenizer
    rules = convention.at(None, judge.limit, judge.name)
    scoring = Scoring(judge, rules, tokenizer, drawing.batch, work)
    truth = scoring.point(real, None, "judge real text")
    models = {name: _curves(name, model, sweep, drawing, scoring) for name, model in loaded.items()}
    return {
        "judge": judge.name,
        "convention": asdict(rules),
        "seed": drawing.seed,
        "precision": drawing.how.precision,
        "steps": drawing.how.steps,
    } | report(truth, models)


def comparable(loaded: Mapping[str, LanguageModel]) -> None:
    """Refuse models whose entropies are of different things.

    Raises:
        ConfigError: another tokenizer or another length than the first model's.
    """
    (first, one), *others = loaded.items()
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


def _curves(
    name: str, model: LanguageModel, sweep: Sweep, drawing: Drawing, scoring: Scoring
) -> Curves:
    """The points of a model along each knob; the neutral one is on every curve, and drawn once."""
    mine = scoring.work.about(model=fingerprint(model))

    def point(one: Drawing, label: str) -> Point:
        return scoring.point(draw_set(model, one, mine, label), one, f"judge {label}")

    neutral = point(drawing, f"{name} neutral")
    along = {
        knob: [
            neutral if one == drawing else point(one, f"{name} {knob} {getattr(one.how, knob)}")
            for one in drawings
        ]
        for knob, drawings in sweep.curves(drawing, diffusion=model.estimate.diffusion).items()
    }
    return Curves(neutral, along)
