"""Quality at few steps, of models beside each other: before and after a distillation.

Every model draws the same number of samples with `Lazy` at each number of steps. ``judge`` is the
perplexity of a sample's tokens, but for its first, under an autoregressive model of ours with the
same tokenizer; ``entropy`` that of the tokens within a sample, in nats. Read them together: text
that repeats itself has a low perplexity and a low entropy. Real text of the same length stands in
the last row. Errors are standard errors over samples. ``bpc`` is the model's own bound on real
text, in bits per character, ``calls`` how often the network was called for a sample.

    python benchmarks/few_steps.py runs/mine runs/distilled --judge runs/judge
    python benchmarks/few_steps.py runs/mine --judge runs/judge --steps 4,8,16 --top_p 0.9
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from measure import machine, progress, show
from precision import judged, mean
from shapes import numbers

from sddlm.errors import ConfigError
from sddlm.eval.bounded import bounded
from sddlm.eval.diversity import entropies
from sddlm.eval.perplexity import likelihood
from sddlm.eval.texts import HeldOut, held_out
from sddlm.lm import LanguageModel
from sddlm.sampling.base import choose_device
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation


def opened(place: str, judge: LanguageModel) -> LanguageModel:
    """A model that the judge can read."""
    loaded = LanguageModel.load(place, device=choose_device("auto"))
    if loaded.tokenizer.fingerprint != judge.tokenizer.fingerprint:
        raise ConfigError(f"the judge has another tokenizer than {place}")
    if not loaded.estimate.diffusion:
        raise ConfigError(f"{place} is an autoregressive model, which has no steps")
    return loaded


def bits(loaded: LanguageModel, text: HeldOut, seed: int) -> str:
    """The bound on real text, bits per character."""
    objective = bounded(loaded.process, loaded.estimate)
    found = likelihood(loaded.network, objective, text, seed=seed, draws=2)
    return f"{found.bpc:.3f} ± {found.bpc_stderr:.3f}"


def row(
    loaded: LanguageModel, judge: LanguageModel, steps: int, count: int, seed: int, top_p: float
) -> list[object]:
    """The figures of one model at one number of steps."""
    never = tuple(loaded.tokenizer.not_sampled)
    sampler = Lazy(steps, truncation=Truncation(top_p=top_p, never=never))
    out = sampler.sample(
        loaded,
        batch=count, length=loaded.network.length, seed=seed,
    )  # fmt: skip
    calls = f"{float(torch.as_tensor(out.nfe).double().mean()):.1f}"
    return [judged(judge, out.tokens), mean(entropies(out.tokens)), calls, f"{out.seconds:.1f}"]


COLUMNS = ["model", "bpc", "steps", "judge", "entropy", "calls", "s"]


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("models", nargs="+", help="run or model directories of diffusion models")
    options.add_argument("--judge", required=True, help="an autoregressive model of ours")
    options.add_argument("--steps", type=numbers, default=[4, 8, 16, 32, 64, 128],
                         help="[4,8,16,32,64,128]")  # fmt: skip
    options.add_argument("--count", type=int, default=128, help="samples [%(default)s]")
    options.add_argument("--rows", type=int, default=256, help="real rows for bpc [%(default)s]")
    options.add_argument("--top_p", type=float, default=1.0, help="of all models [%(default)s]")
    options.add_argument("--seed", type=int, default=0, help="[%(default)s]")
    chosen = options.parse_args(argv)
    judge = LanguageModel.load(chosen.judge)
    models = {place: opened(place, judge) for place in chosen.models}
    first = chosen.models[0]  # all are scored on its held-out text
    text, _ = held_out(Path(first), models[first], None, chosen.rows)
    rows: list[list[object]] = []
    with progress("few steps", len(models) * len(chosen.steps)) as advance:
        for place, loaded in models.items():
            bpc = bits(loaded, text, chosen.seed)
            for steps in chosen.steps:
                found = row(loaded, judge, steps, chosen.count, chosen.seed, chosen.top_p)
                rows.append([place, bpc, steps, *found])
                advance()
    real = text.tokens[: chosen.count]
    rows.append(["real text", "-", "-", judged(judge, real), mean(entropies(real)), "-", "-"])
    shape = f"L {models[first].network.length}, V {models[first].network.vocab_size}"
    show(
        f"few steps: {shape}, {chosen.count} samples, top_p {chosen.top_p}; {machine()}",
        COLUMNS,
        rows,
    )


if __name__ == "__main__":
    main()
