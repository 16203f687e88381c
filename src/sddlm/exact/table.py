"""The page docs/exact.md: samples from exact predictions, with right and wrong conversion.

``python -m sddlm.exact`` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import torch
from torch import Tensor

from sddlm.exact.exact import law
from sddlm.exact.world import Predictions, World, entropy, states, total_variation
from sddlm.process import HybridProcess, LogLinear, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.psi import Psi

STEPS = 64
WORLDS = {
    "random": World.random(5, 3, seed=0),
    "Zipf": World.zipf(5, 3, exponent=1.5),
    "correlated": World.correlated(5, 3),
}
SAMPLERS: dict[str, Callable[[], Ancestral]] = {
    "ancestral, lazy": lambda: Ancestral(STEPS),
    "the same, greedy tail": lambda: Ancestral(STEPS, "greedy"),
    "Psi, kappa 0.8": lambda: Psi(STEPS, kappa="0.8"),
    "Psi, cap 0.05": lambda: Psi(STEPS, kappa="cap:0.05"),
    "Psi, kappa 0": lambda: Psi(STEPS, kappa="0"),
}
_FAR = LogLinear(eps=1e-9)  # alpha = 1 - t but for t = 1
#: objectives, their process and estimate, and the wrong conversion or why there is none
OBJECTIVES: list[tuple[str, Process, Estimate, str]] = [
    ("NELBO, SDDLM resampled, calibrated, D3PM", UniformProcess(_FAR), Estimate.LEAVE_ONE_OUT,
     "taken for a denoiser"),
    ("naive denoising", UniformProcess(_FAR), Estimate.DENOISER, "taken for leave-one-out"),
    ("SDDLM changed, V2", UniformProcess(_FAR), Estimate.WITHOUT_X_T, "no difference"),
    ("V1, weight 1", UniformProcess(_FAR), Estimate.TRUNCATED, "taken for a denoiser"),
    ("SEDD", UniformProcess(_FAR), Estimate.SCORE, "not read as a law"),
    ("MDLM, NELBO and D3PM of a mask", MaskedProcess(_FAR), Estimate.LEAVE_ONE_OUT,
     "no difference"),
    ("NELBO of the hybrid", HybridProcess(_FAR), Estimate.LEAVE_ONE_OUT, "taken for a denoiser"),
]  # fmt: skip

PAGE = f"""# Exact laws of objectives and samplers

Written by `python -m sddlm.exact`; do not edit.

Three laws over the 125 sequences of 3 tokens from a vocabulary of 5, all predictions exact, and the
exact law of what each sampler returns after {STEPS} steps (the composition of its steps over all
noisy sequences; nothing is trained or drawn). A row is an objective, by what its optimum is
(`tests/exact/test_optimum.py` minimises each), and a sampler. A cell is the **total variation
distance to the data / entropy of the samples in nats**. *Right* is how this library reads the
prediction; *wrong* is the other reading: a denoiser without conversion, as in public code, anything
else converted as if it were a denoiser.

Read beside it [objectives](objectives.md) and [samplers](samplers.md).

"""


def right(world: World, process: Process, estimate: Estimate) -> Predictions:
    """Predictions of a network at its optimum, correctly converted to leave-one-out."""

    def predictions(alpha: float) -> Tensor:
        if estimate is Estimate.SCORE:  # of which the network's logits differ by a known ratio
            return world.leave_one_out(alpha, process)
        return _converted(world.optimum(estimate, process)(alpha), estimate, process, alpha)

    return predictions


def wrong(world: World, process: Process, estimate: Estimate) -> Predictions:
    """Predictions with the wrong conversion: none for a denoiser, a denoiser's for all others."""
    optimum = world.optimum(estimate, process)
    if estimate is Estimate.DENOISER:
        return optimum

    def predictions(alpha: float) -> Tensor:
        return _converted(optimum(alpha), Estimate.DENOISER, process, alpha)

    return predictions


def _stacked(read: list[Predictions]) -> Predictions:
    """Stack several predictions as one ``[n, S, L, V]``, cached."""
    return cache(lambda alpha: torch.stack([each(alpha) for each in read]))


def _converted(p: Tensor, estimate: Estimate, process: Process, alpha: float) -> Tensor:
    """Leave-one-out predictions of a network whose probabilities are ``p [S, L, V]``."""
    x_t = states(p.shape[-1], p.shape[1])
    at = torch.tensor(alpha, dtype=torch.float64)
    logits = p.clamp(min=1e-300).log()
    return to_leave_one_out(logits, estimate, process, x_t, at).softmax(-1)


def rows() -> Iterator[list[str]]:
    """Cells of the table by row, header first."""
    titles = [f"{name}: {reading}" for reading in ("right", "wrong") for name in WORLDS]
    yield ["optimum of", "sampler", *titles]
    yield [
        "the data itself",
        "",
        *(f"0 / {world.entropy:.2f}" for world in WORLDS.values()),
        *[""] * 3,
    ]
    for name, process, estimate, mistake in OBJECTIVES:
        readings = [right, wrong] if mistake.startswith("taken") else [right]
        read = [make(world, process, estimate) for make in readings for world in WORLDS.values()]
        together = _stacked(read)
        for sampler, build in SAMPLERS.items():
            laws = law(build(), process, together)
            cells = [
                _cell(exact, world)
                for exact, world in zip(laws, [*WORLDS.values()] * len(readings), strict=True)
            ]
            yield [name, sampler, *cells, *(2 * len(WORLDS) - len(cells)) * [mistake]]


def _cell(exact: Tensor, world: World) -> str:
    return f"{total_variation(exact, world.probabilities):.3f} / {abs(entropy(exact)):.2f}"


def page() -> str:
    """Render the page in Markdown."""
    head, *body = rows()
    lines = [head, ["---"] * len(head), *body]
    return PAGE + "".join("| " + " | ".join(line) + " |\n" for line in lines)
