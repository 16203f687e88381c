"""The verb ``sddlm plan``: estimate the cost of a training run from its options."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any

import torch

from sddlm.data.cache import damage
from sddlm.data.config import DataArgs
from sddlm.data.rows import token_dtype
from sddlm.data.texts import is_remote, known_source
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import SDDLM, Objective
from sddlm.plan.cost import CostModel
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs, micro_batch
from sddlm.training.ema import EMA
from sddlm.training.module import TrainModule
from sddlm.training.optimizers import Update

#: by the makers' data sheets: TFLOP/s in bf16 (dense, sums in float32) and in fp32 (without TF32,
#: as torch does by default), and GB, powers of ten
DEVICES = {
    "a100-40": (312, 19.5, 40),
    "a100-80": (312, 19.5, 80),
    "h100-pcie": (756, 51, 80),
    "h100-sxm": (989, 67, 80),
    "h200": (989, 67, 141),
    "b200": (2250, 75, 180),
    "mi300x": (1307, 163.4, 192),
    "l40s": (362, 91.6, 48),
    "l4": (121, 30.3, 24),
    "rtx-4090": (165, 82.6, 24),
    "rtx-3090": (71, 35.6, 24),
}
#: usable share of a device's memory: the rest is for the driver and fragmentation
ROOM = 0.9
#: number of tokens by tokenizer; those of the hub without their owner, as nothing is downloaded
VOCABULARIES = {"bytes": 257, "gpt2": 50257, "bert-base-uncased": 30522, "TinyLlama_v1.1": 32000}
#: FLOPs of a measured forward and backward pass, at most: seconds on a core
_MEASURED = 5e11


@dataclass(frozen=True)
class Plan:
    """Cost of a training run; ``print`` shows all figures.

    Attributes:
        device: number and name of the devices.
        utilization: share of the published rate; None where steps were measured.
        parameters: number by part, and ``all``.
        steps: optimiser steps.
        tokens: tokens seen in the run.
        epochs: number of times that the text is seen; None if it has not been prepared.
        token_flops: FLOPs of a token by part, and ``all``.
        run_flops: FLOPs of the run.
        memory: peak bytes of a device by part, and ``all``.
        fits: whether they are at most nine tenths of those that it has.
        micro_batch: sequences in a forward pass on a device.
        largest_micro_batch: the largest that fits; None if not even one sequence does.
        step_seconds: seconds of a step; None on this machine if it does not fit.
        hours: hours of the run, without validation, previews, checkpoints and communication.
        device_hours: hours of the run times number of devices.
        disk: bytes of the files by kind; without the tokens if the text has not been prepared.
    """

    device: str
    utilization: float | None
    parameters: dict[str, int]
    steps: int
    tokens: int
    epochs: float | None
    token_flops: dict[str, float]
    run_flops: float
    memory: dict[str, float]
    fits: bool
    micro_batch: int
    largest_micro_batch: int | None
    step_seconds: float | None
    hours: float | None
    device_hours: float | None
    disk: dict[str, float]

    def __str__(self) -> str:
        lines = []
        for name, value in asdict(self).items():
            unit = "B" if name in ("memory", "disk") else ""
            if isinstance(value, dict):
                value = ", ".join(f"{part} {short(n, unit)}" for part, n in value.items() if n)
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                value = short(value)
            lines.append(f"{name.replace('_', ' '):<20} {value}\n")
        return "".join(lines)


def short(value: float, unit: str = "") -> str:
    """Format a number with three digits and a prefix: ``1.03 G``."""
    for power, prefix in zip(range(24, 0, -3), "YZEPTGMk", strict=True):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


@check_arguments
def make_plan(
    data: DataArgs = DataArgs(),
    model: ModelArgs = ModelArgs(),
    objective: Objective = SDDLM(),
    train: TrainArgs = TrainArgs(),
    device: str = "here",
    utilization: float = 0.4,
    tokens: float | None = None,
    vocab_size: int | None = None,
) -> Plan:
    """Estimate memory, time and GPU-hours of a training run.

    Args:
        data: text and tokenizer; neither is read or downloaded.
        model: size of the network.
        objective: the training objective.
        train: steps, batch, devices, precision, checkpointing.
        device: here, this machine's CPU, whose steps are measured; or by the maker's rate a100-40,
            a100-80, h100-pcie, h100-sxm, h200, b200, mi300x, l40s, l4, rtx-4090, rtx-3090.
        utilization: share of that rate that is reached.
        tokens: length of the run in tokens instead of train.steps.
        vocab_size: tokens of a tokenizer that is not known without reading or downloading.

    Returns:
        every figure.

    Raises:
        ConfigError: a value cannot be used.
    """
    world = 1 if train.devices == "auto" else train.devices
    if device not in ("here", *DEVICES):
        raise ConfigError(f"`device` is {device!r}, must be here or one of {', '.join(DEVICES)}")
    if device == "here" and world > 1:
        raise ConfigError(f"`train.devices` is {world}, but here is one machine: name a `device`")
    if not 0 < utilization <= 1:
        raise ConfigError(f"`utilization` is {utilization}, must be above 0, at most 1")
    if tokens is not None:
        if not 0 < tokens < 1e20:
            raise ConfigError(f"`tokens` is {tokens}, must be above 0 and below 1e20")
        train = replace(train, steps=ceil(tokens / (train.batch * data.length)))
    V, extra = _vocabulary(data, vocab_size), objective.process.extra_tokens
    config = model.build(
        vocab_size=V + extra, length=data.length, causal=objective.causal, num_extra_tokens=extra
    )
    gpu, size, share = DEVICES.get(device), micro_batch(train, world), train.batch // world
    costs = CostModel(config, objective, train, size, gpu=gpu is not None)
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    room, memory, seconds = ROOM * (gpu[2] * 1e9 if gpu else here), costs.memory(size, world), None
    sizes = (n for n in range(share, 0, -1) if share % n == 0)
    if gpu:
        rate = gpu[0 if costs.bf16 else 1] * 1e12
        seconds = costs.flops["all"] * share * data.length / (utilization * rate)
    elif memory["all"] <= room:
        seconds = _measured_step(costs)
    hours = None if seconds is None else seconds * train.steps / 3600
    seen, text = train.steps * train.batch * data.length, _prepared_tokens(data, V)
    # weights, average and optimiser in float32; the last two checkpoints, and one being written
    files = {"checkpoints": 3 * 4.0 * (2 * costs.parameters["all"] + costs.states)}
    files["model"] = 4.0 * costs.parameters["all"]
    files["tokens"] = float((text or 0) * token_dtype(V).itemsize)
    return Plan(
        device=f"{world} x {device}",
        utilization=utilization if gpu else None,
        parameters=costs.parameters,
        steps=train.steps,
        tokens=seen,
        epochs=None if text is None else seen / text,
        token_flops=costs.flops,
        run_flops=costs.flops["all"] * seen,
        memory=memory,
        fits=memory["all"] <= room,
        micro_batch=size,
        largest_micro_batch=next((n for n in sizes if costs.memory(n, world)["all"] <= room), None),
        step_seconds=seconds,
        hours=hours,
        device_hours=None if hours is None else hours * world,
        disk={**files, "all": sum(files.values())},
    )


def _measured_step(costs: CostModel) -> float:
    """Measure the seconds of an optimiser step on this machine's CPU.

    Three real steps are run: one that allocates, and one each at a quarter and three quarters of
    the run, because curricula change the work. A large micro-batch is measured on a part of its
    sequences. With one thread the clock is that of the process, so other load hardly counts.
    """
    config, args = costs.config, costs.args
    count = max(1, min(costs.size, int(_MEASURED / (costs.flops["all"] * config.length))))
    part = replace(args, batch=count, micro_batch=None)
    module = TrainModule(DiT(config), costs.objective, part, seed=0)
    update, average = Update(module.model, args), EMA(module.model)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    clean, slots, seconds = config.vocab_size - config.num_extra_tokens, torch.arange(count), []
    for quarter in (1, 1, 3):
        step = quarter * args.steps // 4
        x0 = Draw(0, step, slots, count).integers("plan", config.length, high=clean)  # [B, L]
        started = clock()
        with torch.autocast("cpu", torch.bfloat16, enabled=costs.bf16, cache_enabled=False):
            loss = module({"step": torch.tensor([step]), "slot": slots, "x0": x0})
        loss.backward()
        half = clock()
        update.step(step)
        average.update(args.ema_decay(step))
        seconds.append(args.batch / count * (half - started) + clock() - half)
    return sum(seconds[1:]) / 2


def _vocabulary(data: DataArgs, given: int | None) -> int:
    """V, without reading a text or asking the hub."""
    name = data.tokenizer
    if given is not None:
        return given
    if name not in ("bpe", "bytes") and Path(name).exists():
        return Tokenizer.load(name).vocab_size
    if known := {**VOCABULARIES, "bpe": data.vocab_size}.get(name.rpartition("/")[2]):
        return known
    raise ConfigError(
        f"`data.tokenizer` {name}: how many tokens it has is not known before it is made or "
        "downloaded; give it as `vocab_size`"
    )


def _prepared_tokens(data: DataArgs, vocab_size: int) -> int | None:
    """Number of training tokens in the cache, of any tokenizer of that size; None if not there."""
    folders = sorted(data.cache_folder.glob("tokens-*"), key=os.path.getmtime)
    metas = [json.loads((f / "meta.json").read_text("utf-8")) for f in folders if not damage(f)]
    total = 0
    for name in data.sources:
        wanted: dict[str, Any] = {"vocab_size": vocab_size, "name": name, "limit": data.limit}
        if not is_remote(data, name):  # many files have the same name
            text = known_source(data, name)
            wanted = {"vocab_size": vocab_size, "text": text and text.key}
        found = [meta for meta in metas if wanted.items() <= meta.items()]
        if not found:
            return None
        total += found[-1]["splits"]["train"]["tokens"]
    return total
