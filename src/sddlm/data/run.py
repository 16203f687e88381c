"""The verb ``sddlm prepare``: tokenise text ahead of training, and report its contents."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from sddlm.data.config import DataArgs
from sddlm.data.prepare import Prepared, prepare
from sddlm.progress import PlainConsole


def prepare_text(data: DataArgs = DataArgs()) -> Prepared:
    """Tokenise text into the cache, where training finds it.

    ``sddlm train`` does the same if necessary; this verb does it ahead and reports document and
    token counts. After a kill the next call starts over.

    Args:
        data: text, tokenizer and length of the rows.

    Returns:
        the rows, with the counts in ``meta``.

    Raises:
        ConfigError: a text, the tokenizer or an option cannot be used.
    """
    prepared = prepare(data, verify=True)
    console = PlainConsole()
    console.print(_texts(prepared.meta))
    console.print(_special(prepared.meta))
    for rows in (prepared.train, prepared.validation):
        if rows is not None:
            name = "train" if rows is prepared.train else "validation"
            console.print(
                f"{name}: {len(rows):,} rows of {rows.length} tokens, "
                f"{rows.characters_per_token:.2f} characters a token",
            )
    console.print(
        f"V = {prepared.meta['vocab_size']:,}; prepared tokens {prepared.key} in "
        f"{data.cache_folder}",
        soft_wrap=True,
    )
    return prepared


def _texts(meta: dict[str, Any]) -> Table:
    table = Table()
    table.add_column("text")
    table.add_column("split")
    for name in ("documents", "left out", "characters", "tokens"):
        table.add_column(name, justify="right")
    for text in meta["texts"]:
        for name, counts in text["splits"].items():
            figures = (
                counts["documents"], text["out"], counts["characters"], counts["tokens"],
            )  # fmt: skip
            table.add_row(text["name"], name, *(f"{figure:,}" for figure in figures))
    return table


def _special(meta: dict[str, Any]) -> Table:
    table = Table()
    for name in ("special token", "id", "sampled", "scored"):
        table.add_column(name)
    for name, kind in meta["special"].items():
        marks = ("yes" if kind[what] else "no" for what in ("sampled", "scored"))
        table.add_row(name, str(kind["id"]), *marks)
    return table
