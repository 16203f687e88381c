"""The verb ``sddlm sample``: text from a model directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

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
) -> Sampler:
    """The library's sampler for a kind of model: lazy for diffusion, left to right else.

    Args:
        estimate: what the model's output means.
        tokenizer: an autoregressive model begins at its end-of-text token.
        steps: of a diffusion sampler.
        tail: of a diffusion sampler.
        truncation: of every prediction.
    """
    truncation = truncation or Truncation()
    if estimate.diffusion:
        return Lazy(steps, tail, truncation)
    return Autoregressive(truncation, tokenizer.eos_id)


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
        length: tokens of a sample; default: the length that the model was trained for.
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
        loaded.estimate, loaded.tokenizer, steps=steps, tail=tail, truncation=truncation
    )
    settings = {
        "steps": steps, "seed": seed, "temperature": temperature, "top_p": top_p,
        "tail_cut": tail_cut, "tail": tail,
    }  # fmt: skip
    shape = (count, length or loaded.model.length)
    with ExitStack() as views:
        recorder = Recorder(samples=4) if html else None
        viewers: list[OnStep] = [recorder] if recorder else []
        if watch:
            viewers.append(views.enter_context(demo_terminal.watch(loaded.tokenizer, steps=steps)))
        drawn = draw_samples(
            loaded,
            sampler,
            shape,
            batch=batch,
            seed=seed,
            on_step=_together(viewers),
            progress=not watch,
        )
    texts = loaded.tokenizer.decode_batch(drawn.tokens.tolist())
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


def draw_samples(
    loaded: ModelDir,
    sampler: Sampler,
    shape: tuple[int, int],
    *,
    batch: int,
    seed: int,
    on_step: OnStep | None = None,
    progress: bool = True,
) -> Samples:
    """Draw ``shape[0]`` sequences in batches; which batch one is in does not change its noise.

    Args:
        loaded: the model.
        sampler: how.
        shape: (B, L).
        batch: sequences drawn together.
        seed: of all randomness.
        on_step: watches the first batch.
        progress: show a bar on a terminal.
    """
    parts = []
    firsts = range(0, shape[0], batch)
    total = sampler.calls(shape[1]) * len(firsts)
    with bar("sampling", total=total, show=progress) as advance:
        for first in firsts:
            watching = [on_step] if on_step and first == 0 else []
            part = sampler.sample(
                loaded.model,
                process=loaded.process,
                estimate=loaded.estimate,
                shape=(min(batch, shape[0] - first), shape[1]),
                seed=seed,
                first_index=first,
                on_step=_together([*watching, lambda *_: advance()]),
            )
            parts.append(part)
    return Samples(
        tokens=torch.cat([part.tokens for part in parts]).cpu(),
        nfe=torch.cat([part.nfe for part in parts]).cpu(),
        steps=parts[0].steps,
        seconds=sum(part.seconds for part in parts),
        rows=torch.cat([part.rows for part in parts]).cpu(),
    )


def write_samples(
    path: Path, texts: list[str], drawn: Samples, settings: Mapping[str, object]
) -> None:
    """One JSON object a line: text, tokens, network calls, and how it was drawn."""
    with atomic_write(path) as file:
        for i, text in enumerate(texts):
            record = {
                "text": text,
                "tokens": drawn.tokens[i].tolist(),
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
