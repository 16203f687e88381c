"""Samples: drawn from a model or read from a file; and as many rows of real text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.texts import END, HeldOut
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.generation.sample import generate_resumably
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.types import unpadded


@dataclass(frozen=True)
class SampleSet:
    """Samples with their text and where they come from.

    Attributes:
        rows: the tokens of each ``[l]`` int64.
        texts: decoded, special tokens left out.
        origin: facts for the report (sampler, steps, nfe, seconds; or the file).
    """

    rows: list[Tensor]
    texts: list[str]
    origin: dict[str, Any]


def read_samples(path: str | Path, tokenizer: Tokenizer) -> SampleSet:
    """Samples from JSON lines with ``text`` and, best, ``tokens``.

    Where one is without tokens, all texts are encoded again and cut to the shortest.

    Raises:
        ConfigError: no such file, or a line that is no sample.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"`samples` {path} cannot be read: {error.strerror}") from error
    texts, rows = [], []
    for number, line in enumerate(lines, 1):
        try:
            sample = json.loads(line)
            texts.append(str(sample["text"]))
            rows.append(sample.get("tokens"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f'`samples` {path}, line {number} is no sample such as {{"text": "..."}}'
            ) from error
    if not texts:
        raise ConfigError(f"`samples` {path} is empty")
    origin = {"file": str(path)}
    if None in rows:
        rows, origin["tokens"] = tokenizer.encode_batch(texts), "encoded again"
        rows = [row[: min(map(len, rows))] for row in rows]
    if not all(rows):
        raise ConfigError(f"`samples` {path} has a sample without a token")
    return SampleSet([torch.tensor(row) for row in rows], texts, origin)


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
    rows = [torch.tensor(each.tokens) for each in found]
    return SampleSet(rows, [each.text for each in found], origin)


def reference_rows(text: HeldOut, count: int, longest: int) -> SampleSet:
    """``count`` real rows (or all there are), spread evenly, cut to ``longest`` tokens."""
    total, count = len(text), min(count, len(text))
    chosen = [i * total // count for i in range(count)]
    lengths = None if text.lengths is None else text.lengths[chosen]
    rows = [row[:longest] for row in unpadded(text.tokens[chosen], lengths)]
    texts = [text.texts[i].replace(END, "") for i in chosen]
    return SampleSet(rows, texts, {"text": text.source})
