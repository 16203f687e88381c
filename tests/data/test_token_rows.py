import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from sddlm.data.rows import (
    INDEX_DTYPE,
    DocumentRows,
    PackedTokens,
    Rows,
    token_dtype,
)
from sddlm.errors import ConfigError
from sddlm.types import before_padding


def packed(
    folder: Path, n: int = 23, *, length: int = 5, vocab_size: int = 100, **more
) -> PackedTokens:
    path = folder / f"{vocab_size}.bin"
    (np.arange(n) + vocab_size - n).astype(token_dtype(vocab_size)).tofile(path)
    return PackedTokens(path, length=length, vocab_size=vocab_size, characters=3 * n, **more)


PAD, BOS, EOS = 90, 91, 92


def documents(
    folder: Path, *docs: list[int], length: int, eos: bool, bos_eos: bool
) -> DocumentRows:
    """The files of some documents, as rows."""
    tail = [EOS] if eos else []
    tokens = [i for doc in docs for i in [*doc, *tail]]
    np.array(tokens, "<u2").tofile(folder / "docs.bin")
    places = np.cumsum([len(doc) + len(tail) for doc in docs])
    places.astype(INDEX_DTYPE).tofile(folder / "docs.idx")
    return DocumentRows(
        folder / "docs.bin",
        length=length,
        vocab_size=100,
        characters=10 * sum(map(len, docs)),
        bos_eos=(BOS, EOS) if bos_eos else None,
        eos=eos,
        pad=PAD,
    )


@pytest.mark.parametrize(("vocab_size", "width"), [(100, 2), (65536, 2), (65537, 4), (1 << 20, 4)])
def test_every_id_fits(tmp_path: Path, vocab_size: int, width: int) -> None:
    rows = packed(tmp_path, vocab_size=vocab_size, length=23)
    assert token_dtype(vocab_size).itemsize == width
    assert rows.dtype.itemsize == width
    assert rows[0].dtype == torch.int64
    assert rows[0].tolist() == list(range(vocab_size - 23, vocab_size))


def test_rows_drop_the_rest_and_counts_do_not(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    assert (len(rows), rows.length, rows.tokens, rows.characters) == (4, 5, 23, 69)
    assert rows.characters_per_token == 3
    assert [rows[i].tolist() for i in range(4)] == torch.arange(77, 97).reshape(4, 5).tolist()
    for i in (-1, 4):
        with pytest.raises(IndexError):
            rows[i]


def test_rows_cannot_be_written_to(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    rows[0][:] = 0  # a copy
    assert rows[0].tolist() == [77, 78, 79, 80, 81]


def test_rows_are_gathered(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    gathered = rows.read(np.array([2, 0, 2]))
    assert gathered.dtype == torch.int64
    assert gathered.tolist() == [rows[i].tolist() for i in (2, 0, 2)]
    with pytest.raises(OSError, match="ends before token 30"):
        rows.read(np.array([5]))


def test_pickles_are_small(tmp_path: Path) -> None:
    rows = packed(tmp_path, 60_000, vocab_size=65_000)
    assert rows[3].tolist() == pickle.loads(pickle.dumps(rows))[3].tolist()
    assert len(pickle.dumps(rows)) < 1000


def test_rows_between_their_ends(tmp_path: Path) -> None:
    rows = packed(tmp_path, bos_eos=(1, 2))
    assert len(rows) == 23 // 3
    assert rows[0].tolist() == [1, 77, 78, 79, 2]
    assert rows.read(np.array([6, 1])).tolist() == [[1, 95, 96, 97, 2], [1, 80, 81, 82, 2]]
    assert rows.characters_per_token == pytest.approx(3 * 3 / 5)
    assert rows.counts().tolist() == brute_counts(rows)


DOCS = [[1], [2, 3], [4, 5, 6, 7, 8, 9], [10, 11, 12]]


@pytest.mark.parametrize(
    ("eos", "bos_eos", "expected", "lengths"),
    [
        (
            True,
            False,
            [[1, EOS, PAD, PAD], [2, 3, EOS, PAD], [4, 5, 6, 7], [10, 11, 12, EOS]],
            [2, 3, 4, 4],
        ),
        (
            False,
            False,
            [[1, PAD, PAD, PAD], [2, 3, PAD, PAD], [4, 5, 6, 7], [10, 11, 12, PAD]],
            [1, 2, 4, 3],
        ),
        *(
            (
                eos,
                True,
                [[BOS, 1, EOS, PAD], [BOS, 2, 3, EOS], [BOS, 4, 5, EOS], [BOS, 10, 11, EOS]],
                [3, 4, 4, 4],
            )
            for eos in (True, False)
        ),
    ],
)
def test_one_document_a_row(tmp_path: Path, eos, bos_eos, expected, lengths) -> None:
    rows = documents(tmp_path, *DOCS, length=4, eos=eos, bos_eos=bos_eos)
    order = np.array([2, 0, 3, 1, 0])
    assert rows.read(order).tolist() == [expected[i] for i in order]
    assert rows.lengths(order).tolist() == [lengths[i] for i in order]
    assert [rows[i].tolist() for i in range(4)] == expected
    assert rows.row_lengths.tolist() == np.bincount(lengths, minlength=5).tolist()
    assert rows.mean_length == np.mean(lengths)
    text = sum(map(len, DOCS)) + (len(DOCS) if eos and not bos_eos else 0)
    kept = sum(lengths) - (2 * len(DOCS) if bos_eos else 0)
    assert rows.lost == pytest.approx(1 - kept / text)
    assert rows.characters_per_token == pytest.approx(120 / text * kept / sum(lengths))
    assert rows.counts().tolist() == brute_counts(rows)
    assert pickle.loads(pickle.dumps(rows))[1].tolist() == expected[1]


def brute_counts(rows: Rows) -> list[int]:
    found = [0] * rows.vocab_size
    for i in range(len(rows)):
        for token in rows[i][: int(rows.lengths(np.array([i]))[0])].tolist():
            found[token] += 1
    return found


def test_a_file_that_is_too_short_is_an_error(tmp_path: Path) -> None:
    rows = documents(tmp_path, *DOCS, length=4, eos=True, bos_eos=False)
    rows.path.write_bytes(rows.path.read_bytes()[:-4])
    with pytest.raises(OSError, match="ends before token 16"):
        rows.read(np.array([3]))


def test_counts_of_wrapped_rows(tmp_path: Path) -> None:
    rows = packed(tmp_path)
    assert rows.counts(105)[:100].tolist() == brute_counts(rows)
    assert rows.counts(105)[100:].tolist() == [0] * 5


def test_rows_are_chosen_evenly(tmp_path: Path) -> None:
    rows = packed(tmp_path, 60, length=1)
    assert rows.subsample(None).tolist() == list(range(60))
    assert rows.subsample(100).tolist() == list(range(60))
    assert rows.subsample(4).tolist() == [0, 15, 30, 45]


def test_where_padding_begins() -> None:
    mask = before_padding(torch.tensor([3, 1]), 4)
    assert mask.tolist() == [[True, True, True, False], [True, False, False, False]]


@pytest.mark.parametrize("bos_eos", [None, (1, 2)])
def test_ids_that_the_vocabulary_has_not_are_found_when_they_are_read(
    tmp_path: Path, bos_eos
) -> None:
    rows = packed(tmp_path, bos_eos=bos_eos)
    tokens = np.fromfile(rows.path, rows.dtype)
    tokens[7] = 100  # V
    tokens.tofile(rows.path)
    bad = 7 // rows.inner
    for read in (
        lambda: rows[bad],
        lambda: rows.read(np.array([0, bad])),
        rows.counts,
    ):
        with pytest.raises(ConfigError, match=r"100.bin is damaged.*token 100, V is 100.*prepare"):
            read()
    assert rows.read(np.array([0, bad + 1])).shape == (2, 5)


@pytest.mark.parametrize("place", [0, 1 << 40, (1 << 64) - 1])
def test_an_index_that_leads_nowhere_is_found_when_it_is_read(tmp_path: Path, place: int) -> None:
    rows = documents(tmp_path, [1, 2], [3, 4, 5], [6], length=6, eos=True, bos_eos=True)
    index = np.fromfile(rows.index, INDEX_DTYPE)
    index[1] = place
    index.tofile(rows.index)
    for read in (rows.read, rows.lengths):
        with pytest.raises(ConfigError, match=r"docs.bin is damaged: its index puts row 1"):
            read(np.array([0, 1]))
