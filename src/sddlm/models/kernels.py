"""Launch of the GPU kernels of row losses.

The torch form of a row loss (`models.row_losses`) makes a dozen passes over a chunk of logits, each
through the GPU's memory. The kernels of ``models.row_kernels`` read it about once and write the
gradient once, in the type of the matrix products that follow. Triton comes with torch on a GPU. It
is imported with the first logits, and without it the torch form runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sddlm.models.row_losses import (
    Contrastive,
    CrossEntropy,
    DenseNegatives,
    RowLoss,
    Top,
    UniformBound,
)

#: Columns per block, and columns per thread: a row of 50 thousand in 13 steps by 16 warps. With 8
#: columns a thread the usual losses compile to at most 64 registers on Hopper (the NELBO to 106),
#: so two rows share a multiprocessor and one is read while the other sums up.
BLOCK = 4096
_LANE = 8
#: with more tokens the gradient is summed in float32 first, because each addition is rounded
_FEW_TOKENS = 16


class Chunk(NamedTuple):
    """Arguments of a kernel for a chunk of rows.

    Attributes:
        logits: ``[n, width]`` float32, contiguous, without the bias; may be overwritten.
        bias: ``[width]`` or None.
        at: indices of these rows in the batch.
        scale: factor of each row's gradient ``[n]`` float32; None is 1.
        dtype: dtype of the gradient; None if it is not wanted.
        size: V, at most width; columns after it are padding.
        valid: number of tokens that can be predicted; the logits of later ones are -inf.
    """

    logits: Tensor
    bias: Tensor | None
    at: slice
    scale: Tensor | None
    dtype: torch.dtype | None
    size: int
    valid: int


#: a chunk to values ``[n]`` float32 and the gradient ``[n, width]`` (None if it is not wanted)
FusedRowLoss = Callable[[Chunk], tuple[Tensor, Tensor | None]]


@cache
def _triton() -> ModuleType | None:
    try:
        from sddlm.models import row_kernels
    except ImportError:
        return None
    return row_kernels


def fused(term: RowLoss, like: Tensor) -> FusedRowLoss | None:
    """Kernel of a row loss, or None if its torch form is to run.

    Args:
        term: a row loss.
        like: the input rows, on their device. On a CPU kernels run only in Triton's interpreter
            (``TRITON_INTERPRET=1``), for tests.
    """
    launch = LAUNCHES.get(type(term))
    here = like.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"
    if launch is None or not here or like.dtype == torch.float64 or _triton() is None:
        return None
    return lambda chunk: launch(term, chunk)


def _run(name: str, chunk: Chunk, *tensors: Any, **more: Any) -> tuple[Tensor, Tensor | None]:
    """Launch a kernel: ``tensors`` are its arguments between the bias and the scale."""
    logits, dtype = chunk.logits, chunk.dtype
    values = logits.new_empty(len(logits))
    d = None
    if dtype is not None:
        d = logits if dtype == logits.dtype else torch.empty_like(logits, dtype=dtype)
    if len(logits):
        width = logits.shape[1]
        block = min(BLOCK, 1 << (width - 1).bit_length())
        warps = min(max(block // (32 * _LANE), 1), 16)
        with torch.cuda.device_of(logits):  # Triton launches on the current one
            getattr(_triton(), name)[(len(logits),)](
                logits, chunk.bias, *tensors, chunk.scale, values, logits if d is None else d,
                width, chunk.size, chunk.valid, **more,
                BLOCK=block, GRAD=d is not None, num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
    return values, d


def _of(tensor: Tensor | None, at: slice) -> Tensor | None:
    return None if tensor is None else tensor[at].contiguous()


def _cross_entropy(term: CrossEntropy, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
    own, shift = term.own, term.shift
    if own is None or shift is None:
        own = shift = None
    rows = (_of(tensor, chunk.at) for tensor in (term.target, own, shift, term.weight))
    return _run("cross_entropy", chunk, *rows)


def _uniform_bound(term: UniformBound, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
    rows = (term.x0, term.x_t, term.alpha_t, term.dalpha_t, term.shift)
    return _run("uniform_bound", chunk, *(_of(tensor, chunk.at) for tensor in rows))


def _contrastive(term: Contrastive, chunk: Chunk) -> tuple[Tensor, Tensor | None]:
    target = term.target[chunk.at].contiguous()
    if any(isinstance(part, Top) for part in term.negatives):
        chunk = _with_bias(chunk)
    tokens, shares = _tokens(term, chunk, target)
    count = 0 if tokens is None else tokens.shape[1]
    push = None if tokens is None else chunk.logits.new_empty(tokens.shape)
    law = term.law(chunk.logits.new_empty(()), chunk.size)
    wanted = chunk.dtype
    if wanted is not None and count > _FEW_TOKENS:
        chunk = chunk._replace(dtype=chunk.logits.dtype)
    values, d = _run(
        "contrastive", chunk, target, tokens, shares, push, law,
        eps=term.eps, K=count, BLOCK_K=1 << max(count - 1, 0).bit_length(),
        DENSE=0 if law is None else 1 + law.ndim,
    )  # fmt: skip
    if d is None or tokens is None or push is None:
        return values, d
    return values, d.scatter_add_(1, tokens, push.to(d.dtype)).to(wanted)


def _with_bias(chunk: Chunk) -> Chunk:
    """The chunk with the bias added and tokens that are never predicted at -inf."""
    if chunk.bias is not None:
        chunk.logits.add_(chunk.bias)
    chunk.logits[:, chunk.valid :] = -torch.inf
    return chunk._replace(bias=None)


def _tokens(term: Contrastive, chunk: Chunk, target: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Sampled negatives ``[n, K]`` and the weight of each ``[K]``; None if there are none."""
    tokens, shares = [], []
    logits = chunk.logits
    for part in term.negatives:
        if isinstance(part, DenseNegatives):
            continue
        # logits have the same order as probabilities, so they serve to choose
        chosen = part.choose(logits[:, : chunk.size], target[:, None], chunk.at)
        tokens.append(chosen)
        share = term.weight * part.share / chosen.shape[1]
        shares.append(logits.new_full((chosen.shape[1],), share))
    if not tokens:
        return None, None
    return torch.cat(tokens, 1).contiguous(), torch.cat(shares)


LAUNCHES: dict[type, Callable[[Any, Chunk], tuple[Tensor, Tensor | None]]] = {
    CrossEntropy: _cross_entropy,
    Contrastive: _contrastive,
    UniformBound: _uniform_bound,
}
