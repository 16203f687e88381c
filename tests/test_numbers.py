"""Every numeric option at its extremes: refused in one line that names it, or it works.

The fields of all dataclasses that are options are walked over, so a new one is tested by existing.
What is accepted is used: a loss and its gradient, a sample, an optimiser step must be finite.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import singledispatch
from typing import Any, get_args, get_type_hints

import pytest
import torch

from sddlm.errors import ConfigError
from sddlm.generation.config import SamplerConfig
from sddlm.models.config import ModelArgs
from sddlm.models.dit import DiT
from sddlm.objectives import DCD, NELBO, SDDLMV1, Autoregressive, Objective
from sddlm.objectives.negatives import Negatives
from sddlm.process import MaskedProcess, Process, UniformProcess
from sddlm.process.schedule import Schedule
from sddlm.rng import Draw
from sddlm.sampling import autoregressive
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.base import Sampler
from sddlm.sampling.first_hitting import FirstHitting
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation
from sddlm.training.args import TrainArgs
from sddlm.training.module import TrainModule
from sddlm.training.optimizers import Update

V, L = 5, 4
EXTREMES = [
    math.nan, math.inf, -math.inf, -1, -0.5, 0, 5e-324, 1e-30, 1, 1e30, 1e308, -1e308,
    2**31, 2**62, 2**64, -(2**64),
]  # fmt: skip
BASES = [Objective, Negatives, Process, Schedule, Sampler]
ALONE = [Truncation, SamplerConfig, TrainArgs, ModelArgs]


def leaves(kind: type) -> Iterator[type]:
    """The options below a class, of this package."""
    if is_dataclass(kind) and kind.__module__.startswith("sddlm."):
        yield kind
    for below in kind.__subclasses__():
        yield from leaves(below)


def numbers(hint: Any) -> set[type]:
    """int and float, where they are in an annotation."""
    if hint in (int, float):
        return {hint}
    return {kind for part in get_args(hint) for kind in numbers(part)}


KINDS = [*ALONE, *(leaf for base in BASES for leaf in leaves(base))]
CASES = [
    (kind, field.name)
    for kind in dict.fromkeys(KINDS)
    for field in fields(kind)
    if numbers(get_type_hints(kind)[field.name])
]


def network(causal: bool = False, extra: int = 0, **more: Any) -> DiT:
    small = {"preset": "mini", "width": 8, "heads": 2, "blocks": 1, "head_init": 0.1}
    knobs = ModelArgs(**small | more)
    return DiT(knobs.build(vocab_size=V + extra, length=L, causal=causal, num_extra_tokens=extra))


@singledispatch
def use(made: Any) -> None:
    """Everything that comes out of it is finite; a `SamplerConfig` has built its sampler."""


@use.register
def _(made: TrainArgs) -> None:
    assert all(math.isfinite(x) for x in (made.t_max(0), made.lr_factor(0), made.ema_decay(1)))
    module = TrainModule(network(), NELBO(), made, seed=0)
    update = Update(module.model, made)
    for step in range(3):
        for weight in module.parameters():
            weight.grad = torch.ones_like(weight)
        update.step(step)
    assert all(weight.isfinite().all() for weight in module.parameters())


@use.register
def _(made: ModelArgs) -> None:
    given = {name: value for name, value in vars(made).items() if value is not None}
    train(NELBO(), network(**given | {"preset": "mini"}))


@use.register
def _(made: Objective) -> None:
    if not isinstance(made, DCD):  # which needs a teacher
        train(made, network(made.causal, made.process.extra_tokens))


@use.register
def _(made: Negatives) -> None:
    train(SDDLMV1(negatives=made), network())


@use.register
def _(made: Process) -> None:
    train(NELBO(made), network(extra=made.extra_tokens))
    write(Lazy(8), made)


@use.register
def _(made: Schedule) -> None:
    use(UniformProcess(made))
    use(MaskedProcess(made))


@use.register
def _(made: Truncation) -> None:
    p = made(torch.tensor([[3e38, -3e38, 0, 1, 2], [0, 1, 2, 3, 4]]))
    torch.testing.assert_close(p.sum(1), torch.ones(2).double())


@use.register
def _(made: Sampler) -> None:
    write(made, MaskedProcess() if isinstance(made, FirstHitting) else UniformProcess())


def train(objective: Objective, model: DiT) -> None:
    x0 = torch.randint(V, (4, L), generator=torch.Generator().manual_seed(0))
    objective.setup(model.vocab_size, lambda: torch.ones(model.vocab_size).long())
    loss = objective.loss(model, x0, Draw.simple(0, 0, 4))
    loss.mean.backward()
    assert loss.mean.isfinite()
    for parameter in model.parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all()
    assert objective.bound(model, x0, Draw.simple(0, -1, 4)).isfinite().all()


def write(sampler: Sampler, process: Process) -> None:
    model = network(isinstance(sampler, autoregressive.Autoregressive), process.extra_tokens)
    objective = Autoregressive() if model.causal else NELBO(process)
    drawn = sampler.sample(model, process=process, estimate=objective.estimate, batch=2, length=L)
    assert (drawn.tokens >= 0).all()
    assert (drawn.tokens < V).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`objective.eps")
@pytest.mark.parametrize(("kind", "name"), CASES, ids=lambda x: x if type(x) is str else x.__name__)
def test_a_number_at_its_extremes_is_refused_by_name_or_works(kind: type, name: str) -> None:
    usual = getattr(kind(), name)
    more = {"steps": 16} if issubclass(kind, Ancestral) and name != "steps" else {}
    for value in EXTREMES:
        given = [value, *usual[1:]] if isinstance(usual, list | tuple) else value
        try:
            use(kind(**{name: given}, **more))
        except ConfigError as error:
            line = str(error)
            assert "\n" not in line
            assert name in line
            assert len(line) < 400


def test_all_options_are_here() -> None:
    assert len(CASES) > 70
    assert {kind.__name__ for kind, _ in CASES} >= {"LogLinear", "Psi", "DuoCurriculum"}


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TrainArgs, {"weight_decay": -0.1}, "`weight_decay` is -0.1, must be at least 0"),
        (TrainArgs, {"weight_decay": math.nan}, "`weight_decay` is nan"),
        (TrainArgs, {"lr": math.inf}, "`lr` is inf"),
        (ModelArgs, {"head_init": math.nan}, "`head_init` is nan, must be a number"),
        (Truncation, {"temperature": 1e-320}, "temperature`? is 1e-320"),
    ],
)
def test_what_it_says(kind: type, given: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**given)


def test_a_float_of_no_sense_is_refused_in_a_class_of_ones_own() -> None:
    @dataclass
    class Mine(NELBO):
        strength: float = 1.0

    with pytest.raises(ConfigError, match=r"`strength` is nan, must be a number"):
        replace(Mine(), strength=math.nan)
