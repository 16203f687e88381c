"""Cost model against what a real step computes and allocates."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from sddlm import objectives as O
from sddlm.models import vocab_head
from sddlm.models.config import Checkpointing, DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives.negatives import (
    MixedNegatives,
    TopNegatives,
    UniformNegatives,
    UnigramNegatives,
)
from sddlm.plan import cost
from sddlm.plan.cost import CostModel
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs
from sddlm.training.optimizers import AdamW, Muon, Optimizer, Update

V, L, B, D, BLOCKS = 307, 64, 16, 64, 2
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
HOLLOW, LLAMA = {"architecture": "hollow"}, {"architecture": "llama"}
CASES: list[tuple[dict[str, Any], O.Objective, Checkpointing, Any]] = [
    ({}, O.SDDLM(), "none", "32"), ({}, O.NELBO(), "selective", "bf16"),
    ({}, O.NELBO(), "full", "bf16"), (LLAMA, O.SDDLM(), "none", "bf16"),
    (LLAMA, O.NELBO(), "selective", "32"), (LLAMA, O.NELBO(), "full", "32"),
    ({**HOLLOW, "time_input": "none", "input_conv": 4}, O.SDDLM(positions="all"), "none", "bf16"),
    ({**HOLLOW, "blocks": 3}, O.SDDLM(), "selective", "32"), (HOLLOW, O.NELBO(), "full", "32"),
    ({"time_input": "none", "tie_embeddings": True}, O.NELBO(), "none", "32"),
    ({"dropout": 0.1, "input_conv": 3}, O.NELBO(), "none", "32"),
    ({"architecture": "gidd"}, O.NELBO(), "none", "32"),
]  # fmt: skip


def config(objective: O.Objective, **more: Any) -> DiTConfig:
    extra = objective.process.extra_tokens
    sizes: dict[str, Any] = {"width": D, "blocks": BLOCKS, "heads": 2, "length": L}
    return DiTConfig(
        vocab_size=V + extra, causal=objective.causal, num_extra_tokens=extra, **{**sizes, **more}
    )


def model_of(made: DiTConfig, objective: O.Objective, args: TrainArgs = ARGS) -> CostModel:
    return CostModel(made, objective, args, args.micro_batch or args.batch, gpu=False)


def step_of(network: DiT, objective: O.Objective, args: TrainArgs = ARGS) -> Callable[[int], None]:
    """Forward and backward passes of one step of a real network."""
    network.checkpointing = args.activation_checkpointing
    made, size = network.config, args.micro_batch or args.batch

    def run(step: int) -> None:
        for first in range(0, args.batch, size):
            draw = Draw(1, step, torch.arange(first, first + size), args.batch)
            x0 = draw.integers("x0", made.length, high=made.vocab_size - made.num_extra_tokens)
            bf16 = args.precision == "bf16"
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
                loss = objective.loss(network, x0, draw).mean
            loss.backward()  # type: ignore[no-untyped-call]
        for parameter in network.parameters():
            parameter.grad = None

    return run


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


def check_flops(costs: CostModel, run: Callable[[int], None]) -> None:
    """FLOPs of a token against those that torch counts in two real steps."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        run(0)
        run(1)
    real = counter.get_total_flops() / (2 * costs.args.batch * costs.config.length)
    random = 0.4 < costs.head < 0.6  # the number of rows
    assert costs.flops["all"] == pytest.approx(real, rel=0.05 if random else 0.003)


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


def check_peak(costs: CostModel, run: Callable[[int], None], rel: float) -> None:
    """Activations and workspace, or else gradients, against the peak of a real step."""
    memory = costs.memory(costs.size, 1)
    peak, gradients = memory["activations"] + memory["workspace"], memory["gradients"]
    peak = peak + gradients if costs.size < costs.args.batch else max(peak, gradients)
    assert peak == pytest.approx(live_peak(lambda: run(1)), rel=rel)


@pytest.mark.slow
@pytest.mark.parametrize(("more", "objective", "checkpointing", "precision"), CASES, ids=str)
def test_every_network(
    more: dict[str, Any], objective: O.Objective, checkpointing: Checkpointing, precision: Any
) -> None:
    args = replace(ARGS, activation_checkpointing=checkpointing, precision=precision)
    made = config(objective, **more)
    costs, network = model_of(made, objective, args), DiT(made)
    run = step_of(network, objective, args)
    check_flops(costs, run)
    check_peak(costs, run, rel=0.06)
    assert costs.parameters["all"] == sum(p.numel() for p in network.parameters())
    assert costs.parameters["all"] * 2 == sum(costs.parameters.values())
    assert costs.parameters["blocks"] == sum(p.numel() for p in network.blocks.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits outweigh all else: they come in chunks of 262 rows, and in several copies."""
    objective, args = OBJECTIVES[name], replace(ARGS, batch=24)
    made = replace(config(objective, blocks=1, length=24, width=32), vocab_size=4000)
    costs = model_of(made, objective, args)
    run = step_of(DiT(made), costs.objective, args)
    check_flops(costs, run)  # in one chunk: torch does not count `addmm_`
    for module in (vocab_head, cost):
        monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 4000 * 262)
    check_peak(costs, run, rel=0.16 if name == "duo" else 0.11)


@pytest.mark.slow
def test_gradients_of_earlier_micro_batches() -> None:
    made, args = replace(config(O.NELBO()), vocab_size=6000), replace(ARGS, micro_batch=4)
    check_peak(model_of(made, O.NELBO(), args), step_of(DiT(made), O.NELBO(), args), rel=0.2)


def test_flops_by_hand() -> None:
    """6 a weight and token, but for the last MLP and the head, which see the noise alone."""
    made = config(O.SDDLM(), time_input="none")
    attention = 14 * BLOCKS * L * D  # of a token: 4 forward, 10 backward
    weights = BLOCKS * 12 * D**2 - 9 * D**2 / 2 + V * D / 2
    found = model_of(made, O.SDDLM()).flops
    assert found["all"] == pytest.approx(6 * weights + attention, rel=0.01)
    assert found["all"] == found["forward"] + found["backward"] + found["head"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "args", "expected"),
    [
        (O.SDDLM(), ARGS, 0.5),  # E[1 - alpha_t], alpha_t = 1 - t
        (O.SDDLM(), replace(ARGS, curriculum=0.999, curriculum_start=0.2), 0.3),  # 0.1 to 0.5
        (O.SDDLM(positions="changed"), ARGS, 0.5 * (1 - 1 / V)),
        (O.SDDLM(positions="all"), ARGS, 1.0),
        (O.MDLM(), ARGS, 0.5),
        (O.Autoregressive(), ARGS, (L - 1) / L),
    ],
)
def test_share_of_positions_that_meet_the_vocabulary(
    objective: O.Objective, args: TrainArgs, expected: float
) -> None:
    found = model_of(config(objective, blocks=1, width=4), objective, args).head
    assert found == pytest.approx(expected, rel=0.015)


@pytest.mark.slow
def test_mixtures_of_a_curriculum() -> None:
    """In half of the steps; each costs a product with the embedding, forward and backward."""
    half, never = (
        model_of(config(made, blocks=1), made).flops
        for made in (O.DuoCurriculum(until=500), O.NELBO())
    )
    assert half["forward"] - never["forward"] == pytest.approx(V * D)
    assert half["backward"] - never["backward"] == pytest.approx(V * D)
    assert half["head"] == never["head"]


def test_an_objective_is_not_changed() -> None:
    objective = O.SDDLMV1(negatives=UnigramNegatives())
    before = copy.deepcopy(vars(objective.negatives))
    model_of(config(objective, blocks=1), objective)
    assert vars(objective.negatives) == before


def test_parts_of_the_memory() -> None:
    costs = model_of(config(O.SDDLM(), blocks=1), O.SDDLM())
    weights, one, two = 4.0 * costs.parameters["all"], costs.memory(16, 1), costs.memory(8, 2)
    for memory in (one, two):
        assert [memory[name] for name in ("weights", "gradients", "EMA")] == [weights] * 3
        assert memory["all"] == sum(n for name, n in memory.items() if name != "all")
    assert (one["gradients to send"], two["gradients to send"]) == (0, weights)
    assert two["activations"] == one["activations"] / 2


@pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=type)
def test_state_of_the_optimiser_is_that_of_a_real_one(optimizer: Optimizer) -> None:
    made, args = config(O.SDDLM(), blocks=1), replace(ARGS, optimizer=optimizer)
    network = DiT(made)
    update = Update(network, args)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    update.step(0)
    states = [each for one in update.optimizers for each in one.state.values()]
    real = sum(t.nbytes for state in states for t in state.values() if t.ndim)  # but step counts
    costs = model_of(made, O.SDDLM(), args)
    assert costs.memory(2, 1)["optimiser"] == real
    assert (real < 8 * costs.parameters["all"]) is isinstance(optimizer, Muon)


def test_a_gpu_has_larger_chunks() -> None:
    made = replace(config(O.NELBO(), blocks=1, length=1024), vocab_size=50_304)
    args = TrainArgs(batch=8, precision="bf16")
    costs = CostModel(made, O.NELBO(), args, 8, gpu=True)
    gradients = 4 * 50_304 * D + 2 * 2 * 8 * 1024 * D
    logits = 4 * 4 * 50_304 * (512 * 2**20 // (4 * 50_304))  # 3 of a chunk, and the next
    assert costs.memory(8, 1)["workspace"] == pytest.approx(logits + gradients, rel=0.02)
