"""The verb ``sddlm plan``: estimate the cost of a training run from its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from json import dumps
from math import ceil
from textwrap import fill
from typing import Literal

from sddlm.data.config import DataArgs
from sddlm.data.rows import token_dtype
from sddlm.errors import ConfigError, check_arguments
from sddlm.io import atomic_write
from sddlm.models.config import ModelArgs
from sddlm.objectives import SDDLM, Objective
from sddlm.plan.cost import CostModel
from sddlm.plan.devices import HERE, Device, find_device, measured_step, memory_here
from sddlm.plan.sizes import prepared, vocabulary
from sddlm.training.args import TrainArgs, micro_batch

#: default share of a GPU's published rate, as large dense transformers commonly reach
UTILIZATION = 0.4
#: usable share of a device's memory: the rest is for the driver and fragmentation
ROOM = 0.9


@dataclass(frozen=True)
class Plan:
    """Cost of a training run; ``print`` shows all figures.

    Attributes:
        device: name of the device, or ``here``.
        devices: number of devices.
        utilization: share of the published rate; None where the step was measured.
        bf16: whether the matrix products are in bfloat16.
        steps: optimiser steps.
        batch: sequences in a step.
        length: L.
        micro_batch: sequences in a forward pass on a device.
        largest: the largest micro-batch that fits; None if not even one sequence does.
        tokens: tokens seen in the run.
        epochs: number of times that the text is seen; None if it has not been prepared.
        vocab_size: V of the network.
        parameters: number by part, and ``all``.
        head: share of the positions that meet the vocabulary.
        flops: FLOPs of a token by part, and ``all``.
        run_flops: FLOPs of the run.
        memory: peak bytes of a device by part, and ``all``.
        device_memory: bytes that a device has.
        fits: whether the peak is at most nine tenths of them.
        step_seconds: seconds of a step; None on this machine if the step does not fit.
        days: days of the run.
        device_hours: hours of the run times number of devices.
        disk: bytes of the files by kind.
    """

    device: str
    devices: int
    utilization: float | None
    bf16: bool
    steps: int
    batch: int
    length: int
    micro_batch: int
    largest: int | None
    tokens: float
    epochs: float | None
    vocab_size: int
    parameters: dict[str, int]
    head: float
    flops: dict[str, float]
    run_flops: float
    memory: dict[str, float]
    device_memory: float
    fits: bool
    step_seconds: float | None
    days: float | None
    device_hours: float | None
    disk: dict[str, float]

    def __str__(self) -> str:
        where = "this machine" if self.utilization is None else f"{self.devices} x {self.device}"
        total = self.parameters["all"]
        lines = [f"{short(total)} parameters, {short(self.tokens)} tokens, {where}", ""]
        lines += [f"{name:<20} {value:>12}  {more}".rstrip() for name, value, more in self._rows()]
        return "\n".join([*lines, "", *(fill(note, 100) for note in self._notes())]) + "\n"

    def _rows(self) -> list[tuple[str, str, str]]:
        """Name, value and parts of each figure."""
        text = "the text is not prepared" if self.epochs is None else f"{self.epochs:.3g} epochs"
        accumulated = self.batch // self.devices // self.micro_batch
        largest = "none" if self.largest is None else str(self.largest)
        rows = [
            ("parameters", f"{self.parameters['all']:,}", _parts(self.parameters)),
            ("tokens", short(self.tokens),
             f"{self.steps:,} steps of {self.batch} x {self.length}; {text}"),
            ("FLOPs of a token", short(self.flops["all"]), _parts(self.flops)),
            ("FLOPs of the run", short(self.run_flops),
             f"{self.head:.0%} of the positions meet the vocabulary"),
            ("memory of a device", short(self.memory["all"], "B"), _parts(self.memory, "B")),
            ("", "fits" if self.fits else "DOES NOT FIT",
             f"in {short(self.device_memory, 'B')}; micro-batch {self.micro_batch}, {accumulated} "
             f"in a step; largest that fits: {largest}"),
        ]  # fmt: skip
        if self.step_seconds is not None and self.days is not None:
            days = "days" if self.days >= 2 else "hours"
            took = self.days if self.days >= 2 else 24 * self.days
            rows += [
                ("seconds of a step", f"{self.step_seconds:.3g}",
                 f"{short(self.batch * self.length / self.step_seconds)} tokens/s"),
                ("time", f"{took:,.3g} {days}", f"{short(self.device_hours or 0)} device-hours"),
            ]  # fmt: skip
        return [*rows, ("disk", short(sum(self.disk.values()), "B"), _parts(self.disk, "B"))]

    def _notes(self) -> list[str]:
        """Assumptions of the figures."""
        left_out = "Validation, previews, checkpoints and loading are left out"
        if self.utilization is not None:
            rate = "bf16" if self.bf16 else "fp32"
            time = (
                f"Time: FLOPs at {self.utilization:.0%} of the published {rate} rate, an "
                f"assumption that `utilization` changes. {left_out}, as is communication."
            )
        elif self.fits:
            time = f"Time: real steps were measured on this machine. {left_out}."
        else:
            time = "Time: not measured, because a step does not fit."
        unknown = "Disk: without the tokens of the text." if self.epochs is None else ""
        return [note for note in (time, unknown) if note]


def short(value: float, unit: str = "") -> str:
    """Format a number with three digits and a prefix: ``1.03 G``."""
    for power, prefix in zip(range(24, 0, -3), "YZEPTGMk", strict=True):
        if value >= 10**power:
            return f"{value / 10**power:.3g} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def _parts(figures: Mapping[str, float], unit: str = "") -> str:
    """List the parts that are not zero, largest first."""
    named = sorted(figures.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {short(n, unit)}" for name, n in named if n and name != "all")


@check_arguments
def make_plan(
    data: DataArgs = DataArgs(),
    model: ModelArgs = ModelArgs(),
    objective: Objective = SDDLM(),
    train: TrainArgs = TrainArgs(),
    json: str | None = None,
    device: str = "auto",
    devices: int | Literal["auto"] = "auto",
    utilization: float | None = None,
    tokens: float | None = None,
    vocab_size: int | None = None,
) -> Plan:
    """Estimate memory, time and GPU-hours of a training run.

    Args:
        data: text and tokenizer; neither is read or downloaded.
        model: size of the network.
        objective: the training objective.
        train: steps, batch, precision, checkpointing.
        json: file for all figures, as JSON.
        device: a100-40, a100-80, h100-pcie, h100-sxm, h200, b200, mi300x, l40s, l4, rtx-4090,
            rtx-3090, with the makers' rates; here: this machine's CPU, measured; auto: this
            machine's GPU, else here.
        devices: number of devices; auto: that of the training, else 1.
        utilization: share of the published rate that is reached; default 0.4.
        tokens: length of the run in tokens instead of train.steps.
        vocab_size: tokens of a tokenizer that is not known without reading or downloading.

    Returns:
        every figure.

    Raises:
        ConfigError: a value cannot be used.
    """
    rates = find_device(device)
    world = _world(devices, train, rates)
    utilization = _utilization(utilization, rates)
    if tokens is not None:
        if not tokens > 0:
            raise ConfigError(f"`tokens` is {tokens}, must be above 0, such as 1e9")
        train = replace(train, steps=ceil(tokens / (train.batch * data.length)))
    V = vocabulary(data, vocab_size)
    text = prepared(data, V)
    extra = objective.process.extra_tokens
    config = model.build(
        vocab_size=V + extra, length=data.length, causal=objective.causal, num_extra_tokens=extra
    )
    costs = CostModel(config, objective, train, gpu=rates is not None)
    size, share = micro_batch(train, world), train.batch // world
    memory, room = costs.memory(size, world), ROOM * (rates.memory if rates else memory_here())
    fitting = (n for n in range(share, 0, -1) if share % n == 0)
    flops, seen = costs.flops(), float(train.steps * train.batch * data.length)
    seconds = None
    if rates is not None and utilization is not None:
        peak = rates.bf16 if costs.bf16 else rates.fp32
        seconds = flops["all"] * share * data.length / (utilization * peak)
    elif memory["all"] <= room:
        seconds = measured_step(costs, size)
    run = None if seconds is None else seconds * train.steps
    made = Plan(
        device=HERE if rates is None else rates.name,
        devices=world,
        utilization=utilization,
        bf16=costs.bf16,
        steps=train.steps,
        batch=train.batch,
        length=data.length,
        micro_batch=size,
        largest=next((n for n in fitting if costs.memory(n, world)["all"] <= room), None),
        tokens=seen,
        epochs=None if text is None else seen / text[0],
        vocab_size=config.vocab_size,
        parameters=costs.parameters,
        head=costs.calls.head,
        flops=flops,
        run_flops=flops["all"] * seen,
        memory=memory,
        device_memory=rates.memory if rates else memory_here(),
        fits=memory["all"] <= room,
        step_seconds=seconds,
        days=None if run is None else run / 86400,
        device_hours=None if run is None else run * world / 3600,
        disk=costs.disk(text, token_dtype(V).itemsize),
    )
    if json is not None:
        _write(json, made)
    return made


def _world(devices: int | Literal["auto"], train: TrainArgs, device: Device | None) -> int:
    chosen = train.devices if devices == "auto" else devices
    world = 1 if chosen == "auto" else chosen
    if world < 1:
        raise ConfigError(f"`devices` is {world}, must be at least 1")
    if device is None and world > 1:
        raise ConfigError(f"`devices` is {world}, but here is one machine: give `device` a name")
    return world


def _utilization(given: float | None, device: Device | None) -> float | None:
    if device is None:
        if given is not None:
            raise ConfigError("`utilization` has no meaning for `device` here, which is measured")
        return None
    share = UTILIZATION if given is None else given
    if not 0 < share <= 1:
        raise ConfigError(f"`utilization` is {given}, must be above 0, at most 1, such as 0.4")
    return share


def _write(path: str, made: Plan) -> None:
    try:
        with atomic_write(path) as file:
            file.write(dumps(asdict(made), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write to `json` {path}: {error.strerror}") from error
