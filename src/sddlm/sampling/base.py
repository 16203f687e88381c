"""What every sampler is, the network it needs, and the draw from a distribution."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.condition import Condition
from sddlm.types import OnStep, Samples

#: bytes of float64 logits that exist at once
CHUNK_BYTES = 64 * 2**20


class Head(Protocol):
    """From hidden vectors to the vocabulary."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[N, V]`` of rows ``[N, D]``."""


class Model(Protocol):
    """The members of a network (a ``nn.Module``) that sampling uses."""

    @property
    def vocab_size(self) -> int:
        """V."""

    @property
    def head(self) -> Any:
        """A `Head`."""

    def __call__(self, x_t: Tensor, sigma: Tensor, **more: Any) -> Tensor:
        """Hidden vectors ``[B, L, D]`` of tokens ``[B, L]`` at noise levels ``[B]``.

        ``more`` is ``rows=`` if only the positions ``b L + l`` ``[N]`` are wanted, ``[N, D]``,
        ``attend=`` ``[B, L]`` bool where there is padding, and ``cache=`` for a causal network that
        has a ``new_cache``. A network with a true attribute
        ``time_free`` does not look at the noise level.
        """

    def modules(self) -> Iterator[nn.Module]:
        """As of ``nn.Module``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of ``nn.Module``."""

    def buffers(self) -> Iterator[Tensor]:
        """As of ``nn.Module``."""


class Sampler:
    """Noise to text. Leaves are dataclasses whose fields are their knobs."""

    def sample(
        self,
        model: Model,
        *,
        process: Process,
        estimate: Estimate,
        shape: tuple[int, int],
        seed: int = 0,
        index: int | Tensor = 0,
        condition: Condition | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Draw sequences; each is a function of ``seed``, its own index and its own condition.

        Args:
            model: the network; put into evaluation mode for the call.
            process: the corruption that it was trained to undo.
            estimate: what its output means.
            shape: number of sequences and their length (B, L).
            seed: of all randomness.
            index: of the first sequence, so that a run can be cut into batches, or of each
                ``[B]`` int64.
            condition: what is known of the sequences, of that shape; None is nothing.
            on_step: called after each step.

        Raises:
            ConfigError: if this sampler cannot read the estimate or keep to the condition.
        """
        raise NotImplementedError

    def calls(self, length: int) -> int:
        """How often `sample` calls ``on_step`` for sequences of ``length`` tokens."""
        raise NotImplementedError


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Inference mode, and every module in evaluation mode; afterwards each as it was."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        with torch.inference_mode():
            yield
    finally:
        for module, training in modes:
            module.training = training


def device_of(model: Model) -> torch.device:
    """Where the network lies."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def choose_device(name: str) -> str:
    """The device of a name; ``auto`` is a GPU if there is one, else the CPU."""
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def chunks(rows: int, vocab_size: int) -> Iterator[slice]:
    """Parts of ``rows`` whose float64 logits fit into `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // (8 * vocab_size))
    return (slice(start, start + size) for start in range(0, rows, size))


def leave_one_out(
    model: Model,
    hidden: Tensor,
    estimate: Estimate,
    process: Process,
    own: Tensor,
    alpha_t: Tensor,
) -> Tensor:
    """Leave-one-out logits of hidden rows.

    Args:
        model: whose head reads them.
        hidden: ``[N, D]``.
        estimate: what the logits of the head mean.
        process: of the noise.
        own: the tokens at these rows ``[N]``.
        alpha_t: broadcastable to ``[N]``.

    Returns:
        ``[N, V]`` float64.
    """
    logits: Tensor = model.head.logits(hidden).to(torch.float64, copy=True)
    return to_leave_one_out(logits, estimate, process, own, alpha_t)


def finite(values: Tensor) -> Tensor:
    """The values, which come out of a network, if all of them are numbers.

    To be called with one value a row: a softmax spreads what is no number over its whole row.

    Args:
        values: any shape.

    Raises:
        FloatingPointError: one is NaN or infinite.
    """
    if not values.isfinite().all():
        raise FloatingPointError(
            "the network's output is not finite (NaN, or an overflow): its weights are damaged, or "
            "its training diverged; take another model, or train with a smaller --train.lr"
        )
    return values


def pick(p: Tensor, u: Tensor) -> Tensor:
    """Draw a token by the inverse of the distribution function, in float64.

    The 53 bits of ``u`` resolve masses of 1e-15; the usual ``argmax(p / -log u)`` with float32
    noise never draws a token of mass 1e-8 that competes with a heavy one, which lowers the
    entropy of samples.

    Args:
        p: ``[N, V]`` float64, need not be normalised.
        u: in [0, 1) ``[N]`` float64.

    Returns:
        tokens ``[N]`` int64, each of positive mass.
    """
    mass = p.cumsum(-1)  # [N, V]
    total = mass[:, -1]
    # u * total may round up to total
    at = torch.minimum(u * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(mass, at[:, None], right=True)[:, 0]
