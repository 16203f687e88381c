"""The report: likelihood, samples, copying and a judge's verdict, each beside its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from rich.table import Table

from sddlm.errors import ConfigError, did_you_mean
from sddlm.eval.controls import control_samples
from sddlm.eval.copying import Copying, copying
from sddlm.eval.distance import distance
from sddlm.eval.diversity import SampleDiversity
from sddlm.eval.evaluation import JudgedConfig, Subject, names_in, run
from sddlm.eval.generative import GenerativePerplexity, generative_perplexity
from sddlm.eval.judge import Judge
from sddlm.eval.mauve import mauve
from sddlm.eval.perplexity import Likelihood, likelihood
from sddlm.eval.result import Result, SeenByJudge, plus_minus
from sddlm.eval.sample_figures import OF_SAMPLES, Compared, SampleFigures, control_row
from sddlm.eval.samples import SampleSet, draw_samples, read_samples, reference_rows
from sddlm.eval.texts import Baselines, HeldOut, TrainingText
from sddlm.lm import LanguageModel

METRICS = ("likelihood", "baselines", *OF_SAMPLES, "controls")
JUDGED = ("generative", "mauve", "distance")
#: metrics that are not measured unless they are named
_COSTLY = ("mauve", "distance", "controls")

#: training tokens that copies are looked for in, spread evenly: minutes of a processor
MOST_SEARCHED = 1_000_000_000


@dataclass(frozen=True)
class ReportConfig(JudgedConfig):
    """Options of the report."""

    metrics: str | list[str] | None = None
    """comma-separated: likelihood (perplexity and bits per character), baselines (n-gram models of
    the training text on the same text), samples (diversity, beside real text), copying (what
    samples repeat of the training text), generative (perplexity of the samples under a judge),
    mauve, distance (energy distance of samples and real text in the judge's vectors), controls (all
    of that for unigrams and bigrams at the entropy of real text); without it all that apply but the
    last three"""
    samples: str | None = None
    """JSON lines with samples to measure; without it they are drawn"""
    draws: int = 2
    """noise levels per row"""

    def __post_init__(self) -> None:
        super().__post_init__()
        judged = [name for name in JUDGED if name in self.chosen]
        if judged and self.judge is None:
            raise ConfigError(
                f"metric {judged[0]} needs a judge: `judge='gpt2-large'`, or a directory"
            )
        if self.judge is not None and not judged:
            raise ConfigError(
                f"`judge` is used by metrics {', '.join(JUDGED)}; add one to `metrics`"
            )

    @property
    def chosen(self) -> list[str]:
        """The metrics in the order of `METRICS`; by default all but the costly ones."""
        if self.metrics is None:
            without = _COSTLY if self.judge is not None else (*_COSTLY, *JUDGED)
            return [name for name in METRICS if name not in without]
        names = names_in(self.metrics)
        for name in sorted(set(names) - set(METRICS)):
            raise ConfigError(
                f"`metrics` {name or '(empty)'} is unknown; allowed: {', '.join(METRICS)}"
                f"{did_you_mean(name, METRICS)}"
            )
        return [name for name in METRICS if name in names]


@dataclass(frozen=True, kw_only=True)
class Report(Result, SampleFigures):
    """What a model is like; None stands for what was not measured.

    Attributes:
        metrics: those that were measured.
        likelihood: of the held-out rows.
        baselines: of the same rows.
        real_text: whether the judge was trained on the real text.
        controls: samplers without a network, at the entropy of real text.
    """

    metrics: list[str]
    likelihood: Likelihood | None = None
    baselines: Baselines | None = None
    real_text: SeenByJudge | None = None
    controls: dict[str, SampleFigures] | None = None

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        notes = []
        if self.likelihood:
            notes += _likelihood_rows(table, self.likelihood, str(self.baselines or ""))
        elif self.baselines:
            table.add_row("bits per character", "", str(self.baselines))
        notes += self.sample_rows(table)
        if self.real_text:
            notes.append(str(self.real_text))
        for name, control in (self.controls or {}).items():
            table.add_row(*control_row(name, control))
        return notes


def evaluate(
    model: str | LanguageModel,
    *,
    device: str = "auto",
    out: str | None = None,
    **options: Annotated[Any, ReportConfig],
) -> Report:
    """Evaluate a model: likelihood, baselines, samples, copying, and a judge's perplexity.

    Nothing is written without ``out``. With it an interrupted evaluation continues when the same
    call is made again, and ``torchrun --nproc-per-node N -m sddlm eval ...`` shares the work among
    N processes, with the same result.

    Args:
        model: run or model directory, or a loaded model (which needs a text: ``data``).
        device: cpu, cuda, or auto.
        out: the JSON file to write; on the command line one in the model's directory.
        options: text, metrics, judge, and the options of the sampler.

    Returns:
        the metrics; ``print(report)`` shows a table, ``report.as_dict()`` is the JSON file.

    Raises:
        ConfigError: a wrong choice, before anything is loaded where that is possible.
    """
    return run("evaluation", _measure, ReportConfig(**options), model, device, out)


def _measure(config: ReportConfig, subject: Subject) -> Report:
    names, lm, job = config.chosen, subject.lm, subject.job
    text, training = config.held_out(subject)
    if training is None and config.metrics is None:
        names = [name for name in names if name not in ("baselines", "copying")]
    found: dict[str, Any] = {}
    real = text
    if config.judge is not None:
        real, found["real_text"] = config.real_text(subject, text)
    if "likelihood" in names:
        found["likelihood"] = likelihood(
            lm, text, seed=config.seed, batch=config.batch, draws=config.draws,
            job=job.about(text=text.fingerprint),
        )  # fmt: skip
    if "baselines" in names and job.team.first:
        found["baselines"] = _need(training, "baselines").baselines(text)
    if {*OF_SAMPLES, "controls"} & set(names):
        found |= _of_samples(config, subject, names, text, training, real)
    return Report(text=text.source, metrics=names, **found)


def _of_samples(
    config: ReportConfig,
    subject: Subject,
    names: list[str],
    text: HeldOut,
    training: TrainingText | None,
    real: HeldOut,
) -> dict[str, Any]:
    """Figures of the samples, and of the controls."""
    drawn = _samples(config, subject)
    reference = reference_rows(text, len(drawn.rows), max(map(len, drawn.rows)))
    judge = None if config.judge is None else Judge.load(config.judge, device=subject.device)

    def figures(texts: SampleSet) -> SampleFigures:
        own: dict[str, Any] = {}
        if "samples" in names and subject.job.team.first:
            own["samples"] = SampleDiversity.of(texts, reference, training)
        if "copying" in names:
            own["copying"] = _copying(texts, reference, _need(training, "copying"), subject)
        if judge is not None:
            own |= _judged(judge, config, subject, names, texts, real)
        return SampleFigures(**own)

    found = dict(vars(figures(drawn)))
    if "controls" in names:
        sets = control_samples(_need(training, "controls"), reference, config.seed)
        found["controls"] = {name: figures(texts) for name, texts in sets.items()}
    return found


def _need(training: TrainingText | None, metric: str) -> TrainingText:
    """The training text.

    Raises:
        ConfigError: there is none, and the metric needs it.
    """
    if training is None:
        raise ConfigError(
            f"metric {metric} needs the training text, which is not recorded or is gone; "
            "leave it out: `metrics='likelihood,samples'`"
        )
    return training


def _samples(config: ReportConfig, subject: Subject) -> SampleSet:
    if config.samples:
        return read_samples(config.samples, subject.lm.tokenizer)
    return draw_samples(
        subject.lm, config.how, count=config.count, seed=config.seed, batch=config.batch,
        job=subject.job,
    )  # fmt: skip


def _copying(
    drawn: SampleSet, reference: SampleSet, training: TrainingText, subject: Subject
) -> Compared[Copying]:
    both = copying(
        [*drawn.rows, *reference.rows],
        training.rows,
        most_tokens=MOST_SEARCHED,
        decode=training.tokenizer.decode_batch,
        job=subject.job.about(training=training.fingerprint),
    )
    n = len(drawn.rows)
    return Compared(both[:n], both[n:])


def _judged(
    judge: Judge,
    config: ReportConfig,
    subject: Subject,
    names: list[str],
    drawn: SampleSet,
    text: HeldOut,
) -> dict[str, Any]:
    """What the judge finds in samples and in real text, read alike."""
    longest = max(map(len, drawn.rows))

    def perplexity(texts: SampleSet) -> GenerativePerplexity:
        return generative_perplexity(
            judge,
            # tokens that were made from the text are not the sampler's
            texts.texts if "tokens" in texts.origin else texts,
            config.convention,
            tokenizer=subject.lm.tokenizer,
            context=config.context,
            job=subject.job,
            precision=str(texts.origin.get("precision", "unknown")),
        )

    found: dict[str, Any] = {}
    if "generative" in names:
        reference = reference_rows(text, len(drawn.rows), longest)
        found["generative"] = Compared(perplexity(drawn), perplexity(reference))
    if not {"mauve", "distance"} & set(names):
        return found
    real, job = reference_rows(text, 2 * len(drawn.rows), longest).texts, subject.job
    if "mauve" in names:
        found["mauve"] = mauve(judge, drawn.texts, real, context=config.context, job=job)
    if "distance" in names:
        found["distance"] = distance(judge, drawn.texts, real, context=config.context, job=job)
    return found


def _likelihood_rows(table: Table, own: Likelihood, baselines: str) -> list[str]:
    below = "≤ " if own.bound else ""
    table.add_row("perplexity per token", own.shown_ppl, "")
    if own.bound:
        error = plus_minus(own.complete_stderr * own.complete_ppl)
        prior = f"prior term {own.prior_kl:.2g} nats"
        table.add_row("  complete bound", f"≤ {own.complete_ppl:.4g}{error}", prior)
    bits = f"{below}{own.bpc:.3f}{plus_minus(own.bpc_stderr)}"
    table.add_row("bits per character", bits, baselines)
    rows = "1 row, too few for an error" if own.rows == 1 else f"{own.rows} rows"
    counts = f"likelihood: {rows}, {own.tokens} tokens"
    if own.bound:
        counts += f", noise levels per row: {own.draws}"
    return [counts, f"read as: {own.reading}"]
