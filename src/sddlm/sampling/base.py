"""What every sampler is, and the draw from a distribution."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sddlm.errors import ConfigError, check_arguments
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.sampling.condition import Condition, checked, indices
from sddlm.sampling.context import Model, SamplingContext, Trained
from sddlm.types import OnStep, Samples

#: bytes of float64 logits that exist at once
CHUNK_BYTES = 64 * 2**20


class Drawn(NamedTuple):
    """What a leaf returns: tokens ``[B, L]``, network calls ``[B]``, steps, head rows ``[B]``."""

    tokens: Tensor
    nfe: Tensor
    steps: int
    rows: Tensor


class Sampler:
    """Base class of samplers: noise to tokens. Subclasses are dataclasses of their options.

    `sample` is a template; a leaf has `check`, `draw` and `calls`.
    """

    @check_arguments
    def sample(
        self,
        model: Trained | Model,
        *,
        batch: int | None = None,
        length: int | None = None,
        process: Process | None = None,
        estimate: Estimate | None = None,
        seed: int = 0,
        index: int | Tensor = 0,
        condition: Condition | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Sample sequences; each is a function of ``seed``, its own index and its own condition.

            sddlm.Lazy(steps=64).sample(lm, batch=8, length=128).tokens  # [8, 128]

        Args:
            model: a `sddlm.LanguageModel`, or a network; in evaluation mode during the call.
            batch: number of sequences B; default: that of ``condition``, else 1.
            length: L; default: that of ``condition``, else the length of the model.
            process: corruption that a network was trained to undo; not with a language model.
            estimate: what the output of a network means; not with a language model.
            seed: seed of all randomness.
            index: index of the first sequence, so that a run can be cut into batches, or of each
                sequence ``[B]`` int64.
            condition: known tokens and padding ``[B, L]``; None is none.
            on_step: called after each step with the step's number, t and the tokens ``[B, L]``.

        Returns:
            tokens ``[B, L]``, network calls and head rows of each sequence, and seconds.

        Raises:
            ConfigError: this sampler cannot read the estimate or keep to the condition, process and
                estimate of a network are missing, or an argument has a wrong type or value.
            FloatingPointError: the network's output is not finite.
        """
        started = time.perf_counter()
        network, process, estimate = _parts(model, process, estimate)
        self.check(network, process, estimate)
        B, L = _shape(network, batch, length, condition)
        device = device_of(network)
        places = indices(index, B, device)
        condition = self.keep(checked(condition, (B, L), device))
        run = SamplingContext(network, process, estimate, seed, places, L, on_step, condition)
        with evaluating(network):
            drawn = self.draw(run)
        seconds = time.perf_counter() - started
        # copies made outside inference mode can also be trained on
        tokens, nfe, rows = (x.clone() for x in (drawn.tokens, drawn.nfe, drawn.rows))
        return Samples(tokens, nfe, drawn.steps, seconds, rows)

    def check(self, model: Model, process: Process, estimate: Estimate) -> None:
        """Refuse a model that this sampler cannot read.

        Raises:
            ConfigError: names the sampler to use instead.
        """
        raise NotImplementedError

    def keep(self, condition: Condition | None) -> Condition | None:
        """The condition, if this sampler can keep to it.

        Raises:
            ConfigError: it cannot.
        """
        return condition

    def draw(self, run: SamplingContext) -> Drawn:
        """From noise to text; called in inference mode."""
        raise NotImplementedError

    def calls(self, length: int) -> int:
        """Number of calls of ``on_step`` for sequences of ``length`` tokens."""
        raise NotImplementedError


def _parts(
    model: Trained | Model, process: Process | None, estimate: Estimate | None
) -> tuple[Model, Process, Estimate]:
    """Network, process and estimate."""
    whole: Any = model
    if hasattr(whole, "network"):
        if process is not None or estimate is not None:
            raise ConfigError("a language model has its own process and estimate: leave them out")
        return whole.network, whole.process, whole.estimate
    if process is None or estimate is None:
        raise ConfigError(
            "a network alone does not state how it was trained: give process and estimate, or a "
            "model of sddlm.load"
        )
    return whole, process, estimate


def _shape(
    network: Model, batch: int | None, length: int | None, condition: Condition | None
) -> tuple[int, int]:
    """B and L."""
    if condition is not None:
        B, L = condition.given.shape
        return B if batch is None else batch, L if length is None else length
    B = 1 if batch is None else batch
    L = int(getattr(network, "length", 0) if length is None else length)
    if B < 1 or L < 1:
        raise ConfigError(f"`batch` is {B} and `length` is {L}, must both be at least 1")
    return B, L


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Inference mode, and every module in evaluation mode; afterwards each in its former mode."""
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


def chunks(rows: int, vocab_size: int, size: int | None = None) -> Iterator[slice]:
    """Parts of ``rows`` whose float64 logits fit into ``size`` bytes; None is `CHUNK_BYTES`."""
    step = max(1, (CHUNK_BYTES if size is None else size) // (8 * vocab_size))
    return (slice(start, start + step) for start in range(0, rows, step))


def hidden_at(model: Trained, x_t: Tensor, t: float, **more: Any) -> tuple[Tensor, Tensor]:
    """The network's output for sequences ``[B, L]`` of one noise level.

    Args:
        model: the model.
        x_t: on its device.
        t: the level.
        more: see `Model`.

    Returns:
        hidden rows ``[B L, D]``, and alpha ``[1]`` float64.
    """
    level = torch.tensor([t], dtype=torch.float64, device=x_t.device)
    alpha = model.process.schedule.alpha(level)
    sigma = -torch.log(alpha).float().expand(len(x_t))
    return model.network(x_t, sigma, **more).flatten(0, 1), alpha


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
            "its training diverged; take another model, or train with a smaller `train.lr`"
        )
    return values


def sample_categorical(p: Tensor, u: Tensor) -> Tensor:
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
