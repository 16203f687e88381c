"""Formulas of the cost model against what a real step computes and allocates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sddlm import objectives as O
from sddlm.models import vocab_head
from sddlm.models.config import Checkpointing, DiTConfig, ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives.negatives import (
    MixedNegatives,
    TopNegatives,
    UniformNegatives,
    UnigramNegatives,
)
from sddlm.plan import cost
from sddlm.plan.cost import CostModel, calls
from sddlm.plan.devices import measured_step
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.training.optimizers import AdamW, Muon, Optimizer, Update

V, L, B, D, BLOCKS = 307, 24, 48, 32, 2
ARGS = TrainArgs(batch=B, steps=1000)

OBJECTIVES: dict[str, O.Objective] = {
    "sddlm": O.SDDLM(),
    "v1": O.SDDLMV1(negatives=MixedNegatives([UniformNegatives(), TopNegatives(2)])),
    "v1 exact": O.SDDLMV1(eps=1e-9, negatives=UnigramNegatives("exact")),
    "v2": O.SDDLMV2(),
    "calibrated": O.CalibratedDenoising(),
    "nelbo": O.NELBO(),
    "mdlm": O.MDLM(),
    "d3pm": O.D3PM(),
    "sedd": O.SEDD(),
    "ar": O.Autoregressive(),
    "duo": O.DuoCurriculum(until=2000),
    "duo top": O.DuoCurriculum(until=2000, top_k=5),
}
NETWORKS: list[dict[str, Any]] = [
    {}, {"dropout": 0.1}, {"time_free": True}, {"architecture": "llama"}, {"tie_embeddings": True},
    {"input_conv": 3}, {"architecture": "hollow", "blocks": 3},
    {"architecture": "hollow", "time_free": True, "input_conv": 4},
]  # fmt: skip
MODES: list[Checkpointing] = ["none", "selective", "full"]
#: checkpointing depends on the kind of block alone
CASES = [
    (more, mode)
    for more in NETWORKS
    for mode in (MODES if not more or "architecture" in more else MODES[:1])
]


def config(objective: O.Objective, **more: Any) -> DiTConfig:
    extra = objective.process.extra_tokens
    sizes: dict[str, Any] = {"width": D, "blocks": BLOCKS, "heads": 2, "length": L}
    if more.get("architecture") != "llama":
        sizes["cond_dim"] = 16  # the formula counts a gradient of the noise level, which none has
    return DiTConfig(
        vocab_size=V + extra, causal=objective.causal, num_extra_tokens=extra, **{**sizes, **more}
    )


def model_of(made: DiTConfig, objective: O.Objective, args: TrainArgs = ARGS) -> CostModel:
    return CostModel(made, objective, args, gpu=False)


def autocast(args: TrainArgs) -> torch.autocast:
    """Precision of a training step, which keeps no casts (`training.loop`)."""
    bf16 = args.precision == "bf16"
    return torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False)


def step_of(made: DiTConfig, objective: O.Objective, args: TrainArgs) -> Callable[[int], None]:
    """Forward and backward passes of one step of a real network."""
    network = DiT(made)
    network.checkpointing = args.activation_checkpointing
    size = args.micro_batch or args.batch

    def run(step: int) -> None:
        for first in range(0, args.batch, size):
            draw = Draw(1, step, torch.arange(first, first + size), args.batch)
            x0 = draw.integers("x0", made.length, high=made.vocab_size - made.num_extra_tokens)
            with autocast(args):
                loss = objective.loss(network, x0, draw).mean
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in network.parameters():
            parameter.grad = None

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "more"),
    [
        (objective, more)
        for objective in (O.SDDLM(), O.MDLM(), O.Autoregressive())
        for more in NETWORKS
        if not (objective.causal and more.get("architecture") == "hollow")
    ],
    ids=str,
)
def test_parameters_are_those_of_the_built_network(
    objective: O.Objective, more: dict[str, Any]
) -> None:
    made = config(objective, **more)
    parts = model_of(made, objective).parameters
    network = DiT(made)
    assert parts["all"] == sum(p.numel() for p in network.parameters())
    assert parts["all"] == sum(n for name, n in parts.items() if name != "all")
    assert parts["embedding"] == made.vocab_size * D
    assert (parts["conditioning"] == 0) is network.time_free
    tied, bias = "tie_embeddings" in more, more.get("architecture") != "llama"
    assert parts["head"] == made.vocab_size * (D * (not tied) + bias)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "vocab_size", "millions"),
    [("small", 50258, 169.63), ("medium", 30522, 384.04), ("1.1b", 32000, 1142.4),
     ("10b", 32000, 9926.1)],
)  # fmt: skip
def test_presets_have_their_published_size(preset: Any, vocab_size: int, millions: float) -> None:
    made = ModelArgs(preset=preset).build(vocab_size=vocab_size, length=8)
    found = model_of(made, O.SDDLM()).parameters["all"]
    assert found / 1e6 == pytest.approx(millions, abs=0.05)


def attention_flops(q: Any, k: Any, *others: Any, out_val: Any = None, **more: Any) -> int:
    """2 products of [L, dim] and [dim, S] in each head, 2 FLOPs each; ``q`` is a shape."""
    return 4 * int(q.numel()) * int(k[2])


def attention_backward_flops(
    grad: Any, q: Any, k: Any, *others: Any, out_val: Any = None, **more: Any
) -> int:
    """5 of them: the scores again, and the gradients of scores, q, k and v."""
    return 5 * attention_flops(q, k) // 2


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def counted_flops(made: DiTConfig, objective: O.Objective, args: TrainArgs = ARGS) -> float:
    """FLOPs of a token as torch counts them in real steps, mean over two."""
    run = step_of(made, objective, args)
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run(0)
        run(1)
    return counter.get_total_flops() / (2 * args.batch * L)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_are_those_of_a_real_step(name: str) -> None:
    made = config(OBJECTIVES[name])
    costs = model_of(made, OBJECTIVES[name])
    assert costs.flops()["all"] == pytest.approx(counted_flops(made, costs.objective), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(("more", "checkpointing"), CASES, ids=str)
def test_flops_whatever_the_network(more: dict[str, Any], checkpointing: Checkpointing) -> None:
    made, args = config(O.SDDLM(), **more), replace(ARGS, activation_checkpointing=checkpointing)
    found = model_of(made, O.SDDLM(), args).flops()
    assert found["all"] == pytest.approx(counted_flops(made, O.SDDLM(), args), rel=0.01)
    assert (found["recomputed"] > 0) is (checkpointing == "full")


def test_flops_by_hand() -> None:
    """6 a weight and token, but for the last MLP and the head, which see the noise alone."""
    made = config(O.SDDLM(), time_free=True)
    attention = 14 * BLOCKS * L * D  # of a token: 4 forward, 10 backward
    weights = BLOCKS * 12 * D**2 - 9 * D**2 / 2 + V * D / 2
    found = model_of(made, O.SDDLM()).flops()["all"]
    assert found == pytest.approx(6 * weights + attention, rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "args", "expected"),
    [
        (O.SDDLM(), ARGS, 0.5),  # E[1 - alpha_t], alpha_t = 1 - t
        (O.SDDLM(), replace(ARGS, curriculum=0.999, curriculum_start=0.2), 0.3),  # 0.1 to 0.5
        (O.SDDLM(positions="changed"), ARGS, 0.5 * (1 - 1 / V)),
        (O.SDDLM(positions="all"), ARGS, 1.0),
        (O.MDLM(), ARGS, 0.5),
        (O.NELBO(), ARGS, 1.0),
        (O.Autoregressive(), ARGS, (L - 1) / L),
    ],
)
def test_share_of_positions_that_meet_the_vocabulary(
    objective: O.Objective, args: TrainArgs, expected: float
) -> None:
    found = calls(objective, V + objective.process.extra_tokens, L, args)
    assert found.head == pytest.approx(expected, rel=0.015)
    assert (found.soft, found.mixture) == (0, 0)


@pytest.mark.slow
def test_mixtures_of_a_curriculum() -> None:
    half = calls(O.DuoCurriculum(until=500), V, L, ARGS)
    assert (half.head, half.soft, half.mixture) == (1.0, 0.5, V)
    top = calls(O.DuoCurriculum(until=250, top_k=5), V, L, ARGS)
    assert (top.head, top.soft, top.mixture) == (1.0, 0.25, 6)


def test_an_objective_is_not_changed() -> None:
    objective = O.SDDLMV1(negatives=UnigramNegatives())
    before = copy.deepcopy(vars(objective.negatives))
    model_of(config(objective), objective)
    assert vars(objective.negatives) == before


def kept(made: DiTConfig, args: TrainArgs, rows: int) -> int:
    """Bytes that autograd keeps of a real forward pass, each storage once, without parameters."""
    network = DiT(made)
    network.checkpointing = args.activation_checkpointing
    mine = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor  # held, so no address comes twice
        return tensor

    x = torch.zeros(args.batch, made.length, dtype=torch.int64)
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        autocast(args),
    ):
        network(x, torch.ones(args.batch), rows=torch.arange(rows))
    return sum(t.untyped_storage().nbytes() for at, t in found.items() if at not in mine)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["32", "bf16"])
@pytest.mark.parametrize(("more", "checkpointing"), CASES, ids=str)
def test_activations_are_what_autograd_keeps(
    more: dict[str, Any], checkpointing: Checkpointing, precision: Any
) -> None:
    """Four blocks, half of the positions selected."""
    args = replace(ARGS, activation_checkpointing=checkpointing, precision=precision)
    made = config(O.SDDLM(), **{"width": 64, "blocks": 4, **more})
    costs = model_of(made, O.SDDLM(), args)
    assert costs._activations(B, 0.5) == pytest.approx(kept(made, args, B * L // 2), rel=0.07)


def live_peak(run: Callable[[], None]) -> int:
    """Largest number of bytes that torch allocates in addition while something runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    assert recorded.profiler is not None
    events = recorded.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    now = peak = 0
    for _, size in sorted(changes, key=lambda change: change[0]):
        now += size
        peak = max(peak, now)
    return peak


def check_peak(made: DiTConfig, objective: O.Objective, args: TrainArgs, rel: float) -> None:
    """Activations and workspace, or else gradients, against the peak of a real step."""
    costs = model_of(made, objective, args)
    run = step_of(made, costs.objective, args)
    run(0)
    size = args.micro_batch or args.batch
    memory = costs.memory(size, 1)
    peak, gradients = memory["activations"] + memory["workspace"], memory["gradients"]
    peak = peak + gradients if size < args.batch else max(peak, gradients)
    assert peak == pytest.approx(live_peak(lambda: run(1)), rel=rel)


#: sizes at which activations outweigh all else
LARGER: dict[str, Any] = {"width": 64, "blocks": 4, "length": 64}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "checkpointing", "precision"),
    [
        ({}, "none", "32"), ({}, "selective", "32"), ({}, "full", "bf16"),
        ({"architecture": "llama"}, "full", "32"), ({"architecture": "llama"}, "none", "bf16"),
        ({"time_free": True}, "selective", "bf16"),
        ({"architecture": "hollow"}, "none", "32"), ({"architecture": "hollow"}, "full", "bf16"),
    ],
    ids=str,
)  # fmt: skip
def test_peak_of_a_step(more: dict[str, Any], checkpointing: Checkpointing, precision: Any) -> None:
    args = TrainArgs(batch=16, activation_checkpointing=checkpointing, precision=precision)
    check_peak(config(O.SDDLM(), **LARGER, **more), O.SDDLM(), args, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_peak_of_a_row_loss(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits outweigh all else: they come in chunks of 262 rows, and in several copies."""
    for module in (vocab_head, cost):
        monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 4000 * 262)
    made = replace(config(OBJECTIVES[name], blocks=1), vocab_size=4000)
    check_peak(made, OBJECTIVES[name], TrainArgs(batch=24), rel=0.2)


@pytest.mark.slow
def test_peak_with_gradients_of_earlier_micro_batches() -> None:
    made = replace(config(O.NELBO(), **LARGER), vocab_size=6000)
    check_peak(made, O.NELBO(), TrainArgs(batch=16, micro_batch=4), rel=0.1)


@pytest.mark.parametrize("gpu", [False, True])
def test_all_of_the_memory(gpu: bool) -> None:
    made = replace(config(O.SDDLM()), vocab_size=100_000)
    costs = CostModel(made, O.SDDLM(), replace(ARGS, batch=2, precision="32"), gpu=gpu)
    weights = 4.0 * costs.parameters["all"]
    whole, half, two = costs.memory(2, 1), costs.memory(1, 1), costs.memory(1, 2)
    assert [whole[name] for name in ("weights", "gradients", "optimiser", "EMA")] == [
        weights, weights, 2 * weights, weights
    ]  # fmt: skip
    working = {id(m): m["activations"] + m["workspace"] for m in (whole, half, two)}
    # gradients of an earlier micro-batch lie beside the activations of the next
    assert half["all"] == pytest.approx(5 * weights + working[id(half)])
    last = max(weights, working[id(whole)]) if gpu else weights + working[id(whole)]
    assert whole["all"] == pytest.approx(4 * weights + last)
    assert two["gradients to send"] == weights
    assert half["gradients to send"] == whole["gradients to send"] == 0
    last = max(weights, working[id(two)]) if gpu else weights + working[id(two)]
    assert two["all"] == pytest.approx(5 * weights + last)


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=type)
def test_state_of_the_optimiser_is_that_of_a_real_one(optimizer: Optimizer) -> None:
    made, args = config(O.SDDLM()), replace(ARGS, optimizer=optimizer)
    network = DiT(made)
    update = Update(network, args)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update.step(0)
    states = [each for one in update.optimizers for each in one.state.values()]
    real = sum(t.nbytes for state in states for t in state.values() if t.ndim)  # but step counts
    costs = model_of(made, O.SDDLM(), args)
    memory, weights = costs.memory(2, 1), 4 * costs.parameters["all"]
    assert memory["optimiser"] == real
    assert costs.disk(None, 2)["checkpoints"] == 3 * (2 * weights + real)
    assert (real < 2 * weights) is isinstance(optimizer, Muon)
    adamw = model_of(made, O.SDDLM()).memory(2, 1)
    assert memory["all"] - adamw["all"] == real - 2 * weights


def test_a_gpu_has_larger_chunks_and_kernels() -> None:
    made = replace(config(O.NELBO(), length=1024), vocab_size=50_304)
    args = TrainArgs(batch=8, precision="bf16")
    for objective, copies in ((O.NELBO(), 1.5), (O.SEDD(), 17 + 1)):
        costs = CostModel(made, objective, args, gpu=True)
        logits = copies * 4 * 50_304 * (512 * 2**20 // (4 * 50_304))
        gradients = 4 * 50_304 * D + 2 * 2 * 8 * 1024 * D
        assert costs.memory(8, 1)["workspace"] == pytest.approx(logits + gradients)


def test_a_measured_step_leaves_no_trace() -> None:
    """Its seconds are those of the machine, so only what must hold anywhere is asked."""
    state = torch.get_rng_state()
    for precision in ("32", "bf16"):
        args = TrainArgs(batch=4, steps=8, precision=precision)
        assert measured_step(model_of(config(O.SDDLM()), O.SDDLM(), args), 2) > 0
    assert torch.equal(torch.get_rng_state(), state)
