"""Bytes by part, their division, and the heap of the C library."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from typing import Any

import pytest

from sddlm.models.config import DiTConfig
from sddlm.objectives import NELBO, SDDLM
from sddlm.plan.memory import MIB, Heap, gpu_head, on_device, resident
from sddlm.plan.probe import largest
from sddlm.plan.trace import Step, Tracer

V, L, B, D = 307, 24, 8, 64
CONFIG = DiTConfig(vocab_size=V, length=L, width=D, blocks=1, heads=2)
TOTAL, UNIT = 1_000_000, 100_000


@cache
def traced() -> Step:
    return Tracer(CONFIG, "none", bf16=True).step(largest(SDDLM(), V, L, B, B))


def parts(world: int, strategy: Any) -> dict[str, int]:
    step = traced()
    return on_device(
        step, TOTAL, UNIT, world=world, strategy=strategy, bf16=True, in_head=step.in_head
    )


def test_ddp_has_all_on_each_device() -> None:
    one, eight = parts(1, "ddp"), parts(8, "ddp")
    assert (one["weights"], one["AdamW"], one["EMA"]) == (4 * TOTAL, 8 * TOTAL, 4 * TOTAL)
    assert eight == one | {"to send": 4 * TOTAL}


@pytest.mark.parametrize("world", [2, 8, 64])
def test_fsdp_divides_what_lasts(world: int) -> None:
    found = parts(world, "fsdp")
    assert found["weights"] == found["gradients"] == found["EMA"] == 4 * TOTAL / world
    assert found["AdamW"] == 8 * TOTAL / world
    assert found["gathered"] == UNIT * (2 * 2 + 4)
    assert found["activations"] == parts(2 * world, "fsdp")["activations"] > 0


def test_fsdp_on_one_device_is_no_fsdp() -> None:
    assert parts(1, "fsdp") == parts(1, "ddp")


def test_the_end_of_the_step_counts_where_activations_are_few() -> None:
    """All gradients are there when the optimiser begins."""
    assert sum(parts(1, "ddp").values()) >= 20 * TOTAL


def test_gradients_of_earlier_micro_batches_lie_beside_the_activations() -> None:
    step = Tracer(CONFIG, "none", bf16=False).step(largest(SDDLM(), V, L, B, B), again=True)
    own = step.earlier // 4
    found = on_device(step, own, own, world=1, strategy="ddp", bf16=False, in_head=step.in_head)
    assert found["gradients"] == 4 * own
    assert sum(found.values()) >= 20 * own + step.kept


def test_a_chunk_of_logits_on_a_gpu() -> None:
    vocab, width = 50_304, 64
    config = DiTConfig(vocab_size=vocab, length=1024, width=width, blocks=1, heads=2)
    call = largest(NELBO(), vocab, 1024, 8, 8)
    step = Tracer(config, "none", bf16=True).step(call)
    rows = 512 * MIB // (4 * vocab)
    lasting = 4 * 8 * 1024 * width + 8 * vocab * width
    assert gpu_head(step, call, vocab, width, bf16=True) == lasting + 6 * rows * vocab


def heap_of(*sizes: int) -> Heap:
    """Blocks 0, 1, ... of the sizes one behind the other, each behind 64 bytes of small objects."""
    heap = Heap()
    heap.threshold = MIB
    for key, size in enumerate(sizes):
        heap.allocate(key, size)
    return heap


def test_holes_are_filled_again() -> None:
    heap = heap_of(64_000, 64_000, 64_000, 64_000)
    assert heap.end == 4 * 64_064
    heap.settle()
    heap.free(1)
    heap.free(2)  # one hole of two, with what was between and before them
    assert heap.holes == [(0, 64), (64_064, 2 * 64_064 + 64)]
    end = heap.end
    heap.allocate("e", 96_000)
    assert heap.end == end
    heap.allocate("f", 32_000 + 64)  # the rest less what is cut off, and no room to look for it
    assert heap.end == end + 32_128


def test_small_objects_keep_holes_apart() -> None:
    heap = heap_of(64_000, 64_000, 64_000, 64_000)
    heap.free(1)
    heap.free(2)
    assert [size for _, size in heap.holes] == [64_000, 64_000]
    end = heap.end
    heap.allocate("same", 64_000)  # not even a block of the same size finds a place there
    assert heap.end == end + 64_064
    heap.settle()
    assert [size for _, size in heap.holes] == [64, 2 * 64_064 + 64, 64]


def test_the_smallest_hole_that_is_large_enough() -> None:
    heap = heap_of(32_000, 6400, 19_200, 6400, 25_600, 6400)
    end = heap.end
    for key in (0, 2, 4):
        heap.free(key)
    heap.allocate("new", 12_800)
    assert heap.blocks["new"][0] == 32_000 + 6400 + 4 * 64
    assert heap.peak == heap.end == end


def test_the_end_of_the_heap_grows() -> None:
    heap = heap_of(6400, 6400)
    heap.free(1)
    heap.allocate("larger", 64_000)
    assert heap.end == 6464 + 64 + 64_064  # what was before the freed block is still there


def test_what_is_mapped_goes_back_and_raises_the_threshold() -> None:
    heap = Heap()
    heap.allocate("a", 10 * MIB)
    heap.allocate("b", 40 * MIB)
    assert (heap.mapped, heap.end, heap.threshold) == (50 * MIB, 0, 128 * 1024)
    heap.free("b")
    assert heap.threshold == 128 * 1024  # too large to count
    heap.free("a")
    assert (heap.mapped, heap.threshold, heap.peak) == (0, 10 * MIB, 50 * MIB)
    for key in "acd":
        heap.allocate(key, 10 * MIB)
    heap.settle()
    heap.free("c")
    assert (heap.mapped, heap.end) == (0, 30 * MIB + 192)  # a hole stays
    heap.free("d")
    assert heap.end == 10 * MIB + 64  # the end goes back, and the hole before it


def test_a_process_keeps_weights_average_and_moments() -> None:
    weights = [4 * MIB] * 10
    assert resident(weights, []) == pytest.approx(4 * 40 * MIB, rel=0.001)
    events = [(1, 64 * MIB), (1, 0)]
    assert resident(weights, events) == pytest.approx(4 * 40 * MIB + 64 * MIB, rel=0.001)


REAL = """
import json, os, sys, torch
from sddlm.rng import Draw
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import SDDLM

def train(config, batch):
    model = DiT(config)
    average = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    for step in range(3):
        draw = Draw.simple(0, step, batch)
        x0 = draw.integers("x0", config.length, high=config.vocab_size)
        SDDLM().loss(model, x0, draw).mean.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        torch._foreach_lerp_(average, list(model.parameters()), 0.1)

def peak():  # not ru_maxrss, which begins with the parent's
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024

torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])  # imports half of torch
for sizes, batch in json.loads(sys.argv[1]):
    if child := os.fork():  # each has a heap of its own; the imports, seconds, are made once
        assert os.waitpid(child, 0)[1] == 0
    else:
        train(DiTConfig(vocab_size=61, length=8, width=32, blocks=1, heads=2), 2)
        before = peak()
        train(DiTConfig(**sizes), batch)
        print(peak() - before, flush=True)
        os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the heap of the GNU C library")
def test_real_processes_take_as_much() -> None:
    cases = [
        ({"vocab_size": V, "length": 64, "width": 192, "blocks": blocks, "heads": 6}, batch)
        for V, blocks, batch in ((4096, 2, 24), (30_000, 4, 2))
    ]
    done = subprocess.run(
        [sys.executable, "-c", REAL, json.dumps(cases)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for (sizes, batch), real in zip(cases, done.stdout.split(), strict=True):
        tracer = Tracer(DiTConfig(**sizes), "none", bf16=False)
        step = tracer.step(largest(SDDLM(), sizes["vocab_size"], 64, batch, batch))
        predicted = resident([4 * p.numel() for p in tracer.network.parameters()], step.events)
        assert predicted == pytest.approx(float(real), rel=0.2)
