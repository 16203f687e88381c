"""Reference text for a judge: held-out rows that the judge was not trained on either.

A judge knows the text that it was trained on, so its figure for that text is no reference. Model
and judge may be trained on one text of which each holds out another part (``data.validation``).
These parts are nested: what the smaller share holds out, the larger one does too, and so for
numbers of documents (`sddlm.data.split`). The rows of the smaller part are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from sddlm.data.config import DataArgs, all_trained_on, trained_on
from sddlm.data.corpora import CORPORA
from sddlm.data.texts import is_corpus, share_held_out
from sddlm.errors import ConfigError
from sddlm.eval.result import SeenByJudge
from sddlm.eval.texts import HeldOut, other_text, same_text
from sddlm.lm import LanguageModel

#: options that decide what the documents of a text are
_DOCUMENTS = ("field", "separator", "limit")


def real_text(
    text: HeldOut,
    place: Path | None,
    loaded: LanguageModel,
    data: DataArgs | None,
    judge: str,
    rows: int | None,
) -> tuple[HeldOut, SeenByJudge]:
    """Rows that neither the model nor the judge was trained on, as far as there are any.

    Args:
        text: the rows that the model is scored on.
        place: the run or model directory that ``loaded`` came from.
        loaded: the model.
        data: the text that was asked for; None for the held-out part of the training text.
        judge: run or model directory, or a hub name.
        rows: most rows, spread evenly; None for all.

    Returns:
        the rows, and whether the judge was trained on them.
    """
    learnt = all_trained_on(Path(judge)) if Path(judge).is_dir() else None
    if learnt is None:
        return text, SeenByJudge("unknown", f"no run states what judge {judge} was trained on")
    scored, shares = _scored(place, data)
    found = [pair for other in learnt for pair in _shared(scored, shares, other)]
    if not found:
        return text, SeenByJudge("no", f"judge {judge} was trained on other text")
    if any(held == 0 for _, held in found):
        return text, SeenByJudge("yes", f"judge {judge} was trained on all of this text")
    if all(_nested(share, held) for share, held in found):
        return text, SeenByJudge("no", f"judge {judge} holds out these rows too")
    least = min(held for _, held in found)
    nested = all(_nested(least, share) for share in shares.values())
    if not nested or any(math.isnan(held) for _, held in found):
        split = f"judge {judge} was trained on this text, split otherwise"
        return text, SeenByJudge("maybe", split)
    try:
        both = other_text(loaded, replace(scored, validation=least), rows, split="validation")
    except ConfigError as error:
        reason = f"what judge {judge} holds out too ({least:g}) gives no rows: {error}"
        return text, SeenByJudge("maybe", reason)
    return both, SeenByJudge("no", f"only rows that judge {judge} holds out too ({least:g})")


def _nested(a: float, b: float) -> bool:
    """Whether what ``a`` holds out is part of what ``b`` does: shares or numbers, inf is all."""
    return 0 < a <= b and (b == math.inf or (a < 1) == (b < 1))


def _scored(place: Path | None, data: DataArgs | None) -> tuple[DataArgs, dict[str, float]]:
    """The text that is scored, and the held-out part of each of its sources.

    The part is a share or number of the documents that training on the source would read: inf for
    all of them, 0 for none, where the rows are from a split of their own.
    """
    own = None if place is None else trained_on(place)
    if own is not None and (data is None or not data.named or same_text(own, data)):
        if own.validation_path is None:
            own = replace(own, cache=(data.cache if data else None) or own.cache)
            return own, {name: share_held_out(own, name) for name in own.sources}
        path = own.validation_path
        data = replace(own, path=path, corpus=None, mixture=None, validation_path=None)
    assert data is not None  # else there were no rows
    name = data.sources[0]
    if not is_corpus(data, name):
        return data, {name: math.inf}
    corpus = CORPORA[name]
    return data, {name: 0 if corpus.scored in corpus.roles else corpus.last or math.inf}


def _shared(
    scored: DataArgs, shares: dict[str, float], judge: DataArgs
) -> Iterator[tuple[float, float]]:
    """For each source that the judge was trained on too: how much is scored, and held out by it.

    NaN where the documents are not the same.
    """
    alike = all(getattr(scored, key) == getattr(judge, key) for key in _DOCUMENTS)
    for name, share in shares.items():
        for other in judge.sources if share else ():
            a, b = _place(scored, name), _place(judge, other)
            if a == b:
                yield share, share_held_out(judge, other) if alike else math.nan
            elif a in b.parents or b in a.parents:
                yield share, math.nan


def _place(data: DataArgs, name: str) -> Path:
    """Identity of a source: the path of its file, or the name of its corpus."""
    return Path("corpus:", name) if is_corpus(data, name) else Path(name).resolve()
