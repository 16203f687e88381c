"""Initial weights from counts of the training rows: the head's bias, and the embedding.

Tokens with the same neighbours then lie near each other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sddlm.data.rows import Rows
from sddlm.models.dit import DiT
from sddlm.types import before_padding

#: rows that are counted have at most this many tokens in all
_TOKENS = 1 << 23
#: neighbours up to this distance on either side
_WINDOW = 2
#: added to the count of a token, so that the rarest pairs are not the strongest
_SMOOTHING = 5
#: of the decomposition by subspace iteration: further dimensions, iterations
_MORE, _ITERATIONS = 16, 4


def start_from_counts(network: DiT, rows: Rows, seed: int) -> None:
    """Initialise what the configuration of a new network wants to begin with counts.

    Args:
        network: on the CPU.
        rows: training rows.
        seed: see `pmi_embedding`.
    """
    config = network.config
    if config.head_bias == "unigram":
        network.head.start_from(rows.counts(config.vocab_size))
    if config.embedding_init == "pmi":
        embedding = pmi_embedding(rows, config.vocab_size, config.width, seed)
        network.embedding.load_state_dict({"weight": embedding})


@torch.no_grad()
def pmi_embedding(rows: Rows, vocab_size: int, width: int, seed: int) -> Tensor:
    """Embedding from the positive pointwise mutual information of neighbours ``[V, D]`` float32.

    Right factors of its truncated singular value decomposition, each times the root of its singular
    value (Levy and Goldberg, 2014), rotated at random, so that all dimensions have one scale: that
    of a uniform embedding. A token without neighbours has zeros.

    Args:
        rows: training rows; of many, evenly spaced ones are counted.
        vocab_size: V.
        width: D.
        seed: seed of the decomposition and the rotation.
    """
    chosen = rows.subsample(max(1, _TOKENS // rows.length))
    tokens = rows.read(chosen)  # [N, L]
    real = before_padding(rows.lengths(chosen), rows.length)  # [N, L]
    distances = range(1, min(_WINDOW, rows.length - 1) + 1)
    tables = [_pmi(tokens, real, distance, vocab_size) for distance in distances]

    def squared(x: Tensor) -> Tensor:
        """Product with the square of all tables, of left and of right neighbours."""
        zero = torch.zeros_like(x)
        return sum((pmi.T @ (pmi @ x) + pmi @ (pmi.T @ x) for pmi in tables), zero)

    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    rotation, _ = torch.linalg.qr(normal(width, width))
    basis = normal(vocab_size, min(width + _MORE, vocab_size))
    for _ in range(_ITERATIONS):
        basis, _ = torch.linalg.qr(squared(basis))
    values, vectors = torch.linalg.eigh(basis.T @ squared(basis))  # of singular values, squared
    rank = min(width, vocab_size)
    right = basis @ vectors[:, -rank:]  # [V, rank]
    # the sign of a factor is left to the library
    right = right * right.gather(0, right.abs().argmax(0, keepdim=True)).sign()
    embedding = (right * values[-rank:].clamp(min=0) ** 0.25) @ rotation[:rank]  # [V, D]
    size = embedding.norm().clamp(min=1e-12)
    return (embedding * ((vocab_size / 3) ** 0.5 / size)).float()


def _pmi(tokens: Tensor, real: Tensor, distance: int, vocab_size: int) -> Tensor:
    """Positive pointwise mutual information of two tokens so far apart, sparse ``[V, V]``."""
    both = real[:, distance:]  # padding is at the end
    pair = torch.stack((tokens[:, :-distance][both], tokens[:, distance:][both]))  # [2, pairs]
    one = torch.ones(pair.shape[1], dtype=torch.float64)
    size = (vocab_size, vocab_size)
    counts = torch.sparse_coo_tensor(pair, one, size, check_invariants=True).coalesce()
    left, right = counts.indices()
    of_left = torch.bincount(pair[0], minlength=vocab_size) + _SMOOTHING
    of_right = torch.bincount(pair[1], minlength=vocab_size) + _SMOOTHING
    pmi = (counts.values() * len(one) / (of_left[left] * of_right[right])).log().clamp(min=0)
    return torch.sparse_coo_tensor(
        counts.indices(), pmi, size, check_invariants=True, is_coalesced=True
    )
