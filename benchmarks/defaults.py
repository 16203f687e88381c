"""How to write text with a model: samplers, steps and truncation, judged on one model.

Sharper samples have a lower perplexity under any judge and say less, so settings are compared at
equal entropy, that of real text. A *line* is one sampler with one knob turned. Each point of it is
drawn and judged, and in the rows with ``= real`` stands where the line, joined from point to point,
has the entropy of real text; a dash says that it does not get there.

``judge`` is the perplexity of a sample's tokens, but for its first, under an autoregressive model
of ours with the same tokenizer; ``entropy`` that of the tokens within a sample, in nats;
``distinct`` the different pairs of tokens over all; ``calls`` how often the network was called for
a sample. Brackets hold 95% of 1000 resamples of the samples.

    python benchmarks/defaults.py runs/mine --judge runs/judge
    python benchmarks/defaults.py runs/mine --judge runs/judge --parts knobs --count 32
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from few_steps import opened
from measure import machine, progress, show
from precision import nats_of
from torch import Tensor

from sddlm.eval.diversity import distinct_n, entropies
from sddlm.eval.resampling import Array, Interval, lowest_at, mean, resamples
from sddlm.eval.texts import held_out
from sddlm.lm import LanguageModel
from sddlm.sampling.adaptive import Adaptive
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.psi import Psi
from sddlm.sampling.truncation import Truncation

#: a line each, with this sampler; 1 and 0 turn nothing
STEPS = 32
KNOBS: dict[str, list[float]] = {
    "temperature": [0.7, 0.8, 0.9],
    "top_p": [0.8, 0.9, 0.95],
    "top_k": [20, 50, 200, 500],
    "min_p": [0.01, 0.02, 0.05],
    "tail_cut": [0.5, 1.0, 2.0, 4.0],
}
#: a line each, with this knob at these values, between which text is as varied as real text
TURNED, VALUES = "top_p", [0.8, 0.95]
SAMPLERS: dict[str, Ancestral] = {
    **{f"lazy {steps}": Lazy(steps) for steps in (4, 8, 16, 32, 64)},
    **{f"adaptive 64, budget {nats}": Adaptive(64, budget=nats) for nats in (80, 40, 20, 10)},
    "adaptive 64, confidence 4": Adaptive(64, budget=4, by="confidence"),
    "psi cap 32": Psi.preset("cap", steps=32),
    "psi rescale 32": Psi.preset("rescale", steps=32),
    "psi loop 32": Psi.preset("loop", steps=32),
    "lazy 32, greedy tail": Lazy(32, "greedy"),
}


@dataclass(frozen=True)
class Texts:
    """A set of texts, judged.

    Attributes:
        tokens: ``[B, L]``.
        nats: per token of each ``[B]`` float64.
        calls: network calls a sample; 0 of real text.
        seconds: that drawing them took.
    """

    tokens: Tensor
    nats: Tensor
    calls: float = 0.0
    seconds: float = 0.0

    @property
    def times(self) -> Array:
        """Real text is resampled by itself, samples alike."""
        return resamples(len(self.tokens), stream=1 if self.calls else 0)

    @cached_property
    def nll(self) -> Array:
        """Nats per token ``[1 + R]``."""
        return mean(self.times, self.nats.numpy())

    @cached_property
    def entropy(self) -> Array:
        """Mean over texts ``[1 + R]``."""
        return mean(self.times, entropies(self.tokens).numpy())

    def row(self, name: str, turned: str) -> list[object]:
        """Of the table."""
        calls = [f"{self.calls:.1f}", f"{self.seconds:.1f}"] if self.calls else ["-", "-"]
        distinct = f"{distinct_n(self.tokens, 2):.3f}"
        return [name, turned, shown(self.nll), f"{self.entropy[0]:.3f}", distinct, *calls]


def shown(nll: Array) -> str:
    """A perplexity with its interval."""
    found = Interval.of(nll, exponential=True)
    if found.value is None:
        return "-"
    return f"{found.value:.1f}" + (f" [{found.low:.1f}, {found.high:.1f}]" if found.low else "")


@dataclass(frozen=True)
class Bench:
    """What is the same for all lines."""

    loaded: LanguageModel
    judge: LanguageModel
    count: int
    seed: int

    def drawn(self, sampler: Ancestral, **knobs: float | None) -> Texts:
        """The samples of a setting; sample k has the same noise in all."""
        never = tuple(self.loaded.tokenizer.not_sampled)
        out = replace(sampler, truncation=Truncation(**knobs, never=never)).sample(  # type: ignore[arg-type]
            self.loaded.network, process=self.loaded.process, estimate=self.loaded.estimate,
            batch=self.count, length=self.loaded.network.length, seed=self.seed,
        )  # fmt: skip
        calls = float(out.nfe.double().mean())
        return Texts(out.tokens.cpu(), nats_of(self.judge, out.tokens), calls, out.seconds)

    def lines(self, parts: Sequence[str]) -> Iterator[tuple[str, Ancestral, str, list[float]]]:
        """Name, sampler, knob and its values; of the first part the neutral one is a point too."""
        if "knobs" in parts:
            for knob, values in KNOBS.items():
                yield f"lazy {STEPS}", Lazy(STEPS), knob, values
        if "samplers" in parts:
            for name, sampler in SAMPLERS.items():
                yield name, sampler, TURNED, VALUES


COLUMNS = ["sampler", "setting", "judge", "entropy", "distinct", "calls", "s"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("model", help="run or model directory of a diffusion model")
    options.add_argument("--judge", required=True, help="an autoregressive model of ours")
    options.add_argument("--parts", default="knobs,samplers", help="[%(default)s]")
    options.add_argument("--count", type=int, default=128, help="samples [%(default)s]")
    options.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    chosen = options.parse_args(argv)
    judge = LanguageModel.load(chosen.judge)
    bench = Bench(opened(chosen.model, judge), judge, chosen.count, chosen.seed)
    text, _ = held_out(Path(chosen.model), bench.loaded, None, chosen.count)
    real = Texts(text.tokens, nats_of(judge, text.tokens))
    rows = [real.row("real text", "-")]
    lines = list(bench.lines(chosen.parts.split(",")))
    neutral = bench.drawn(Lazy(STEPS))
    rows.append(neutral.row(f"lazy {STEPS}", "neutral"))
    with progress("defaults", sum(len(values) for *_, values in lines)) as advance:
        for name, sampler, knob, values in lines:
            points = [neutral] if values is not VALUES else []
            for value in values if knob == "tail_cut" else reversed(values):
                points.append(bench.drawn(sampler, **{knob: value}))
                rows.append(points[-1].row(name, f"{knob} {value:g}"))
                advance()
            at = lowest_at(
                real.entropy,
                np.stack([point.entropy for point in points]),
                np.stack([point.nll for point in points]),
            )
            calls = f"{np.mean([point.calls for point in points]):.1f}"
            rows.append([name, f"{knob}, = real", shown(at), "= real", "", calls, ""])
    shape = f"L {bench.loaded.network.length}, V {bench.loaded.network.vocab_size}"
    show(f"defaults: {shape}, {chosen.count} samples; {machine()}", COLUMNS, rows)


if __name__ == "__main__":
    main()
