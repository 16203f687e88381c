"""Initial embedding from the neighbours of tokens, compared to a dense decomposition."""

import numpy as np
import pytest
import torch

from sddlm.data.rows import Rows
from sddlm.training.pmi import pmi_embedding


class Fixed(Rows):
    """Rows in memory."""

    def __init__(self, tokens, lengths=None):
        self.rows, self.row_length = tokens, lengths
        self.length, self.vocab_size = tokens.shape[1], int(tokens.max()) + 1
        self.padded = lengths is not None

    def __len__(self):
        return len(self.rows)

    def read(self, rows):
        return self.rows[rows]

    def lengths(self, rows):
        return super().lengths(rows) if self.row_length is None else self.row_length[rows]

    @property
    def characters_per_token(self):
        return 1.0


def dense(tokens, lengths, vocab_size, width):
    """Square of the embedding up to its scale, by loops and numpy's decomposition."""
    tables = []
    for distance in (1, 2):
        count = np.zeros((vocab_size, vocab_size))
        for row, length in zip(tokens.tolist(), lengths, strict=True):
            for i in range(length - distance):
                count[row[i], row[i + distance]] += 1
        left, right = count.sum(1, keepdims=True) + 5, count.sum(0, keepdims=True) + 5
        with np.errstate(divide="ignore"):
            pmi = np.maximum(np.log(count * count.sum() / (left * right)), 0)
        tables += [pmi, pmi.T]
    _, scale, right = np.linalg.svd(np.concatenate(tables))
    kept = min(width, vocab_size)
    return (right[:kept].T * scale[:kept]) @ right[:kept]


def random_rows(seed, count=200, length=20, vocab_size=30):
    """Rows with neighbours that depend on each other."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randint(0, 4, (count, length), generator=generator) ** 2
    return (steps.cumsum(1) % vocab_size).long()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("width", [8, 48])
def test_the_embedding_is_the_truncated_decomposition(padded, width):
    tokens = random_rows(1)
    lengths = torch.arange(len(tokens)) % 20 + 1 if padded else None
    wanted = dense(tokens, [20] * len(tokens) if lengths is None else lengths.tolist(), 30, width)
    found = pmi_embedding(Fixed(tokens, lengths), 30, width, seed=0).double()
    assert found.shape == (30, width)
    square = (found @ found.T).numpy()
    np.testing.assert_allclose(
        square * (np.trace(wanted) / np.trace(square)), wanted, atol=5e-3 * wanted.max()
    )
    assert found.square().mean().item() == pytest.approx(1 / (3 * width), rel=1e-5)


def test_tokens_that_stand_in_the_same_places_are_alike():
    tokens = random_rows(2)
    other = torch.rand(tokens.shape, generator=torch.Generator().manual_seed(3)) < 0.5
    tokens[(tokens == 7) & other] = 30  # 7 and 30 mean the same
    embedding = pmi_embedding(Fixed(tokens), 31, 16, seed=0)
    alike = torch.nn.functional.cosine_similarity(embedding[7], embedding)
    assert alike.topk(2).indices.tolist() == [7, 30]
    assert alike[30] > 0.9


def test_the_seed_turns_the_embedding_and_threads_do_not_change_it():
    rows, threads = Fixed(random_rows(4)), torch.get_num_threads()
    whole = [pmi_embedding(rows, 30, 30, seed=seed) for seed in (0, 1)]
    assert not torch.allclose(*whole, atol=1e-2)
    torch.testing.assert_close(whole[0] @ whole[0].T, whole[1] @ whole[1].T, rtol=0, atol=1e-5)
    first = pmi_embedding(rows, 30, 8, seed=0)
    try:
        torch.set_num_threads(2 if threads == 1 else 1)
        again = pmi_embedding(rows, 30, 8, seed=0)
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(again, first, rtol=0, atol=1e-6)


def test_short_rows_and_tokens_without_neighbours():
    embedding = pmi_embedding(Fixed(torch.tensor([[0, 1], [1, 0], [0, 1]])), 4, 8, seed=0)
    assert torch.isfinite(embedding).all()
    assert torch.equal(embedding[2:], torch.zeros(2, 8))
    assert torch.equal(pmi_embedding(Fixed(torch.tensor([[0]])), 4, 8, seed=0), torch.zeros(4, 8))
