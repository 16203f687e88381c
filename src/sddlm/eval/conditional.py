"""Conditional likelihood: a bound on log p(continuation | prompt).

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
from itertools import groupby

import torch
from torch import Tensor

from sddlm.errors import ConfigError
from sddlm.eval.nll import importance_times
from sddlm.eval.windows import Window, all_windows, next_tokens
from sddlm.models.conditioned import Conditioned
from sddlm.models.row_losses import CrossEntropy
from sddlm.objectives.bound import bound
from sddlm.process.estimate import warn_of_bias
from sddlm.rng import Draw
from sddlm.sampling.base import device_of, evaluating, finite, leave_one_out
from sddlm.sampling.context import Trained

#: noise levels of a round, one in each part of the range
PER_ROUND = 16


@dataclass(frozen=True)
class Choice:
    """A continuation whose probability after a prompt is asked for.

    Attributes:
        prompt: tokens that are given.
        continuation: tokens that are scored.
        norm: divides the score in the second ranking of a question's choices, such as the length
            of the continuation in characters; more than 0.
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
    lm: Trained,
    choices: Sequence[Choice],
    *,
    seed: int = 0,
    question: int = 0,
    draws: int = 128,
    batch: int = 64,
    z: float = 3.0,
) -> list[Conditional]:
    """Estimate log p of each choice of one question: a lower bound; exact for a next-token model.

    All choices are scored with the same noise: the same levels, and the same random numbers at the
    same place counted from the beginning of the continuation. What they have in common so drops
    out of their differences.

    Draws come in rounds of `PER_ROUND`. After every round but the first, the question is finished
    if in both rankings, by ``log_p`` and by ``log_p / norm``, the best choice is ahead of every
    other by more than ``z`` standard errors of the paired difference. The wide margin is for
    looking several times, at several choices, with an error that is itself estimated from few
    draws: on worlds of 4 tokens, 1 to 2 of 100 questions that are finished so have another winner
    than the exact one (docs/evaluation.md). A single choice gets all draws.

    A continuation is never cut. If it does not fit beside the prompt, the prompt is cut on the
    left; if it is longer than the network's rows, it is scored in windows, each after as much of
    the text before it as fits, at least half a row: their sum is a bound too. An empty
    continuation has ``log_p`` 0.

    Args:
        lm: the model.
        choices: of one question.
        seed: of the noise.
        question: number of the question. The result depends on the choices, ``seed`` and
            ``question`` alone, up to rounding: not on ``batch`` or on other questions.
        draws: most noise levels, a multiple of `PER_ROUND`.
        batch: sequences per network call.
        z: margin of the early stop, in standard errors; ``inf`` never stops.

    Raises:
        ConfigError: numbers, tokens or norms that cannot be used, or an empty prompt of a
            next-token model.
        FloatingPointError: the network's output is not finite.
    """
    check_draws(draws)
    if not z > 0:
        raise ConfigError(f"conditional_bounds: `z` is {z}, must be above 0; try 3")
    _check(lm, choices, batch)
    if not choices:
        return []
    found, cuts = all_windows(lm, [(choice.prompt, choice.continuation) for choice in choices])
    with evaluating(lm.network):
        if lm.estimate.diffusion:
            integral = Integral(lm, seed, question, PER_ROUND, batch)
            nats = _rounds(integral, choices, found, draws // PER_ROUND, z)
        else:
            nats = torch.zeros(len(choices), 1, 1, dtype=torch.float64)
            for window, hidden in next_tokens(lm, found, batch):
                true = torch.tensor(window.scored, device=hidden.device)
                exact = lm.network.head(hidden, CrossEntropy(true)).rows.double()
                nats[window.choice] += finite(exact).sum().cpu()
    drawn = lm.estimate.diffusion
    log_p = (-nats.mean((1, 2)) + 0.0).tolist()  # 0.0 and not -0.0
    errors = stderr(nats).tolist() if drawn else [0.0] * len(choices)
    used = [nats[0].numel() if drawn and choice.continuation else 0 for choice in choices]
    return [
        Conditional(log_p[i], errors[i], used[i], len(c.continuation), cuts[i], not used[i])
        for i, c in enumerate(choices)
    ]


def check_draws(draws: int) -> None:
    """Refuse a number of noise levels that does not make two or more whole rounds.

    Raises:
        ConfigError: states the nearest allowed number.
    """
    if draws % PER_ROUND or draws < 2 * PER_ROUND:
        raise ConfigError(
            f"`draws` is {draws}, must be a multiple of {PER_ROUND} from {2 * PER_ROUND} on; try "
            f"{max(2, round(draws / PER_ROUND)) * PER_ROUND}"
        )


def _rounds(
    integral: Integral, choices: Sequence[Choice], windows: list[Window], most: int, z: float
) -> Tensor:
    """Draws of the bound with the prior term, nats ``[C, rounds, S]``; at most ``most`` rounds."""
    lm = integral.lm
    warn_of_bias(lm.estimate, lm.network.vocab_size)
    lengths = torch.tensor([len(choice.continuation) for choice in choices], dtype=torch.float64)
    norms = torch.tensor([choice.norm for choice in choices], dtype=torch.float64)
    prior = lengths[:, None] * lm.process.prior_kl(lm.network.vocab_size)  # [C, 1]
    rounds: list[Tensor] = []
    while len(rounds) < most:
        rounds.append(integral.nats(windows, len(choices), len(rounds)) + prior)  # [C, S]
        if len(choices) > 1 < len(rounds) and _certain(torch.stack(rounds, 1), norms, z):
            break
    return torch.stack(rounds, 1)


def _certain(nats: Tensor, norms: Tensor, z: float) -> bool:
    """Whether both rankings of the choices have a certain best one."""
    for each in (nats, nats / norms[:, None, None]):
        best = each.mean((1, 2)).argmin()
        behind = each - each[best]  # [C, rounds, S]
        if not (behind.mean((1, 2)) >= z * stderr(behind)).all():
            return False
    return True


@dataclass(frozen=True)
class Integral:
    """Draws of the bound's integral over all noise levels.

    Levels are those of `importance_times`, u stratified over the draws of a round.
    """

    lm: Trained
    seed: int
    question: int
    per_round: int
    batch: int

    def nats(self, windows: list[Window], count: int, number: int) -> Tensor:
        """Round ``number`` ``[count, S]``, a choice's windows summed, without the prior term."""
        S = self.per_round
        total = torch.zeros(count, S, dtype=torch.float64)
        for _, group in groupby(sorted(windows, key=lambda w: w.shape), key=lambda w: w.shape):
            alike = list(group)
            for at in torch.arange(len(alike) * S).split(self.batch):
                some = [alike[i] for i in (at // S).tolist()]
                stratum = at % S
                choice = torch.tensor([window.choice for window in some])
                nats = self._some(some, number, stratum).cpu()
                total.index_put_((choice, stratum), nats, accumulate=True)
        return total

    def _some(self, windows: list[Window], number: int, stratum: Tensor) -> Tensor:
        """One draw of each of some windows of one shape ``[b]``, in the given strata."""
        K, M = windows[0].shape
        device = device_of(self.lm.network)
        tokens = torch.tensor([w.context + w.scored for w in windows], device=device)
        window = torch.tensor([w.number for w in windows])
        index = (window << 32) + number * self.per_round + stratum
        draw = Draw(self.seed, self.question, index.to(device), 1)
        u = (stratum.to(device) + draw.uniform("level")) / self.per_round  # [b]
        t, weight = importance_times(self.lm.process, u)
        known = torch.arange(K + M, device=device) < K
        view = Conditioned(self.lm.network, tokens, known)
        nats = bound(view, self.lm.process, self.lm.estimate, tokens[:, K:], draw, t)  # [b, M]
        return finite(nats.double().sum(1)) * weight


def stderr(nats: Tensor) -> Tensor:
    """Standard error of the mean of stratified draws ``[C, rounds, S]``: ``[C]``.

    The rounds are independent draws of every stratum, so it counts what stratification gains.
    """
    _, rounds, S = nats.shape
    return (nats.var(1).sum(1) / rounds).sqrt() / S


def is_greedy(
    lm: Trained,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    seed: int = 0,
    question: int = 0,
    batch: int = 64,
) -> bool:
    """Whether the continuation is the model's greedy choice.

    Of a next-token model: whether each token is the most likely one after those before it. A
    diffusion model has no greedy choice; the convention here is to decide from left to right, each
    position the most likely token of the leave-one-out prediction given the prompt, the positions
    decided and pure noise (t = 1) at the others, one draw of it from ``seed``. A continuation that
    does not fit is cut into windows as in `conditional_bounds`; an empty one is greedy.

    Args:
        lm: the model.
        prompt: tokens that are given.
        continuation: tokens asked about.
        seed: of the noise.
        question: number of the question; with ``seed`` all that the noise depends on.
        batch: sequences per network call.

    Raises:
        ConfigError: tokens that cannot be used, or an empty prompt of a next-token model.
        FloatingPointError: the network's output is not finite.
    """
    choice = Choice(list(prompt), list(continuation))
    _check(lm, [choice], batch)
    found, _ = all_windows(lm, [(choice.prompt, choice.continuation)])
    with evaluating(lm.network):
        if lm.estimate.diffusion:
            return all(_greedy_window(lm, window, seed, question, batch) for window in found)
        return all(
            _likeliest(lm.network.head.logits(hidden)).tolist() == window.scored
            for window, hidden in next_tokens(lm, found, batch)
        )


def _greedy_window(lm: Trained, window: Window, seed: int, question: int, batch: int) -> bool:
    """Whether each token is the most likely one, those behind it being pure noise."""
    (K, M), device = window.shape, device_of(lm.network)
    draw = Draw(seed, question, torch.tensor([window.number], device=device), 1)
    scored = torch.tensor(window.scored, device=device)  # [M]
    noise = lm.process.prior(draw, M, vocab_size=lm.network.vocab_size)[0]  # [M]
    context = torch.tensor(window.context, dtype=torch.int64, device=device)
    t = torch.ones(1, dtype=torch.float64, device=device)
    alpha_t = lm.process.schedule.alpha(t)  # [1]
    for at in torch.arange(M, device=device).split(batch):  # row m decides position m
        decided = torch.arange(M, device=device) < at[:, None]  # [b, M]
        x_t = torch.cat(
            (context.expand(len(at), K), torch.where(decided, scored, noise)), 1
        )  # [b, K + M]
        sigma = -alpha_t.log().float().expand(len(at))
        rows = torch.arange(len(at), device=device) * (K + M) + K + at
        hidden = lm.network(x_t, sigma, rows=rows)  # [b, D]
        logits = leave_one_out(lm.network, hidden, lm.estimate, lm.process, noise[at], alpha_t)
        if not torch.equal(_likeliest(logits), scored[at]):
            return False
    return True


def _likeliest(logits: Tensor) -> Tensor:
    """The most likely token of each row ``[N, V]``: ``[N]``."""
    found = logits.max(1)
    finite(found.values)
    return found.indices


def _check(lm: Trained, choices: Sequence[Choice], batch: int) -> None:
    """Refuse what cannot be scored."""
    if batch < 1:
        raise ConfigError(f"`batch` is {batch}, must be at least 1")
    V = lm.network.vocab_size - lm.process.extra_tokens
    for choice in choices:
        if not choice.norm > 0:
            raise ConfigError(f"Choice: `norm` is {choice.norm}, must be above 0")
        for token in (*choice.prompt, *choice.continuation):
            if not 0 <= token < V:
                raise ConfigError(
                    f"token {token} is none of the model's, which are 0 to {V - 1}: use the "
                    "model's own tokenizer"
                )
