"""What the library is measured against: the published formulas, written the plain way.

A plain transformer whose parameters have the names of `sddlm.models.dit.DiT`'s, logits of every
position, losses by autograd on softmaxes of them, AdamW as it comes, an EMA in a loop, and a
sampler that computes the posterior of every position at every step. Public research code does it
like this; where it can be done in several plain ways, the faster one is taken.
``tests/test_benchmarks.py`` shows that it computes what the library does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sddlm.models.config import DiTConfig
from sddlm.training.args import TrainArgs
from sddlm.types import Noisy

ALPHA_1 = 1e-3
"""What the log-linear schedule leaves of the data at t = 1."""


class SigmaEmbedding(nn.Module):
    def __init__(self, cond_dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, cond_dim), nn.SiLU(), nn.Linear(cond_dim, cond_dim))

    def forward(self, sigma: Tensor) -> Tensor:
        i = torch.arange(128, device=sigma.device, dtype=torch.float32)
        frequency = torch.exp(-math.log(10000.0) / 128 * i)
        angle = sigma[:, None].to(self.mlp[0].weight.dtype) * frequency
        features = torch.cat([angle.cos(), angle.sin()], dim=-1)  # [B, 256]
        return F.silu(self.mlp(features))  # [B, cond_dim]


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions of ``x [B, heads, L, dim]`` by concatenation; angles ``[L, dim]``."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Adaptive norm: ``[B, L, D]`` by two of ``[B, 1, D]``."""
    return x * (1 + scale) + shift


class TextbookBlock(nn.Module):
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.causal = config.heads, config.causal
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.modulation = None if config.causal else nn.Linear(config.cond_dim, 6 * width)
        self.dropout1 = nn.Dropout(config.dropout)
        self.dropout2 = nn.Dropout(config.dropout)

    def attention_mask(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, L, D = x.shape
        q, k, v = (
            part.view(B, L, self.heads, D // self.heads).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=-1)
        )  # each [B, heads, L, dim]
        q, k = rotary(q, cos, sin), rotary(k, cos, sin)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(B, L, D))

    def forward(self, x: Tensor, cond: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
        if self.modulation is None:
            x = x + self.dropout1(self.attention_mask(self.norm1(x), cos, sin))
            return x + self.dropout2(self.mlp(self.norm2(x)))
        parts = self.modulation(cond)[:, None].chunk(6, dim=-1)  # each [B, 1, D]
        shift1, scale1, gate1, shift2, scale2, gate2 = parts
        y = self.attention_mask(modulate(self.norm1(x), shift1, scale1), cos, sin)
        x = x + gate1 * self.dropout1(y)
        y = self.mlp(modulate(self.norm2(x), shift2, scale2))
        return x + gate2 * self.dropout2(y)


class TextbookDiT(nn.Module):
    """A plain DiT; it takes the ``state_dict`` of a `sddlm.models.dit.DiT`.

    Args:
        config: of a network without the library's own additions.
    """

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        if config.tie_embeddings or config.input_conv or config.num_extra_tokens:
            raise ValueError("the textbook's network has no tie, input_conv or input_only")
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.sigma = None if config.causal else SigmaEmbedding(config.cond_dim)
        self.blocks = nn.ModuleList(TextbookBlock(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width, bias=False)
        self.modulation = None if config.causal else nn.Linear(config.cond_dim, 2 * width)
        self.head = nn.Linear(width, config.vocab_size)

    @classmethod
    def around(cls, model: nn.Module) -> TextbookDiT:
        """A network on the weights of a `DiT`: the same memory, not a copy."""
        with torch.device("meta"):
            textbook = cls(model.config)
        state = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
        textbook.load_state_dict(state, assign=True)
        return textbook

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Logits of all positions ``[B, L, V]``."""
        h = self.embedding(x)  # [B, L, D]
        dim = self.config.width // self.config.heads
        frequency = 1.0 / 10000.0 ** (torch.arange(0, dim, 2, device=x.device).float() / dim)
        place = torch.arange(x.shape[1], device=x.device, dtype=h.dtype)
        angle = torch.outer(place, frequency.to(h.dtype)).repeat(1, 2)  # [L, dim]
        cos, sin = angle.cos(), angle.sin()
        cond = None if self.sigma is None else self.sigma(sigma)
        for block in self.blocks:
            h = block(h, cond, cos, sin)
        h = self.norm(h)
        if self.modulation is not None:
            shift, scale = self.modulation(cond)[:, None].chunk(2, dim=-1)
            h = modulate(h, shift, scale)
        return self.head(h)


def corrupt(x0: Tensor, vocab_size: int) -> Noisy:
    """Uniform noise of stratified times, log-linear schedule."""
    B = len(x0)
    u = (torch.arange(B, device=x0.device) + torch.rand(B, device=x0.device)) / B
    t = (1e-3 + (1 - 1e-3) * u).double()
    alpha = (1 - (1 - ALPHA_1) * t)[:, None]  # [B, 1]
    resampled = torch.rand(x0.shape, device=x0.device) >= alpha
    x_t = torch.where(resampled, torch.randint_like(x0, vocab_size), x0)
    return Noisy(x0, x_t, t, alpha, torch.full_like(alpha, ALPHA_1 - 1), resampled, vocab_size)


def at(values: Tensor, token: Tensor) -> Tensor:
    """``values[..., token]``: ``[B, L, V]``, ``[B, L]`` -> ``[B, L]``."""
    return values.gather(-1, token[..., None])[..., 0]


def nelbo(logits: Tensor, noisy: Noisy) -> Tensor:
    """Integrand of the continuous-time bound at every position ``[B, L]``.

    With A = alpha onehot(x0) + (1 - alpha) / V, B = alpha p + (1 - alpha) / V and z = x_t it is
    ``-alpha' / (V alpha A_z) (KL(A || B) + A_z / B_z - 1 - log(A_z / B_z))`` (UDLM, Duo); here V A
    and V B, and of A only its two values.
    """
    V = logits.shape[-1]
    p = logits.log_softmax(-1).exp()  # [B, L, V] float32, also under autocast
    alpha, dalpha = noisy.alpha_t.to(p.dtype), noisy.dalpha_t.to(p.dtype)  # [B, 1]
    mixed = V * alpha[..., None] * p + (1 - alpha[..., None])  # V B
    log_mixed = mixed.log()
    true, noise = V * alpha + (1 - alpha), 1 - alpha  # V A at x0 and elsewhere
    everywhere = noise * (V * noise.log() - log_mixed.sum(-1))
    log_at_x0 = at(log_mixed, noisy.x0)
    at_x0 = true * (true.log() - log_at_x0) - noise * (noise.log() - log_at_x0)
    own = torch.where(noisy.x_t == noisy.x0, true, noise)  # V A_z
    ratio = own / at(mixed, noisy.x_t)
    return -dalpha / (alpha * own) * ((everywhere + at_x0) / V + ratio - 1 - ratio.log())


def sddlm(logits: Tensor, noisy: Noisy) -> Tensor:
    """Cross-entropy of all positions, those that were not replaced masked away ``[B, L]``."""
    rows = F.cross_entropy(logits.flatten(0, 1), noisy.x0.flatten(), reduction="none")
    return rows.view(noisy.x0.shape) * noisy.resampled


def v1_sampled(
    logits: Tensor, noisy: Noisy, negatives: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Eq. 9 of arXiv:2510.22926 on the softmax, one uniform negative a position ``[B, L]``."""
    if negatives is None:
        negatives = torch.randint_like(noisy.x0, logits.shape[-1])
    p = logits.softmax(-1)
    rows = (at(p, negatives) + eps).log() - (at(p, noisy.x0) + eps).log()
    return rows * noisy.resampled


def v1_exact(logits: Tensor, noisy: Noisy, eps: float = 1e-6) -> Tensor:
    """The same with the negative's expectation ``[B, L]``."""
    p = logits.softmax(-1)
    rows = (p + eps).log().mean(-1) - (at(p, noisy.x0) + eps).log()
    return rows * noisy.resampled


def autoregressive(model: nn.Module, x0: Tensor) -> Tensor:
    """Cross-entropy of each token given those before it, the mean."""
    logits = model(x0[:, :-1], x0.new_zeros(len(x0)))
    return F.cross_entropy(logits.flatten(0, 1), x0[:, 1:].flatten())


LOSSES: dict[str, Callable[[Tensor, Noisy], Tensor]] = {
    "NELBO": nelbo,
    "SDDLM": sddlm,
    "V1 sampled": v1_sampled,
    "V1 exact": v1_exact,
}


class TextbookTrainer:
    """An optimiser step as it comes.

    Args:
        model: what is trained.
        args: learning rate, clip and decay.
    """

    def __init__(self, model: nn.Module, args: TrainArgs) -> None:
        self.model = model
        self.args = args
        self.updates = 0
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=args.lr,
            betas=(0.9, args.beta2),
            weight_decay=args.weight_decay,
        )
        self.average = [p.detach().clone() for p in self.parameters]

    def loss(self, name: str, x0: Tensor) -> Tensor:
        """The mean loss of a batch: a key of `LOSSES`, or AR."""
        if name == "AR":
            return autoregressive(self.model, x0)
        noisy = corrupt(x0, self.model.config.vocab_size)
        return LOSSES[name](self.model(noisy.x_t, noisy.sigma), noisy).mean()

    def update(self, loss: Tensor) -> None:
        """Backward, clip, optimiser, EMA."""
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, self.args.clip)
        self.optimizer.step()
        self.updates += 1
        decay = self.args.ema_decay(self.updates)
        with torch.no_grad():
            for average, weights in zip(self.average, self.parameters, strict=True):
                average.mul_(decay).add_(weights, alpha=1 - decay)


def posterior(p: Tensor, x_t: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """Eq. 5 of arXiv:2510.22926 at every position, written out ``[B, L, V]``."""
    V = p.shape[-1]
    z = F.one_hot(x_t, V).to(p.dtype)  # [B, L, V]
    noise = (alpha_s - alpha_t) * (1 - alpha_s) / (V * alpha_s)
    above = V * alpha_t * p * z + (alpha_t / alpha_s - alpha_t) * z + (alpha_s - alpha_t) * p
    below = V * alpha_t * at(p, x_t) + 1 - alpha_t  # [B, L]
    return (above + noise) / below[..., None]


def categorical(p: Tensor) -> Tensor:
    """A draw from each law ``[..., V]`` by exponential noise, in float64."""
    return (p / -torch.rand_like(p).log()).argmax(-1)


@torch.no_grad()
def sample(
    model: TextbookDiT,
    shape: tuple[int, int],
    steps: int,
    on_step: Callable[[int, float, Tensor], None] | None = None,
) -> Tensor:
    """Noise to text: network, head, posterior and draw at every position of every step."""
    device = model.head.weight.device
    model.eval()
    x = torch.randint(model.config.vocab_size, shape, device=device)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=device)
    alphas = 1 - (1 - ALPHA_1) * times
    for number in range(1, steps + 1):
        alpha_t, alpha_s = alphas[number - 1], alphas[number]
        logits = model(x, -alpha_t.log().float().expand(len(x)))
        p = logits.double().softmax(-1)
        x = categorical(posterior(p, x, alpha_t, alpha_s))
        if on_step is not None:
            on_step(number, times[number].item(), x)
    return x
