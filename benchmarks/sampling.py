"""Sampling: the textbook's posterior at every position of every step, `Ancestral`, and `Lazy`.

The textbook and `Ancestral` cost the same at every step, so of a long run only the first steps are
timed, as many as fit into ``--seconds``. `Lazy` is run whole; where that would take longer than
``--limit`` nothing is measured. Where the textbook's tensors would not fit into memory it draws one
sequence, and its seconds are multiplied. ``Lazy, time-free`` has a network that is not told the
noise level, so that a prediction holds until a token changes; it is also a little smaller.

    python benchmarks/sampling.py
    python benchmarks/sampling.py --shape small --length 128 --batch 1 --steps 128,1024
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from measure import Timing, interleaved, machine, progress, show
from shapes import SHAPES, names, network, numbers, parser
from textbook import TextbookDiT, sample

from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.lazy import Lazy
from sddlm.types import Samples

MOST = 16
"""Steps that are timed of a run whose steps all cost the same."""

ROOM = 12 * 2**30
"""Bytes that the textbook's tensors may take: at its peak about seven of [B, L, V] float64."""


class _Enough(Exception):  # noqa: N818
    """Ends a run of which the first steps are timed."""


@dataclass
class Cell:
    """One row of shapes: networks, B, L and the number of steps."""

    model: DiT
    textbook: TextbookDiT
    time_free: DiT
    length: int
    batch: int
    steps: int

    def run(self, sampler: Ancestral, model: DiT, stop: int) -> Samples | None:
        """A run of the library, ended after ``stop`` steps."""
        try:
            return sampler.sample(
                model,
                process=UniformProcess(),
                estimate=Estimate.LEAVE_ONE_OUT,
                batch=self.batch,
                length=self.length,
                on_step=_stopper(stop),
            )
        except _Enough:
            return None

    @property
    def textbook_batch(self) -> int:
        """Sequences that the textbook draws at once."""
        size = 7 * 8 * self.batch * self.length * self.model.vocab_size
        return self.batch if size <= ROOM else 1

    def run_textbook(self, stop: int) -> None:
        """The same of the textbook."""
        with suppress(_Enough):
            sample(self.textbook, (self.textbook_batch, self.length), self.steps, _stopper(stop))


def _stopper(stop: int) -> Callable[[int, float, torch.Tensor], None]:
    def on_step(number: int, t: float, x: torch.Tensor) -> None:
        if number >= stop:
            raise _Enough

    return on_step


def seconds_of(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def call_seconds(cell: Cell) -> float:
    """Seconds of a call of the network, without the head."""
    x = torch.randint(cell.model.vocab_size, (cell.batch, cell.length))
    with torch.inference_mode():
        return seconds_of(lambda: cell.model(x, torch.ones(cell.batch)))


def measure(cell: Cell, rounds: int, budget: float, limit: float) -> list[list[object]]:
    """The rows of a cell.

    Args:
        cell: what is run.
        rounds: how often, if `Lazy` is not too slow for that.
        budget: seconds for the textbook and for `Ancestral` in a round.
        limit: seconds for all rounds of `Lazy` together.
    """
    share = cell.batch // cell.textbook_batch
    expected = cell.steps * call_seconds(cell)  # at most
    if expected > limit:
        nothing = f"not: {expected / 60:.0f} min"
        return [[cell.steps, cell.batch, "Lazy", *"-----", nothing]]
    rounds = max(1, min(rounds, int(limit / expected)))
    stops = {}
    ancestral = Ancestral(cell.steps)
    for name, once in (
        ("textbook", lambda: cell.run_textbook(1)),
        ("Ancestral", lambda: cell.run(ancestral, cell.model, 1)),
    ):
        once()  # the first call is slower
        stops[name] = max(1, min(MOST, cell.steps, int(budget / seconds_of(once))))
    arms: dict[str, Callable[[], object]] = {
        "textbook": lambda: cell.run_textbook(stops["textbook"]),
        "Ancestral": lambda: cell.run(ancestral, cell.model, stops["Ancestral"]),
    }
    drawn: dict[str, Samples] = {}

    def lazy(name: str, model: DiT) -> Callable[[], None]:
        def run() -> None:
            drawn[name] = cell.run(Lazy(cell.steps), model, cell.steps + 1)

        return run

    arms["Lazy"] = lazy("Lazy", cell.model)
    arms["Lazy, time-free"] = lazy("Lazy, time-free", cell.time_free)
    units = {name: stops.get(name, cell.steps) for name in arms}
    label = f"L {cell.length}, B {cell.batch}, {cell.steps} steps"
    timings = interleaved(arms, rounds=rounds, warmup=0, units=units, label=label)
    baseline = [s * share for s in timings["textbook"].seconds]
    rows: list[list[object]] = []
    for name, timing in timings.items():
        scale = share if name == "textbook" else 1
        own = Timing([s * scale for s in timing.seconds], baseline)
        whole = "whole" if units[name] == cell.steps else f"{units[name]} steps"
        whole += f", 1 of {share} sequences" if scale > 1 else ""
        known = drawn.get(name)
        calls = f"{known.nfe.double().mean().item() / cell.steps:.3f}" if known else "1"
        met = f"{known.rows.double().mean().item() / cell.length:.1f}" if known else cell.steps
        found = [name, f"{own.median:.3g}", f"{own.median * cell.steps:.3g}", own.ratio]
        rows.append([cell.steps, cell.batch, *found, calls, met, f"{whole}, {rounds} rounds"])
    return rows


COLUMNS = ["steps", "B", "sampler", "s/step", "s/run", "against the textbook", "calls a step",
           "rows a position", "measured"]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__, "char,tiny,small", rounds=3)
    options.add_argument("--length", type=numbers, default=[128, 1024], help="[128,1024]")
    options.add_argument("--batch", type=numbers, default=[1, 8], help="[1,8]")
    options.add_argument(
        "--steps", type=numbers, default=[8, 32, 128, 1024], help="[8,32,128,1024]"
    )
    options.add_argument("--seconds", type=float, default=5, help="[%(default)s]")
    options.add_argument("--limit", type=float, default=120, help="[%(default)s]")
    chosen = options.parse_args(argv)
    torch.manual_seed(0)
    for shape in names(chosen.shape):
        model = network(shape, max(chosen.length))
        textbook = TextbookDiT.around(model)
        time_free = network(shape, max(chosen.length), time_input="none")
        for length in chosen.length:
            cells = [
                Cell(model, textbook, time_free, length, batch, steps)
                for batch in chosen.batch
                for steps in chosen.steps
            ]
            rows: list[list[object]] = []
            with progress(f"{shape}, L {length}", len(cells)) as advance:
                for cell in cells:
                    rows += measure(cell, chosen.rounds, chosen.seconds, chosen.limit)
                    advance()
            vocab_size = SHAPES[shape]["vocab_size"]
            show(f"sampling: {shape}, L {length}, V {vocab_size}; {machine()}", COLUMNS, rows)


if __name__ == "__main__":
    main()
