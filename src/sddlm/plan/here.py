"""Measurement of this machine: each operation of a step is run a few times and timed.

A step has hundreds of operations but few different ones, so a second or two suffice. With one
thread the clock is that of the process, so other load on the machine does not count.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sddlm.objectives import Objective
from sddlm.plan.probe import call
from sddlm.plan.trace import Operand, Operation
from sddlm.rng import Draw

#: how often an operation is run at most; after how many seconds it has been run enough; after how
#: many once is enough
_TIMES, _ENOUGH, _LONG = 20, 0.05, 1.0
#: numbers of parameters that stand for all in the optimiser's passes: far more than any cache holds
_SAMPLE = 1 << 24


def memory_here() -> float:
    """Memory of this machine in bytes."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def fastest(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few runs, without the first, which allocates and loads.

    A very long run is the only one.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    best, spent = float("inf"), 0.0
    for turn in range(_TIMES):
        started = clock()
        run()
        took = clock() - started
        spent += took
        if turn or took > _LONG:
            best = min(best, took)
            if spent > _ENOUGH:
                break
    return best


@torch.no_grad()
def operation_seconds(operation: Operation) -> float:
    """Seconds of one run of an operation, on operands of its shapes."""
    args, kwargs = tree_map(_made, (operation.args, operation.kwargs))
    return fastest(lambda: operation.function(*args, **kwargs))


def _made(value: Any) -> Any:
    """Make a tensor for an operand: normal numbers, known indices, or zeros."""
    if not isinstance(value, Operand):
        return value
    if value.numbers is not None:
        return value.numbers
    places = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride, strict=True) if n)
    made = torch.zeros(places, dtype=value.dtype)
    if made.is_floating_point():
        made.normal_()
    return made.as_strided(value.shape, value.stride)


def step_seconds(operations: list[Operation]) -> dict[str, float]:
    """Seconds of all operations of a micro-batch, by kind."""
    seconds = {"products": 0.0, "attention": 0.0, "other passes": 0.0}
    with torch.random.fork_rng(devices=[]):
        for operation in operations:
            kind = "products" if operation.flops else "other passes"
            if "attention" in operation.function.__name__:
                kind = "attention"
            seconds[kind] += operation.count * operation_seconds(operation)
    return seconds


def noise_seconds(objective: Objective, vocab_size: int, length: int, batch: int) -> float:
    """Seconds in which an objective samples the noise of a micro-batch and selects its rows."""
    draw = Draw.simple(0, 0, batch)
    return fastest(lambda: call(objective, vocab_size, length, draw))


def update_seconds(parameters: int) -> float:
    """Seconds of clipping, AdamW and averaging, as ``sddlm train`` does them."""
    size = min(parameters, _SAMPLE)
    with torch.random.fork_rng(devices=[]):
        weight = torch.nn.Parameter(torch.randn(size))
        weight.grad = torch.randn(size)
    average: list[Tensor] = [weight.detach().clone()]
    optimizer = torch.optim.AdamW([weight], lr=1e-6, fused=True)

    def update() -> None:
        torch.nn.utils.clip_grad_norm_([weight], 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, [weight], 0.5)

    return fastest(update) * parameters / size
