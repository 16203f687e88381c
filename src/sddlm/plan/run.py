"""The verb ``sddlm plan``: estimate the cost of a training from its options."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from math import ceil
from pathlib import Path
from typing import Any, Literal

from sddlm.data.args import DataArgs
from sddlm.errors import ConfigError, check_arguments
from sddlm.io import atomic_write
from sddlm.models.config import ModelArgs
from sddlm.objectives import SDDLM, Objective
from sddlm.plan import here, probe, report, sizes
from sddlm.plan.cost import CostModel
from sddlm.plan.devices import HERE, Device, find_device
from sddlm.plan.memory import Strategy
from sddlm.progress import PlainConsole
from sddlm.training.args import TrainArgs, micro_batch

_DATA, _MODEL, _OBJECTIVE, _TRAIN = DataArgs(), ModelArgs(), SDDLM(), TrainArgs()

#: default share of a GPU's published rate, as large dense transformers commonly reach
UTILIZATION = 0.4
#: usable share of a device's memory: the rest is for the driver and fragmentation
ROOM = 0.9
#: devices in the table beside those asked for
SCALE = (1, 8, 64, 512)


@dataclass(frozen=True)
class Plan:
    """All figures of a plan: bytes, seconds, FLOPs."""

    device: str  # its name, or ``here``
    devices: int
    strategy: Strategy
    bf16: bool  # products in bfloat16
    utilization: float | None  # share of the published rate; None where it was measured
    vocab_size: int  # V of the network
    batch: int  # sequences in a step
    length: int  # L
    micro_batch: int  # sequences in a forward pass
    accumulate: int  # forward passes in a step on each device
    largest: int | None  # micro-batch that fits; None if not even one sequence does
    steps: int
    tokens: float  # seen in the run
    epochs: float | None  # how often the text is seen; None if its size is not known
    parameters: dict[str, int]  # by part, and ``all``
    asked: dict[str, Any]  # what the objective asks of the network (`probe.Asked`)
    flops: dict[str, float]  # of a ``token``, by part; of a ``step`` and the ``run``
    memory: dict[str, float]  # of a device by part, ``all`` of it, and what the device ``has``
    fits: bool
    seconds: dict[str, float]  # of a ``step`` on all devices; measured, also by part
    scaling: list[dict[str, float]]  # for other numbers of devices
    disk: dict[str, float]  # files by name


@check_arguments
def plan(
    data: DataArgs = _DATA,
    model: ModelArgs = _MODEL,
    objective: Objective = _OBJECTIVE,
    train: TrainArgs = _TRAIN,
    seed: int = 0,
    json: str | None = None,
    device: str = "auto",
    devices: int | Literal["auto"] = "auto",
    utilization: float | None = None,
    strategy: Strategy = "ddp",
    tokens: float | None = None,
    vocab_size: int | None = None,
) -> Plan:
    """Estimate memory, time and GPU-hours of a training run.

    Args:
        data: text and tokenizer; neither is read or downloaded.
        model: size of the network.
        objective: the training objective.
        train: steps, batch, precision, checkpointing.
        seed: seed of the training; no effect here.
        json: file for all figures, as JSON.
        device: a100-40, a100-80, h100-sxm, h100-pcie, h200, b200, mi300x, l40s, l4, rtx-4090,
            rtx-3090, with the makers' rates; here: this machine's CPU, measured; auto: this
            machine's GPU, else here.
        devices: number of devices; auto: that of the training, else 1.
        utilization: share of the published rate that is reached; default 0.4.
        strategy: ddp, the whole network on each device, as sddlm train does; fsdp, a share of it.
        tokens: length of the run in tokens instead of train.steps.
        vocab_size: tokens of a tokenizer that is not known without reading or downloading.

    Returns:
        every figure.

    Raises:
        ConfigError: a value cannot be used.
    """
    made = make_plan(
        data, model, objective, train, device=device, devices=devices, utilization=utilization,
        strategy=strategy, tokens=tokens, vocab_size=vocab_size,
    )  # fmt: skip
    if json is not None:
        _write(Path(json), made)
    PlainConsole().print(report.table(made))
    return made


@check_arguments
def make_plan(
    data: DataArgs,
    model: ModelArgs,
    objective: Objective,
    train: TrainArgs,
    *,
    device: str = "auto",
    devices: int | Literal["auto"] = "auto",
    utilization: float | None = None,
    strategy: Strategy = "ddp",
    tokens: float | None = None,
    vocab_size: int | None = None,
) -> Plan:
    """Compute a `Plan` without printing it; see `plan`."""
    rates = find_device(device)
    world = _world(devices, train, rates)
    share = _utilization(utilization, rates)
    if strategy not in ("ddp", "fsdp"):
        raise ConfigError(f"`strategy` is {strategy}, must be ddp or fsdp")
    if tokens is not None and not tokens > 0:
        raise ConfigError(f"`tokens` is {tokens}, must be above 0, such as 1e9")
    V = sizes.vocabulary(data, vocab_size)
    corpus = sizes.prepared(data, V)
    extra = objective.process.extra_tokens
    config = model.build(
        vocab_size=V + extra, length=data.length, causal=objective.causal, num_extra_tokens=extra
    )
    train = _whole_run(train, data.length, tokens)
    costs = CostModel(config, probe.set_up(objective, V + extra), train, rates, world, strategy)
    size = micro_batch(train, world)
    parts = costs.memory(size)
    has = here.memory_here() if rates is None else rates.memory
    room = ROOM * has
    work = costs.work(size)
    seconds = costs.seconds(size, share)
    seen = float(train.steps * train.batch * data.length)
    return Plan(
        device=HERE if rates is None else rates.name,
        devices=world,
        strategy=strategy,
        bf16=costs.bf16,
        utilization=share,
        vocab_size=config.vocab_size,
        batch=train.batch,
        length=data.length,
        micro_batch=size,
        accumulate=train.batch // world // size,
        largest=costs.largest(room),
        steps=train.steps,
        tokens=seen,
        epochs=None if corpus is None else seen / corpus[0],
        parameters=costs.parameters,
        asked=asdict(costs.asked),
        flops=work
        | {"step": work["token"] * train.batch * data.length, "run": work["token"] * seen},
        memory={**parts, "all": sum(parts.values()), "has": has},
        fits=sum(parts.values()) <= room,
        seconds=seconds,
        scaling=_scaling(seconds["step"] * world, train, seen, world, alone=rates is None),
        disk=sizes.disk(costs.parameters["all"], corpus, V),
    )


Recipe = tuple[str, DataArgs, ModelArgs, Objective, TrainArgs]


def recipe_table(
    recipes: Iterable[Recipe], device: str = "h100-sxm", devices: int = 8, **more: Any
) -> str:
    """Markdown table with a row for each recipe.

    Args:
        recipes: name and options of each recipe: data, model, objective, train.
        device: see `plan`.
        devices: number of devices.
        more: further options of `plan`.
    """
    return report.markdown(
        (name, make_plan(data, model, objective, train, device=device, devices=devices, **more))
        for name, data, model, objective, train in recipes
    )


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


def _whole_run(train: TrainArgs, length: int, tokens: float | None) -> TrainArgs:
    if tokens is None:
        return train
    return replace(train, steps=ceil(tokens / (train.batch * length)))


def _scaling(
    seconds: float, train: TrainArgs, tokens: float, world: int, *, alone: bool
) -> list[dict[str, float]]:
    """Time on other numbers of devices with perfect scaling; ``seconds`` of a step on one."""
    rows = []
    for count in sorted({world} if alone else {world, *SCALE}):
        if train.batch % count:
            continue
        run = seconds * train.steps / count
        rows.append({"devices": count, "tokens_per_second": tokens / run,
                     "days": run / 86400, "device_hours": run * count / 3600})  # fmt: skip
    return rows


def _write(path: Path, made: Plan) -> None:
    from json import dumps  # elsewhere the name is an option's

    try:
        with atomic_write(path) as file:
            file.write(dumps(asdict(made), indent=2) + "\n")
    except OSError as error:
        raise ConfigError(f"cannot write to `json` {path}: {error.strerror}") from error
