"""The figures of one model on one text, each beside what it is read beside."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.eval.bounded import bounded
from sddlm.eval.diversity import distinct_n, entropy, known_words, repeated_ngrams
from sddlm.eval.perplexity import likelihood, spread
from sddlm.eval.texts import END, HeldOut, SampleSet, TrainingText
from sddlm.lm import LanguageModel
from sddlm.model_dir import to_spec
from sddlm.process.estimate import Estimate
from sddlm.types import unpadded
from sddlm.work import ResumableJob, digest

#: how the likelihood reads a network's output
READINGS = {
    Estimate.LEAVE_ONE_OUT: "leave-one-out prediction, as trained",
    Estimate.DENOISER: "denoiser, converted to the leave-one-out prediction (exact)",
    Estimate.WITHOUT_X_T: "leave-one-out prediction without x_t, read as if with it (a bias)",
    Estimate.TRUNCATED: "truncated leave-one-out prediction, read as it is",
    Estimate.SCORE: "score, converted to the leave-one-out prediction",
    Estimate.NEXT_TOKEN: "next-token prediction: exact, no bound",
}


def fingerprint(loaded: LanguageModel) -> str:
    """A hash of a model and of how it is read."""
    meaning = [to_spec(loaded.process), loaded.estimate.value]
    return digest(meaning, *loaded.network.state_dict().values())


def measure_likelihood(
    loaded: LanguageModel, text: HeldOut, *, seed: int, batch: int, draws: int, work: ResumableJob
) -> dict[str, Any]:
    """Likelihood of the held-out rows."""
    diffusion = loaded.estimate.diffusion
    lengths = [] if text.lengths is None else text.lengths.tolist()
    found = likelihood(
        loaded.network,
        bounded(loaded.process, loaded.estimate),
        text,
        seed=seed,
        batch=batch,
        draws=draws if diffusion else 1,
        prior_kl=loaded.process.prior_kl(loaded.network.vocab_size) if diffusion else 0.0,
        work=work.about(text=digest(text.tokens, lengths)),
    )
    return found.as_dict() | {"bound": diffusion, "reading": READINGS[loaded.estimate]}


def measure_baselines(text: HeldOut, training: TrainingText | None) -> dict[str, Any]:
    """n-gram models of the training text on the scored text, each row by itself as for the model.

    Ends of documents are scored, and not counted as characters, as for the model.
    """
    if training is None:
        raise ConfigError(
            "metric baselines needs the training text, which this model directory does not name "
            "or which is gone; leave it out: --metrics likelihood,samples"
        )
    bpc = {
        name: float(training.ngram(order).nats(text.texts).sum()) / math.log(2) / text.characters
        for name, order in (("unigram", 1), ("5-gram", 5))
    }
    return {"bpc": bpc, "learnt_from": training.characters, "characters": text.characters}


def real_rows(text: HeldOut, count: int, longest: int) -> SampleSet:
    """So many real rows (or all there are), spread evenly, cut to a length."""
    chosen = spread(len(text), count)
    lengths = None if text.lengths is None else text.lengths[chosen]
    rows = [row[:longest] for row in unpadded(text.tokens[chosen], lengths)]
    texts = [text.texts[i].replace(END, "") for i in chosen]
    return SampleSet(rows, texts, {"text": text.source})


def measure_samples(
    drawn: SampleSet, beside: SampleSet, training: TrainingText | None
) -> dict[str, Any]:
    """Diversity of samples and of real rows; both sets cut to the smaller number."""
    n = min(len(drawn.texts), len(beside.texts))
    return {
        "count": n,
        "length": max(map(len, drawn.rows)),
        "origin": drawn.origin,
        "generated": figures(drawn.rows[:n], drawn.texts[:n], training),
        "real": figures(beside.rows[:n], beside.texts[:n], training),
    }


def figures(
    tokens: list[Tensor], texts: list[str], training: TrainingText | None
) -> dict[str, float]:
    """Every figure of a set of samples; the last two only with the training text."""
    longest = max(map(len, tokens))
    found = {
        "entropy": entropy(tokens),
        "distinct_1": distinct_n(tokens, 1),
        "distinct_2": distinct_n(tokens, min(2, longest)),
        "repeated_4": repeated_ngrams(tokens, min(4, longest)),
    }
    if training is not None:
        found["known_words"] = known_words(texts, training.words)
        found["bpc_5gram"] = training.ngram(5).bits_per_character(texts)
    return found
