"""Controls: texts of samplers without a network, at the entropy of real text.

A judge's perplexity and the entropy can be had without a model. Unigrams and bigrams of the
training tokens are drawn at the temperature at which their texts have the entropy of real ones. A
set of figures in which they look good is worthless (arXiv:2606.08417).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sddlm.eval.samples import SampleSet
from sddlm.eval.texts import TrainingText
from sddlm.sampling.entropy import entropy
from sddlm.types import unpadded

#: training tokens that are counted, at most
_MOST_TOKENS = 2_000_000
#: temperatures that are tried, and how often their range is halved
_RANGE, _HALVINGS = (0.05, 20.0), 20


class _Transitions:
    """Counts of each token after each context, from which texts are drawn at a temperature.

    Args:
        context: what each token follows ``[n]`` int64; zeros for unigrams.
        tokens: the tokens ``[n]`` int64.
    """

    def __init__(self, context: Tensor, tokens: Tensor) -> None:
        self.first = tokens
        self.by_token = bool(context.any())
        self.width = int(tokens.max()) + 1
        keys, counts = (context * self.width + tokens).unique(return_counts=True)  # sorted
        self.keys, self.logs = keys, counts.double().log()  # [P]
        _, place, sizes = (keys // self.width).unique_consecutive(
            return_inverse=True, return_counts=True
        )
        most = torch.zeros(len(sizes), dtype=torch.float64)
        most.scatter_reduce_(0, place, self.logs, "amax")
        self.logs -= most[place]  # else a frequent context hides a rare one from the sum

    def draw(self, shape: tuple[int, int], temperature: float, seed: int) -> Tensor:
        """Texts ``[n, L]`` int64; each begins behind a random token of the training text."""
        random = torch.Generator().manual_seed(seed)
        start = self.first[torch.randint(len(self.first), shape[:1], generator=random)]
        u = torch.rand(*shape, dtype=torch.float64, generator=random)
        mass = torch.nn.functional.pad((self.logs / temperature).exp().cumsum(0), (1, 0))
        rows, own = [], start * self.by_token
        for column in u.unbind(1):
            low, high = (torch.searchsorted(self.keys, (own + k) * self.width) for k in (0, 1))
            at = mass[low] + column * (mass[high] - mass[low])
            at = torch.searchsorted(mass, at, right=True) - 1
            rows.append(self.keys[at.clamp(low, high - 1)] % self.width)
            own = rows[-1] * self.by_token
        return torch.stack(rows, 1)


def control_samples(training: TrainingText, real: SampleSet, seed: int) -> dict[str, SampleSet]:
    """Unigram and bigram texts as many, as long and as diverse as real ones.

    Args:
        training: its tokens are counted.
        real: rows of real text.
        seed: of the draws.
    """
    chosen = np.arange(min(len(training.rows), _MOST_TOKENS // training.rows.length + 1))
    tokens = torch.cat(unpadded(training.rows.read(chosen), training.rows.lengths(chosen)))
    before = tokens.roll(1)  # so that every token has one behind it
    shape, wanted = (len(real.rows), max(map(len, real.rows))), entropy(real.rows)
    found = {}
    for name, context in (("unigram", torch.zeros_like(tokens)), ("bigram", before)):
        law, (low, high) = _Transitions(context, tokens), _RANGE
        for _ in range(_HALVINGS):
            middle = (low * high) ** 0.5
            below = entropy(law.draw(shape, middle, seed)) < wanted
            low, high = (middle, high) if below else (low, middle)
        rows = law.draw(shape, high, seed)
        texts = training.tokenizer.decode_batch(rows.tolist())
        found[name] = SampleSet([*rows], texts, {"sampler": name, "temperature": round(high, 4)})
    return found
