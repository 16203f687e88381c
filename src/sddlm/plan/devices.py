"""Devices of a plan: GPUs with their published rates, and this machine's CPU, which is measured."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace

import torch

from sddlm.errors import ConfigError
from sddlm.models.dit import DiT
from sddlm.plan.cost import CostModel
from sddlm.rng import Draw
from sddlm.training.ema import EMA
from sddlm.training.module import TrainModule
from sddlm.training.optimizers import Update

#: the machine that plans
HERE = "here"
#: FLOPs of a measured forward and backward pass, at most: seconds on a core
_MEASURED = 5e11


@dataclass(frozen=True)
class Device:
    """A GPU as published; dense rates, without sparsity.

    Attributes:
        name: name of the option.
        bf16: matrix products with sums in float32, FLOP/s.
        fp32: without TF32, as torch does by default, FLOP/s.
        memory: bytes (powers of ten, slightly less than the device has).
        driver: words in the name that its driver reports.
    """

    name: str
    bf16: float
    fp32: float
    memory: float
    driver: str


def _row(name: str, bf16: float, fp32: float, gigabytes: float, driver: str) -> Device:
    return Device(name, bf16 * 1e12, fp32 * 1e12, gigabytes * 1e9, driver)


DEVICES = {
    device.name: device
    for device in (
        _row("a100-40", 312, 19.5, 40, "A100 40GB"),
        _row("a100-80", 312, 19.5, 80, "A100"),
        _row("h100-pcie", 756, 51, 80, "H100 PCIe"),
        _row("h100-sxm", 989, 67, 80, "H100"),
        _row("h200", 989, 67, 141, "H200"),
        _row("b200", 2250, 75, 180, "B200"),
        _row("mi300x", 1307, 163.4, 192, "MI300X"),
        _row("l40s", 362, 91.6, 48, "L40S"),
        _row("l4", 121, 30.3, 24, "L4"),
        _row("rtx-4090", 165, 82.6, 24, "4090"),
        _row("rtx-3090", 71, 35.6, 24, "3090"),
    )
}
"""TFLOP/s in bf16 and fp32 and GB, from the makers' data sheets; the first whose words fit counts
for a driver's name."""


def find_device(name: str) -> Device | None:
    """Find a device by name; None is this machine, whose speed is measured.

    Args:
        name: a key of `DEVICES`, ``here``, or ``auto``: this machine's GPU, else ``here``.

    Raises:
        ConfigError: the name is not in the table.
    """
    if name == "auto":
        if not torch.cuda.is_available():
            return None
        return _of_driver(torch.cuda.get_device_name())
    if name == HERE:
        return None
    if name not in DEVICES:
        raise ConfigError(
            f"`device` is {name!r}, must be one of {', '.join(DEVICES)}, or {HERE}, which "
            "measures this machine's CPU"
        )
    return DEVICES[name]


def _of_driver(name: str) -> Device | None:
    """Device of a name that a driver reports."""
    fit = (d for d in DEVICES.values() if all(word in name for word in d.driver.split()))
    return next(fit, None) or find_device(name)


def memory_here() -> float:
    """Memory of this machine in bytes."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def measured_step(costs: CostModel, size: int) -> float:
    """Seconds of an optimiser step on this machine's CPU, measured on steps of the real network.

    Three steps are run: one that allocates, and one each at a quarter and three quarters of the
    run, because curricula change the work. A large micro-batch is measured on a part of its
    sequences. With one thread the clock is that of the process, so other load hardly counts.

    Args:
        costs: network, objective and training.
        size: sequences in a micro-batch.
    """
    config, args = costs.config, costs.args
    count = max(1, min(size, int(_MEASURED / (costs.flops()["all"] * config.length))))
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
