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

from sddlm.errors import ConfigError, check_arguments
from sddlm.generation.args import SamplerConfig
from sddlm.generation.requests import Request, read_requests
from sddlm.generation.writer import Generation, Generator
from sddlm.io import check_writable, write_keeping
from sddlm.jobs import ProcessGroup, ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.dit import WEIGHTS_NAME
from sddlm.sampling.base import choose_device

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
        prompt: what the text begins with; it is never changed.
        suffix: what the text ends with; alone or beside a prompt.
        infill: a text with blanks of so many tokens, as "The {3} fox jumped over {1:8} dog".
        requests: file of JSON lines with any of prompt, suffix, infill, length, count and seed; -
            is standard input.
        count: number of texts; default: 4, and 1 of each request in a file.
        length: tokens of a text with its prompt; more than the model was trained for are written
            block by block. Default: the length that the model was trained for, or where its rows
            were single documents, the lengths of those.
        overlap: tokens of what is written that the next block of a long text sees; default: half of
            the model's length.
        whole: keep what the model writes behind an end of text.
        batch: texts drawn together; changes no text.
        seed: same seed, same text.
        out: file for the texts as JSON lines; without it the command line writes samples.jsonl in
            the directory, and the function writes none. Other samples that are there are kept as
            samples-1.jsonl.
        device: cpu, cuda, or auto.
        how: sampler and its knobs.

    Returns:
        the texts.

    Raises:
        ConfigError: if a value cannot be used; before anything is loaded where possible.
    """
    chosen = SamplerConfig(**how)
    if batch < 1:
        raise ConfigError(f"--batch is {batch}, must be at least 1")
    target = Path(out) if out else None
    asked = _asked(requests, prompt, suffix, infill, {"length": length, "count": count})
    if not Path(model_dir).is_dir():
        raise ConfigError(f"no such directory: {model_dir}; give that of a finished run")
    if target:
        check_writable(target)
    team = ProcessGroup.join()
    try:
        device = team.device(choose_device(device))
        loaded = LanguageModel.load(model_dir, device)
        writer = Generator(loaded, asked, chosen, seed=seed, batch=batch, overlap=overlap)
        facts = {
            "weights": _weights(Path(model_dir)), "device": device.split(":")[0],
            "requests": [request.asked for request in asked], "how": asdict(chosen),
            "seed": seed, "batch": batch, "overlap": overlap,
        }  # fmt: skip
        work = ResumableJob(target and target.with_name(f"{target.name}.partial"), facts, team)
        with _told_how_to_go_on(work):
            writer.write(work)
        written = writer.written(whole=whole)
        if team.first:
            if target:
                write_samples(target, written, asked, {"seed": seed, **chosen.settings()})
            work.finish()
            logger.info("%s", _facts(written, writer))
    finally:
        team.leave()
    return [each.text for each in written]


@contextmanager
def _told_how_to_go_on(work: ResumableJob) -> Iterator[None]:
    """What is finished when a user stops the work is kept, which is said."""
    try:
        yield
    except KeyboardInterrupt:
        if work.team.first and work.folder:
            logger.warning("stopped; what is finished is kept: the same command goes on with it")
        raise


def _weights(place: Path) -> list[list[object]]:
    """Which weights are there: hashing those of a large model takes as long as reading them."""
    files = sorted(place.rglob(WEIGHTS_NAME))
    return [[str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _asked(
    file: str | None,
    prompt: str | None,
    suffix: str | None,
    infill: str | None,
    base: Mapping[str, int | None],
) -> list[Request]:
    """The requests of a command line.

    Args:
        file: of requests, or None.
        prompt: of a single request, or None.
        suffix: of a single request, or None.
        infill: of a single request, or None.
        base: length and count, where they were given.
    """
    single = {"prompt": prompt, "suffix": suffix, "infill": infill}
    said: dict[str, Any] = {k: v for k, v in base.items() if v is not None}
    if file is None:
        return [Request(**{"count": 4, **said, **single})]
    for name, value in single.items():
        if value is not None:
            raise ConfigError(
                f"--requests and --{name}: write the {name} into the file, or leave one"
            )
    try:
        if file == "-":
            return read_requests(sys.stdin, "standard input", said)
        with open(file, encoding="utf-8") as lines:
            return read_requests(lines, file, said)
    except OSError as error:
        raise ConfigError(f"--requests {file} cannot be read: {error.strerror}") from error


def _facts(written: Sequence[Generation], writer: Generator) -> str:
    """What it took, in words."""
    calls = sum(each.nfe for each in written) / len(written)
    seconds = sum(each.seconds for each in written)
    steps = f" ({writer.how.steps} steps)" if writer.loaded.estimate.diffusion else ""
    texts = "1 text" if len(written) == 1 else f"{len(written)} texts"
    return f"{texts}, {calls:.1f} network calls each{steps}, {seconds:.1f} s"


def write_samples(
    path: Path,
    written: Sequence[Generation],
    asked: Sequence[Request],
    settings: Mapping[str, object],
) -> None:
    """One JSON object a line: text, tokens, network calls, what was asked, and how it was drawn.

    A former file with other samples is kept: ``samples-1.jsonl``.
    """
    lines = []
    for each in written:
        request = {k: v for k, v in asked[each.request].asked.items() if v is not None}
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
