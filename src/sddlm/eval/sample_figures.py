"""Figures of a set of samples beside those of real rows, and their rows of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rich.table import Table

from sddlm.eval.copying import Copying
from sddlm.eval.distance import Distance
from sddlm.eval.diversity import SampleDiversity
from sddlm.eval.generative import GenerativePerplexity
from sddlm.eval.mauve import Mauve
from sddlm.eval.result import plus_minus

#: names of the figures in `SampleFigures`
OF_SAMPLES = ("samples", "copying", "generative", "mauve", "distance")

T = TypeVar("T")


@dataclass(frozen=True)
class Compared(Generic[T]):
    """A figure of samples and of real rows, measured alike."""

    samples: T
    real: T


@dataclass(frozen=True, kw_only=True)
class SampleFigures:
    """What a set of samples is like, beside real rows; None stands for what was not measured.

    Attributes:
        samples: diversity.
        copying: what is repeated of the training text.
        generative: a judge's perplexity.
        mauve: samples against real rows as sets.
        distance: likewise, without a package.
    """

    samples: SampleDiversity | None = None
    copying: Compared[Copying] | None = None
    generative: Compared[GenerativePerplexity] | None = None
    mauve: Mauve | None = None
    distance: Distance | None = None

    def as_dict(self) -> dict[str, Any]:
        """The figures that there are."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def sample_rows(self, table: Table) -> list[str]:
        """Add a row for each figure; returns lines for the caption."""
        notes = []
        if self.samples:
            notes.append(_diversity_rows(table, self.samples))
        if self.copying:
            notes.append(_copying_rows(table, self.copying))
        if self.generative:
            notes.append(_generative_rows(table, self.generative))
        if self.mauve:
            table.add_row("MAUVE", f"{self.mauve.mauve:.3f}", f"real {self.mauve.real:.3f}")
        if own := self.distance:
            table.add_row("energy distance", f"{own.distance:.3f}", f"real {own.real:.3f}")
        return notes


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


def control_row(name: str, found: SampleFigures) -> tuple[str, str, str]:
    """A row of the table: a judge's perplexity, or the entropy, and what gives the control away."""
    shown = {}
    if found.generative:
        shown["generative perplexity"] = f"{found.generative.samples.ppl:.4g}"
    if found.distance:
        shown["energy distance"] = f"{found.distance.distance:.3f}"
    if found.samples:
        own = found.samples.generated.as_dict()
        shown |= {_DIVERSITY[key]: f"{value:.3f}" for key, value in own.items()}
    first, *others = [f"{key} {value}" for key, value in shown.items()] or ["-"]
    return f"{name} control", first, ", ".join(others)


def _generative_rows(table: Table, found: Compared[GenerativePerplexity]) -> str:
    own, real = found.samples, found.real
    shown = [f"{one.ppl:.4g}{plus_minus(one.ppl_stderr)}" for one in (own, real)]
    table.add_row("generative perplexity", shown[0], f"real {shown[1]}")
    return (
        f"judge {own.judge}: convention {own.convention.name}, {own.samples} texts, "
        f"{own.tokens} tokens, context {own.context}, samples drawn in {own.precision}"
    )
