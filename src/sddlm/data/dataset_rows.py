"""Rows from a `torch.utils.data.Dataset` of the user's own."""

from __future__ import annotations

from functools import cached_property
from math import floor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from sddlm.data.cache import digest
from sddlm.data.config import DataArgs
from sddlm.data.prepare import Prepared, special_tokens
from sddlm.data.rows import Ints, Rows
from sddlm.data.texts import SHARE
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError

PREFIX = "dataset:"  # of the path that the configuration of a run records
_PROBED = 64  # rows that are read for the key and for characters per token


class DatasetRows(Rows):
    """A range of the items of a dataset, as rows.

    Args:
        dataset: item i is a row of token ids ``[L]``, a tensor, array or list of integers.
        tokenizer: made the ids.
        length: L.
        start: first item.
        stop: the item after the last one.
    """

    def __init__(
        self, dataset: Dataset[Any], tokenizer: Tokenizer, *, length: int, start: int, stop: int
    ) -> None:
        self.dataset, self.tokenizer, self.length = dataset, tokenizer, length
        self.start, self.stop = start, stop
        self.vocab_size = tokenizer.vocab_size
        self.tokens = (stop - start) * length

    def __len__(self) -> int:
        return self.stop - self.start

    def read(self, rows: Ints) -> Tensor:
        """See `Rows.read`."""
        found = [self._row(self.start + i) for i in rows.tolist()]
        return torch.stack(found) if found else torch.empty(0, self.length, dtype=torch.int64)

    def _row(self, i: int) -> Tensor:
        row = torch.as_tensor(self.dataset[i])
        if row.dtype.is_floating_point or row.dtype.is_complex or row.dtype == torch.bool:
            raise ConfigError(f"item {i} of the dataset is {row.dtype}, must be integer token ids")
        if row.shape != (self.length,):
            raise ConfigError(
                f"item {i} of the dataset has shape {[*row.shape]}, must be [{self.length}]"
            )
        row = row.to(torch.int64)
        if row.min() < 0 or row.max() >= self.vocab_size:
            raise ConfigError(
                f"item {i} of the dataset has ids from {row.min()} to {row.max()}, must be from 0 "
                f"to {self.vocab_size - 1}: `tokenizer` must be the one that made them"
            )
        return row

    @property
    def probed(self) -> Tensor:
        """A few evenly spaced rows ``[n, L]``."""
        return self.read(self.subsample(_PROBED))

    @cached_property
    def characters_per_token(self) -> float:
        """See `Rows.characters_per_token`; estimated from a few rows."""
        rows = self.probed
        texts = self.tokenizer.decode_batch(rows.tolist())
        return max(1, sum(map(len, texts))) / rows.numel()

    @property
    def characters(self) -> int:  # type: ignore[override]
        """See `Rows.characters`; estimated from a few rows."""
        return round(self.characters_per_token * self.tokens)


def described(dataset: Dataset[Any]) -> str:
    """Description of a dataset, in place of a path."""
    return f"{PREFIX}{type(dataset).__name__}"


def row_length(dataset: Dataset[Any]) -> int:
    """Length L of the rows of a dataset.

    Raises:
        ConfigError: it is not map-style, has fewer than 2 rows, or its first item is no row.
    """
    name = type(dataset).__name__
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or len(dataset) < 2:
        raise ConfigError(f"{name} must be a map-style Dataset (`len` and `[i]`) of 2 rows or more")
    try:
        return len(dataset[0])
    except TypeError as error:
        raise ConfigError(
            f"item 0 of {name} is {dataset[0]!r:.80}, must be a row of token ids: a tensor, an "
            "array or a list of integers"
        ) from error


def prepare_dataset(
    dataset: Dataset[Any], args: DataArgs, tokenizer: Tokenizer | None = None
) -> Prepared:
    """Rows of a dataset in place of a text; the last ones are for validation.

    Args:
        dataset: map-style; see `DatasetRows`. Training reads its items in an order of its own, and
            resumes exactly if reading an item again gives the same ids.
        args: ``length``, ``tokenizer`` and ``validation`` (a share or number of rows) are used.
        tokenizer: tokenizer (of a model) in place of ``args.tokenizer``.

    Raises:
        ConfigError: an option is for texts, or a row has a wrong shape, type or id.
    """
    _check(args)
    if tokenizer is None:
        if args.tokenizer in ("bpe", "characters"):
            raise ConfigError(
                f"`tokenizer` is {args.tokenizer!r}, which learns from text; name the one that "
                "made the rows: 'bytes', a tokenizer.json or a hub name"
            )
        tokenizer = Tokenizer.load(args.tokenizer)
    n, share = len(dataset), args.validation or SHARE  # type: ignore[arg-type]
    held_out = int(share) if share >= 1 else max(1, floor(share * n))
    if held_out >= n:
        raise ConfigError(f"`validation` {share:g} holds out all {n} rows of the dataset")
    bounds = {"train": (0, n - held_out), "validation": (n - held_out, n)}
    rows = {
        name: DatasetRows(dataset, tokenizer, length=args.length, start=start, stop=stop)
        for name, (start, stop) in bounds.items()
    }
    probed = [part.probed.tolist() for part in rows.values()]
    key = digest(PREFIX, n, held_out, tokenizer.fingerprint, probed)[:32]
    meta: dict[str, Any] = {
        "source": args.path,
        "key": key,
        "vocab_size": tokenizer.vocab_size,
        "tokenizer": tokenizer.fingerprint,
        "packing": {"packing": "wrap", "bos_eos": False, "eos": True},
        "special": special_tokens(tokenizer),
        "texts": [],
        "splits": {
            name: {"tokens": part.tokens, "characters": part.characters, "documents": len(part)}
            for name, part in rows.items()
        },
    }
    return Prepared(rows["train"], rows["validation"], tokenizer, key, meta)


def _check(args: DataArgs) -> None:
    """Refuse options that make rows of texts."""
    default = DataArgs()
    for name in ("corpus", "mixture", "validation_path", "limit", "packing", "bos_eos"):
        if getattr(args, name) != getattr(default, name):
            raise ConfigError(f"`{name}` is for texts; a dataset brings whole rows")
