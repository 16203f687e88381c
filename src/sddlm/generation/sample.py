"""The verb ``sddlm sample``: text from a model directory."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch

from sddlm.errors import ConfigError, check_arguments
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generation, GenerationState, Generator
from sddlm.generation.request import Request, read_requests
from sddlm.generation.windows import WindowBatch
from sddlm.io import check_writable, write_keeping
from sddlm.jobs import ProcessGroup, ResumableJob
from sddlm.lm import LanguageModel
from sddlm.model_dir import locate
from sddlm.models.dit import WEIGHTS_NAME
from sddlm.progress import bar
from sddlm.sampling.base import choose_device
from sddlm.types import OnStep

logger = logging.getLogger(__name__)


@check_arguments
def sample(
    model_dir: str,
    *,
    prompt: str | None = None,
    suffix: str | None = None,
    infill: str | None = None,
    requests: str | None = None,
    count: int | None = None,
    length: int | None = None,
    overlap: int | None = None,
    whole: bool = False,
    batch: int = 16,
    seed: int = 0,
    out: str | None = None,
    device: str = "auto",
    **how: Annotated[Any, SamplerConfig],
) -> list[str]:
    """Write text with a trained model.

    Args:
        model_dir: run or model directory.
        prompt: beginning of the text; it is never changed.
        suffix: end of the text; alone or beside a prompt.
        infill: a text with blanks, each a number of tokens, as "The {3} fox jumped over {1:8} dog".
        requests: file of JSON lines with any of prompt, suffix, infill, length, count and seed; -
            is standard input.
        count: number of texts; default: 4, and 1 of each request in a file.
        length: tokens of a text with its prompt; a text longer than the model's rows is generated
            window by window. Default: the length of these rows, or where each was a single
            document, the lengths of those.
        overlap: tokens of the text before that the next window of a long text sees; default: half
            of the model's length.
        whole: keep what the model writes behind an end of text.
        batch: texts drawn together; changes no text.
        seed: same seed, same text.
        out: file for the texts as JSON lines; without it the command line writes samples.jsonl in
            the directory, and the function writes none. Former samples in it are kept as
            samples-1.jsonl.
        device: cpu, cuda, or auto.
        how: sampler and its options.

    Returns:
        the texts.

    Raises:
        ConfigError: if a value cannot be used; before anything is loaded where possible.
    """
    config = SamplerConfig(**how)
    if batch < 1:
        raise ConfigError(f"`batch` is {batch}, must be at least 1")
    target = Path(out) if out else None
    single = {"prompt": prompt, "suffix": suffix, "infill": infill}
    asked = _requests(requests, single, {"length": length, "count": count})
    place = locate(model_dir)
    if target:
        check_writable(target)
    team = ProcessGroup.join()
    try:
        device = team.device(choose_device(device))
        lm = LanguageModel.load(place, device)
        generator = Generator(lm, asked, config, seed=seed, batch=batch, overlap=overlap)
        cache_key = {
            "weights": _weights(place), "device": device.split(":")[0],
            "requests": [request.asked for request in asked], "how": asdict(config),
            "seed": seed, "batch": batch, "overlap": overlap,
        }  # fmt: skip
        folder = target and target.with_name(f"{target.name}.partial")
        job = ResumableJob(folder, cache_key, team)
        with _hint_to_resume(job), bar("sampling", total=generator.steps(), show=team.first) as go:
            generate_resumably(generator, job, lambda *_: go(team.world))
        texts = generator.generations(whole=whole)
        if team.first:
            if target:
                write_samples(target, texts, asked, {"seed": seed, **config.settings()})
            job.finish()
            logger.info("%s", _summary(texts, generator))
    finally:
        team.leave()
    return [each.text for each in texts]


def generate_resumably(
    generator: Generator, job: ResumableJob, on_step: OnStep | None = None, label: str = "texts"
) -> None:
    """Write all texts; finished batches are kept and shared among the processes of the job.

    Args:
        generator: writes the texts; its `Generator.generations` are complete afterwards.
        job: keeps the batches; its cache key has all that the texts depend on.
        on_step: called after each step of each batch that this process draws.
        label: names the batches in the job's files and on its bar.
    """
    number = 0
    while batches := generator.next_batches():

        def draw(k: int, batches: list[WindowBatch[GenerationState]] = batches) -> dict[str, Any]:
            drawn = generator.draw(batches[k], on_step)
            tokens, nfe = drawn.tokens.tolist(), drawn.nfe.tolist()
            return {"tokens": tokens, "nfe": nfe, "seconds": drawn.seconds}

        name = f"{label} {number}" if number else label
        for batch, found in zip(batches, job.run(name, len(batches), draw), strict=True):
            tokens = torch.tensor(found["tokens"])
            generator.apply(batch, tokens, found["nfe"], found["seconds"])
        number += 1


@contextmanager
def _hint_to_resume(job: ResumableJob) -> Iterator[None]:
    """After Ctrl-C, report that finished batches are kept."""
    try:
        yield
    except KeyboardInterrupt:
        if job.team.first and job.folder:
            logger.warning("stopped; what is finished is kept: the same command goes on with it")
        raise


def _weights(place: Path) -> list[list[object]]:
    """Path, size and time of the weights: hashing a large file takes as long as reading it."""
    files = sorted(place.rglob(WEIGHTS_NAME))
    return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _requests(
    file: str | None, single: Mapping[str, str | None], base: Mapping[str, int | None]
) -> list[Request]:
    """The requests of a command line.

    Args:
        file: of requests, or None.
        single: fields of a single request.
        base: length and count, for every request.
    """
    given: dict[str, Any] = {k: v for k, v in base.items() if v is not None}
    if file is None:
        return [Request(**{"count": 4, **given, **single})]
    for name, value in single.items():
        if value is not None:
            raise ConfigError(
                f"`requests` and `{name}`: write the {name} into the file, or leave one out"
            )
    try:
        if file == "-":
            return read_requests(sys.stdin, "standard input", given)
        with open(file, encoding="utf-8") as lines:
            return read_requests(lines, file, given)
    except OSError as error:
        raise ConfigError(f"`requests` {file} cannot be read: {error.strerror}") from error


def _summary(texts: Sequence[Generation], generator: Generator) -> str:
    """Number of texts, network calls and time, in words."""
    calls = sum(each.nfe for each in texts) / len(texts)
    seconds = sum(each.seconds for each in texts)
    steps = f" ({generator.config.steps} steps)" if generator.lm.estimate.diffusion else ""
    count = "1 text" if len(texts) == 1 else f"{len(texts)} texts"
    return f"{count}, {calls:.1f} network calls each{steps}, {seconds:.1f} s"


def write_samples(
    path: Path,
    texts: Sequence[Generation],
    requests: Sequence[Request],
    settings: Mapping[str, object],
) -> None:
    """Write one JSON object a line: text, tokens, network calls, request and sampler.

    A former file with other samples is kept: ``samples-1.jsonl``.
    """
    lines = []
    for each in texts:
        request = {k: v for k, v in requests[each.request].asked.items() if v is not None}
        record = {
            "text": each.text,
            "tokens": each.tokens,
            "blanks": each.blanks,
            "ended": each.ended,
            "nfe": each.nfe,
            "request": each.request,
            "index": each.copy,
            "asked": request,
            **settings,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_keeping(path, "".join(lines))
