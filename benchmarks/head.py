"""The vocabulary head alone, forward and backward: the textbook keeps all logits, ours a chunk.

Half of the positions of a batch are noise on average, so a loss on those alone meets the
vocabulary with half the rows: the last column. The NELBO needs all.

    python benchmarks/head.py
    python benchmarks/head.py --shape small --rows 4096 --rounds 3
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from measure import Timing, interleaved, machine, show
from shapes import SHAPES, names, numbers, parser
from textbook import LOSSES, v1_sampled
from torch import Tensor

from sddlm.models.row_losses import (
    Contrastive,
    CrossEntropy,
    DenseNegatives,
    RowLoss,
    SampledNegatives,
    UniformBound,
)
from sddlm.models.vocab_head import VocabHead
from sddlm.types import Noisy

EPS = 1e-6


class Rows:
    """Hidden rows, a head, and tokens of which all are noise.

    Args:
        rows: N.
        width: D.
        vocab_size: V.
        device: where they lie.
    """

    def __init__(self, rows: int, width: int, vocab_size: int, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.head = VocabHead(width, vocab_size).to(device)
        torch.nn.init.normal_(self.head.weight, std=0.02)
        self.hidden = torch.randn(rows, width, device=device, requires_grad=True)
        alpha = torch.rand(rows, 1, dtype=torch.float64, device=device) * 0.98 + 0.01
        x0, x_t, self.negatives = torch.randint(vocab_size, (3, rows, 1), device=device)
        everywhere = torch.ones_like(x0, dtype=torch.bool)
        self.noisy = Noisy(
            x0, x_t, 1 - alpha[:, 0], alpha, -torch.ones_like(alpha), everywhere, vocab_size
        )

    def term(self, name: str, count: int) -> RowLoss:
        """The library's row loss of the first ``count`` rows."""
        noisy, kept = self.noisy, slice(count)
        x0 = noisy.x0[kept, 0]
        if name == "NELBO":
            alpha, dalpha = noisy.alpha_t[kept, 0], noisy.dalpha_t[kept, 0]
            return UniformBound(x0, noisy.x_t[kept, 0], alpha, dalpha)
        if name == "SDDLM":
            return CrossEntropy(x0)
        part = DenseNegatives() if name == "V1 exact" else SampledNegatives(self.negatives[kept])
        return Contrastive(x0, [part], 1.0, EPS)

    def textbook(self, name: str) -> Tensor:
        """The textbook's loss of all rows, their sum."""
        logits = F.linear(self.hidden, self.head.weight, self.head.bias)[:, None]  # [N, 1, V]
        if name == "V1 sampled":
            return v1_sampled(logits, self.noisy, self.negatives, EPS).sum()
        return LOSSES[name](logits, self.noisy).sum()

    def ours(self, name: str, count: int) -> Tensor:
        """The library's loss of the first rows, their sum."""
        return self.head(self.hidden[:count], self.term(name, count)).total

    def arm(self, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Forward and backward; gives the loss."""

        def run() -> Tensor:
            self.head.zero_grad()
            self.hidden.grad = None
            value = loss()
            value.backward()
            return value.detach()

        return run


def table(shape: str, count: int, rounds: int) -> None:
    """Measure and print."""
    width, vocab_size = SHAPES[shape]["width"], SHAPES[shape]["vocab_size"]
    rows = Rows(count, width, vocab_size)
    found = []
    for name in ("SDDLM", "V1 sampled", "V1 exact", "NELBO"):
        arms = {
            "textbook": rows.arm(lambda name=name: rows.textbook(name)),
            "ours": rows.arm(lambda name=name: rows.ours(name, count)),
            "half": rows.arm(lambda name=name: rows.ours(name, count // 2)),
        }
        values = [arms[arm]().item() for arm in ("textbook", "ours")]
        timings = interleaved(arms, rounds=rounds, label=f"{name}, {count} rows")
        medians = [f"{timing.median:.3g}" for timing in timings.values()]
        half: Timing = timings["half"]
        equal = abs(values[0] - values[1]) / abs(values[0])
        found.append([name if name != "SDDLM" else "cross-entropy", *medians,
                      timings["ours"].ratio, half.ratio, f"to {equal:.0e}"])  # fmt: skip
    columns = ["loss", "textbook (s)", "ours (s)", "ours, N/2 (s)", "ratio at N rows",
               "ratio at N/2 rows", "values equal"]  # fmt: skip
    title = f"head: {shape}, N {count} rows, width {width}, V {vocab_size}; {machine()}"
    show(f"{title}; {rounds} rounds", columns, found)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = parser(__doc__, "tiny,small", rounds=5)
    options.add_argument("--rows", type=numbers, default=[512, 4096], help="N [512,4096]")
    chosen = options.parse_args(argv)
    for shape in names(chosen.shape):
        for count in chosen.rows:
            table(shape, count, chosen.rounds)


if __name__ == "__main__":
    main()
