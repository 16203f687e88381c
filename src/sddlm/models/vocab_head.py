"""Vocabulary head: the only code that holds logits ``[rows, V]``, a chunk of rows at a time.

A *term* is a row loss (`models.row_losses`). It maps a chunk of logits to one value per row and, in
the same pass, to the gradient of that value with respect to the logits. The head propagates that
gradient at once, so no tensor of the size of the logits outlives its chunk, and autograd keeps
none. Callers select rows *before* the matrix product: a loss on noisy positions costs those
positions only.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sddlm.models import kernels
from sddlm.models.layers import by_row
from sddlm.models.row_losses import RowLoss

#: float32 bytes of logits that one chunk may hold. 16 to 64 MiB are equally fast on a CPU.
CHUNK_BYTES = 32 * 2**20
#: The same on a GPU, where a chunk must fill 100 and more processors and adds the whole of d_weight
#: once (at V = 50 thousand, D = 768: 2700 rows a chunk, 1 ms of products, 0.1 ms of that sum).
GPU_CHUNK_BYTES = 512 * 2**20
#: Rows of the weights are padded to a multiple of it for a kernel: with an odd V only the first row
#: of logits or gradients would be aligned for a GPU's fast matrix products.
_ALIGN = 64
_HIGH = (torch.float32, torch.float64)


class HeadOutput(NamedTuple):
    """``total``: weighted sum over rows, differentiable; ``rows``: values ``[N]``, detached.

    A tuple, because FSDP2 searches the output of a module for tensors.
    """

    total: Tensor
    rows: Tensor


class VocabHead(nn.Module):
    """Linear map to the vocabulary that returns statistics instead of logits.

    Under FSDP2 the weight is gathered in ``forward``; call the head as a module, on every rank,
    also with zero rows.

    Args:
        width: D.
        vocab_size: V.
        bias: whether to add a bias.
        num_extra_tokens: noise-only tokens at the end of the vocabulary, never predicted.
    """

    def __init__(
        self, width: int, vocab_size: int, bias: bool = True, num_extra_tokens: int = 0
    ) -> None:
        super().__init__()
        self.num_extra_tokens = num_extra_tokens
        self.weight = nn.Parameter(torch.zeros(vocab_size, width))  # [V, D]
        self.bias = nn.Parameter(torch.zeros(vocab_size)) if bias else None

    def forward(self, hidden: Tensor, term: RowLoss, weight: Tensor | None = None) -> HeadOutput:
        """Sum of a row loss over rows, with exact gradients.

        Args:
            hidden: selected rows ``[N, D]``; N may be 0.
            term: the row loss.
            weight: weight of each row ``[N]``, constant; None is 1.

        Returns:
            the differentiable total, and the value of each row ``[N]``.
        """
        # within an autograd function gradients are always off, so the mode is an argument
        grad = torch.is_grad_enabled()
        total, rows = _FusedHead.apply(
            hidden, self.weight, self.bias, weight, term, self.num_extra_tokens, grad
        )
        return HeadOutput(total, rows)

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Set the bias to log-probabilities of the unigram model, less their mean.

        Args:
            counts: how often each token occurs ``[V]``; half an occurrence is added to each.
        """
        assert self.bias is not None
        logits = (counts.double() + 0.5).log()
        self.bias.copy_(logits - logits.mean())

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., V]`` of rows ``[..., D]``, float32 (float64 if the weights are)."""
        return by_row(
            lambda rows: _logits(rows, self.weight, self.bias, self.num_extra_tokens), hidden
        )


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, num_extra_tokens: int) -> Tensor:
    """Logits: the matrix product in the weights' precision, the rest in float32 at least."""
    hidden = hidden.to(weight.dtype)
    if weight.dtype in _HIGH:
        logits = F.linear(hidden, weight, bias)  # adds the bias in the same kernel
    else:
        logits = (hidden @ weight.T).float()
        logits = logits if bias is None else logits.add_(bias)
    if num_extra_tokens:
        never = torch.arange(len(weight), device=logits.device) >= len(weight) - num_extra_tokens
        logits = logits.masked_fill(never, -torch.inf)
    return logits


def _product(a: Tensor, b: Tensor, plus: Tensor | None = None) -> Tensor:
    """Matrix product ``a @ b + plus`` in float32 at least; ``plus`` may be overwritten."""
    if a.dtype in _HIGH:
        return a @ b if plus is None else plus.addmm_(a, b)
    # only CUDA has products of bfloat16 that end in float32
    product = torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda else (a @ b).float()
    return product if plus is None else plus.add_(product)


class _FusedHead(torch.autograd.Function):
    """One pass per chunk: logits, values, d logits, and the products with them."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        row_weight: Tensor | None,
        term: RowLoss,
        num_extra_tokens: int,
        grad: bool,
    ) -> tuple[Tensor, Tensor]:
        wants = tuple(grad and needed for needed in ctx.needs_input_grad[:3])
        device = hidden.device.type
        if torch.is_autocast_enabled(device):
            half = torch.get_autocast_dtype(device)
            h, w = hidden.to(half), weight.to(half)
        else:
            h, w = hidden.to(weight.dtype), weight
        with torch.autocast(device, enabled=False):
            total, rows, grads = _run_chunks(h, w, bias, row_weight, term, num_extra_tokens, wants)
        ctx.grads = tuple(
            None if g is None else g.to(like.dtype)
            for g, like in zip(
                grads, (hidden, weight, weight if bias is None else bias), strict=True
            )
        )
        ctx.mark_non_differentiable(rows)
        return total, rows

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        # in place: no other reference exists, and d_weight is as large as the vocabulary
        d_hidden, d_weight, d_bias = (
            None if g is None else g.mul_(upstream[0].to(g.dtype)) for g in ctx.grads
        )
        ctx.grads = None
        return d_hidden, d_weight, d_bias, None, None, None, None


def _plain(
    term: RowLoss, logits: Tensor, at: slice, scale: Tensor | None, dtype: torch.dtype | None
) -> tuple[Tensor, Tensor | None]:
    """Run a term in torch: values, and the gradient times ``scale`` in the wanted dtype."""
    values, d = term(logits, at, dtype is not None)
    if d is None or dtype is None:
        return values, None
    return values, (d if scale is None else d.mul_(scale[:, None])).to(dtype)


def _run_chunks(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    row_weight: Tensor | None,
    term: RowLoss,
    num_extra_tokens: int,
    wants: tuple[bool, ...],
) -> tuple[Tensor, Tensor, list[Tensor | None]]:
    """Values of all rows and the summed gradients of hidden, weight and bias (None if unwanted)."""
    high = torch.float64 if weight.dtype == torch.float64 else torch.float32
    V = len(weight)
    rows = hidden.new_zeros(len(hidden), dtype=high)
    total = rows.new_zeros(())
    d_hidden = torch.zeros_like(hidden) if wants[0] else None
    d_weight: Tensor | None = None
    row_loss = kernels.fused(term, hidden)
    if row_loss is not None and V % _ALIGN:
        weight = F.pad(weight, (0, 0, 0, -V % _ALIGN))
        bias = None if bias is None else F.pad(bias, (0, -V % _ALIGN))
    d_bias = None if bias is None or not wants[2] else torch.zeros_like(bias, dtype=high)
    dtype = weight.dtype if any(wants) else None
    size = max(1, (GPU_CHUNK_BYTES if hidden.is_cuda else CHUNK_BYTES) // (4 * len(weight)))
    for start in range(0, len(hidden), size):
        at = slice(start, start + size)
        scale = None if row_weight is None else row_weight[at].to(high)
        if row_loss is None:
            values, d = _plain(
                term, _logits(hidden[at], weight, bias, num_extra_tokens), at, scale, dtype
            )
        else:
            logits = _product(hidden[at], weight.T)
            values, d = row_loss(
                kernels.Chunk(logits, bias, at, scale, dtype, V, V - num_extra_tokens)
            )
        rows[at] = values
        total = total + (values if scale is None else values * scale).sum()
        if d is None:
            continue
        if d_bias is not None:
            d_bias += d.sum(0, dtype=high)
        if d_hidden is not None:
            torch.mm(d, weight, out=d_hidden[at])
        if wants[1]:
            d_weight = _product(d.T, hidden[at], d_weight)
    if wants[1] and d_weight is None:  # no rows
        d_weight = torch.zeros_like(weight, dtype=high)
    grads = [d_hidden, *(None if d is None else d[:V] for d in (d_weight, d_bias))]
    return total, rows, grads
