"""The questions that ``sddlm eval`` answers: what each refuses, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sddlm.errors import ConfigError
from sddlm.eval import frontier
from sddlm.eval.asked import JUDGED, EvalConfig, wanted
from sddlm.eval.conditional import check_draws
from sddlm.eval.conventions import convention_of
from sddlm.eval.copying import copying
from sddlm.eval.correction import measure_correction, shares_of
from sddlm.eval.drawing import draw_set
from sddlm.eval.frontier import Sweep
from sddlm.eval.generative import generative_perplexity
from sddlm.eval.judge import Judge
from sddlm.eval.mauve import mauve
from sddlm.eval.measures import (
    measure_baselines,
    measure_likelihood,
    measure_samples,
    real_rows,
)
from sddlm.eval.pictures import draw_correction, draw_frontier
from sddlm.eval.tasks import check_tasks
from sddlm.eval.texts import HeldOut, SampleSet, TrainingText, read_samples
from sddlm.eval.zero_shot import zero_shot, zero_shot_sets
from sddlm.files import check_writable
from sddlm.generation.corrector import check_can_correct
from sddlm.lm import LanguageModel
from sddlm.model_dir import is_model_dir
from sddlm.work import ResumableJob

#: training tokens that copies are looked for in, spread evenly: minutes of a processor
MOST_SEARCHED = 1_000_000_000


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        check: refuses before anything is loaded: ``(asked, target)``.
        answer: ``(asked, loaded, work, device)`` to what belongs in the file.
        draw: draws that: ``(result, path)``.
    """

    check: Callable[[EvalConfig, Path], None]
    answer: Callable[[EvalConfig, LanguageModel, ResumableJob, str], dict[str, Any]]
    draw: Callable[[dict[str, Any], Path], None] | None = None


def _check_report(asked: EvalConfig, target: Path) -> None:
    names = wanted(asked)
    needy = [name for name in JUDGED if name in names]
    if needy and asked.judge is None:
        raise ConfigError(f"metric {needy[0]} needs a judge: --judge gpt2-large, or a directory")
    if asked.judge is not None and not needy:
        raise ConfigError("--judge is used by metrics generative and mauve; add one to --metrics")


def _report(
    asked: EvalConfig, loaded: LanguageModel, work: ResumableJob, device: str
) -> dict[str, Any]:
    """What a model is like."""
    names, batch, seed = wanted(asked), asked.drawing.batch, asked.drawing.seed
    text, training = asked.text(loaded)
    if training is None and asked.metrics is None:
        names = [name for name in names if name not in ("baselines", "copying")]
    found: dict[str, Any] = {"text": text.source, "metrics": names}
    if asked.judge is not None:
        for_judge = asked.text_for_judge(loaded, text, work.team)
        found["real_text"] = for_judge.as_dict()
    if "likelihood" in names:
        found["likelihood"] = measure_likelihood(
            loaded, text, seed=seed, batch=batch, draws=asked.draws or 2, work=work
        )
    if "baselines" in names and work.team.first:
        found["baselines"] = measure_baselines(text, training)
    if {"samples", "copying", *JUDGED} & set(names):
        drawn = (
            read_samples(asked.samples, loaded.tokenizer)
            if asked.samples
            else draw_set(loaded, asked.drawing, work)
        )
        beside = real_rows(text, len(drawn.rows), max(map(len, drawn.rows)))
        if "samples" in names and work.team.first:
            found["samples"] = measure_samples(drawn, beside, training)
        if "copying" in names:
            found["copying"] = _copying(drawn, beside, training, work)
        if asked.judge is not None:
            found |= _judged(asked, loaded, names, drawn, for_judge.rows, work, device)
    return found


def _copying(
    drawn: SampleSet, beside: SampleSet, training: TrainingText | None, work: ResumableJob
) -> dict[str, Any]:
    """What samples repeat of the training text, and what real rows do."""
    if training is None:
        raise ConfigError(
            "metric copying needs the training text, which this model directory does not name or "
            "which is gone; leave it out: --metrics likelihood,samples"
        )
    both = copying(
        [*drawn.rows, *beside.rows],
        training.rows,
        most_tokens=MOST_SEARCHED,
        decode=training.tokenizer.decode_batch,
        work=work.about(training=training.fingerprint),
    )
    n = len(drawn.rows)
    return {"samples": asdict(both[:n]), "real": asdict(both[n:])}


def _judged(
    asked: EvalConfig,
    loaded: LanguageModel,
    names: list[str],
    drawn: SampleSet,
    text: HeldOut,
    work: ResumableJob,
    device: str,
) -> dict[str, Any]:
    """What the judge thinks of samples and of real text, read in the same way."""
    judge = Judge.load(asked.judge or "", device=device)
    beside = real_rows(text, len(drawn.rows), max(map(len, drawn.rows)))
    found: dict[str, Any] = {}
    if "generative" in names:
        found["generative"] = {
            name: asdict(
                generative_perplexity(
                    judge,
                    # tokens that were made from the text are no sampler's
                    own.texts if "tokens" in own.origin else own,
                    asked.convention,
                    tokenizer=loaded.tokenizer,
                    context=asked.context,
                    work=work,
                    precision=str(own.origin.get("precision", "unknown")),
                )
            )
            for name, own in (("samples", drawn), ("real", beside))
        }
    if "mauve" in names:
        real = real_rows(text, 2 * len(drawn.rows), max(map(len, drawn.rows)))
        found["mauve"] = asdict(
            mauve(judge, drawn.texts, real.texts, context=asked.context, work=work)
        )
    return found


def _check_zero_shot(asked: EvalConfig, target: Path) -> None:
    zero_shot_sets(asked.zero_shot or "")
    if asked.data is not None and asked.data.named:
        raise ConfigError("--zero_shot names its own texts; leave --data out")


def _zero_shot(
    asked: EvalConfig, loaded: LanguageModel, work: ResumableJob, device: str
) -> dict[str, Any]:
    """The likelihood of other kinds of text."""
    sets = zero_shot(
        loaded,
        zero_shot_sets(asked.zero_shot or ""),
        rows=asked.most_rows,
        draws=asked.draws or 2,
        seed=asked.drawing.seed,
        batch=asked.drawing.batch,
        cache=None if asked.data is None else asked.data.cache,
        work=work,
    )
    return {"zero_shot": sets}


def _names(tasks: str) -> list[str]:
    return [name.strip() for name in tasks.split(",")]


def _check_tasks(asked: EvalConfig, target: Path) -> None:
    check_tasks(_names(asked.tasks or ""), asked.limit)
    check_draws(asked.draws or 128)


def _tasks(
    asked: EvalConfig, loaded: LanguageModel, work: ResumableJob, device: str
) -> dict[str, Any]:
    """Tasks of lm-eval."""
    from sddlm.eval.harness import load_tasks, run_tasks

    found = run_tasks(
        loaded,
        load_tasks(_names(asked.tasks or ""), limit=asked.limit),
        limit=asked.limit,
        draws=asked.draws or 128,
        seed=asked.drawing.seed,
        batch=asked.drawing.batch,
        work=work,
    )
    return {"tasks": found}


def _models(asked: EvalConfig) -> list[str]:
    more = _names(asked.against) if asked.against else []
    return [asked.model_dir, *more]


def _check_frontier(asked: EvalConfig, target: Path) -> None:
    if asked.judge is None:
        raise ConfigError("--frontier needs a judge: --judge gpt2-large, or a directory")
    for place in _models(asked):
        if not is_model_dir(place):
            raise ConfigError(f"{place} is no model directory; --against takes those of runs")
    picture = target.with_suffix(".png")
    frontier.check(_models(asked), asked.sweep or Sweep(), asked.drawing, picture)


def _frontier(
    asked: EvalConfig, loaded: LanguageModel, work: ResumableJob, device: str
) -> dict[str, Any]:
    """Perplexity of samples against their entropy."""
    first, *others = _models(asked)
    short = {place: Path(place).name for place in (first, *others)}
    if len(set(short.values())) < len(short):
        short = {place: place for place in short}
    models = {short[first]: loaded}
    models |= {short[place]: LanguageModel.load(place, device=device) for place in others}
    text, _ = asked.text(loaded)
    for_judge = asked.text_for_judge(loaded, text, work.team)
    judge = Judge.load(asked.judge or "", device=device)
    convention = convention_of(asked.convention).at(asked.context, judge.limit, judge.name)
    found = {"text": text.source, "real_text": for_judge.as_dict()}
    return found | frontier.run_frontier(
        models,
        judge,
        convention,
        real_rows(for_judge.rows, len(for_judge.rows), loaded.network.length),
        asked.sweep or Sweep(),
        asked.drawing,
        work,
    )


def _check_correction(asked: EvalConfig, target: Path) -> None:
    shares_of(asked.correction or "")
    if target.suffix == ".png":
        raise ConfigError(f"--out {target}: the picture is put beside the file, name it .json")
    check_writable(target.with_suffix(".png"))


def _correction(
    asked: EvalConfig, loaded: LanguageModel, work: ResumableJob, device: str
) -> dict[str, Any]:
    """What the model restores and damages."""
    check_can_correct(loaded)
    text, _ = asked.text(loaded)
    found = measure_correction(
        loaded,
        text,
        shares_of(asked.correction or ""),
        seed=asked.drawing.seed,
        batch=asked.drawing.batch,
        work=work,
    )
    return {"text": text.source, "correction": found}


#: by the name of its file
QUESTIONS = {
    "evaluation": Question(_check_report, _report),
    "zero_shot": Question(_check_zero_shot, _zero_shot),
    "tasks": Question(_check_tasks, _tasks),
    "frontier": Question(_check_frontier, _frontier, draw_frontier),
    "correction": Question(
        _check_correction,
        _correction,
        lambda result, path: draw_correction(result["correction"], path),
    ),
}
