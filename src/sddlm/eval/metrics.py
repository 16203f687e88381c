"""Samples and their figures, each beside that of real rows; n-gram baselines."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, tensor

from sddlm.errors import ConfigError
from sddlm.eval.diversity import distinct_n, entropy, known_words, repeated_ngrams
from sddlm.eval.perplexity import spread
from sddlm.eval.texts import END, HeldOut, SampleSet, TrainingText
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.generation.sample import generate_resumably
from sddlm.jobs import ResumableJob, digest
from sddlm.lm import LanguageModel
from sddlm.model_dir import to_spec
from sddlm.types import unpadded


def fingerprint(lm: LanguageModel) -> str:
    """A hash of the weights, the process and the estimate."""
    meaning = [to_spec(lm.process), lm.estimate.value]
    return digest(meaning, *lm.network.state_dict().values())


def draw_samples(
    lm: LanguageModel,
    how: SamplerConfig,
    *,
    count: int,
    seed: int,
    batch: int,
    job: ResumableJob,
    label: str = "samples",
) -> SampleSet:
    """Draw samples, a batch a shard.

    Args:
        lm: the model.
        how: sampler and its options.
        count: number of samples.
        seed: of all randomness; sample k has the same noise whatever ``how``.
        batch: samples drawn together; changes no sample.
        job: does the batches.
        label: of the bar.
    """
    generator = Generator(lm, [Request(count=count)], how, seed, batch)
    key = {"how": asdict(how), "count": count, "seed": seed, "batch": batch}
    generate_resumably(generator, job.about(drawn=key), label=label)
    found = generator.generations(whole=True)
    origin = {
        **how.settings(),
        "sampler": type(how.build(lm)).__name__,
        "seed": seed,
        "nfe": round(sum(each.nfe for each in found) / len(found), 2),
        "seconds": round(sum(each.seconds for each in found), 3),
    }
    if not lm.estimate.diffusion:
        del origin["steps"]
    rows = [tensor(each.tokens) for each in found]
    return SampleSet(rows, [each.text for each in found], origin)


def reference_rows(text: HeldOut, count: int, longest: int) -> SampleSet:
    """``count`` real rows (or all there are), spread evenly, cut to ``longest`` tokens."""
    chosen = spread(len(text), count)
    lengths = None if text.lengths is None else text.lengths[chosen]
    rows = [row[:longest] for row in unpadded(text.tokens[chosen], lengths)]
    texts = [text.texts[i].replace(END, "") for i in chosen]
    return SampleSet(rows, texts, {"text": text.source})


@dataclass(frozen=True)
class Baselines:
    """n-gram models of the training text on the scored text.

    Attributes:
        bpc: bits per character by model.
        learnt_from: characters of training text.
        characters: of the scored text.
    """

    bpc: dict[str, float]
    learnt_from: int
    characters: int

    @classmethod
    def of(cls, text: HeldOut, training: TrainingText) -> Baselines:
        """Score each row by itself, as the model does.

        Ends of documents are scored, and not counted as characters, as for the model.
        """
        bpc = {
            name: float(training.ngram(n).nats(text.texts).sum()) / math.log(2) / text.characters
            for name, n in (("unigram", 1), ("5-gram", 5))
        }
        return cls(bpc, training.characters, text.characters)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value:.3f}" for name, value in self.bpc.items())


@dataclass(frozen=True)
class Diversity:
    """Figures of a set of texts, defined in docs/evaluation.md.

    Attributes:
        entropy: unigram entropy within a text, nats, mean over texts.
        distinct_1: different tokens over tokens of the set.
        distinct_2: different pairs over pairs of the set.
        repeated_4: share of a text's 4-grams that occurred in it before, mean over texts.
        known_words: share of words that the training text has; None without that text.
        bpc_5gram: bits per character under its 5-gram model; None without that text.
    """

    entropy: float
    distinct_1: float
    distinct_2: float
    repeated_4: float
    known_words: float | None = None
    bpc_5gram: float | None = None

    @classmethod
    def of(cls, tokens: list[Tensor], texts: list[str], training: TrainingText | None) -> Diversity:
        """Measure texts and their tokens."""
        longest = max(map(len, tokens))
        return cls(
            entropy(tokens),
            distinct_n(tokens, 1),
            distinct_n(tokens, min(2, longest)),
            repeated_ngrams(tokens, min(4, longest)),
            None if training is None else known_words(texts, training.words),
            None if training is None else training.ngram(5).bits_per_character(texts),
        )

    def as_dict(self) -> dict[str, float]:
        """The figures that there are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SampleDiversity:
    """Diversity of samples and of real rows, both sets cut to the smaller one's number.

    Attributes:
        count: texts on each side.
        length: tokens of the longest sample.
        origin: how the samples were drawn, or the file that they are from.
        generated: of the samples.
        real: of the real rows.
    """

    count: int
    length: int
    origin: dict[str, Any]
    generated: Diversity
    real: Diversity

    @classmethod
    def of(
        cls, drawn: SampleSet, reference: SampleSet, training: TrainingText | None
    ) -> SampleDiversity:
        """Measure both sets."""
        n = min(len(drawn.texts), len(reference.texts))
        return cls(
            n,
            max(map(len, drawn.rows)),
            drawn.origin,
            *(Diversity.of(each.rows[:n], each.texts[:n], training) for each in (drawn, reference)),
        )


def need(training: TrainingText | None, metric: str) -> TrainingText:
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
