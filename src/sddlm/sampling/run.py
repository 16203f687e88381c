"""The verb ``sddlm sample``: text from a model directory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from sddlm.data.tokenizers import Tokenizer
from sddlm.demo import terminal as demo_terminal
from sddlm.demo.page import Recorder, write_page
from sddlm.errors import ConfigError
from sddlm.files import atomic_write
from sddlm.model_dir import ModelDir
from sddlm.process.estimate import Estimate
from sddlm.progress import bar
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.base import Sampler, choose_device
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation
from sddlm.types import OnStep, Samples


def sampler_for(
    estimate: Estimate,
    tokenizer: Tokenizer,
    *,
    steps: int = 128,
    tail: Literal["sample", "greedy"] = "sample",
    truncation: Truncation | None = None,
    ends: bool = False,
) -> Sampler:
    """The library's sampler for a kind of model: lazy for diffusion, left to right else.

    Args:
        estimate: what the model's output means.
        tokenizer: an autoregressive model begins at its end-of-text token; padding, unknown and
            mask tokens are never written.
        steps: of a diffusion sampler.
        tail: of a diffusion sampler.
        truncation: of every prediction.
        ends: the model's rows begin with the beginning-of-text token.
    """
    truncation = replace(truncation or Truncation(), never=tuple(tokenizer.not_sampled))
    if estimate.diffusion:
        return Lazy(steps, tail, truncation)
    return Autoregressive(truncation, tokenizer.bos_id if ends else tokenizer.eos_id)


def begins(data: Mapping[str, Any]) -> bool:
    """Whether rows begin with the beginning-of-text token, from a model's record of its data."""
    return bool(data.get("packing", {}).get("ends", False))


def sample(
    model_dir: str,
    *,
    steps: int = 128,
    count: int = 4,
    length: int | None = None,
    batch: int = 16,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    tail_cut: float = 0.0,
    tail: Literal["sample", "greedy"] = "sample",
    watch: bool = False,
    out: str | None = None,
    html: str | None = None,
    device: str = "auto",
) -> list[str]:
    """Write text with a trained model.

    Args:
        model_dir: run or model directory.
        steps: denoising steps; more is closer to the model's own law.
        count: number of samples.
        length: tokens of a sample; default: the length that the model was trained for, or where
            its rows were single documents, the lengths of those.
        batch: samples drawn together.
        seed: same seed, same text.
        temperature: below 1 is sharper.
        top_p: keep the most likely tokens up to this mass.
        tail_cut: cut every probability below tail_cut / V to zero and lower the rest by as much;
            small models give such tokens too much.
        tail: the last step draws (sample) or takes the most likely token (greedy).
        watch: show the first sample denoising in the terminal.
        out: file for the samples as JSON lines; default: samples.jsonl in the directory.
        html: file for a page that plays the denoising of the first samples.
        device: cpu, cuda, or auto.

    Returns:
        the texts.

    Raises:
        ConfigError: if a value cannot be used; before anything is loaded where possible.
    """
    if count < 1 or batch < 1:
        raise ConfigError(f"--count is {count} and --batch {batch}, both must be at least 1")
    if length is not None and length < 1:
        raise ConfigError(f"--length is {length}, must be at least 1")
    truncation = Truncation(temperature, top_p, tail_cut)
    Lazy(steps, tail, truncation)  # refuses wrong values before the model is loaded
    if not Path(model_dir).is_dir():
        raise ConfigError(f"no such directory: {model_dir}; give that of a finished run")
    target = Path(out) if out else Path(model_dir) / "samples.jsonl"
    for path in (target, Path(html) if html else target):
        check_writable(path)
    loaded = ModelDir.load(model_dir, choose_device(device))
    sampler = sampler_for(
        loaded.estimate,
        loaded.tokenizer,
        steps=steps,
        tail=tail,
        truncation=truncation,
        ends=begins(loaded.data),
    )
    settings = {
        "steps": steps, "seed": seed, "temperature": temperature, "top_p": top_p,
        "tail_cut": tail_cut, "tail": tail,
    }  # fmt: skip
    with ExitStack() as views:
        recorder = Recorder(samples=4) if html else None
        viewers: list[OnStep] = [recorder] if recorder else []
        if watch:
            viewers.append(views.enter_context(demo_terminal.watch(loaded.tokenizer, steps=steps)))
        drawn = draw_samples(
            loaded,
            sampler,
            count=count,
            length=length,
            batch=batch,
            seed=seed,
            on_step=_together(viewers),
            progress=not watch,
        )
    texts = loaded.tokenizer.decode_batch([row.tolist() for row in drawn.sequences()])
    write_samples(target, texts, drawn, settings)
    if html and recorder:
        note = (
            f"{type(sampler).__name__}, {drawn.steps} steps, "
            f"{drawn.nfe.double().mean():.0f} network calls a sample, seed {seed}"
        )
        write_page(html, recorder.frames(), loaded.tokenizer, notes=[note])
    return texts


def _together(viewers: list[OnStep]) -> OnStep | None:
    """One callback for several."""

    def on_step(step: int, t: float, x: Tensor) -> None:
        for viewer in viewers:
            viewer(step, t, x)

    return on_step if viewers else None


@dataclass(frozen=True)
class Cut:
    """Samples that are drawn together.

    Attributes:
        first: index of the first; a sample's noise depends on its index alone.
        count: how many.
        length: L.
    """

    first: int
    count: int
    length: int


def cuts(
    loaded: ModelDir, *, count: int, length: int | None = None, batch: int
) -> tuple[list[Cut], list[int]]:
    """How samples are cut into batches of one length each, and the length of every sample.

    Args:
        loaded: the model.
        count: B.
        length: L; None: see `sample`.
        batch: samples drawn together at most.
    """
    lengths = _lengths(loaded, count, length)
    found = [
        Cut(first, min(batch, stop - first), wide)
        for start, stop, wide in _runs(lengths)
        for first in range(start, stop, batch)
    ]
    return found, lengths


def draw_cut(
    loaded: ModelDir, sampler: Sampler, cut: Cut, *, seed: int, on_step: OnStep | None = None
) -> Samples:
    """The samples of a cut."""
    return sampler.sample(
        loaded.model,
        process=loaded.process,
        estimate=loaded.estimate,
        shape=(cut.count, cut.length),
        seed=seed,
        index=cut.first,
        on_step=on_step,
    )


def draw_samples(
    loaded: ModelDir,
    sampler: Sampler,
    *,
    count: int,
    length: int | None = None,
    batch: int,
    seed: int,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Samples:
    """Draw sequences in batches; which batch one is in does not change its noise.

    Args:
        loaded: the model.
        sampler: how.
        count: B.
        length: L; None: see `sample`.
        batch: sequences drawn together.
        seed: of all randomness.
        on_step: watches the first batch.
        progress: show a bar on a terminal.
    """
    parts_of, lengths = cuts(loaded, count=count, length=length, batch=batch)
    parts = []
    total = sum(sampler.calls(cut.length) for cut in parts_of)
    with bar("sampling", total=total, show=progress) as advance:
        for cut in parts_of:
            watching = [on_step] if on_step and cut.first == 0 else []
            each = _together([*watching, lambda *_: advance()])
            parts.append(draw_cut(loaded, sampler, cut, seed=seed, on_step=each))
    fill = (max(lengths), loaded.tokenizer.pad_id)
    return Samples(
        tokens=torch.cat([_padded(part.tokens.cpu(), *fill) for part in parts]),
        nfe=torch.cat([part.nfe for part in parts]).cpu(),
        steps=max(part.steps for part in parts),
        seconds=sum(part.seconds for part in parts),
        rows=torch.cat([part.rows for part in parts]).cpu(),
        lengths=torch.tensor(lengths) if len(set(lengths)) > 1 else None,
    )


def _lengths(loaded: ModelDir, count: int, length: int | None) -> list[int]:
    """Length of each sample: that asked for or trained for, or those of the training documents.

    The documents' lengths are taken at evenly spaced quantiles, the longest first. Documents in
    which the tokenizer finds no token are left out.
    """
    rows = loaded.data.get("row_lengths")  # how many have each length
    if length is not None or rows is None:
        return [length or loaded.model.length] * count
    below = torch.tensor([0, *rows[1:]], dtype=torch.float64).cumsum(0)
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count * below[-1]
    return [int(n) for n in torch.searchsorted(below, quantiles).flip(0)]


def _runs(lengths: list[int]) -> Iterator[tuple[int, int, int]]:
    """Beginning, end and length of each run of equal lengths."""
    start = 0
    for wide, run in groupby(lengths):
        stop = start + len(list(run))
        yield start, stop, wide
        start = stop


def _padded(tokens: Tensor, length: int, pad: int) -> Tensor:
    """Rows ``[B, l]`` filled up to ``[B, length]``."""
    return torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]), value=pad)


def write_samples(
    path: Path, texts: list[str], drawn: Samples, settings: Mapping[str, object]
) -> None:
    """One JSON object a line: text, tokens, network calls, and how it was drawn."""
    rows = drawn.sequences()
    with atomic_write(path) as file:
        for i, text in enumerate(texts):
            record = {
                "text": text,
                "tokens": rows[i].tolist(),
                "nfe": int(drawn.nfe[i]),
                "index": i,
                **settings,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written later.

    Raises:
        ConfigError: if its folder is missing or closed.
    """
    if not path.parent.is_dir():
        raise ConfigError(f"cannot write {path}: there is no directory {path.parent}")
    if not os.access(path.parent, os.W_OK) or path.is_dir():
        raise ConfigError(f"cannot write {path}: choose another file")
