"""Distillation: Duo's coupling and golden numbers, the frozen teacher, what is compared."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.models.padding import hide_padding
from sddlm.models.row_losses import AutogradRowLoss
from sddlm.models.vocab_head import VocabHead
from sddlm.objectives import DCD, NELBO
from sddlm.objectives.distillation import Divergence, divergence
from sddlm.process import HybridProcess, LogLinear, MaskedProcess, UniformProcess
from sddlm.process.estimate import Estimate, to_leave_one_out
from sddlm.process.gaussian import log_win
from sddlm.process.latent import latent, normals
from sddlm.rng import Draw
from sddlm.spec import from_spec, to_spec
from sddlm.training.args import TrainArgs
from sddlm.training.module import TrainModule

GOLDEN = Path(__file__).parent.parent / "golden"
TOKENIZER = Tokenizer.characters(["abcdefgh"])
L = 6


def golden():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "curriculum_dcd_V11.npz").items()}


def network(seed, extra=0, **changes):
    values = {"length": L, "width": 16, "blocks": 1, "heads": 2, "cond_dim": 8, **changes}
    V = TOKENIZER.vocab_size + extra
    if not values.get("causal"):
        values |= {"gate_init": 1.0}
    model = DiT(DiTConfig(vocab_size=V, num_extra_tokens=extra, head_init=0.5, **values), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():  # so that it hears of the noise level, zero at the start
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture
def taught(tmp_path):
    """A function that writes a teacher; gives its directory and the network."""

    def write(estimate=Estimate.LEAVE_ONE_OUT, process=None, **changes):
        process = process or UniformProcess()
        model = network(1, process.extra_tokens, **changes)
        LanguageModel(model, process, estimate, TOKENIZER, {}, {}).save(tmp_path / "teacher")
        return str(tmp_path / "teacher"), model.eval()

    return write


def tokens(B, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(TOKENIZER.vocab_size, (B, L), generator=generator)


# -- the coupling ----------------------------------------------------------------------------------

SMALL, N, OWN = 5, 400_000, 2
GAMMAS = (0.4, -1.6)  # of t and s


def alpha_of(gamma):
    p = log_win(torch.tensor(gamma, dtype=torch.float64), SMALL).exp().item()
    return (SMALL * p - 1) / (SMALL - 1)


def joint_law():
    """P(z_t, z_s) ``[V, V]`` of the uniform process with one uniform number and one noise token."""
    at, as_ = (alpha_of(gamma) for gamma in GAMMAS)
    law = torch.zeros(SMALL, SMALL, dtype=torch.float64)
    law.diagonal().fill_((1 - as_) / SMALL)  # noise at both times
    law[:, OWN] += (as_ - at) / SMALL  # noise at t alone
    law[OWN, OWN] += at
    return law


def counts(z_t, z_s):
    return torch.bincount((z_t * SMALL + z_s).flatten(), minlength=SMALL**2).double()


def chi_square(found, law):
    """Of the cells that can be; the others must be empty."""
    law = law.flatten()
    assert (found[law == 0] == 0).all()
    expected = found.sum() * law[law > 0]
    return ((found[law > 0] - expected) ** 2 / expected).sum().item()


#: 9 cells: 8 degrees of freedom, of which chi-square is above 26.1 once in a thousand times
CRITICAL = 26.1


def test_the_gaussian_pair_has_the_law_of_one_number_and_one_token():
    """Duo's z_t and z_s of one eps: argmax of V normal numbers, twice."""
    law = joint_law()
    assert law.sum().item() == pytest.approx(1)
    x0 = torch.full((1, 1), OWN)
    drawn = torch.zeros(SMALL**2, dtype=torch.float64)
    for step in range(4):
        eps = normals(Draw.simple(0, step, 1), "latent", N // 4, SMALL)  # [1, N / 4, V]
        z = [
            latent(x0.expand(1, N // 4), torch.tensor([gamma]), eps.clone()).argmax(-1)
            for gamma in GAMMAS
        ]
        drawn += counts(*z)
    assert chi_square(drawn, law) < CRITICAL


def test_the_pair_has_that_law_too(monkeypatch):
    class Levels(LogLinear):  # alpha of the two levels at t = 0.75 and 0.25
        def alpha(self, t):
            at, as_ = (alpha_of(gamma) for gamma in GAMMAS)
            return torch.where(t.double() > 0.5, at, as_)

    class Late(Draw):
        def times(self, t_min=1e-3):
            return torch.full((len(self.index),), 0.25, dtype=torch.float64)

    objective = DCD(dt=0.5, process=UniformProcess(Levels()))
    x0 = torch.full((N // 100, 100), OWN)
    noisy, cleaner = objective.pair(x0, Late.simple(0, 0, len(x0)), vocab_size=SMALL)
    assert noisy.t.unique().tolist() == [0.75]
    assert cleaner.t.unique().tolist() == [0.25]
    assert chi_square(counts(noisy.x_t, cleaner.x_t), joint_law()) < CRITICAL


@pytest.mark.parametrize("process", [UniformProcess(), MaskedProcess(), HybridProcess()])
def test_noise_only_grows_from_s_to_t(process):
    x0 = torch.zeros(64, 50, dtype=torch.int64)
    noisy, cleaner = DCD(dt=0.3, process=process).pair(x0, Draw.simple(0, 0, 64), vocab_size=9)
    assert (noisy.t - cleaner.t).allclose(torch.tensor(0.3, dtype=torch.float64))
    assert noisy.t.max() == 1  # the last three tenths of the times
    assert noisy.t.min() > 0.3
    assert (noisy.resampled | ~cleaner.resampled).all()
    assert noisy.resampled.sum() > cleaner.resampled.sum()
    if not isinstance(process, HybridProcess):  # whose law of noise is another at s
        assert torch.equal(noisy.x_t[cleaner.resampled], cleaner.x_t[cleaner.resampled])


# -- the loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "name"), [("reverse", "kl_bwd"), ("forward", "kl_fwd")])
def test_divergence_equals_duos(direction, name):
    g = golden()
    log_p, log_q = (g[k].log_softmax(-1).flatten(0, 1) for k in ("logits", "teacher_logits"))
    expected = g[name].flatten()
    torch.testing.assert_close(divergence(log_p, log_q, direction), expected, rtol=0, atol=1e-12)
    term = Divergence(lambda at: log_q[at], direction)
    values, _ = term(g["logits"].flatten(0, 1).clone(), slice(None), True)
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("direction", ["reverse", "forward"])
def test_the_gradient_by_hand_is_that_of_autograd(direction, shifted, extra, monkeypatch):
    """Through the head, in chunks of two rows, float64; with a token that is never predicted."""
    V, rows, width = 7, 5, 4
    monkeypatch.setattr("sddlm.models.vocab_head.CHUNK_BYTES", 4 * V * 2)
    torch.manual_seed(0)
    head = VocabHead(width, V, num_extra_tokens=extra).double()
    head.weight.data.normal_()
    hidden = torch.randn(rows, width, dtype=torch.float64)
    q = torch.randn(rows, V, dtype=torch.float64)
    q[:, V - extra :] = -torch.inf
    log_q, own = q.log_softmax(1), torch.arange(rows)
    shift = torch.linspace(-3, 3, rows, dtype=torch.float64) if shifted else None

    def plain(logits, at):
        if shift is not None:
            logits = logits.scatter_add(1, own[at, None], shift[at, None])
        return divergence(logits.log_softmax(1), log_q[at], direction)

    found = []
    by_hand = Divergence(lambda at: log_q[at], direction, own if shifted else None, shift)
    for term in (by_hand, AutogradRowLoss(plain)):
        h = hidden.clone().requires_grad_()
        out = head(h, term)
        found.append([out.rows, *torch.autograd.grad(out.total, [h, head.weight, head.bias])])
    for a, b in zip(*found, strict=True):
        assert torch.isfinite(a).all()
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert found[0][1].abs().max() > 0.01


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("size", [200.0, 1e4])
def test_extreme_logits_stay_finite(direction, size):
    logits = torch.eye(5) * size
    log_q = (-logits).log_softmax(1)
    values, d = Divergence(lambda at: log_q[at], direction)(logits.clone(), slice(None), True)
    assert torch.isfinite(values).all()
    assert torch.isfinite(d).all()
    assert values.min() > 1


ESTIMATES = [Estimate.LEAVE_ONE_OUT, Estimate.DENOISER, Estimate.SCORE, Estimate.TRUNCATED]


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("compare", ["denoiser", "leave_one_out"])
@pytest.mark.parametrize("estimate", ESTIMATES)
def test_predictions_of_the_same_reading_are_compared(taught, estimate, compare, direction):
    place, teacher = taught(estimate)
    objective = DCD(place, dt=0.2, divergence=direction, compare=compare)
    assert objective.estimate is estimate
    student, x0, draw = network(2), tokens(16), Draw.simple(0, 0, 16)
    V = TOKENIZER.vocab_size
    objective.setup(V, lambda: torch.ones(V, dtype=torch.int64))
    with torch.no_grad():
        loss = objective.loss(student, x0, draw)
        logs = []
        pair = objective.pair(x0, draw, vocab_size=V)
        for model, noisy in zip((student, teacher), pair, strict=True):
            logits = model.head.logits(model(noisy.x_t, noisy.sigma)).double().flatten(0, 1)
            z, alpha_t = noisy.x_t.flatten(), noisy.alpha_t.expand_as(x0).flatten()
            logits = to_leave_one_out(logits, estimate, objective.process, z, alpha_t)
            p = logits.softmax(-1)
            if compare == "denoiser":  # Bayes: times q(z | x0 = v)
                same = torch.nn.functional.one_hot(z, V)
                p = p * (alpha_t[:, None] * same + (1 - alpha_t[:, None]) / V)
            logs.append((p / p.sum(-1, keepdim=True)).log())
    assert loss.count == x0.numel()
    expected = divergence(*logs, direction).sum().item()
    assert expected > 1
    assert loss.total.item() == pytest.approx(expected, rel=1e-4)


def test_a_mask_is_compared_where_both_see_it(taught):
    place, teacher = taught(process=MaskedProcess())
    objective = DCD(place, dt=0.3, process=MaskedProcess())
    student, x0, draw = network(2, 1), tokens(32), Draw.simple(0, 0, 32)
    V = student.vocab_size
    noisy, cleaner = objective.pair(x0, draw, vocab_size=V)
    both = cleaner.x_t == V - 1
    assert ((noisy.x_t == V - 1) & ~both).any()
    loss = objective.loss(student, x0, draw)
    loss.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in student.parameters() if p.grad is not None)
    log_p, log_q = (
        model.head.logits(model(z.x_t, z.sigma))[both][:, :-1].log_softmax(-1)
        for model, z in ((student, noisy), (teacher, cleaner))
    )
    assert loss.count == x0.numel()
    assert loss.total.item() == pytest.approx(
        divergence(log_p, log_q, "reverse").sum().item(), rel=1e-4
    )


def test_a_student_that_is_its_teacher_loses_nothing_at_equal_noise(taught):
    place, teacher = taught()
    x0, draw = tokens(16), Draw.simple(0, 0, 16)
    near, far = (DCD(place, dt=dt).loss(teacher, x0, draw).mean.item() for dt in (1e-9, 0.3))
    assert abs(near) < 1e-6
    assert far > 1e-3


def test_padding_is_hidden_from_the_teacher_too(taught):
    place, _ = taught()
    objective, student, x0 = DCD(place, dt=0.2), network(2), tokens(8)
    draw, short = Draw.simple(0, 0, 8), 4
    model, mask = hide_padding(student, torch.full((8,), short), x0)
    padded = objective.loss(model, x0, draw, mask)
    alone = objective.loss(student, x0[:, :short], draw)
    assert padded.count == alone.count == 8 * short
    assert padded.total.item() == pytest.approx(alone.total.item(), rel=1e-4)


def test_the_bound_is_that_of_the_estimate(taught):
    place, _ = taught()
    student, x0, draw = network(2).eval(), tokens(8), Draw.simple(0, 0, 8)
    expected = NELBO().bound(student, x0, draw)
    assert torch.equal(DCD(place).bound(student, x0, draw), expected)


# -- the teacher -----------------------------------------------------------------------------------


def test_the_teacher_never_drops_out_learns_or_is_saved(taught):
    """In public code it is a submodule, so that training switches its dropout on."""
    place, teacher = taught(dropout=0.5)
    objective, student, x0 = DCD(place, dt=0.2), network(2, dropout=0.0), tokens(8)
    module = TrainModule(student, objective, TrainArgs(), seed=0).train()
    draw, loaded = Draw.simple(0, 0, 8), objective._loaded.network
    totals = set()
    for seed in range(3):
        torch.manual_seed(seed)
        module.train()
        totals.add(objective.loss(student, x0, draw).total.item())
    assert len(totals) == 1
    assert loaded.config.dropout == 0.5
    objective.loss(student, x0, draw).total.backward()
    assert all(p.grad is None and not p.requires_grad for p in loaded.parameters())
    assert any(p.grad is not None for p in student.parameters())
    assert len(list(module.parameters())) == len(list(student.parameters()))
    assert len(module.state_dict()) == len(student.state_dict())
    taught_now = loaded(x0, torch.ones(8))
    assert torch.equal(taught_now, teacher(x0, torch.ones(8)))


@pytest.mark.slow
def test_training_draws_the_student_to_its_teacher(taught):
    place, _ = taught()
    objective, student, x0 = DCD(place, dt=0.05), network(2), tokens(32)
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    held_out = Draw.simple(1, -1, 32)
    before = objective.loss(student, x0, held_out).mean.item()
    for step in range(150):
        optimizer.zero_grad()
        objective.loss(student, x0, Draw.simple(0, step, 32)).mean.backward()
        optimizer.step()
    assert objective.loss(student, x0, held_out).mean.item() < before / 4


def test_it_is_its_configuration():
    objective = DCD("runs/mine", 0.25, "forward", "leave_one_out", MaskedProcess())
    assert from_spec(to_spec(objective)) == objective
    assert replace(objective, dt=0.5).teacher == "runs/mine"


@pytest.mark.parametrize("dt", [0.0, -0.1, 1.01, float("nan")])
def test_a_share_of_time_that_is_none(dt):
    with pytest.raises(ConfigError, match=r"`dt` is"):
        DCD("x", dt=dt)


def test_wrong_teachers(taught, tmp_path):
    with pytest.raises(ConfigError, match=r"`divergence` is 'both'"):
        DCD("x", divergence="both")
    with pytest.raises(ConfigError, match=r"`teacher` is missing"):
        DCD().check(length=L)
    with pytest.raises(ConfigError, match=r"`teacher`: no such directory"):
        DCD(str(tmp_path / "nothing")).check(length=L)
    place, _ = taught()
    with pytest.raises(ConfigError, match=r"process` is .*eps=0\.5.*trained with .*0\.001"):
        DCD(place, process=UniformProcess(LogLinear(0.5))).check(length=L)
    with pytest.raises(ConfigError, match=r"`data\.length` is 7, .*`data\.length=6`"):
        DCD(place).check(length=7)
    DCD(place).check(length=L, tokenizer=TOKENIZER.fingerprint)
    with pytest.raises(ConfigError, match="tokenizer is not that of"):
        DCD(place).check(length=L, tokenizer=Tokenizer.characters(["xyz"]).fingerprint)
    with pytest.raises(ConfigError, match="the network has 99 tokens"):
        DCD(place).setup(99, lambda: torch.ones(99))
    place, _ = taught(Estimate.NEXT_TOKEN, causal=True)
    with pytest.raises(ConfigError, match="is an autoregressive model"):
        DCD(place).check(length=L)
