"""How likely is a continuation after a prompt? A bound on log p(continuation | prompt).

The prompt stays clean, the forward process noises the continuation c alone, and the integrand of
the bound (`sddlm.objectives.bound`) is summed over the continuation:

    -log p(c | prompt) <= integral over t of E[ sum over positions of the integrand ] + prior term

with all of time from 0 to 1 and the prior term of every token, so that nothing is left out. It is
the bound of UDLM and Duo (arXiv:2412.10193, 2506.10892) for the conditional law; what SMDM
(arXiv:2410.18514) does for masks. Common harnesses give the mean over all tokens of the bound of
prompt and continuation together, which is neither conditional nor a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sddlm.draw import Draw
from sddlm.errors import ConfigError
from sddlm.eval.integral import Integral, stderr
from sddlm.eval.windows import Window, all_windows, next_tokens
from sddlm.models.row_losses import CrossEntropy
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate, warn_of_bias
from sddlm.sampling.base import device_of, evaluating, finite, leave_one_out

#: noise levels drawn together, one in each part of the range
PER_ROUND = 16


@dataclass(frozen=True)
class Choice:
    """A continuation whose probability after a prompt is asked for.

    Attributes:
        prompt: tokens that are given.
        continuation: tokens that are scored.
        norm: what the score is divided by in the second ranking of a question's choices, such as
            the length of the continuation in characters; more than 0.
    """

    prompt: list[int]
    continuation: list[int]
    norm: float = 1.0


@dataclass(frozen=True)
class Conditional:
    """log p(continuation | prompt).

    Attributes:
        log_p: nats, summed over the continuation: exact, or an estimate of a lower bound.
        stderr: standard error of ``log_p``, nats; 0 where it is exact.
        draws: noise levels that it is the mean of; 0 where it is exact.
        tokens: length of the continuation.
        cut: tokens of the prompt, from its left, that the network had no room for.
        exact: whether ``log_p`` is no bound but the value itself.
    """

    log_p: float
    stderr: float
    draws: int
    tokens: int
    cut: int
    exact: bool


def conditional_bounds(
    model: Any,
    process: Process,
    estimate: Estimate,
    choices: Sequence[Choice],
    *,
    seed: int = 0,
    question: int = 0,
    draws: int = 128,
    per_round: int = PER_ROUND,
    batch: int = 64,
    z: float = 3.0,
    start: int | None = None,
) -> list[Conditional]:
    """log p of each choice of one question: a lower bound, or exact for a next-token model.

    All choices are scored with the same noise: the same levels, and the same random numbers at the
    same place counted from the beginning of the continuation. What they have in common so drops
    out of their differences.

    Draws come in rounds. After every round but the first, the question is finished if in both
    rankings, by ``log_p`` and by ``log_p / norm``, the best choice is ahead of every other by more
    than ``z`` standard errors of the paired difference. The wide margin is for looking several
    times, at several choices, with an error that is itself estimated from few draws: on worlds of
    4 tokens, 1 to 2 of 100 questions that are finished so have another winner than the exact one
    (docs/evaluation.md). A single choice gets all draws.

    A continuation is never cut. If it does not fit beside the prompt, the prompt is cut on the
    left; if it is longer than the network's rows, it is scored in windows, each after as much of
    the text before it as fits, at least half a row: their sum is a bound too. An empty
    continuation has ``log_p`` 0.

    Args:
        model: the network.
        process: that it undoes.
        estimate: what its output means.
        choices: of one question.
        seed: of the noise.
        question: number of the question. The result depends on the choices, ``seed`` and
            ``question`` alone, up to rounding: not on ``batch`` or on other questions.
        draws: most noise levels, a multiple of ``per_round``.
        per_round: noise levels of a round, one in each part of the range.
        batch: sequences per network call.
        z: margin of the early stop, in standard errors; ``inf`` never stops.
        start: token in front of an empty prompt, which a next-token model needs.

    Raises:
        ConfigError: numbers, tokens or norms that cannot be, or no ``start`` where one is needed.
        FloatingPointError: the network's output is not finite.
    """
    _check(model, process, choices, draws=draws, per_round=per_round, batch=batch, z=z)
    if not choices:
        return []
    found, cuts = all_windows(model, estimate, [(c.prompt, c.continuation) for c in choices], start)
    tokens = torch.tensor([len(choice.continuation) for choice in choices], dtype=torch.float64)
    if not estimate.diffusion:
        exact = torch.zeros(len(choices), dtype=torch.float64)
        with evaluating(model):
            for window, hidden in next_tokens(model, found, batch):
                true = torch.tensor(window.scored, device=hidden.device)
                nats = model.head(hidden, CrossEntropy(true)).rows.double()
                exact[window.choice] -= finite(nats).sum()
        return _results(exact, torch.zeros_like(exact), 0, tokens, cuts)
    warn_of_bias(estimate, model.vocab_size)
    norms = torch.tensor([choice.norm for choice in choices], dtype=torch.float64)
    prior = tokens[:, None] * process.prior_kl(model.vocab_size)  # [C, 1]
    integral = Integral(model, process, estimate, seed, question, per_round, batch)
    rounds: list[Tensor] = []
    with evaluating(model):
        while len(rounds) < draws // per_round:
            rounds.append(integral.nats(found, len(choices), len(rounds)) + prior)  # [C, S]
            nats = torch.stack(rounds, 1)  # [C, rounds, S]
            if len(choices) > 1 < len(rounds) and _certain(nats, norms, z):
                break
    return _results(-nats.mean((1, 2)), stderr(nats), nats[0].numel(), tokens, cuts)


def greedy(
    model: Any,
    process: Process,
    estimate: Estimate,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    seed: int = 0,
    question: int = 0,
    batch: int = 64,
    start: int | None = None,
) -> bool:
    """Whether the continuation is the model's greedy choice.

    Of a next-token model: whether each token is the most likely one after those before it. A
    diffusion model has no greedy choice; the convention here is to decide from left to right, each
    position the most likely token of the leave-one-out prediction given the prompt, the positions
    decided and pure noise (t = 1) at the others, one draw of it from ``seed``. A continuation that
    does not fit is cut into windows as in `conditional_bounds`; an empty one is greedy.

    Args:
        model: the network.
        process: that it undoes.
        estimate: what its output means.
        prompt: tokens that are given.
        continuation: tokens asked about.
        seed: of the noise.
        question: number of the question; with ``seed`` all that the noise depends on.
        batch: sequences per network call.
        start: token in front of an empty prompt, which a next-token model needs.

    Raises:
        ConfigError: tokens that cannot be, or no ``start`` where one is needed.
        FloatingPointError: the network's output is not finite.
    """
    choices = [Choice(list(prompt), list(continuation))]
    _check(model, process, choices, batch=batch)
    found, _ = all_windows(model, estimate, [(c.prompt, c.continuation) for c in choices], start)
    with evaluating(model):
        if not estimate.diffusion:
            for window, hidden in next_tokens(model, found, batch):
                if _likeliest(model.head.logits(hidden)).tolist() != window.scored:
                    return False
            return True
        return all(
            _greedy_window(model, process, estimate, window, Draw(seed, question, index, 1), batch)
            for window in found
            for index in [torch.tensor([window.number], device=device_of(model))]
        )


def _greedy_window(
    model: Any, process: Process, estimate: Estimate, window: Window, draw: Draw, batch: int
) -> bool:
    """Whether each token is the most likely one, those behind it being pure noise."""
    K, M = window.shape
    device = draw.index.device
    scored = torch.tensor(window.scored, device=device)  # [M]
    noise = process.prior(draw, M, vocab_size=model.vocab_size)[0]  # [M]
    context = torch.tensor(window.context, dtype=torch.int64, device=device)
    alpha_t = process.schedule.alpha(torch.ones(1, dtype=torch.float64, device=device))  # [1]
    for at in torch.arange(M, device=device).split(batch):  # row m decides position m
        decided = torch.arange(M, device=device) < at[:, None]  # [b, M]
        x_t = torch.cat(
            (context.expand(len(at), K), torch.where(decided, scored, noise)), 1
        )  # [b, K + M]
        sigma = -alpha_t.log().float().expand(len(at))
        rows = torch.arange(len(at), device=device) * (K + M) + K + at
        hidden = model(x_t, sigma, rows=rows)  # [b, D]
        logits = leave_one_out(model, hidden, estimate, process, noise[at], alpha_t)
        if not torch.equal(_likeliest(logits), scored[at]):
            return False
    return True


def _likeliest(logits: Tensor) -> Tensor:
    """The most likely token of each row ``[N, V]``: ``[N]``."""
    found = logits.max(1)
    finite(found.values)
    return found.indices


def _certain(nats: Tensor, norms: Tensor, z: float) -> bool:
    """Whether both rankings of the choices have a certain best one."""
    for each in (nats, nats / norms[:, None, None]):
        best = each.mean((1, 2)).argmin()
        behind = each - each[best]  # [C, rounds, S]
        if not (behind.mean((1, 2)) >= z * stderr(behind)).all():
            return False
    return True


def _results(
    log_p: Tensor, errors: Tensor, draws: int, tokens: Tensor, cuts: list[int]
) -> list[Conditional]:
    """One for each choice; nothing is drawn for an empty one."""
    found = []
    for value, error, length, cut in zip(
        log_p.tolist(), errors.tolist(), tokens.int().tolist(), cuts, strict=True
    ):
        exact = not draws or not length
        # 0.0 - 0.0 and not -0.0
        found.append(Conditional(value + 0.0, error, 0 if exact else draws, length, cut, exact))
    return found


def _check(
    model: Any,
    process: Process,
    choices: Sequence[Choice],
    *,
    batch: int,
    per_round: int = 1,
    draws: int = 2,
    z: float = 1.0,
) -> None:
    """Refuse what cannot be scored."""
    if batch < 1 or per_round < 1:
        raise ConfigError(
            f"conditional: batch is {batch} and per_round {per_round}, allowed is 1 and above"
        )
    if draws % per_round or draws < 2 * per_round:
        raise ConfigError(
            f"conditional: draws is {draws}, allowed are multiples of {per_round} from "
            f"{2 * per_round} on: try {max(2, round(draws / per_round)) * per_round}"
        )
    if not z > 0:
        raise ConfigError(f"conditional: z is {z}, allowed is more than 0: try 3")
    V = model.vocab_size - process.extra_tokens
    for choice in choices:
        if not choice.norm > 0:
            raise ConfigError(f"conditional: norm is {choice.norm}, allowed is more than 0")
        for token in (*choice.prompt, *choice.continuation):
            if not 0 <= token < V:
                raise ConfigError(
                    f"conditional: token {token} is none of the model's, which are 0 to {V - 1}: "
                    "use the model's own tokenizer"
                )
