"""What sampling in float32 does to a model: entropy and judge beside the same model in float64.

Both arms have the same network, posterior, steps and count; `Float32` draws tokens as public code
does without its float64 switch, `Lazy` is the library's sampler. ``entropy`` is that within a
sample, ``vocabulary`` that of the tokens of all samples together, ``written`` that of all tokens
that steps wrote where another one stood, ``writes`` how many of these there are a position. Errors
are standard errors over samples (for the two pooled entropies: jackknife). Pooled entropies are
lower than the truth by the same amount in both arms, so compare arms, not counts. ``judge`` is the
perplexity of the tokens, but for each sample's first, under an autoregressive model of ours with
the same tokenizer. ``apart`` is how far the three entropies lie apart, in standard errors of the
difference. What counts is 2^-bits * V * steps, so ``--bits 20`` shows at 128 steps about what
float32 (24) does at 2048, or at 128 with 16 times the vocabulary.

    python benchmarks/precision.py runs/mine
    python benchmarks/precision.py runs/mine --judge runs/judge --steps 32,128,512,2048 --count 64
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from measure import machine, progress, show
from shapes import numbers
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.objectives.autoregressive import Autoregressive
from sddlm.rng import Draw
from sddlm.sampling import float32
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.base import choose_device, evaluating
from sddlm.sampling.entropy import entropies
from sddlm.sampling.float32 import Float32
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation


@dataclass
class Figure:
    """A number and its standard error."""

    value: float
    error: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ± {self.error:.3f}"

    def apart(self, other: Figure) -> str:
        """By how many standard errors this is larger than another."""
        return (
            f"{(self.value - other.value) / max(1e-9, self.error**2 + other.error**2) ** 0.5:.1f}"
        )


@dataclass
class Writes:
    """Counts the tokens that steps write where another one stood, by sequence."""

    before: Tensor
    counts: Tensor = field(init=False)
    vocab_size: int = 0

    def __post_init__(self) -> None:
        self.counts = torch.zeros(len(self.before), self.vocab_size, device=self.before.device)

    def __call__(self, number: int, t: float, x: Tensor) -> None:
        new = (x != self.before).double()
        self.counts.scatter_add_(1, x, new.float())
        self.before = x.clone()


def mean(values: Tensor) -> Figure:
    """Of one number a sample."""
    return Figure(float(values.mean()), float(values.std() / len(values) ** 0.5))


def pooled(counts: Tensor) -> Figure:
    """Entropy in nats of tokens counted by sample ``[B, V]``, with its jackknife error."""
    whole = counts.double().sum(0)
    without = torch.stack([_entropy(whole - own) for own in counts.double()])
    n = len(counts)
    error = ((n - 1) / n * (without - without.mean()).square().sum()).sqrt()
    return Figure(float(_entropy(whole)), float(error))


def _entropy(counts: Tensor) -> Tensor:
    share = counts[counts > 0] / counts.sum()
    return -(share * share.log()).sum()


def nats_of(judge: LanguageModel, tokens: Tensor) -> Tensor:
    """Nats per token of each text ``[B, L]`` but for its first: ``[B]`` float64."""
    x0 = tokens[:, : judge.network.length].cpu()
    with evaluating(judge.network):
        nats = Autoregressive().bound(judge.network, x0, Draw.simple(0, 0, len(x0)))
    return nats[:, 1:].double().mean(1)


def judged(judge: LanguageModel, tokens: Tensor) -> Figure:
    """Perplexity of tokens ``[B, L]`` but the first of each."""
    found = mean(nats_of(judge, tokens))
    ppl = float(torch.tensor(found.value).exp())
    return Figure(ppl, ppl * found.error)


def measure(
    loaded: LanguageModel, judge: LanguageModel | None, sampler: Ancestral, count: int, seed: int
) -> tuple[dict[str, Figure], float]:
    """The figures of one arm, and its seconds."""
    shape, V = (count, loaded.network.length), loaded.network.vocab_size
    device = next(loaded.network.parameters()).device
    start = Draw(seed, 0, torch.arange(count, device=device), count)
    writes = Writes(loaded.process.prior(start, shape[1], vocab_size=V), vocab_size=V)
    out = sampler.sample(loaded, batch=count, seed=seed, on_step=writes)
    last = torch.zeros_like(writes.counts).scatter_add_(
        1, out.tokens, torch.ones_like(out.tokens, dtype=torch.float32)
    )
    found = {
        "entropy": mean(entropies(out.tokens)),
        "vocabulary": pooled(last),
        "written": pooled(writes.counts),
        "writes": mean(writes.counts.double().sum(1) / shape[1]),
    }
    if judge is not None:
        found["judge"] = judged(judge, out.tokens)
    return found, out.seconds


def rows_of(loaded: LanguageModel, judge: LanguageModel | None, steps: int, count: int, seed: int
            ) -> list[list[object]]:  # fmt: skip
    """Both arms at one number of steps."""
    truncation = Truncation(never=tuple(loaded.tokenizer.not_sampled))
    arms = {
        "float64": Lazy(steps, truncation=truncation),
        "float32": Float32(steps, truncation=truncation),
    }
    found = {name: measure(loaded, judge, arm, count, seed) for name, arm in arms.items()}
    exact = found["float64"][0]
    return [
        [steps, name, *figures.values()]
        + (["-"] if judge is None else [])
        + [", ".join(exact[of].apart(figures[of]) for of in APART) if name == "float32" else "-"]
        + [f"{seconds:.0f}"]
        for name, (figures, seconds) in found.items()
    ]


APART = ("entropy", "vocabulary", "written")
COLUMNS = ["steps", "draws in", "entropy", "vocabulary", "written", "writes", "judge", "apart", "s"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("model", help="run or model directory of a diffusion model")
    options.add_argument("--judge", help="directory of an autoregressive model of ours")
    options.add_argument("--steps", type=numbers, default=[32, 128, 512, 2048],
                         help="[32,128,512,2048]")  # fmt: skip
    options.add_argument("--count", type=int, default=64, help="samples [%(default)s]")
    options.add_argument("--bits", type=int, default=24, help="of the noise [%(default)s]")
    options.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    chosen = options.parse_args(argv)
    float32.BITS = chosen.bits
    loaded = LanguageModel.load(chosen.model, device=choose_device("auto"))
    judge = LanguageModel.load(chosen.judge) if chosen.judge else None
    if judge is not None and judge.data.get("tokenizer") != loaded.data.get("tokenizer"):
        raise ConfigError(f"--judge {chosen.judge} has another tokenizer than {chosen.model}")
    rows: list[list[object]] = []
    with progress("both precisions", len(chosen.steps)) as advance:
        for steps in chosen.steps:
            rows += rows_of(loaded, judge, steps, chosen.count, chosen.seed)
            advance()
    shape = f"L {loaded.network.length}, V {loaded.network.vocab_size}"
    shape += f", {chosen.count} samples, {chosen.bits} bits"
    show(f"float32 against float64: {chosen.model}, {shape}; {machine()}", COLUMNS, rows)


if __name__ == "__main__":
    main()
