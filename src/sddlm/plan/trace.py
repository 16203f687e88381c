"""Trace of a training step on fake tensors: all operations, none executed.

torch's fake tensors have shapes but no data. The actual network and head run on them, so the counts
hold for any architecture: FLOPs, live bytes at each moment, and operations with operand shapes.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from sddlm.models.config import Checkpointing, DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.vocab_head import CHUNK_BYTES
from sddlm.plan.probe import Call
from sddlm.types import SoftTokens


@dataclass(frozen=True)
class Operand:
    """Shape of a tensor; for known integers (indices) also the values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    numbers: Tensor | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, value: Any) -> Any:
        """Operand of a tensor; any other value unchanged."""
        if not isinstance(value, Tensor):
            return value
        known = type(value) is Tensor and not value.is_floating_point()
        return cls(tuple(value.shape), value.stride(), value.dtype, value if known else None)


@dataclass(frozen=True)
class Operation:
    """One operation of the step.

    Attributes:
        function: torch's operator.
        args: its arguments, tensors as `Operand`.
        kwargs: its keyword arguments, likewise.
        count: number of occurrences.
        flops: FLOPs of one occurrence.
    """

    function: Any
    args: Any
    kwargs: Any
    count: int
    flops: int


@dataclass(frozen=True)
class Step:
    """Cost of a forward and backward pass of a micro-batch.

    Attributes:
        forward: FLOPs of the network's forward pass.
        head: FLOPs of the vocabulary head, forward and backward.
        backward: FLOPs of the network's backward pass, including recomputation.
        earlier: bytes of gradients that exist at the start.
        kept: bytes alive between forward and head, without parameters and their gradients.
        in_head: peak of additional bytes within the head.
        in_backward: peak of live bytes after the head, gradients included.
        gradients: bytes of the parameters' gradients at that moment.
        casts: bytes of ``kept`` that are parameters in the precision of the products.
        rows: rows in the vocabulary head.
        events: allocations (id and bytes) and frees (id and 0), in order.
        operations: all operations.
    """

    forward: int
    head: int
    backward: int
    earlier: int
    kept: int
    in_head: int
    in_backward: int
    gradients: int
    casts: int
    rows: int
    events: list[tuple[int, int]]
    operations: list[Operation]

    @property
    def flops(self) -> int:
        """Total FLOPs."""
        return self.forward + self.head + self.backward


class _Record(TorchDispatchMode):
    """Records operations, FLOPs and live bytes."""

    def __init__(self, weights: set[int], *, detailed: bool) -> None:
        super().__init__()
        self.detailed = detailed
        self.weights = weights  # storages of the parameters
        self.sizes: dict[int, int] = {}
        self.born: dict[int, int] = {}
        self.events: list[tuple[int, int]] = []
        self.live = self.peak = self.peak_at = self.clock = self.flops = self.casts = 0
        self.found: dict[str, Operation] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.ops.prim.device.default:  # two in three: torch asks where a tensor is
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace == "prim":
            return out
        self.clock += 1
        made = sum(self.hold(part) for part in tree_leaves(out) if isinstance(part, Tensor))
        if func is torch.ops.aten._to_copy.default and _storage(args[0]) in self.weights:
            self.casts += made
        flops = _flops(func, args, kwargs, out)
        self.flops += flops
        if self.detailed:
            self._note(func, tree_map(Operand.of, args), tree_map(Operand.of, kwargs), flops)
        return out

    def _note(self, func: Any, args: Any, kwargs: Any, flops: int) -> None:
        """Count an operation."""
        key = f"{func} {args} {kwargs}"
        before = self.found.get(key)
        count = 1 if before is None else before.count + 1
        self.found[key] = Operation(func, args, kwargs, count, flops)

    def hold(self, tensor: Tensor) -> int:
        """Track a storage until it is freed; return its bytes if it is new."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self.sizes or key in self.weights:
            return 0
        size = self.sizes[key] = storage.nbytes()
        self.born[key] = self.clock
        weakref.finalize(storage, self._free, key)
        self.live += size
        self.events.append((key, size))
        if self.live > self.peak:
            self.peak, self.peak_at = self.live, self.clock
        return size

    def _free(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
        self.events.append((key, 0))

    def restart(self) -> int:
        """Reset the peak; return the live bytes."""
        self.peak, self.peak_at = self.live, self.clock
        return self.live


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    """FLOPs as torch counts them, plus in-place products and attention on a CPU.

    That computes the scores again in its backward pass: 5 products, 2 in the forward pass.
    """
    name = func._overloadpacket.__name__
    packet = getattr(torch.ops.aten, name.rstrip("_")) if func.namespace == "aten" else None
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out))
    if "scaled_dot_product" in name:
        backward = "backward" in name
        q, k = args[1:3] if backward else args[:2]
        return int((10 if backward else 4) * q.numel() * k.shape[-2])
    return 0


class Tracer:
    """Traces steps of a network that is never built.

    Args:
        config: configuration of the network.
        checkpointing: what the backward pass recomputes.
        bf16: whether the products are in bfloat16.
    """

    def __init__(self, config: DiTConfig, checkpointing: Checkpointing, *, bf16: bool) -> None:
        self.bf16 = bf16
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with torch.device("meta"):
            self.network = DiT(config)
        with self.mode:
            self.network.to_empty(device="cpu")
        if config.tie_embeddings:
            self.network.head.weight = self.network.embedding.get_parameter("weight")
        self.network.checkpointing = checkpointing

    def step(
        self,
        asked: Call,
        mixture: int = 0,
        *,
        whole: bool = False,
        again: bool = False,
        detailed: bool = False,
    ) -> Step:
        """Trace a forward and backward pass.

        Args:
            asked: recorded call of an objective.
            mixture: number of tokens per mixture as input; 0 for tokens.
            whole: whether mixtures are of the whole vocabulary, in order.
            again: whether gradients of an earlier micro-batch exist.
            detailed: record operations, and trace all chunks of the vocabulary head, not only two.
        """
        parameters = list(self.network.parameters())
        with self.mode:
            record = _Record({_storage(p) for p in parameters}, detailed=detailed)
            for parameter in parameters:
                parameter.grad = torch.empty_like(parameter) if again else None
            before = sum(record.hold(p.grad) for p in parameters if p.grad is not None)
            x = self._mixed(asked.x, mixture, whole) if mixture else asked.x
            if isinstance(x, SoftTokens):
                record.hold(x.weights)
            with record, torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
                hidden = self.network(x, asked.sigma, rows=asked.rows)
                kept, forward, casts = record.restart(), record.flops, record.casts
                count = asked.count if detailed else self._two_chunks(asked.count)
                if asked.rows is None:  # a loss without ``rows`` selects them afterwards
                    hidden = hidden.flatten(0, 1)
                weight = None if asked.weight is None else asked.weight[:count]
                total = self.network.head(hidden[:count], asked.term, weight).total
                in_head, head = record.peak - kept, record.flops - forward
                record.restart()
            with record:
                (total / max(1, count)).backward()
            there = {_storage(p.grad) for p in parameters if p.grad is not None}
        backward = record.flops - forward - head
        born = [k for k in there & record.sizes.keys() if record.born[k] <= record.peak_at]
        return Step(
            forward=forward, head=head * asked.count // max(1, count), backward=backward,
            earlier=before, kept=kept - before, in_head=in_head, in_backward=record.peak,
            gradients=sum(record.sizes[k] for k in born), casts=casts, rows=asked.count,
            events=record.events, operations=list(record.found.values()),
        )  # fmt: skip

    def _two_chunks(self, rows: int) -> int:
        return min(rows, 2 * max(1, CHUNK_BYTES // (4 * self.network.vocab_size)))

    def _mixed(self, x: Tensor | SoftTokens, mixture: int, whole: bool) -> SoftTokens:
        shape = (*x.shape, mixture)
        ids = None if whole else torch.zeros(shape, dtype=torch.int64)
        return SoftTokens(torch.empty(shape), ids)
