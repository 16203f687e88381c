"""What is counted without carrying it out is what the real step does."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sddlm import objectives as O
from sddlm.models.config import Checkpointing, DiTConfig, ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives.negatives import (
    MixedNegatives,
    TopNegatives,
    UniformNegatives,
    UnigramNegatives,
)
from sddlm.plan import here
from sddlm.plan.cost import CostModel
from sddlm.plan.probe import Asked, asked, largest, set_up
from sddlm.plan.trace import Tracer
from sddlm.rng import Draw
from sddlm.training.args import TrainArgs

V, L, B, D, BLOCKS = 307, 24, 48, 32, 2
SIZES: dict[str, Any] = {"width": D, "blocks": BLOCKS, "heads": 2, "length": L}
ARGS = TrainArgs(batch=B, steps=1000)

OBJECTIVES: dict[str, O.Objective] = {
    "sddlm": O.SDDLM(),
    "v1": O.SDDLMV1(negatives=MixedNegatives([UniformNegatives(), TopNegatives(2)])),
    "v1 unigram": O.SDDLMV1(eps=1e-9, negatives=UnigramNegatives("exact")),
    "v2": O.SDDLMV2(),
    "naive": O.NaiveDenoising(),
    "calibrated": O.CalibratedDenoising(),
    "nelbo": O.NELBO(),
    "mdlm": O.MDLM(),
    "d3pm": O.D3PM(),
    "sedd": O.SEDD(),
    "ar": O.Autoregressive(),
    "duo": O.DuoCurriculum(until=2000),
    "duo top": O.DuoCurriculum(until=2000, top_k=5),
}


def config(objective: O.Objective, **more: Any) -> DiTConfig:
    extra = objective.process.extra_tokens
    return DiTConfig(
        vocab_size=V + extra, causal=objective.causal, num_extra_tokens=extra, **{**SIZES, **more}
    )


def attention_flops(q: Any, *others: Any, out_val: Any = None, **more: Any) -> int:
    """2 products of [L, dim] and [dim, L] in each head, 2 FLOPs each."""
    return 4 * B * (D // 2) * 2 * q[2] ** 2


def attention_backward_flops(grad: Any, *others: Any, out_val: Any = None, **more: Any) -> int:
    """5 of them: the scores again, and the gradients of scores, q, k and v."""
    return 5 * attention_flops(grad) // 2


CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
}


def real_flops(objective: O.Objective, model: DiT, steps: int = 2) -> float:
    """Of a training step as torch counts them while it is carried out, the mean over steps."""
    total = 0
    for step in range(steps):
        draw = Draw(1, step, torch.arange(B), B)
        x0 = draw.integers("x0", L, high=V)
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            objective.loss(model, x0, draw).mean.backward()
        total += counter.get_total_flops()
    return total / steps


def planned_flops(objective: O.Objective, made: DiTConfig, args: TrainArgs = ARGS) -> float:
    costs = CostModel(made, objective, args, None, 1, "ddp")
    return costs.work(B)["token"] * B * L


@pytest.mark.parametrize("name", OBJECTIVES)
def test_flops_are_those_of_a_real_step(name: str) -> None:
    made = config(OBJECTIVES[name])
    objective = set_up(OBJECTIVES[name], made.vocab_size)
    assert planned_flops(objective, made) == pytest.approx(
        real_flops(objective, DiT(made)), rel=0.01
    )


@pytest.mark.parametrize(
    ("more", "checkpointing"),
    [({"dropout": 0.1}, "full"),
     ({"time_free": True}, "selective"), ({"architecture": "llama"}, "selective"),
     ({"architecture": "llama"}, "full"), ({"tie_embeddings": True}, "none"),
     ({"input_conv": 3}, "none")],
    ids=str,
)  # fmt: skip
def test_flops_whatever_the_network(more: dict[str, Any], checkpointing: Checkpointing) -> None:
    made = config(O.SDDLM(), **more)
    model = DiT(made)
    model.checkpointing = checkpointing
    args = replace(ARGS, activation_checkpointing=checkpointing)
    assert planned_flops(O.SDDLM(), made, args) == pytest.approx(
        real_flops(O.SDDLM(), model), rel=0.01
    )


def test_flops_by_hand() -> None:
    """6 a weight and token, but for the last MLP and the head, which see the noise alone."""
    made = config(O.SDDLM(), time_free=True)
    attention = 14 * BLOCKS * L * D  # of a token: 4 forward, 10 backward
    weights = BLOCKS * 12 * D**2 - 9 * D**2 / 2 + V * D / 2
    expected = 6 * weights + attention
    assert planned_flops(O.SDDLM(), made) / (B * L) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("objective", "args", "expected"),
    [
        (O.SDDLM(), ARGS, 0.5),  # E[1 - alpha_t], alpha_t = 1 - t
        (O.SDDLM(), replace(ARGS, curriculum=0.999, curriculum_start=0.2), 0.3),  # 0.1 to 0.5
        (O.SDDLM(positions="changed"), ARGS, 0.5 * (1 - 1 / V)),
        (O.MDLM(), ARGS, 0.5),
        (O.NELBO(), ARGS, 1.0),
        (O.Autoregressive(), ARGS, (L - 1) / L),
    ],
)
def test_share_of_positions_that_meet_the_vocabulary(
    objective: O.Objective, args: TrainArgs, expected: float
) -> None:
    found = asked(objective, V + objective.process.extra_tokens, L, args)
    assert found.head == pytest.approx(expected, rel=0.015)
    assert (found.soft, found.mixture) == (0, 0)


def test_what_the_curriculum_of_duo_shows() -> None:
    half = O.DuoCurriculum(until=500)
    assert asked(half, V, L, ARGS) == Asked(1.0, 0.5, V, True)
    top = O.DuoCurriculum(until=250, top_k=5)
    assert asked(top, V, L, ARGS) == Asked(1.0, 0.25, 6, False)


def kept_really(model: DiT, objective: O.Objective) -> int:
    """Bytes that autograd keeps of a forward pass, each storage once, without the parameters."""
    mine = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address comes twice
        return tensor

    found = largest(objective, model.vocab_size, L, B, B)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = model(found.x, found.sigma, rows=found.rows)
    known = {t.untyped_storage().data_ptr() for t in (found.x, found.rows)}
    assert hidden.requires_grad
    return sum(t.untyped_storage().nbytes() for p, t in kept.items() if p not in mine | known)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("more", [{}, {"time_free": True}, {"architecture": "llama"}], ids=str)
def test_kept_bytes_are_those_that_autograd_keeps(bf16: bool, more: dict[str, Any]) -> None:
    made = config(O.SDDLM(), **{"width": 64, "blocks": 3, **more})
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        really = kept_really(DiT(made), O.SDDLM())
    step = Tracer(made, "none", bf16=bf16).step(largest(O.SDDLM(), V, L, B, B))
    # beside what is kept for the backward pass there is the result, and the rotary angles
    assert really <= step.kept <= 1.03 * really
    assert (step.casts > 0) is bf16


def test_less_is_kept_where_more_is_computed_again() -> None:
    made = config(O.SDDLM())
    found = largest(O.SDDLM(), V, L, B, B)
    none, selective, full = (
        Tracer(made, how, bf16=False).step(found) for how in ("none", "selective", "full")
    )
    assert none.kept > selective.kept > full.kept
    assert none.flops == selective.flops < full.flops
    assert none.in_backward > selective.in_backward > full.in_backward


def test_a_step_is_linear_in_the_batch() -> None:
    tracer = Tracer(config(O.NELBO(), blocks=1), "none", bf16=False)
    one, two, four = (tracer.step(largest(O.NELBO(), V, L, n, n)) for n in (8, 16, 32))
    assert two.flops == 2 * one.flops
    assert four.kept - two.kept == pytest.approx(2 * (two.kept - one.kept), rel=0.001)


def test_gradients_are_those_of_the_parameters() -> None:
    made = config(O.SDDLM())
    total = 4 * sum(p.numel() for p in DiT(made).parameters())
    found = largest(O.SDDLM(), V, L, B, B)
    tracer = Tracer(made, "none", bf16=False)
    first, later = tracer.step(found), tracer.step(found, again=True)
    assert (first.earlier, later.earlier) == (0, total)
    assert 0 < first.gradients <= total
    assert later.gradients == total
    assert later.kept == first.kept


def test_two_chunks_tell_the_others() -> None:
    objective = O.NELBO()
    made = replace(config(objective, blocks=1), vocab_size=20_011, length=2048)  # 419 rows a chunk
    found = largest(objective, 20_011, 2048, 1, 1)
    tracer = Tracer(made, "none", bf16=False)
    few, all_ = tracer.step(found), tracer.step(found, detailed=True)
    assert few.head == pytest.approx(all_.head, rel=1e-6)
    assert few.in_head == pytest.approx(all_.in_head, rel=0.02)


@pytest.mark.parametrize(
    ("name", "bf16"),
    [("sddlm", True), ("v1", False), ("nelbo", True), ("mdlm", False), ("ar", True),
     ("duo", True), ("duo top", False)],
)  # fmt: skip
def test_every_operation_can_be_run(name: str, bf16: bool) -> None:
    """The replayed operations are carried out, with operands that they accept."""
    made = config(OBJECTIVES[name], blocks=1)
    args = replace(ARGS, precision="bf16" if bf16 else "32")
    costs = CostModel(made, set_up(OBJECTIVES[name], made.vocab_size), args, None, 1, "ddp")
    state = torch.get_rng_state()
    seconds = costs.seconds(4, None)
    assert min(seconds.values()) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_an_objective_is_not_changed_by_being_asked() -> None:
    objective = O.SDDLMV1(negatives=UnigramNegatives())
    before = copy.deepcopy(vars(objective.negatives))
    set_up(objective, V)
    assert vars(objective.negatives) == before


def test_the_optimizer_grows_with_the_parameters() -> None:
    """Above the sample it is a proportion, exactly but for what is measured."""
    assert here.update_seconds(1000) > 0


def test_presets_of_other_architectures_are_traced() -> None:
    made = ModelArgs(preset="1.1b", blocks=4).build(vocab_size=32000, length=128)
    step = Tracer(made, "full", bf16=True).step(largest(O.Autoregressive(), 32000, 128, 1, 1))
    weights = 4 * (4 * 1792**2 + 3 * 1792 * 7168)
    # forward 2, backward 4, and all but the last product of each block once more
    again = weights - 4 * 1792 * 7168
    assert step.forward + step.backward == pytest.approx((6 * weights + 2 * again) * 128, rel=0.06)
