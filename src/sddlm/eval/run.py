"""The verb ``sddlm eval``: how good is a model, with every figure beside what to compare it to."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import Tensor

from sddlm.data.args import DataArgs
from sddlm.errors import ConfigError
from sddlm.eval.diversity import distinct_n, entropy, known_words, repeated_ngrams
from sddlm.eval.generative import Judge, generative_perplexity
from sddlm.eval.perplexity import bounded, likelihood, spread
from sddlm.eval.report import table, write_json
from sddlm.eval.texts import END, HeldOut, SampleSet, TrainingText, held_out, read_samples
from sddlm.model_dir import ModelDir
from sddlm.sampling.base import choose_device
from sddlm.sampling.run import begins, check_writable, draw_samples, sampler_for
from sddlm.types import unpadded

METRICS = ("likelihood", "baselines", "samples", "generative")


def evaluate(
    model_dir: str,
    *,
    data: DataArgs | None = None,
    metrics: str | list[str] | None = None,
    judge: str | None = None,
    samples: str | None = None,
    count: int = 64,
    steps: int = 128,
    rows: int = 1024,
    draws: int = 1,
    batch: int = 32,
    context: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model, print one table and write ``evaluation.json``.

    Args:
        model_dir: run or model directory.
        data: a text to evaluate on as a whole; without it the held-out part of what the model was
            trained on.
        metrics: comma-separated: likelihood (perplexity and bits per character), baselines (n-gram
            models of the training text on the same text), samples (diversity, beside real text),
            generative (perplexity of the samples under a judge). Without it all that is possible.
        judge: for generative: an autoregressive model directory, or a Hugging Face name or path.
        samples: JSON lines with samples to judge; without it they are drawn.
        count: how many samples are drawn, and how many real rows stand beside them.
        steps: of the sampler.
        rows: most held-out rows scored, spread evenly; 0 for all.
        draws: noise levels per row.
        batch: sequences per network call.
        context: most tokens that the judge scores per text; without it what the judge can.
        seed: of all randomness.
        device: cpu, cuda, or auto.
        out: the file to write; without it ``evaluation.json`` in the model's directory.

    Returns:
        What was written.

    Raises:
        ConfigError: a wrong choice, before anything is loaded where that is possible.
    """
    started = time.perf_counter()
    wanted = _metrics(metrics, judge)
    least = {"count": 1, "rows": 0, "batch": 1, "steps": 1, "draws": 1}
    given = {"count": count, "rows": rows, "batch": batch, "steps": steps, "draws": draws}
    for name, low in least.items():
        if given[name] < low:
            raise ConfigError(f"--{name} is {given[name]}, must be at least {low}")
    target = _target(Path(model_dir), out)
    device = choose_device(device)
    loaded = ModelDir.load(model_dir, device=device)
    text, training = held_out(Path(model_dir), loaded, data, rows or None)
    if training is None and metrics is None:
        wanted = [name for name in wanted if name != "baselines"]
    result: dict[str, Any] = {
        "model": model_dir,
        "text": text.source,
        "metrics": wanted,
        "estimate": loaded.estimate.value,
        "seed": seed,
        "sddlm_version": version("sddlm"),
    }
    if "likelihood" in wanted:
        result["likelihood"] = _likelihood(loaded, text, seed=seed, batch=batch, draws=draws)
    if "baselines" in wanted:
        result["baselines"] = _baselines(text, training)
    if "samples" in wanted or "generative" in wanted:
        drawn = (
            read_samples(samples, loaded.tokenizer)
            if samples
            else _draw(loaded, count=count, steps=steps, batch=batch, seed=seed)
        )
        beside = real_beside(text, drawn)
    if "samples" in wanted:
        result["samples"] = _samples(drawn, beside, training)
    if "generative" in wanted and judge is not None:
        result["generative"] = _generative(judge, drawn, beside, context, batch, device)
    result["seconds"] = round(time.perf_counter() - started, 3)
    write_json(target, result)
    console = Console()
    console.print(table(result))
    console.print(f"written to {target}", style="dim", soft_wrap=True)
    return result


def _metrics(metrics: str | list[str] | None, judge: str | None) -> list[str]:
    """The metrics asked for, in the order of `METRICS`."""
    if metrics is None:
        return [name for name in METRICS if name != "generative" or judge is not None]
    names = metrics.split(",") if isinstance(metrics, str) else metrics
    asked = {name.strip() for name in names}
    unknown = sorted(asked - set(METRICS))
    if unknown:
        raise ConfigError(
            f"--metrics {', '.join(unknown) or '(empty)'} is unknown; allowed: {', '.join(METRICS)}"
        )
    if "generative" in asked and judge is None:
        raise ConfigError("metric generative needs a judge: --judge gpt2-large, or a directory")
    if judge is not None and "generative" not in asked:
        raise ConfigError("--judge is used by metric generative alone; add it to --metrics")
    return [name for name in METRICS if name in asked]


def _target(model_dir: Path, out: str | None) -> Path:
    """Where the result goes."""
    if not model_dir.is_dir():
        raise ConfigError(f"no such directory: {model_dir}; give that of a finished run")
    target = model_dir / "evaluation.json" if out is None else Path(out)
    check_writable(target)
    return target


def _likelihood(
    loaded: ModelDir, text: HeldOut, *, seed: int, batch: int, draws: int
) -> dict[str, Any]:
    """Likelihood of the held-out rows."""
    diffusion = loaded.estimate.diffusion
    found = likelihood(
        loaded.model,
        bounded(loaded.process, loaded.estimate),
        text,
        seed=seed,
        batch=batch,
        draws=draws,
        prior_kl=loaded.process.prior_kl(loaded.model.vocab_size) if diffusion else 0.0,
        progress=True,
    )
    return found.as_dict() | {"bound": diffusion}


def _baselines(text: HeldOut, training: TrainingText | None) -> dict[str, Any]:
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


def _draw(loaded: ModelDir, *, count: int, steps: int, batch: int, seed: int) -> SampleSet:
    """Samples of the model's length by the library's sampler for its kind."""
    ends = begins(loaded.data)
    sampler = sampler_for(loaded.estimate, loaded.tokenizer, steps=steps, ends=ends)
    drawn = draw_samples(loaded, sampler, count=count, batch=batch, seed=seed)
    rows = drawn.sequences()
    origin = {
        "sampler": type(sampler).__name__,
        "steps": drawn.steps,
        "nfe": round(float(drawn.nfe.double().mean()), 2),
        "seconds": round(drawn.seconds, 3),
    }
    texts = loaded.tokenizer.decode_batch([row.tolist() for row in rows])
    return SampleSet(rows, texts, origin)


def real_beside(text: HeldOut, drawn: SampleSet) -> SampleSet:
    """As many real rows as samples (or all there are), none longer than the longest sample."""
    chosen = spread(len(text), len(drawn.texts))
    longest = max(map(len, drawn.rows))
    lengths = None if text.lengths is None else text.lengths[chosen]
    rows = [row[:longest] for row in unpadded(text.tokens[chosen], lengths)]
    texts = [text.texts[i].replace(END, "") for i in chosen]
    return SampleSet(rows, texts, {"text": text.source})


def _samples(drawn: SampleSet, beside: SampleSet, training: TrainingText | None) -> dict[str, Any]:
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


def _generative(
    judge: str,
    drawn: SampleSet,
    beside: SampleSet,
    context: int | None,
    batch: int,
    device: str,
) -> dict[str, Any]:
    """The judge on the samples and on real text, under the same conventions."""
    judging = Judge.load(judge, device=device)
    return {
        name: asdict(
            generative_perplexity(judging, texts, context=context, batch=batch, progress=True)
        )
        for name, texts in (("samples", drawn.texts), ("real", beside.texts))
    }
