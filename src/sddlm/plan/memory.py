"""Peak memory of a device in bytes, by part."""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Literal

from sddlm.models.kernels import LAUNCHES
from sddlm.models.vocab_head import CHUNK_BYTES, GPU_CHUNK_BYTES
from sddlm.plan.probe import Call
from sddlm.plan.trace import Step

Strategy = Literal["ddp", "fsdp"]

MIB = 2**20
#: torch asks for places that are multiples of 64 bytes, so that much is cut off before a block
_LEAD = 64
#: and malloc looks for a hole with room for that, its own header and its smallest block
_SLACK = _LEAD + 16 + 32


class Heap:
    """Simulation of malloc of the GNU C library, which determines resident memory on a CPU.

    Blocks up to a threshold come from one heap, the smallest hole that is large enough first; the
    heap shrinks at its end only, so holes that fit nothing stay. What is cut off before a block
    goes to small objects, those of autograd, and while they live holes do not become one (here:
    until `settle`). Larger blocks are mapped one by one and go back at once. When one of at most
    32 MiB does, its size becomes the threshold.
    """

    def __init__(self) -> None:
        self.threshold = 128 * 1024
        self.blocks: dict[object, tuple[int, int]] = {}
        self.holes: list[tuple[int, int]] = []  # (where, size) in the order of their places
        self.small: list[int] = []  # where small objects lie
        self.end = self.mapped = self.peak = 0

    def allocate(self, key: object, size: int) -> None:
        """Allocate ``size`` bytes as ``key``."""
        size += -size % 64
        if size > self.threshold:
            self.blocks[key] = (-1, size)
            self.mapped += size
        else:
            at = self._place(_LEAD + size)
            self.small.append(at)
            self.blocks[key] = (at + _LEAD, size)
            self.end = max(self.end, at + _LEAD + size)
        self.peak = max(self.peak, self.end + self.mapped)

    def allocate_all(self, name: str, sizes: list[int]) -> None:
        """Allocate blocks of these sizes as ``(name, 0)`` and so on."""
        for i, size in enumerate(sizes):
            self.allocate((name, i), size)

    def _place(self, size: int) -> int:
        """Address of a block with its lead: a hole, or the end of the heap."""
        fits = [(room, at) for at, room in self.holes if room >= size - _LEAD + _SLACK]
        if fits:
            room, at = min(fits)
            self.holes.remove((at, room))
            bisect.insort(self.holes, (at + size, room - size))
        elif self.holes and sum(self.holes[-1]) == self.end:
            at, _ = self.holes.pop()
        else:
            at = self.end
        return at

    def free(self, key: object) -> None:
        """Free a block."""
        at, size = self.blocks.pop(key)
        if at >= 0:
            self._open(at, size)
            return
        self.mapped -= size
        if self.threshold < size <= 32 * MIB:
            self.threshold = size

    def settle(self) -> None:
        """Free the small objects."""
        small, self.small = self.small, []
        for at in small:
            self._open(at, _LEAD)

    def _open(self, at: int, size: int) -> None:
        """Add a hole, merged with its neighbours; a large one at the end shrinks the heap."""
        i = bisect.bisect(self.holes, (at, size))
        if i < len(self.holes) and self.holes[i][0] == at + size:
            size += self.holes.pop(i)[1]
        if i and sum(self.holes[i - 1]) == at:
            i -= 1
            at, before = self.holes.pop(i)
            size += before
        if at + size == self.end and size >= 2 * self.threshold:
            self.end = at
        else:
            self.holes.insert(i, (at, size))


def resident(weights: Iterable[int], events: list[tuple[int, int]], steps: int = 2) -> int:
    """Resident memory of a training on a CPU in bytes.

    Args:
        weights: bytes of each parameter.
        events: events of a step (`sddlm.plan.trace.Step`).
        steps: number of steps; the optimiser allocates in the first.
    """
    heap, sizes = Heap(), list(weights)
    heap.allocate_all("weight", sizes)
    for size in sizes:  # what they start from is drawn beside them
        heap.allocate("start", size)
        heap.free("start")
    heap.allocate_all("average", sizes)
    heap.settle()
    for step in range(steps):
        before = set(heap.blocks)
        for number, size in events:
            if size:
                heap.allocate((step, number), size)
            elif (step, number) in heap.blocks:
                heap.free((step, number))
        if step == 0:
            heap.allocate_all("moments", [size for size in sizes for _ in range(2)])
            before |= {("moments", i) for i in range(2 * len(sizes))}
        for key in heap.blocks.keys() - before:
            heap.free(key)
        heap.settle()
    return heap.peak


def gpu_head(step: Step, call: Call, vocab_size: int, width: int, *, bf16: bool) -> int:
    """Memory of the vocabulary head on a GPU in bytes, with its larger chunks and kernels.

    A chunk of logits is float32; a kernel writes their gradient in the products' precision, in
    place if it is the same. A loss without a kernel has as many copies of the chunk as on a CPU.
    """
    element = 2 if bf16 else 4
    V, N = vocab_size, step.rows
    rows = min(N, max(1, GPU_CHUNK_BYTES // (4 * V)))
    lasting = N * width * 2 * element + V * width * 4  # hidden and its gradient, d_weight
    lasting += V * width * 2 * element  # the weight in the products' precision, and padded
    if type(call.term) in LAUNCHES:
        return lasting + rows * V * (4 + (2 if bf16 else 0))
    on_cpu = min(N, max(1, CHUNK_BYTES // (4 * V)))
    copies = max(1.0, (step.in_head - V * width * 4) / (4 * V * max(1, on_cpu)))
    return lasting + int(rows * V * 4 * copies)


def on_device(
    step: Step,
    parameters: int,
    unit: int,
    *,
    world: int,
    strategy: Strategy,
    bf16: bool,
    in_head: int,
) -> dict[str, int]:
    """Peak memory of a device in bytes, by part.

    Args:
        step: trace of the micro-batch, with earlier gradients if a step has several.
        parameters: number of parameters of the network.
        unit: number of parameters of the largest unit that FSDP gathers.
        world: number of devices.
        strategy: ``ddp``, all on each, and a copy of the gradients to send; ``fsdp``, each has its
            share, and two parts at a time are gathered (in use, and next), with one's gradient.
        bf16: whether the products are in bfloat16.
        in_head: bytes within the vocabulary head.
    """
    whole = 4 * parameters
    sharded = strategy == "fsdp" and world > 1
    share = -(-whole // world) if sharded else whole
    moments = [  # gradients, activations, what passes by
        (step.earlier, step.kept, in_head),
        (step.gradients, 0, step.in_backward - step.gradients),
        (whole, 0, 0),
    ]
    if sharded:
        moments = [(share, step.kept - step.casts, passing) for _, _, passing in moments[:1]]
        moments.append((share, step.in_backward - step.gradients - step.casts, 0))
    gradients, activations, passing = max(moments, key=sum)
    kept = min(step.kept, activations + passing)
    parts = {
        "weights": share,
        "gradients": gradients,
        "AdamW": 2 * share,
        "EMA": share,
        "activations": kept,
        "logits and passing": activations + passing - kept,
    }
    if sharded:
        parts["gathered"] = unit * (2 * (2 if bf16 else 4) + 4)
    elif world > 1:
        parts["to send"] = whole
    return parts
