"""Row losses of the vocabulary head in Triton, one program per row; launched by `models.kernels`.

A program walks its row in blocks of BLOCK columns: once for the log-sum-exp, once more if a sum
over the vocabulary of something non-linear in the probabilities is wanted, and once to write the
gradient. A row of 50 thousand tokens is 200 kB and the rows in flight about fit the L2 cache, so
that the logits come from memory about once. What threads read of single tokens they read before the
first sum, whose barrier lies between these reads and the gradient that may overwrite them.

All kernels take ``logits [n, width]`` float32 with ``bias [width]`` still to be added (or None).
Columns from ``valid`` on are read as -inf, their gradient is 0: tokens that are never predicted,
and the padding from ``size`` = V on. They write ``values [n]`` float32 and, with GRAD, the gradient
times ``scale [n]`` (None is 1) to ``d [n, width]``, which may be ``logits``. Offsets are int64.
The measures of the vocabulary are constants: a run has one of each.
"""

import triton
import triton.language as tl


@triton.jit
def _load(row, bias, cols, width: tl.constexpr, valid: tl.constexpr, own, shift):
    """Logits of some columns, ``shift`` added to that of ``own``.

    Masked by ``width``, a multiple of 16 where it matters, so that a thread reads four at a time.
    """
    z = tl.load(row + cols, mask=cols < width, other=0.0)
    if bias is not None:
        z += tl.load(bias + cols, mask=cols < width, other=0.0).to(tl.float32)
    return tl.where(cols < valid, tl.where(cols == own, z + shift, z), -float("inf"))


@triton.jit
def _log_sum_exp(
    row, bias, width: tl.constexpr, valid: tl.constexpr, own, shift, BLOCK: tl.constexpr
):
    """Each lane keeps a maximum and a sum of its own, so that the loop needs no barrier."""
    # finite: -inf - -inf is not a number
    top = tl.full([BLOCK], -3e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, valid, BLOCK):
        z = _load(row, bias, start + tl.arange(0, BLOCK), width, valid, own, shift)
        higher = tl.maximum(top, z)
        total = total * tl.exp(top - higher) + tl.exp(z - higher)
        top = higher
    highest = tl.max(top, 0)
    return highest + tl.log(tl.sum(total * tl.exp(top - highest), 0))


@triton.jit
def _log1p(x):
    """float32, x >= 0: twice the series of atanh(x / (2 + x)) below 1/2, to 1e-7 relative.

    Most of what is summed in S is far below 1, where log(1 + x) has no digits left.
    """
    s = x / (2.0 + x)
    q = s * s
    series = 1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * (1.0 / 7 + q * (1.0 / 9))))
    return tl.where(x < 0.5, 2.0 * s * series, tl.log(1.0 + x))


@triton.jit
def _store(d, at, cols, width: tl.constexpr, gradient):
    """A block of the gradient, rounded once, to the type of ``d``."""
    tl.store(d + at + cols, gradient.to(d.dtype.element_ty), mask=cols < width)


@triton.jit
def cross_entropy(
    logits, bias, target, own, shift, weight, scale, values, d,
    width: tl.constexpr, size: tl.constexpr, valid: tl.constexpr,
    BLOCK: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """`row_losses.CrossEntropy`; ``own`` and ``shift``, ``weight`` may be None."""
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * width
    goal = tl.load(target + n)
    own_n = goal
    shift_n = 0.0
    if own is not None:
        own_n = tl.load(own + n)
        shift_n = tl.load(shift + n).to(tl.float32)
    factor = 1.0
    if weight is not None:
        factor = tl.load(weight + n).to(tl.float32)
    z_goal = _load(row, bias, goal, width, valid, own_n, shift_n)
    norm = _log_sum_exp(row, bias, width, valid, own_n, shift_n, BLOCK)
    tl.store(values + n, (norm - z_goal) * factor)
    if GRAD:
        if scale is not None:
            factor *= tl.load(scale + n)
        for start in range(0, width, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            p = tl.exp(_load(row, bias, cols, width, valid, own_n, shift_n) - norm)
            _store(d, n * width, cols, width, tl.where(cols == goal, p - 1.0, p) * factor)


@triton.jit
def _law(law, cols, size: tl.constexpr, DENSE: tl.constexpr):
    """Weight of each token of the vocabulary among the negatives."""
    if DENSE == 2:
        found = tl.load(law + cols, mask=cols < size, other=0.0)
    else:
        found = tl.where(cols < size, tl.load(law), 0.0)
    return found


@triton.jit
def _dense(
    row, bias, law, norm, eps,
    width: tl.constexpr, size: tl.constexpr, valid: tl.constexpr,
    DENSE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the vocabulary, law times log(p + eps) and law times p / (p + eps)."""
    logs = tl.zeros([BLOCK], tl.float32)
    pulls = tl.zeros([BLOCK], tl.float32)
    for start in range(0, size, BLOCK):
        cols = start + tl.arange(0, BLOCK)
        p = tl.exp(_load(row, bias, cols, width, valid, -1, 0.0) - norm)
        weighed = _law(law, cols, size, DENSE)
        logs += weighed * tl.log(p + eps)
        pulls += weighed * (p / (p + eps))
    return tl.sum(logs, 0), tl.sum(pulls, 0)


@triton.jit
def contrastive(
    logits, bias, target, tokens, shares, push, law, scale, values, d,
    width: tl.constexpr, size: tl.constexpr, valid: tl.constexpr, eps, K,
    BLOCK_K: tl.constexpr, DENSE: tl.constexpr, BLOCK: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """`row_losses.Contrastive`, except for the gradient at sampled negatives.

    Args (beside those of all kernels):
        tokens: negatives ``[n, K]``, or None.
        shares: weight of each ``[K]``, of both signs and summing to anything.
        push: output, the terms to add to the gradient at ``tokens`` ``[n, K]``.
        law: weight of each token of the vocabulary ``[V]`` (DENSE = 2), of all alike ``[]``
            (DENSE = 1), or None (DENSE = 0).
    """
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * width
    goal = tl.load(target + n)
    factor = 1.0
    if scale is not None:
        factor = tl.load(scale + n)
    z_goal = _load(row, bias, goal, width, valid, goal, 0.0)
    if tokens is not None:
        k = tl.arange(0, BLOCK_K)
        token = tl.load(tokens + n * K + k, mask=k < K, other=0)
        share = tl.load(shares + k, mask=k < K, other=0.0)
        z_token = _load(row, bias, token, width, valid, goal, 0.0)
    norm = _log_sum_exp(row, bias, width, valid, goal, 0.0, BLOCK)
    p_goal = tl.exp(z_goal - norm)
    at_goal = p_goal / (p_goal + eps)
    value = -tl.log(p_goal + eps)
    total = at_goal  # what multiplies p_j
    if tokens is not None:
        p_token = tl.exp(z_token - norm)
        value += tl.sum(share * tl.log(p_token + eps), 0)
        pushed = share * (p_token / (p_token + eps))
        total -= tl.sum(pushed, 0)
        # at the target both nearly cancel where p is near 1: summed here, before any rounding
        at_goal -= tl.sum(tl.where(token == goal, pushed, 0.0), 0)
        pushed = tl.where(token == goal, 0.0, pushed)
        if GRAD:
            tl.store(push + n * K + k, pushed * factor, mask=k < K)
    if DENSE > 0:
        logs, pulls = _dense(row, bias, law, norm, eps, width, size, valid, DENSE, BLOCK)
        value += logs
        total -= pulls
    tl.store(values + n, value)
    if GRAD:
        for start in range(0, width, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            p = tl.exp(_load(row, bias, cols, width, valid, goal, 0.0) - norm)
            gradient = p * total - tl.where(cols == goal, at_goal, 0.0)
            if DENSE > 0:
                gradient += _law(law, cols, size, DENSE) * (p / (p + eps))
            _store(d, n * width, cols, width, gradient * factor)


@triton.jit
def uniform_bound(
    logits, bias, x0, x_t, alpha, dalpha, shift, scale, values, d,
    width: tl.constexpr, size: tl.constexpr, valid: tl.constexpr,
    BLOCK: tl.constexpr, GRAD: tl.constexpr,
):  # fmt: skip
    """`row_losses.UniformBound`; scalars of a row are float64, because c may be 1e12."""
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * width
    goal = tl.load(x0 + n)
    own = tl.load(x_t + n)
    shift_n = 0.0
    if shift is not None:
        shift_n = tl.load(shift + n).to(tl.float32)
    a = tl.load(alpha + n).to(tl.float64)
    c = size * a / (1.0 - a)
    kept = goal == own
    outer = -tl.load(dalpha + n).to(tl.float64) / (1.0 - a) / tl.where(kept, 1.0 + c, 1.0)
    z_goal = _load(row, bias, goal, width, valid, own, shift_n)
    z_own = _load(row, bias, own, width, valid, own, shift_n)
    norm = _log_sum_exp(row, bias, width, valid, own, shift_n, BLOCK)
    c32 = c.to(tl.float32)
    logs = tl.zeros([BLOCK], tl.float32)  # S
    slopes = tl.zeros([BLOCK], tl.float32)  # sum of p / (1 + c p)
    for start in range(0, valid, BLOCK):
        p = tl.exp(_load(row, bias, start + tl.arange(0, BLOCK), width, valid, own, shift_n) - norm)
        logs += _log1p(c32 * p)
        slopes += p / (1.0 + c32 * p)
    cp = c * tl.exp(z_goal - norm).to(tl.float64)
    cp_own = c * tl.exp(z_own - norm).to(tl.float64)
    common = (1.0 + 1.0 / c) * tl.log(1.0 + c) - tl.log(1.0 + cp) - tl.sum(logs, 0) / c
    ratio = (1.0 + c) / (1.0 + cp)
    moved = tl.log(1.0 + cp_own) + 1.0 / (1.0 + cp_own) - 1.0
    rest = tl.where(kept, ratio - 1.0 - tl.log(ratio), moved) / a
    tl.store(values + n, (outer * (common + rest)).to(tl.float32))
    if GRAD:
        if scale is not None:
            outer *= tl.load(scale + n)
        share = cp_own / (1.0 + cp_own)
        at_goal = -(1.0 + tl.where(kept, (ratio - 1.0) / a, 0.0)) * cp / (1.0 + cp)
        at_goal = (outer * at_goal).to(tl.float32)
        at_own = (outer * tl.where(kept, 0.0, share * share / a)).to(tl.float32)
        outer32 = outer.to(tl.float32)
        mean = at_goal + at_own - outer32 * tl.sum(slopes, 0)
        for start in range(0, width, BLOCK):
            cols = start + tl.arange(0, BLOCK)
            p = tl.exp(_load(row, bias, cols, width, valid, own, shift_n) - norm)
            gradient = -p * (outer32 / (1.0 + c32 * p) + mean)
            gradient += tl.where(cols == goal, at_goal, 0.0)
            gradient += tl.where(cols == own, at_own, 0.0)
            _store(d, n * width, cols, width, gradient)
