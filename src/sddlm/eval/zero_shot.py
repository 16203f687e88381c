"""How likely is text of kinds that the model was not trained on? The field's seven sets, by name.

The convention is that of SEDD, MDLM and Duo (arXiv:2310.16834, 2406.07524, 2506.10892): documents
one behind the other *without* an end of text between them, cut into full rows, which begin and
end with it if the model's own rows do. Detokenizers and splits are those of `sddlm.data.corpora`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from rich.table import Table

from sddlm.data.config import DataArgs
from sddlm.errors import ConfigError, did_you_mean
from sddlm.eval.evaluation import EvalConfig, Subject, names_in, run
from sddlm.eval.perplexity import Likelihood, likelihood
from sddlm.eval.result import Result
from sddlm.eval.texts import other_text
from sddlm.lm import LanguageModel

ZERO_SHOT = (
    "ptb",
    "wikitext-103",
    "lm1b",
    "lambada",
    "ag_news",
    "scientific_papers-pubmed",
    "scientific_papers-arxiv",
)


@dataclass(frozen=True)
class ZeroShotConfig(EvalConfig):
    """Options of the likelihood of other kinds of text."""

    sets: str | list[str] = "all"
    """all, or comma-separated names of the seven sets"""
    rows: int = 1024
    """most rows of each, spread evenly; 0 for all"""
    draws: int = 2
    """noise levels per row"""
    cache: str | None = None
    """folder for prepared tokens; without it $SDDLM_CACHE, else ~/.cache/sddlm"""

    def __post_init__(self) -> None:
        super().__post_init__()
        zero_shot_sets(self.sets)


def zero_shot_sets(names: str | list[str]) -> list[str]:
    """The sets of a comma-separated list; ``all`` is all seven.

    Raises:
        ConfigError: an unknown name.
    """
    given = names_in(names)
    if given == ["all"]:
        return list(ZERO_SHOT)
    for name in given:
        if name not in ZERO_SHOT:
            raise ConfigError(
                f"`sets` {name or '(empty)'} is unknown; there are: all, "
                f"{', '.join(ZERO_SHOT)}{did_you_mean(name, ZERO_SHOT)}"
            )
    return given


@dataclass(frozen=True)
class ZeroShotSet:
    """One set: its likelihood, or why it cannot be read."""

    text: str | None = None
    likelihood: Likelihood | None = None
    error: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The figures, or the error."""
        if self.likelihood is None:
            return {"error": self.error}
        return {"text": self.text, **self.likelihood.as_dict()}


@dataclass(frozen=True, kw_only=True)
class ZeroShot(Result):
    """Likelihood of kinds of text that the model was not trained on, by set."""

    zero_shot: dict[str, ZeroShotSet]

    def fill(self, table: Table) -> list[str]:
        """See `Result`."""
        for name, own in self.zero_shot.items():
            if own.likelihood is None:
                table.add_row(name, "-", own.error)
            else:
                bits = f"{own.likelihood.bpc:.3f} bits per character"
                table.add_row(name, own.likelihood.shown_ppl, bits)
        return ["perplexity per token; no end of text between documents (the field's convention)"]


def evaluate_zero_shot(
    model: str | LanguageModel,
    *,
    device: str = "auto",
    out: str | None = None,
    **options: Annotated[Any, ZeroShotConfig],
) -> ZeroShot:
    """Measure the likelihood of other kinds of text, by the field's convention.

    A set that cannot be read has its error in the result and does not stop the others.

    Args:
        model: run or model directory, or a loaded model.
        device: cpu, cuda, or auto.
        out: the JSON file to write; on the command line zero_shot.json in the model's directory.
        options: which sets, and how many rows of each.

    Returns:
        the likelihood of each set; ``print`` shows a table, ``as_dict()`` is the JSON file.

    Raises:
        ConfigError: a wrong choice, or none of the sets can be read.
    """
    return run("zero_shot", _measure, ZeroShotConfig(**options), model, device, out)


def _measure(config: ZeroShotConfig, subject: Subject) -> ZeroShot:
    found = {name: _one(config, subject, name) for name in zero_shot_sets(config.sets)}
    if all(each.error for each in found.values()):
        raise ConfigError(f"none of the sets can be read: {next(iter(found.values())).error}")
    return ZeroShot(zero_shot=found)


def _one(config: ZeroShotConfig, subject: Subject, name: str) -> ZeroShotSet:
    try:
        data = DataArgs(corpus=name, cache=config.cache)
        text = other_text(subject.lm, data, config.rows or None, packing="wrap", eos=False)
    except ConfigError as error:
        return ZeroShotSet(error=str(error))
    found = likelihood(
        subject.lm, text, seed=config.seed, batch=config.batch, draws=config.draws,
        job=subject.job.about(text=text.fingerprint),
    )  # fmt: skip
    return ZeroShotSet(text.source, found)
