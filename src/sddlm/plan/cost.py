"""Cost model of a training step: parameters, FLOPs and memory of a network without weights."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.row_losses import RowLoss
from sddlm.models.vocab_head import CHUNK_BYTES, GPU_CHUNK_BYTES, HeadOutput
from sddlm.objectives import Objective
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.types import SoftTokens

#: steps of a run at which its objective is called; sequences and positions of each call, together
#: 33 thousand positions: a share of one half is right within 0.3 percent
_STEPS, _SEQUENCES, _POSITIONS = 16, 64, 32
#: rows of logits on which the memory of a row loss is measured
_ROWS = 64

#: FLOPs of each operation, as `FlopCounterMode` counts them; it lacks attention on a CPU
_FORMULAS = dict(flop_registry)
for _end in ("", "_backward"):
    _flash = f"_scaled_dot_product_flash_attention{_end}"
    _cpu = getattr(torch.ops.aten, f"_scaled_dot_product_flash_attention_for_cpu{_end}")
    _FORMULAS[_cpu] = flop_registry[getattr(torch.ops.aten, _flash)]


class _Meter(TorchDispatchMode):
    """Count FLOPs, and live and peak bytes of the tensors that are made within, also fake ones.

    `FlopCounterMode` itself keeps tensors alive that checkpointing frees.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = self.live = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := _FORMULAS.get(func._overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        for tensor in () if func.is_view else tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, Tensor) else None
            if storage is not None and id(storage) not in self._known:
                self._known.add(id(storage))
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, id(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out

    def _freed(self, name: int, size: int) -> None:
        self._known.discard(name)
        self.live -= size


class _Call:
    """Call of the network by an objective, recorded by a stand-in for the network."""

    x: Tensor | SoftTokens
    rows: Tensor | None
    term: RowLoss
    count: int

    def __init__(self, objective: Objective, vocab_size: int, length: int, draw: Draw) -> None:
        self.vocab_size, self.hollow = vocab_size, objective.needs_hollow
        x0 = draw.integers("plan", length, high=vocab_size - objective.process.extra_tokens)
        objective.loss(self, x0, draw)

    def __call__(
        self, x_t: Tensor | SoftTokens, sigma: Tensor, *, rows: Tensor | None = None
    ) -> Tensor:
        """Hidden states of width 1, ``[B, L, 1]`` or ``[N, 1]``."""
        self.x, self.rows = x_t, rows
        return torch.zeros(*(x_t.shape if rows is None else rows.shape), 1)

    def head(self, hidden: Tensor, term: RowLoss, weight: Tensor | None = None) -> HeadOutput:
        """Losses of zero for the rows ``[N, 1]``."""
        self.term, self.count = term, len(hidden)
        return HeadOutput(hidden.sum(), hidden[:, 0])


class CostModel:
    """Cost model of one network, objective and training.

    A step of the network runs on fake tensors, which have shapes and no numbers, so it needs no
    memory and there is no formula for an architecture.

    Args:
        config: configuration of the network.
        objective: the training objective.
        args: options of the training.
        size: sequences in a micro-batch.
        gpu: whether the device is a GPU.

    Attributes:
        objective: a copy, set up for a text in which each token occurs once.
        bf16: whether the matrix products are in bfloat16.
        parameters: number by part of the network, and ``all``.
        states: numbers that the optimisers keep: two moments a weight of AdamW, one of Muon.
        head: share of the positions that meet the vocabulary.
        flops: FLOPs of a token by part, and ``all``. Attention counts in full also where it is
            causal; what checkpointing computes again is a part of the backward pass.
    """

    def __init__(
        self, config: DiTConfig, objective: Objective, args: TrainArgs, size: int, *, gpu: bool
    ) -> None:
        self.config, self.args, self.size, self.gpu = config, args, size, gpu
        self.objective, self.bf16 = copy.deepcopy(objective), args.bf16(gpu=gpu)
        V = config.vocab_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training itself will warn
            self.objective.setup(V, lambda: torch.ones(V, dtype=torch.int64))
        self._sample_calls()
        self._run_network()

    def _sample_calls(self) -> None:
        """Call the objective at some steps, since noise and curricula change the number of rows."""
        V, L, objective = self.config.vocab_size, self.config.length, self.objective
        length = L if objective.causal else min(L, _POSITIONS)
        count, rows = max(1, _SEQUENCES * _POSITIONS // length), 0
        self._mixing = self._mixture = self._noise = 0.0
        for k in range(_STEPS):
            step = int((k + 0.5) / _STEPS * self.args.steps)
            t_max = self.args.t_max(step)
            # mixtures of the whole vocabulary have B L V numbers; validation, step -1, has none
            self._call = _Call(objective, V, length, Draw(k, -1, torch.arange(count), count, t_max))
            rows += self._call.count
            with _Meter() as meter:
                x = _Call(objective, V, min(L, 4), Draw(k, step, torch.arange(2), 2, t_max)).x
            if isinstance(x, SoftTokens):
                ids = 0 if x.ids is None else x.ids.nbytes
                self._mixture = (x.weights.nbytes + ids) / x.shape.numel()
                self._noise = meter.peak / x.shape.numel()
                self._mixing += 0.0 if ids else 2.0 * V * self.config.width / _STEPS
        self.head = rows / (_STEPS * count * length)
        with _Meter() as meter:
            self._call.term(torch.zeros(_ROWS, V), slice(0, _ROWS), True)
        self._copies = meter.peak / (4 * V * _ROWS)

    def _run_network(self) -> None:
        """Run a forward and a backward pass of the network without its head."""
        L, size, parts = self.config.length, self.size, Counter[str]()
        with FakeTensorMode(), _Meter() as meter:
            network = DiT(self.config)
            network.checkpointing = self.args.activation_checkpointing
            weights = meter.peak = meter.live  # without those of the initialisation
            for name, parameter in network.named_parameters():
                parts[name.split(".")[0]] += parameter.numel()
                parameter.register_post_accumulate_grad_hook(_free)
            x = torch.zeros(size, L - self.config.causal, dtype=torch.int64)
            rows = torch.zeros(round(self.head * size * L), dtype=torch.int64)
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
                out = network(x, torch.zeros(size), rows=None if self._call.rows is None else rows)
            forward, kept = meter.flops, meter.live - weights
            out.backward(torch.zeros_like(out))  # type: ignore[no-untyped-call]
        self.parameters, self.states = {**parts, "all": sum(parts.values())}, 0
        for optimizer in self.args.optimizer.build(network, self.args):
            moments = 1 if isinstance(optimizer, torch.optim.Muon) else 2
            counts = (p.numel() for group in optimizer.param_groups for p in group["params"])
            self.states += moments * sum(counts)
        self._kept, self._backward = kept / size, (meter.peak - weights - kept) / size  # a sequence
        self.flops = {
            "forward": forward / (size * L) + self._mixing,
            "backward": (meter.flops - forward) / (size * L) + self._mixing,
            "head": 6.0 * self.config.vocab_size * self.config.width * self.head,
        }
        self.flops["all"] = sum(self.flops.values())

    def memory(self, size: int, world: int) -> dict[str, float]:
        """Peak memory of a device in bytes, by part, and their sum ``all``.

        Not all parts have their peak at once: the gradients of a single micro-batch take the place
        of its activations.

        Args:
            size: sequences in a micro-batch.
            world: number of devices.
        """
        V, D, positions = self.config.vocab_size, self.config.width, size * self.config.length
        rows, element = self.head * positions, 2 if self.bf16 else 4
        chunk = min(rows, max(1, (GPU_CHUNK_BYTES if self.gpu else CHUNK_BYTES) // (4 * V)))
        copies = self._copies + bool(self.config.num_extra_tokens)
        # the gradient of a chunk lives until the logits of the next one are there
        logits = 4 * V * (copies * chunk + min(rows - chunk, chunk))
        head = 4 * V * D + 2 * rows * D * element + logits
        kept = size * self._kept + positions * self._mixture
        weights = 4.0 * self.parameters["all"]
        parts = {
            "weights": weights,
            "optimiser": 4.0 * self.states,
            "EMA": weights,
            "gradients": weights,
            "activations": kept,
            "workspace": max(head, size * self._backward, positions * self._noise - kept),
            "gradients to send": weights if world > 1 else 0.0,  # the buckets of DDP
        }
        return {**parts, "all": sum(parts.values())}


def _free(parameter: nn.Parameter) -> None:
    """Drop a gradient, which is another part of the memory."""
    parameter.grad = None
