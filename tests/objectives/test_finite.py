"""No objective gives a number that is not finite, at any corner: losses and gradients.

Exempt is only what is truly infinite: a token that changed when all data was left (t = 0), which
has probability 0, and a score of exp(10^4) (SEDD's scores are not normalised).
"""

import pytest
import torch

from sddlm import objectives
from sddlm.models.layers import select_rows
from sddlm.models.vocab_head import VocabHead
from sddlm.objectives import D3PM, MDLM, NELBO, SDDLM, SDDLMV1, SEDD, Autoregressive
from sddlm.objectives.negatives import MixedNegatives, TopNegatives, UniformNegatives
from sddlm.process import (
    CosinePower,
    Geometric,
    HybridProcess,
    MaskedProcess,
    Polynomial,
    UniformProcess,
)
from sddlm.rng import Draw
from sddlm.types import Noisy

#: but for distillation, which needs a teacher (test_distillation.py)
EXPORTED = [getattr(objectives, n) for n in objectives.__all__ if n not in ("Objective", "DCD")]
MORE = {
    "NELBO masked": lambda: NELBO(MaskedProcess()),
    "NELBO hybrid": lambda: NELBO(HybridProcess()),
    "NELBO geometric": lambda: NELBO(UniformProcess(Geometric())),
    "NELBO squared cosine": lambda: NELBO(UniformProcess(CosinePower())),
    "NELBO hybrid polynomial": lambda: NELBO(HybridProcess(Polynomial())),
    "MDLM geometric": lambda: MDLM(MaskedProcess(Geometric())),
    "MDLM constant": lambda: MDLM(weighting="constant"),
    "SDDLM changed": lambda: SDDLM(positions="changed"),
    "SDDLMV1 exact": lambda: SDDLMV1(negatives=UniformNegatives("exact"), eps=1e-30),
    "SDDLMV1 mixed": lambda: SDDLMV1(
        negatives=MixedNegatives([UniformNegatives("exact"), TopNegatives()])
    ),
    "D3PM masked": lambda: D3PM(MaskedProcess()),
    "D3PM hybrid": lambda: D3PM(HybridProcess()),
    "SEDD masked": lambda: SEDD(MaskedProcess()),
}
CASES = {**{kind.__name__: kind for kind in EXPORTED}, **MORE}
each = pytest.mark.parametrize("case", CASES)

TIMES = [0.0, 1e-9, 1e-3, 0.5, 1.0]
#: t of each row of a batch, and whether its tokens changed: all but what is truly infinite
ROWS = [(t, changed) for t in TIMES for changed in (False, True) if t > 0 or not changed]


class Table(torch.nn.Module):
    """A network whose hidden states [B, L, D] are its parameter, with a real head."""

    def __init__(self, hidden: torch.Tensor, weight: torch.Tensor, num_extra_tokens: int) -> None:
        super().__init__()
        self.hidden = torch.nn.Parameter(hidden)
        self.vocab_size = len(weight)
        self.head = VocabHead(weight.shape[1], len(weight), num_extra_tokens=num_extra_tokens)
        self.head.weight.data = weight

    def forward(self, x_t, sigma, rows=None):
        assert torch.isfinite(sigma).all()
        return select_rows(self.hidden[:, : x_t.shape[1]], rows)


def corrupted(process, x0: torch.Tensor, V: int, rows: list[tuple[float, bool]]) -> Noisy:
    """Rows in which all tokens changed (to the mask, in turn to others), or none of them."""
    time, changed = (torch.tensor(column) for column in zip(*rows, strict=True))
    time = time.double()
    changed = changed[:, None].expand(x0.shape)
    if isinstance(process, MaskedProcess):
        x_t = torch.full_like(x0, V - 1)
    else:
        x_t = (x0 + 1) % (V - process.extra_tokens)
        if isinstance(process, HybridProcess):  # every other token leaves the mask only
            x_t[:, ::2] = V - 1
            x_t = torch.where(x_t == x0, V - 1, x_t)
    x_t = torch.where(changed, x_t, x0)
    alpha, slope = process.schedule.alpha(time)[:, None], process.schedule.dalpha(time)[:, None]
    return Noisy(x0, x_t, time, alpha, slope, changed, V)


def check(objective, model: Table, noisy: Noisy, loss_mask=None) -> None:
    draw = Draw.simple(0, 0, len(noisy.x0))
    if isinstance(objective, Autoregressive):
        loss = objective.loss(model, noisy.x0, draw, loss_mask)
    else:
        loss = objective.score(model, noisy, draw, loss_mask)
    assert torch.isfinite(loss.total), loss.total
    assert torch.isfinite(loss.mean)
    assert all(value.isfinite() for parts in loss.metrics.values() for value in parts)
    loss.total.backward()
    for gradient in (model.hidden.grad, model.head.weight.grad, model.head.bias.grad):
        assert gradient is not None
        assert torch.isfinite(gradient).all()


def tokens(objective, B: int, L: int, V: int) -> torch.Tensor:
    clean = V - objective.process.extra_tokens
    return torch.randint(clean, (B, L), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("V", [2, 3, 27, 5000, 200_000])
@each
def test_at_both_ends_of_time_for_any_vocabulary(case, V, half):
    objective = CASES[case]()
    B, L, D = len(ROWS), (2 if V < 200_000 else 1), 4
    torch.manual_seed(0)
    hidden, weight = torch.randn(B, L, D), torch.randn(V, D)
    noisy = corrupted(objective.process, tokens(objective, B, L, V), V, ROWS)
    hidden = hidden.bfloat16() if half else hidden
    check(objective, Table(hidden, weight, objective.process.extra_tokens), noisy)


#: logits [V] of a row with clean token x0
LOGITS = {
    "x0 impossible": lambda z, x0: z.scatter(-1, x0, -200.0),
    "x0 certain": lambda z, x0: z.scatter(-1, x0, 200.0),
    "x0 beyond all digits": lambda z, x0: 1e4 * (1 - 2 * torch.zeros_like(z).scatter(-1, x0, 1.0)),
    "x0 above all digits": lambda z, x0: -1e4 * (1 - 2 * torch.zeros_like(z).scatter(-1, x0, 1.0)),
    "all large": lambda z, x0: z + 1e4,
    "all small": lambda z, x0: z - 1e4,
    "spread": lambda z, x0: torch.linspace(-1e4, 1e4, z.shape[-1]).expand(z.shape),
}


@pytest.mark.parametrize("V", [3, 27])
@each
def test_with_extreme_logits(case, V):
    objective = CASES[case]()
    B = len(ROWS)
    x0 = tokens(objective, B, 3, V)
    noisy = corrupted(objective.process, x0, V, ROWS)
    for extreme in LOGITS.values():
        torch.manual_seed(0)
        z = extreme(torch.randn(B, 3, V), x0[..., None])
        if isinstance(objective, SEDD):
            z = z.clamp(-40, 40)
        check(objective, Table(z, torch.eye(V), objective.process.extra_tokens), noisy)


def test_at_t_0_the_bound_is_its_limit():
    """A kept position at alpha = 1: -alpha' / V (1 / p_x0 - 1)."""
    V, objective = 27, NELBO()
    x0 = tokens(objective, 2, 3, V)
    z = torch.randn(2, 3, V, generator=torch.Generator().manual_seed(0))
    noisy = corrupted(objective.process, x0, V, [(0.0, False)] * 2)
    p = z.double().softmax(-1).gather(-1, x0[..., None])
    expected = -noisy.dalpha_t[0, 0] / V * (1 / p - 1).sum()
    loss = objective.score(Table(z, torch.eye(V), 0), noisy, Draw.simple(0, 0, 2)).total
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


@each
def test_with_no_position_that_counts(case):
    objective = CASES[case]()
    x0 = tokens(objective, len(ROWS), 3, 27)
    nothing = torch.zeros_like(x0, dtype=torch.bool)
    noisy = corrupted(objective.process, x0, 27, ROWS)
    model = Table(torch.randn(*x0.shape, 4), torch.randn(27, 4), objective.process.extra_tokens)
    check(objective, model, noisy, nothing)
    assert model.hidden.grad is not None
    assert (model.hidden.grad == 0).all()
