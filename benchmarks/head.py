"""The vocabulary head against the textbook: all logits kept, autograd.

Prints one table of ratios: A B A B in one run, medians, forward and backward of N rows.
``python benchmarks/head.py [--rows 512 --width 768 --vocab_size 50258 --rounds 5]``
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from sddlm.models.terms import Contrastive, CrossEntropy, Law, Term, Tokens, UniformBound
from sddlm.models.vocab_head import VocabHead


def textbook_contrastive(p: Tensor, target: Tensor, negatives: Tensor | None) -> Tensor:
    """Eq. 9 of arXiv:2510.22926 on all probabilities ``[N, V]``."""
    repel = p if negatives is None else p.gather(1, negatives)
    return (repel + 1e-6).log().mean(1) - (p.gather(1, target[:, None])[:, 0] + 1e-6).log()


def textbook_bound(p: Tensor, x0: Tensor, x_t: Tensor, a: Tensor) -> Tensor:
    """The uniform NELBO's integrand with every ``[N, V]`` tensor in memory."""
    V = p.shape[1]
    A = a[:, None] * F.one_hot(x0, V) + (1 - a[:, None]) / V
    B = a[:, None] * p + (1 - a[:, None]) / V
    ratio = A.gather(1, x_t[:, None])[:, 0] / B.gather(1, x_t[:, None])[:, 0]
    kl = (A * (A / B).log()).sum(1)
    return (kl + ratio - 1 - ratio.log()) / (V * a * A.gather(1, x_t[:, None])[:, 0])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, value in (("rows", 512), ("width", 768), ("vocab_size", 50258), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=value)
    chosen = parser.parse_args()
    N, D, V = chosen.rows, chosen.width, chosen.vocab_size
    torch.manual_seed(0)
    head = VocabHead(D, V)
    torch.nn.init.normal_(head.weight, std=0.02)
    hidden = torch.randn(N, D, requires_grad=True)
    x0, x_t = torch.randint(V, (N,)), torch.randint(V, (N,))
    a = torch.rand(N, dtype=torch.float64) * 0.98 + 0.01
    negatives = torch.randint(V, (N, 1))

    def logits() -> Tensor:
        return F.linear(hidden, head.weight, head.bias)

    def ours(term: Term) -> Callable[[], Tensor]:
        return lambda: head(hidden, term).total

    cases: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
        "cross-entropy": (
            lambda: F.cross_entropy(logits(), x0, reduction="sum"),
            ours(CrossEntropy(x0)),
        ),
        "V1, one negative": (
            lambda: textbook_contrastive(logits().softmax(1), x0, negatives).sum(),
            ours(Contrastive(x0, [Tokens(negatives)], 1.0, 1e-6)),
        ),
        "V1, exact": (
            lambda: textbook_contrastive(logits().softmax(1), x0, None).sum(),
            ours(Contrastive(x0, [Law()], 1.0, 1e-6)),
        ),
        "NELBO": (
            lambda: textbook_bound(logits().softmax(1), x0, x_t, a.float()).sum(),
            ours(UniformBound(x0, x_t, a, -torch.ones_like(a))),
        ),
    }
    table = Table(title=f"head: {N} rows, width {D}, V {V}, {torch.get_num_threads()} threads")
    for column in ("loss", "textbook (s)", "sddlm (s)", "ratio", "spread of the ratio", "value"):
        table.add_column(column)
    for name, pair in track(cases.items(), description="measuring"):
        seconds, values = measure(pair, head, hidden, chosen.rounds)
        ratios = [x / y for x, y in zip(*seconds, strict=True)]
        medians = [statistics.median(arm) for arm in seconds]
        difference = abs(values[0] - values[1]) / abs(values[0])
        table.add_row(
            name,
            *(f"{m:.3f}" for m in medians),
            f"{statistics.median(ratios):.2f}x",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"equal to {difference:.0e}",
        )
    Console().print(table)


def measure(
    pair: tuple[Callable[[], Tensor], Callable[[], Tensor]],
    head: VocabHead,
    hidden: Tensor,
    rounds: int,
) -> tuple[list[list[float]], list[float]]:
    """Seconds of both arms, one after the other in each round, after a warm-up; their values."""
    seconds: list[list[float]] = [[], []]
    values = [0.0, 0.0]
    for turn in range(rounds + 1):
        for arm, loss in enumerate(pair):
            head.zero_grad()
            hidden.grad = None
            started = time.perf_counter()
            value = loss()
            value.backward()
            if turn:
                seconds[arm].append(time.perf_counter() - started)
            values[arm] = value.item()
    return seconds, values


if __name__ == "__main__":
    main()
