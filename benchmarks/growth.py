"""How cost grows: a training step and a sampling run against L, V, B and the number of steps.

One size varies, the others stay. Each curve gets the exponent of its power law, fitted by least
squares of the logarithms: 1 is proportional, 0 does not matter, 2 is square.
``python benchmarks/growth.py [--out growth.png] [--rounds 3] [--tiny]``; minutes at one thread.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from measure import Timing, interleaved, machine, show

from sddlm import NELBO, SDDLM, DiT, Draw, Estimate, Lazy, ModelArgs, UniformProcess


@dataclass(frozen=True)
class Sizes:
    """Of a step or a sampling run: length, vocabulary, batch, sampling steps."""

    L: int
    V: int
    B: int
    steps: int = 32


#: what is varied, and the sizes of all else
TRAIN = (Sizes(128, 4096, 8), {
    "L": (64, 128, 256, 512, 1024), "V": (1024, 4096, 16384, 65536), "B": (2, 4, 8, 16, 32),
})  # fmt: skip
SAMPLE = (Sizes(64, 4096, 2), {
    "L": (32, 64, 128, 256), "V": (1024, 4096, 16384, 65536), "B": (1, 2, 4, 8),
    "steps": (8, 16, 32, 64, 128),
})  # fmt: skip
FEW = (Sizes(8, 300, 2, 2), {"L": (8, 16), "V": (300, 600)})

Plan = tuple[Sizes, Mapping[str, tuple[int, ...]]]
Make = Callable[[Sizes], Callable[[], object]]


def network(sizes: Sizes) -> DiT:
    args = ModelArgs(preset="mini", blocks=2)
    return DiT(args.build(vocab_size=sizes.V, length=sizes.L, causal=False), seed=0)


def training(objective: SDDLM | NELBO, sizes: Sizes) -> Callable[[], object]:
    """Loss and gradients."""
    model = network(sizes)
    x0 = torch.randint(sizes.V, (sizes.B, sizes.L), generator=torch.Generator().manual_seed(0))

    def step() -> None:
        model.zero_grad()
        objective.loss(model, x0, Draw.simple(0, 0, sizes.B)).mean.backward()

    return step


def sampling(sizes: Sizes) -> Callable[[], object]:
    """A whole run of the lazy sampler."""
    model = network(sizes).eval()
    return lambda: Lazy(sizes.steps).sample(
        model,
        process=UniformProcess(),
        estimate=Estimate.LEAVE_ONE_OUT,
        batch=sizes.B,
        length=sizes.L,
        seed=0,
    )


def curve(make: Make, plan: Plan, vary: str, rounds: int) -> dict[int, Timing]:
    """Seconds at each value of one size, interleaved."""
    base, values = plan[0], plan[1][vary]
    arms = {str(v): make(Sizes(**{**vars(base), vary: v})) for v in values}
    return {int(name): timing for name, timing in interleaved(arms, rounds=rounds).items()}


def exponent(found: Mapping[int, Timing]) -> float:
    """Slope of log seconds against log size."""
    x = [math.log(size) for size in found]
    return statistics.linear_regression(x, [math.log(t.median) for t in found.values()]).slope


def draw(curves: Mapping[tuple[str, str], Mapping[int, Timing]], path: Path) -> None:
    """All curves, one panel for each size that varies."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    varied = list(dict.fromkeys(vary for _, vary in curves))
    colors = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in curves))}
    figure, panels = plt.subplots(1, len(varied), figsize=(4 * len(varied), 3.6), squeeze=False)
    for panel, vary in zip(panels[0], varied, strict=True):
        for (name, other), found in curves.items():
            if other == vary:
                medians = [t.median for t in found.values()]
                lows = [t.median - min(t.seconds) for t in found.values()]
                highs = [max(t.seconds) - t.median for t in found.values()]
                label = f"{name}, exponent {exponent(found):.2f}"
                panel.errorbar(
                    [*found], medians, [lows, highs], marker="o", label=label, color=colors[name]
                )
        panel.set(xscale="log", yscale="log", xlabel=vary, ylabel="seconds")
        panel.set_xscale("log", base=2)
        bottom, top = panel.get_ylim()
        panel.set_ylim(bottom, top * (top / bottom) ** 0.35)  # room for the legend
        panel.legend(fontsize="small", loc="upper left")
    figure.suptitle(machine(), fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="picture to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a test")
    chosen = parser.parse_args(argv)
    rounds = 1 if chosen.tiny else chosen.rounds
    arms: dict[str, tuple[Make, Plan]] = {
        "SDDLM step": (partial(training, SDDLM()), FEW if chosen.tiny else TRAIN),
        "NELBO step": (partial(training, NELBO()), FEW if chosen.tiny else TRAIN),
        "Lazy run": (sampling, FEW if chosen.tiny else SAMPLE),
    }
    curves = {}
    for name, (make, plan) in arms.items():
        for vary in plan[1]:
            curves[name, vary] = curve(make, plan, vary, rounds)
    show(
        f"growth; mini network of 2 blocks, {machine()}",
        ["", "varied", "seconds (size: median)", "exponent", "all else"],
        [
            [
                name,
                vary,
                ", ".join(f"{size}: {t.median:.3f}" for size, t in found.items()),
                f"{exponent(found):.2f}",
                ", ".join(f"{k} {v}" for k, v in vars(arms[name][1][0]).items()
                          if k != vary and (k != "steps" or name == "Lazy run")),
            ]
            for (name, vary), found in curves.items()
        ],
    )  # fmt: skip
    if chosen.out:
        draw(curves, chosen.out)
        print(f"drawn in {chosen.out}")


if __name__ == "__main__":
    main()
