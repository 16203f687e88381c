"""The verb ``sddlm demo``: watch a trained model generate text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import torch
from rich.console import Console
from torch import Tensor

from sddlm.demo.frames import Recorder, Recording
from sddlm.demo.page import write_page
from sddlm.demo.terminal import TerminalView, check_fps, pleasant_fps
from sddlm.errors import ConfigError, check_arguments
from sddlm.generation.config import OWN, SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.io import check_writable
from sddlm.lm import LanguageModel
from sddlm.model_dir import locate
from sddlm.sampling.base import Sampler, choose_device, device_of
from sddlm.sampling.condition import Condition, indices
from sddlm.sampling.context import SamplingContext
from sddlm.types import Samples

logger = logging.getLogger(__name__)

TITLE = "From noise to text"


@check_arguments
def demo(
    model_dir: str,
    *,
    prompt: str | None = None,
    suffix: str | None = None,
    infill: str | None = None,
    count: int = 1,
    length: int | None = None,
    seed: int = 0,
    against: str | None = None,
    fps: float | None = None,
    html: str | None = None,
    device: str = "auto",
    **how: Annotated[Any, SamplerConfig],
) -> None:
    """Watch a trained model write: in the terminal, and as a page.

    Args:
        model_dir: run or model directory.
        prompt: what the text begins with; it is never changed.
        suffix: what the text ends with; alone or beside a prompt.
        infill: a text with blanks of N or N:M tokens, as "The {3} fox jumped over {1:8} dog".
        count: texts on the page; the terminal shows the first.
        length: tokens of a text with its prompt; default: the length that the model was trained
            for, or where its rows were single documents, their middle length.
        seed: same seed, same text.
        against: a second sampler, shown after the first and beside it on the page, with the same
            seed: its name, or what else differs, as psi or steps=8 or psi,kappa=cap:0.05
        fps: steps shown a second in the terminal; 0 does not wait for the eye; default: so that
            it takes about six seconds.
        html: file for a page that plays the denoising: one file, no server, no network.
        device: cpu, cuda, or auto.
        how: sampler and its knobs.

    Raises:
        ConfigError: a value cannot be used; before anything is loaded where possible.
    """
    sides = [SamplerConfig(**how)]
    if against is not None:
        sides.append(with_overrides(sides[0], against))
    request = Request(prompt=prompt, suffix=suffix, infill=infill, length=length, count=count)
    check_fps(fps)
    place = locate(model_dir)
    if html:
        check_writable(Path(html))
    loaded = LanguageModel.load(place, choose_device(device))
    writers = [Generator(loaded, [request], side, seed=seed, batch=count) for side in sides]
    job = sampling_job(writers[0])
    recordings = []
    for writer in writers:
        block = writer.next_batches()[0]
        sampler = writer.sampler(block)
        label = sampler_label(writer.config, sampler, job.shape[1])
        recording, drawn = show(loaded, label, sampler, job, fps=fps)
        recordings.append(recording)
        writer.apply(block, drawn.tokens, drawn.nfe, drawn.seconds)
    if writers[0].next_batches():
        logger.info("this is the first block of a long text; sddlm sample writes the whole")
    if html:
        write_page(html, recordings, loaded.tokenizer, title=TITLE, notes=page_notes(loaded, job))


def with_overrides(how: SamplerConfig, against: str) -> SamplerConfig:
    """Override options of a sampler configuration.

    Args:
        how: the configuration.
        against: overrides, such as ``psi,kappa=cap:0.05``; a name alone is that of the sampler.

    Raises:
        ConfigError: there is no such option or value.
    """
    hints = get_type_hints(SamplerConfig)
    changes: dict[str, Any] = {}
    for part in against.split(","):
        name, equals, value = part.strip().partition("=")
        if not equals:
            name, value = "sampler", name
        if name not in hints:
            raise ConfigError(
                f"`against` {against}: {name} is unknown, there are {', '.join(hints)}: "
                "try `against='steps=8'`"
            )
        kinds = {hints[name], *get_args(hints[name])}
        try:
            changes[name] = (
                int(value) if int in kinds else float(value) if float in kinds else value
            )
        except ValueError as error:
            raise ConfigError(
                f"`against` {against}: {value!r} is no number: try {name}=8"
            ) from error
    if "sampler" in changes:  # the options of the sampler that it replaces are not its own
        changes = {**dict.fromkeys(OWN), **changes}
    try:
        return replace(how, **changes)
    except ConfigError as error:
        raise ConfigError(f"`against` {against}: {error}") from error


@dataclass(frozen=True)
class SamplingJob:
    """A sampling job, the same for every sampler that is shown.

    Attributes:
        shape: number of samples and their length (B, L).
        seed: seed of all randomness.
        condition: given tokens, or None.
        index: index of each sample ``[B]`` int64, or of the first.
    """

    shape: tuple[int, int]
    seed: int = 0
    condition: Condition | None = None
    index: int | Tensor = 0

    @property
    def known(self) -> Tensor | None:
        """Given positions ``[B, l]`` bool, without padding; None if there are none."""
        if self.condition is None or not self.condition.known.any():
            return None
        return self.condition.known[:, : self.width]

    @property
    def width(self) -> int:
        """Number of tokens of the longest sample, without padding."""
        lengths = None if self.condition is None else self.condition.lengths
        return self.shape[1] if lengths is None else int(lengths.max())


def sampling_job(writer: Generator) -> SamplingJob:
    """First sampling job of a generator with one request.

    Raises:
        ConfigError: its texts cannot be sampled in one batch.
    """
    first, *more = writer.next_batches()
    if more:
        raise ConfigError("`count`: texts of unequal lengths need a page each: try `count=1`")
    B, L = first.condition.given.shape
    index = torch.tensor([text.index for text in first.texts])
    return SamplingJob((B, L), writer.seed, first.condition, index)


def show(
    loaded: LanguageModel,
    label: str,
    sampler: Sampler,
    job: SamplingJob,
    *,
    fps: float | None = None,
    console: Console | None = None,
) -> tuple[Recording, Samples]:
    """Draw samples; show the first in the terminal, and record all.

    Args:
        loaded: the model.
        label: names the sampler.
        sampler: draws them.
        job: what to draw.
        fps: see `demo`.
        console: console to print to; None for standard output.
    """
    console = Console() if console is None else console
    recorder = Recorder()
    total = sampler.calls(job.shape[1])
    with (
        counting(loaded) as calls,
        TerminalView(
            loaded.tokenizer,
            console=console,
            steps=total,
            title=label,
            known=job.known,
            nfe=calls if job.shape[0] == 1 else None,  # calls of a batch are not those of a sample
            fps=pleasant_fps(total) if fps is None else fps,
        ) as watch,
    ):

        def on_step(step: int, t: float, x: Tensor) -> None:
            recorder(step, t, x[:, : job.width])
            watch(step, t, x[:, : job.width])

        if loaded.estimate.diffusion:
            t = 1.0 if job.condition is None else job.condition.t
            on_step(0, t, initial_tokens(loaded, job))
        drawn = sampler.sample(
            loaded,
            batch=job.shape[0],
            length=job.shape[1],
            seed=job.seed,
            index=job.index,
            condition=job.condition,
            on_step=on_step,
        )
    facts = run_summary(drawn, drawn.seconds - watch.paused)
    console.print(f"{label}: {facts}", style="dim", markup=False, highlight=False)
    return Recording(label, recorder.frames(), [facts], job.known), drawn


def initial_tokens(loaded: LanguageModel, job: SamplingJob) -> Tensor:
    """Initial tokens of a diffusion sampler ``[B, L]`` int64."""
    (B, L), device = job.shape, device_of(loaded.network)
    condition = None if job.condition is None else job.condition.to(device)
    parts = loaded.network, loaded.process, loaded.estimate
    places = indices(job.index, B, device)
    return SamplingContext(*parts, job.seed, places, L, None, condition).start()


@contextmanager
def counting(loaded: LanguageModel) -> Iterator[Callable[[], int]]:
    """Context that counts network calls; yields a function that returns the count."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    hook = loaded.network.register_forward_pre_hook(count)
    try:
        yield lambda: calls
    finally:
        hook.remove()


def sampler_label(how: SamplerConfig, sampler: Sampler, length: int) -> str:
    """Short description of a sampler: kind, steps and options that are not the default."""
    changed = [
        f"{f.name} {getattr(how, f.name)}"
        for f in fields(how)
        if f.name not in ("sampler", "steps") and getattr(how, f.name) != f.default
    ]
    return ", ".join([type(sampler).__name__, f"{sampler.calls(length)} steps", *changed])


def run_summary(drawn: Samples, seconds: float) -> str:
    """Cost of a sampling run in words."""
    low, high = int(drawn.nfe.min()), int(drawn.nfe.max())
    calls = f"{low}" if low == high else f"{low} to {high}"
    return f"nfe {calls}, {seconds:.1f} s"


def page_notes(loaded: LanguageModel, job: SamplingJob) -> list[str]:
    """Facts shown under the title of the page."""
    size = sum(p.numel() for p in loaded.network.parameters())
    objective = str(loaded.objective.get("class_path", "")).rpartition(".")[2]
    return [
        *([objective] if objective else []),
        f"{size / 1e6:.3g} million parameters",
        f"{job.width} tokens",
        f"seed {job.seed}",
    ]
