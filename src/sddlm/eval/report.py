"""The report: likelihood, samples, copying and a judge's verdict, each beside its reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

from rich.table import Table

from sddlm.errors import ConfigError, did_you_mean
from sddlm.eval.copying import Copying, copying
from sddlm.eval.diversity import SampleDiversity
from sddlm.eval.evaluation import JudgedConfig, Subject, names_in, run
from sddlm.eval.generative import GenerativePerplexity, generative_perplexity
from sddlm.eval.judge import Judge
from sddlm.eval.mauve import Mauve, mauve
from sddlm.eval.perplexity import Likelihood, likelihood
from sddlm.eval.result import Result, SeenByJudge, plus_minus
from sddlm.eval.samples import SampleSet, draw_samples, read_samples, reference_rows
from sddlm.eval.texts import Baselines, HeldOut, TrainingText
from sddlm.lm import LanguageModel

METRICS = ("likelihood", "baselines", "samples", "copying", "generative", "mauve")
JUDGED = ("generative", "mauve")

#: training tokens that copies are looked for in, spread evenly: minutes of a processor
MOST_SEARCHED = 1_000_000_000

T = TypeVar("T")


@dataclass(frozen=True)
class ReportConfig(JudgedConfig):
    """Options of the report."""

    metrics: str | list[str] | None = None
    """comma-separated: likelihood (perplexity and bits per character), baselines (n-gram models of
    the training text on the same text), samples (diversity, beside real text), copying (what
    samples repeat of the training text), generative (perplexity of the samples under a judge),
    mauve; without it all that apply but mauve"""
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
                "`judge` is used by metrics generative and mauve; add one to `metrics`"
            )

    @property
    def chosen(self) -> list[str]:
        """The metrics in the order of `METRICS`; by default all but the costly one."""
        if self.metrics is None:
            free = [name for name in METRICS if name not in JUDGED]
            return [*free, "generative"] if self.judge is not None else free
        names = names_in(self.metrics)
        for name in sorted(set(names) - set(METRICS)):
            raise ConfigError(
                f"`metrics` {name or '(empty)'} is unknown; allowed: {', '.join(METRICS)}"
                f"{did_you_mean(name, METRICS)}"
            )
        return [name for name in METRICS if name in names]


@dataclass(frozen=True)
class Compared(Generic[T]):
    """A figure of samples and of real rows, measured alike."""

    samples: T
    real: T


@dataclass(frozen=True, kw_only=True)
class Report(Result):
    """What a model is like; None stands for what was not measured.

    Attributes:
        metrics: those that were measured.
        likelihood: of the held-out rows.
        baselines: of the same rows.
        samples: diversity.
        copying: what is repeated of the training text.
        real_text: whether the judge was trained on the real text.
        generative: a judge's perplexity.
        mauve: samples against real rows as sets.
    """

    metrics: list[str]
    likelihood: Likelihood | None = None
    baselines: Baselines | None = None
    samples: SampleDiversity | None = None
    copying: Compared[Copying] | None = None
    real_text: SeenByJudge | None = None
    generative: Compared[GenerativePerplexity] | None = None
    mauve: Mauve | None = None

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        notes = []
        if self.likelihood:
            notes += _likelihood_rows(table, self.likelihood, str(self.baselines or ""))
        elif self.baselines:
            table.add_row("bits per character", "", str(self.baselines))
        if self.samples:
            notes.append(_diversity_rows(table, self.samples))
        if self.copying:
            notes.append(_copying_rows(table, self.copying))
        if self.generative:
            notes.append(_generative_rows(table, self.generative))
        if self.real_text:
            notes.append(str(self.real_text))
        if self.mauve:
            table.add_row("MAUVE", f"{self.mauve.mauve:.3f}", f"real {self.mauve.real:.3f}")
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
    if config.judge is not None:
        real, found["real_text"] = config.real_text(subject, text)
    if "likelihood" in names:
        found["likelihood"] = likelihood(
            lm, text, seed=config.seed, batch=config.batch, draws=config.draws,
            job=job.about(text=text.fingerprint),
        )  # fmt: skip
    if "baselines" in names and job.team.first:
        found["baselines"] = _need(training, "baselines").baselines(text)
    if {"samples", "copying", *JUDGED} & set(names):
        drawn = _samples(config, subject)
        reference = reference_rows(text, len(drawn.rows), max(map(len, drawn.rows)))
        if "samples" in names and job.team.first:
            found["samples"] = SampleDiversity.of(drawn, reference, training)
        if "copying" in names:
            found["copying"] = _copying(drawn, reference, _need(training, "copying"), subject)
        if config.judge is not None:
            found |= _judged(config, subject, names, drawn, real)
    return Report(text=text.source, metrics=names, **found)


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
    config: ReportConfig, subject: Subject, names: list[str], drawn: SampleSet, text: HeldOut
) -> dict[str, Any]:
    """What the judge finds in samples and in real text, read alike."""
    judge = Judge.load(config.judge or "", device=subject.device)
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
    if "mauve" in names:
        real = reference_rows(text, 2 * len(drawn.rows), longest)
        found["mauve"] = mauve(
            judge, drawn.texts, real.texts, context=config.context, job=subject.job
        )
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


_DIVERSITY = {
    "entropy": "unigram entropy (nats)",
    "distinct_1": "distinct tokens",
    "distinct_2": "distinct pairs",
    "repeated_4": "repeated 4-grams",
    "known_words": "known words",
    "bpc_5gram": "bits per character, 5-gram",
}


def _diversity_rows(table: Table, found: SampleDiversity) -> str:
    real = found.real.as_dict()
    for name, value in found.generated.as_dict().items():
        table.add_row(_DIVERSITY[name], f"{value:.3f}", f"real {real[name]:.3f}")
    facts = ", ".join(f"{name} {value}" for name, value in found.origin.items())
    return f"samples: {found.count} of {found.length} tokens, {facts}"


def _copying_rows(table: Table, found: Compared[Copying]) -> str:
    own, real = found.samples, found.real
    shown = ["-" if one.overlap is None else f"{one.overlap:.3f}" for one in (own, real)]
    table.add_row(f"in the training text, {own.n}-grams", shown[0], f"real {shown[1]}")
    table.add_row("longest copy (tokens)", str(own.longest_max), f"real {real.longest_max}")
    return f"copying: {own.tokens_searched} training tokens, {own.share_searched:.0%} of them"


def _generative_rows(table: Table, found: Compared[GenerativePerplexity]) -> str:
    own, real = found.samples, found.real
    shown = [f"{one.ppl:.4g}{plus_minus(one.ppl_stderr)}" for one in (own, real)]
    table.add_row("generative perplexity", shown[0], f"real {shown[1]}")
    return (
        f"judge {own.judge}: convention {own.convention.name}, {own.samples} texts, "
        f"{own.tokens} tokens, context {own.context}, samples drawn in {own.precision}"
    )
