"""Cost model of a training run: parameters, FLOPs, memory and disk, by formulas."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.kernels import LAUNCHES
from sddlm.models.row_losses import (
    Contrastive,
    CrossEntropy,
    DenseNegatives,
    RowLoss,
    UniformBound,
)
from sddlm.models.vocab_head import CHUNK_BYTES, GPU_CHUNK_BYTES, HeadOutput
from sddlm.objectives import Objective
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.types import SoftTokens

#: steps of a run at which its objective is called; sequences and positions of each call, together
#: 33 thousand positions: a share of one half is right within 0.3 percent
_STEPS, _SEQUENCES, _POSITIONS = 16, 64, 32

#: activations of a block that autograd keeps, in units of [B, L, D]: number in float32, and in the
#: precision of the products; by type of block and activation checkpointing
_KEPT = {
    "conditioned": {"none": (4, 17), "selective": (2, 11), "full": (1, 0)},
    "plain": {"none": (2, 15), "selective": (2, 9), "full": (1, 0)},
    "llama": {"none": (4, 23), "selective": (2, 13), "full": (1, 0)},
}
#: what a block of queries of a hollow network keeps in addition, and its towers at their ends
_QUERY = {"none": (-1, 3), "selective": (0, 2), "full": (-1, 1)}
_ENDS = (3, 3)


@dataclass(frozen=True)
class Calls:
    """Network calls of an objective, averaged over the steps of a run.

    Attributes:
        head: share of the positions that meet the vocabulary.
        selects: whether only these positions pass the last MLP.
        soft: share of the steps with mixtures of tokens as input.
        mixture: tokens in a mixture; 0 without mixtures.
        term: the row loss of the last call.
    """

    head: float
    selects: bool
    soft: float
    mixture: int
    term: RowLoss


class _Recorder:
    """Stand-in for a network that records how an objective calls it."""

    x: Tensor | SoftTokens
    rows: Tensor | None
    term: RowLoss
    count: int

    def __init__(self, vocab_size: int, hollow: bool) -> None:
        self.vocab_size, self.hollow = vocab_size, hollow

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


def _recorded(objective: Objective, vocab_size: int, length: int, draw: Draw) -> _Recorder:
    """Record a call for random tokens, one sequence for each index of the draw."""
    recorder = _Recorder(vocab_size, objective.needs_hollow)
    x0 = draw.integers("plan", length, high=vocab_size - objective.process.extra_tokens)
    objective.loss(recorder, x0, draw)
    return recorder


def calls(objective: Objective, vocab_size: int, length: int, args: TrainArgs) -> Calls:
    """Sample the network calls of an objective that has been set up.

    Noise makes the number of rows random, and curricula change it with the step. So the objective
    is called at some steps of the run, with a stand-in for the network.
    """
    size = length if objective.causal else min(length, _POSITIONS)
    count = max(1, _SEQUENCES * _POSITIONS // size)
    rows = soft = mixture = 0
    for k in range(_STEPS):
        step = int((k + 0.5) / _STEPS * args.steps)
        t_max = args.t_max(step)
        # a mixture of the whole vocabulary has B L V numbers, so this call is tiny ...
        two = Draw(k, step, torch.arange(2), 2, t_max)
        tiny = _recorded(objective, vocab_size, min(length, 4), two)
        if isinstance(tiny.x, SoftTokens):
            soft, mixture = soft + 1, tiny.x.weights.shape[-1]
            step = -1  # ... and the rows are those of validation, which has no mixtures
        draw = Draw(k, step, torch.arange(count), count, t_max)
        found = _recorded(objective, vocab_size, size, draw)
        rows += found.count
    head = rows / (_STEPS * count * size)
    return Calls(head, found.rows is not None, soft / _STEPS, mixture, found.term)


class CostModel:
    """Cost model of one network, objective and training.

    Args:
        config: configuration of the network.
        objective: the training objective.
        args: options of the training.
        gpu: whether the device is a GPU.

    Attributes:
        objective: a copy, set up for a text in which each token occurs once.
        bf16: whether the matrix products are in bfloat16.
        calls: network calls of the objective.
        matrices: number of weights of each matrix but embedding and vocabulary head, by name.
        parameters: number of parameters by part, and ``all``.
        own: number of blocks whose keys and values are their own.
        queries: number of blocks of queries of a hollow network.
        states: numbers that the optimisers keep: two moments a weight of AdamW, one of Muon.
    """

    def __init__(
        self, config: DiTConfig, objective: Objective, args: TrainArgs, *, gpu: bool
    ) -> None:
        self.config, self.args, self.gpu, self.bf16 = config, args, gpu, args.bf16(gpu=gpu)
        self.objective, V = copy.deepcopy(objective), config.vocab_size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # training itself will warn
            self.objective.setup(V, lambda: torch.ones(V, dtype=torch.int64))
        self.calls = calls(self.objective, V, config.length, args)
        with torch.device("meta"):
            network = DiT(config)
        conditioned = "plain" if network.time_free else "conditioned"
        self.kind = "llama" if config.architecture == "llama" else conditioned
        self.queries = config.blocks - config.blocks // 2 if network.hollow else 0
        self.own = 2 * (config.blocks // 2) if network.hollow else config.blocks
        self.matrices = {}
        parts = Counter({"embedding": 0, "blocks": 0, "conditioning": 0, "head": 0})
        for name, weight in network.named_parameters():
            first = name.split(".")[0]
            part = "conditioning" if _conditions(name) else first if first in parts else "blocks"
            parts[part] += weight.numel()
            if weight.ndim > 1 and len(weight) > 1 and first not in ("embedding", "head"):
                self.matrices[name] = weight.numel()
        self.parameters = {**parts, "all": sum(parts.values())}
        self.states = 0
        for optimizer in args.optimizer.build(network, args):
            kept = 1 if isinstance(optimizer, torch.optim.Muon) else 2
            weights = (p.numel() for group in optimizer.param_groups for p in group["params"])
            self.states += kept * sum(weights)

    def flops(self) -> dict[str, float]:
        """FLOPs of a token in training, by part, and ``all``.

        A matrix product costs two for each weight and position, and twice that in the backward
        pass. Attention is counted in full also where it is causal: 2 products of [L, L], and 5 in
        the backward pass, which computes the scores again.
        """
        config, calls = self.config, self.calls
        L, D, V = config.length, config.width, config.vocab_size
        block = f"queries.{self.queries - 1}" if self.queries else f"{config.blocks - 1}"
        last = tuple(f"blocks.{block}.{layer}." for layer in ("out", "mlp"))
        # a block is recomputed up to what it saved last: the input of its last product, or the
        # output if a gate or a dropout follows
        end = "" if self.kind == "conditioned" or config.dropout else ".mlp.2."
        products = again = 0.0
        for name, weights in self.matrices.items():
            selected = calls.selects and name.startswith(last)
            share = 1 / L if _conditions(name) else calls.head if selected else 1.0
            share *= 2 if ".kv." in name else 1  # of the states of both towers
            products += 2 * weights * share
            once = "merge" in name or "conv" in name or (end and end in name)
            if name.startswith("blocks") and not once:
                again += 2 * weights * share
        attention = 4.0 * (self.own + 2 * self.queries) * L * D
        mixing = 2.0 * V * D * calls.soft if calls.mixture == V else 0.0
        full = self.args.activation_checkpointing == "full"
        body = {
            "forward": products + attention + mixing,
            "backward": 2 * products + 2.5 * attention + mixing,
            "recomputed": again + attention if full else 0.0,
        }
        seen = (L - 1) / L if config.causal else 1.0  # the last token of a row is a target alone
        parts = {name: flops * seen for name, flops in body.items()}
        parts["head"] = 6.0 * V * D * calls.head
        return {**parts, "all": sum(parts.values())}

    def memory(self, size: int, world: int) -> dict[str, float]:
        """Peak memory of a device in bytes, by part, and ``all``.

        The gradients of a single micro-batch take the place of its activations, so on a GPU
        ``all`` is less than the sum of the parts. On a CPU it is the sum: there they do not fit
        well into the holes that activations leave in the heap (measured, docs/plan.md).

        Args:
            size: sequences in a micro-batch.
            world: number of devices.
        """
        weights = 4.0 * self.parameters["all"]
        # times are stratified over the batch, so the last of several micro-batches is all noise
        share = self.calls.head if size == self.args.batch else 1.0
        parts = {
            "weights": weights,
            "optimiser": 4.0 * self.states,
            "EMA": weights,
            "gradients": weights,
            "activations": self._activations(size, share),
            "workspace": self._workspace(size, share),
            "gradients to send": weights if world > 1 else 0.0,  # the buckets of DDP
        }
        working = parts["activations"] + parts["workspace"]
        together = not self.gpu or self.args.batch > size * world
        peak = working + weights if together else max(working, weights)
        lasting = sum(parts[name] for name in ("weights", "optimiser", "EMA", "gradients to send"))
        return {**parts, "all": lasting + peak}

    def _block(self, how: str, more: tuple[int, int] = (0, 0)) -> float:
        """Bytes that a block keeps for the backward pass, per position."""
        config, element = self.config, 2 if self.bf16 else 4
        wide, narrow = (a + b for a, b in zip(_KEPT[self.kind][how], more, strict=True))
        narrow += 2 if config.dropout and how != "full" else 0  # masks
        heads = 4 * config.heads if how != "full" else 0  # normalisers of the attention
        return config.width * (4 * wide + element * narrow) + heads

    def _activations(self, size: int, share: float) -> float:
        """Bytes that the forward pass keeps for the backward pass."""
        config, element = self.config, 2 if self.bf16 else 4
        how = self.args.activation_checkpointing
        share = share if self.calls.selects else 1.0
        # half of what the last block keeps is of selected positions only, but not its input
        left_out = 0 if how == "full" else (1 - share) / 2
        query = self._block(how, _QUERY[how]) if self.queries else self._block(how)
        blocks = self.own * self._block(how) + self.queries * query - left_out * query
        gathered = (1 if how == "full" else 4) if self.kind == "conditioned" else 0  # scales, gates
        end = share * config.width * (4 if self.kind == "plain" else 8)  # the last norm
        end += share * config.width * element * gathered
        start = 4 * config.width if config.input_conv else 0
        if self.queries:
            start = 2 * start + config.width * (4 * _ENDS[0] + element * _ENDS[1])
        mixture = self.calls.mixture
        start += mixture * (4 if mixture == config.vocab_size else 12)
        casts = 2.0 * sum(self.matrices.values()) if self.bf16 and how == "none" else 0.0
        return casts + size * config.length * (blocks + end + start)

    def _workspace(self, size: int, share: float) -> float:
        """Bytes of the vocabulary head, or of the backward pass of a block if that has more."""
        config, calls, element = self.config, self.calls, 2 if self.bf16 else 4
        V, D, positions = config.vocab_size, config.width, size * config.length
        rows = share * positions
        chunk = min(rows, max(1, (GPU_CHUNK_BYTES if self.gpu else CHUNK_BYTES) // (4 * V)))
        if self.gpu and type(calls.term) in LAUNCHES:
            logits = 1.5 * chunk if self.bf16 else chunk  # the gradient beside them, or in place
        else:  # the gradient lives until the logits of the next chunk are there
            copies = _copies(calls.term) + bool(config.num_extra_tokens)
            logits = copies * chunk + min(rows - chunk, chunk)
        widest = 8 if self.kind == "llama" else 4
        block = float(widest * D * element)  # the gradient of an MLP
        if self.args.activation_checkpointing == "full":
            block += self._block("none")  # computed again
        gradients = 4 * V * D + 2 * rows * D * element  # of the head's weight and input
        # mixtures of the whole vocabulary are sampled through several arrays of their size
        noise = 5 * 4.0 * V * positions if calls.mixture == V else 0.0
        return gradients + max(4 * V * logits, block * positions, noise)

    def disk(self, text: tuple[int, int] | None, token_bytes: int) -> dict[str, float]:
        """Bytes of the files of a run.

        Args:
            text: tokens and documents of the prepared text; None if unknown.
            token_bytes: bytes of a token in its file.
        """
        total = self.parameters["all"]
        # weights, average and optimiser in float32; the last two, and one being written
        files = {"checkpoints": 3 * 4.0 * (2 * total + self.states), "model": 4.0 * total}
        if text is not None:
            files |= {"tokens": float(text[0] * token_bytes), "document index": 8.0 * text[1]}
        return files


def _copies(term: RowLoss) -> int:
    """Number of arrays of the size of its logits that a row loss holds at most."""
    if isinstance(term, UniformBound):
        return 3
    if isinstance(term, Contrastive):
        return 3 if any(isinstance(part, DenseNegatives) for part in term.negatives) else 1
    return 1 if isinstance(term, CrossEntropy) else 17  # autograd keeps every step of the loss


def _conditions(name: str) -> bool:
    """Whether a parameter belongs to the conditioning, which is computed once per sequence."""
    return bool({"sigma", "modulation"} & set(name.split(".")))
