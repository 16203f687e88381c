"""Sampling as public code does it in float32: to show the artefact, not to write text with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sddlm.rng import Draw
from sddlm.sampling.ancestral import Ancestral, Updates
from sddlm.sampling.base import chunks
from sddlm.sampling.context import SamplingContext

#: numbers of noise that exist at once; few, so that they stay in the processor's cache
NOISE = 1 << 16
#: uniform numbers are multiples of 2^-BITS, as those of ``torch.rand`` in float32 are
BITS = 24
#: added to uniform numbers and to their logarithms, so that neither is 0
FLOOR = 1e-10


@dataclass
class Float32(Ancestral):
    """`Ancestral` with its tokens drawn from the whole posterior in float32.

    MDLM, SEDD and UDLM draw so by default: ``argmax_v K_v / -log u_v`` over the
    vocabulary, with u on the grid of float32. A token of mass q in one step that competes with a
    heavy one (staying) then wins with rate

        h / (exp(h / q) - 1),  h = 2^-24

    in place of q: at 1000 steps a token of probability 1e-4 keeps 73% of its draws and one of
    1e-5 keeps 2%. Under masks rare words are lost, so entropy and generative perplexity fall, the
    more the more steps there are (arXiv:2409.02908). Under uniform noise the same draws are lost,
    but fresh noise is a rare draw too and noise is left less often; which way entropy goes depends
    on the model. Use it to reproduce a figure or to see how much of one is precision. No other
    sampler here has the artefact.

    All but the draw is that of `Ancestral`, in float64: estimates, truncation, Bayes' rule.
    """

    def _chunks(self, rows: int, vocab_size: int) -> Iterator[slice]:
        """See `Ancestral._chunks`."""
        return chunks(rows, vocab_size, size=8 * NOISE)

    def _draw(self, run: SamplingContext, p: Tensor, current: Tensor, updates: Updates) -> Tensor:
        """See `Ancestral._draw`."""
        posterior = run.process.posterior(p, current, updates.alpha_t, updates.alpha_s)
        # the 53 bits of v identify the update: its noise needs no other key
        key = (updates.v * 2**53).long()
        u = Draw(run.seed, 0, key, len(key)).uniform("float32", run.vocab_size)
        drawn = draw_float32(posterior, u)
        return torch.where(updates.greedy, posterior.argmax(-1), drawn)


def draw_float32(p: Tensor, u: Tensor) -> Tensor:
    """Draw a token by float32 noise: ``argmax p / -log u``.

    Args:
        p: masses ``[N, V]``, need not be normalised.
        u: uniform in [0, 1) ``[N, V]`` float64; cut to `BITS` bits.

    Returns:
        tokens ``[N]`` int64.
    """
    coarse = ((u * 2**BITS).floor_() * 2.0**-BITS).float()
    return (p.float() / (FLOOR - (coarse + FLOOR).log_())).argmax(-1)
