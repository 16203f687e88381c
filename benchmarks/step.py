"""A whole optimiser step: noise, forward, loss, backward, clip, AdamW, EMA.

The library's step is its own: `TrainModule`, `Update` and `EMA` as in ``sddlm train``. The
textbook's (``textbook.py``) has the same weights, data and settings, and logits of all positions.

    python benchmarks/step.py                                        # small, tiny and char
    python benchmarks/step.py --shape small --length 128 --batch 32 --rounds 3
    python benchmarks/step.py --shape tiny --length 128 --batch 32 --memory
"""

from __future__ import annotations

import gc
import json
import resource
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import Timing, fresh, interleaved, machine, progress, show, times
from shapes import ARGS, SHAPES, names, network, parser
from textbook import TextbookDiT, TextbookTrainer
from torch import Tensor

from sddlm.models.dit import DiT
from sddlm.objectives.autoregressive import Autoregressive
from sddlm.objectives.base import Objective
from sddlm.objectives.contrastive import SDDLMV1
from sddlm.objectives.denoising import SDDLM
from sddlm.objectives.negatives import UniformNegatives
from sddlm.objectives.nelbo import NELBO
from sddlm.training.args import TrainArgs
from sddlm.training.ema import EMA
from sddlm.training.module import TrainModule
from sddlm.training.optimizers import Update

OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "NELBO": NELBO,
    "SDDLM": SDDLM,
    "V1 sampled": SDDLMV1,
    "V1 exact": lambda: SDDLMV1(negatives=UniformNegatives("exact")),
    "AR": Autoregressive,
}

#: the baseline is the first; textbook V1 sampled and textbook V1 exact can be had by --arms
DIFFUSION = [
    "textbook NELBO", "textbook SDDLM",
    "sddlm NELBO", "sddlm SDDLM", "sddlm V1 sampled", "sddlm V1 exact",
]  # fmt: skip
AR = ["textbook AR", "sddlm AR"]

CELLS = [(128, 4), (128, 32), (1024, 4)]
"""(L, B): 512 and 4096 tokens."""


class LibraryTrainer:
    """The library's step without the loop around it, in its order.

    Args:
        model: what is trained.
        args: optimiser and decay.
    """

    def __init__(self, model: DiT, args: TrainArgs) -> None:
        self.model = model
        self.module = TrainModule(model, SDDLM(), args, seed=0)
        self.weights = Update(model, args)
        (self.optimizer,) = self.weights.optimizers
        self.ema = EMA(model)
        self.updates = 0

    def loss(self, name: str, x0: Tensor) -> Tensor:
        """The mean loss of a batch: a key of `OBJECTIVES`."""
        self.module.objective = OBJECTIVES[name]()
        self.model.checkpointing = self.module.args.activation_checkpointing
        step = torch.tensor([self.updates])
        slot = torch.arange(len(x0), device=x0.device)
        return self.module({"x0": x0, "step": step, "slot": slot})

    def update(self, loss: Tensor) -> None:
        """Backward, clip, optimiser, EMA."""
        loss.backward()
        self.weights.step(self.updates)
        self.updates += 1
        self.ema.update(self.module.args.ema_decay(self.updates))


def arguments(batch: int) -> TrainArgs:
    """`ARGS` for a batch size (times are stratified over it)."""
    return TrainArgs(**{**vars(ARGS), "batch": batch})


def trainer(kind: str, model: DiT, batch: int) -> LibraryTrainer | TextbookTrainer:
    """A trainer around a network; the textbook's shares its weights.

    Args:
        kind: textbook, sddlm, or light or full: sddlm with that activation checkpointing.
        model: a network of the library.
        batch: sequences in a step.
    """
    if kind == "sddlm":
        return LibraryTrainer(model, arguments(batch))
    if kind in ("selective", "full"):
        args = replace(arguments(batch), activation_checkpointing=kind)
        return LibraryTrainer(model, args)
    return TextbookTrainer(TextbookDiT.around(model), arguments(batch))


def measured(
    arms: Sequence[str], shape: str, length: int, batch: int, rounds: int, label: str
) -> dict[str, Timing]:
    """Timings of arms that share their weights."""
    model = network(shape, length, causal=arms[0].endswith(" AR"))
    x0 = torch.randint(model.vocab_size, (batch, length))
    trainers = {kind: trainer(kind, model, batch) for kind in {a.split(" ")[0] for a in arms}}

    def arm(name: str, x0: Tensor) -> Callable[[], None]:
        kind, loss = name.split(" ", 1)

        def run() -> None:
            trainers[kind].update(trainers[kind].loss(loss, x0))
            trainers[kind].optimizer.zero_grad()  # or the next trainer would run beside them

        return run

    for name in arms:  # what is allocated once, at little cost
        arm(name, x0[:1, :8])()
    warmup = 1 if rounds > 3 else 0  # few rounds are asked for where a step takes a minute
    runs = {name: arm(name, x0) for name in arms}
    return interleaved(runs, rounds=rounds, warmup=warmup, label=label)


def time_table(shape: str, length: int, batch: int, arms: list[str], rounds: int) -> None:
    """Measure and print the seconds of a step."""
    label = f"{shape}, L {length}, B {batch}"
    groups = [[a for a in arms if a.endswith(" AR") is causal] for causal in (False, True)]
    timings: dict[str, Timing] = {}
    for group in filter(None, groups):
        timings.update(measured(group, shape, length, batch, rounds, label))
        gc.collect()
    rows = []
    for name, timing in timings.items():
        same = timings.get(f"textbook {name.split(' ', 1)[1]}")
        peer = Timing(timing.seconds, same.seconds).ratio if same else "-"
        own = "-" if name.endswith(" AR") else timing.ratio
        tokens = batch * length / timing.median
        rows.append([name, f"{timing.median:.3g}", f"{tokens:,.0f}", own, peer])
    first = next(iter(timings))
    columns = ["arm", "s/step", "tokens/s", f"against {first}", "against the textbook's same loss"]
    show(f"step: {label}, V {SHAPES[shape]['vocab_size']}; {machine()}; {rounds} rounds",
         columns, rows)  # fmt: skip


def peak() -> float:
    """Largest resident set of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # the other figure begins with that of the parent
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 2**10
    )


def one_process(arm: str, shape: str, length: int, batch: int) -> None:
    """Two steps of an arm, or all that outlives a step (``setup AR``); prints its peak in MB."""
    kind, loss = arm.split(" ", 1)
    model = network(shape, length, causal=loss == "AR")
    chosen = trainer("sddlm" if kind == "setup" else kind, model, batch)
    if kind == "setup":
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)  # zeros might not be real memory
        chosen.optimizer.step()
    else:
        x0 = torch.randint(model.vocab_size, (batch, length))
        for _ in range(2):
            chosen.update(chosen.loss(loss, x0))
    print(json.dumps({"peak": peak()}))


def memory_table(shape: str, length: int, batch: int, arms: list[str]) -> None:
    """Measure and print the peak memory of a step, each arm in a fresh process."""
    baseline = arms[0]
    lasting = sorted({"setup AR" if a.endswith(" AR") else "setup NELBO" for a in arms})
    peaks: dict[str, float] = {}
    with progress(f"memory of {shape}, L {length}, B {batch}", len(arms) + len(lasting)) as advance:
        for arm in [*lasting, *arms]:
            found = fresh(__file__, "--one", arm, "--shape", shape,
                          "--length", length, "--batch", batch)  # fmt: skip
            peaks[arm] = found["peak"]
            advance()

    def working(arm: str) -> float:
        return peaks[arm] - peaks["setup AR" if arm.endswith(" AR") else "setup NELBO"]

    rows: list[list[Any]] = [[arm, f"{peaks[arm]:,.0f}", "-", "-"] for arm in lasting]
    rows += [
        [a, f"{peaks[a]:,.0f}", f"{working(a):,.0f}", times(working(baseline), working(a))]
        for a in arms
    ]
    columns = ["arm", "peak (MB)", "above setup (MB)", f"less than {baseline}"]
    show(
        f"memory: {shape}, L {length}, B {batch}, V {SHAPES[shape]['vocab_size']}; setup is "
        f"weights, gradients, AdamW's state and EMA; {machine()}",
        columns,
        rows,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__, "char,tiny,small", rounds=5)
    options.add_argument("--length", type=int, help="L; with --batch one cell instead of three")
    options.add_argument("--batch", type=int, help="B")
    options.add_argument("--arms", default=",".join(DIFFUSION + AR), help="[%(default)s]")
    options.add_argument("--memory", action="store_true", help="peak memory instead of seconds")
    options.add_argument("--one", help="for --memory: the arm of this process")
    chosen = options.parse_args(argv)
    cells = CELLS
    if chosen.length or chosen.batch:
        cells = [(chosen.length or 128, chosen.batch or 4)]
    if chosen.one:
        one_process(chosen.one, chosen.shape, *cells[0])
        return
    for shape in names(chosen.shape):
        for length, batch in cells:
            if chosen.memory:
                memory_table(shape, length, batch, names(chosen.arms))
            else:
                time_table(shape, length, batch, names(chosen.arms), chosen.rounds)


if __name__ == "__main__":
    main()
