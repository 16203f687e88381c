"""How likely is text of kinds that the model was not trained on? The field's seven sets, by name.

The convention is that of SEDD, MDLM and Duo (arXiv:2310.16834, 2406.07524, 2506.10892): documents
one behind the other *without* an end of text between them, cut into full rows, which begin and
end with it if the model's own rows do. Detokenizers and splits are those of `sddlm.data.corpora`.
"""

from __future__ import annotations

from typing import Any

from sddlm.data.args import DataArgs
from sddlm.errors import ConfigError, did_you_mean
from sddlm.eval.measures import measure_likelihood
from sddlm.eval.texts import other_text
from sddlm.lm import LanguageModel
from sddlm.work import ResumableJob

ZERO_SHOT = (
    "ptb",
    "wikitext-103",
    "lm1b",
    "lambada",
    "ag_news",
    "scientific_papers-pubmed",
    "scientific_papers-arxiv",
)


def zero_shot_sets(names: str) -> list[str]:
    """The sets of a comma-separated list; ``all`` is all seven.

    Raises:
        ConfigError: an unknown name.
    """
    asked = [name.strip() for name in names.split(",")]
    if asked == ["all"]:
        return list(ZERO_SHOT)
    for name in asked:
        if name not in ZERO_SHOT:
            raise ConfigError(
                f"--zero_shot {name or '(empty)'} is unknown; there are: all, "
                f"{', '.join(ZERO_SHOT)}{did_you_mean(name, ZERO_SHOT)}"
            )
    return asked


def zero_shot(
    loaded: LanguageModel,
    names: list[str],
    *,
    rows: int | None,
    draws: int,
    seed: int,
    batch: int,
    cache: str | None,
    work: ResumableJob,
) -> dict[str, Any]:
    """The likelihood of each set; one that cannot be read says why and does not stop the others.

    Args:
        loaded: the model.
        names: of the sets.
        rows: at most so many rows of each, spread evenly; None for all.
        draws: noise levels a row.
        seed: of the noise.
        batch: rows a network call.
        cache: folder for prepared tokens.
        work: does the batches.

    Raises:
        ConfigError: none of them can be read.
    """
    found: dict[str, Any] = {}
    for name in names:
        try:
            data = DataArgs(corpus=name, cache=cache)
            text = other_text(loaded, data, rows, packing="wrap", eos=False)
        except ConfigError as error:
            found[name] = {"error": str(error)}
            continue
        likelihood = measure_likelihood(
            loaded, text, seed=seed, batch=batch, draws=draws, work=work
        )
        found[name] = {"text": text.source, **likelihood}
    if all("error" in figures for figures in found.values()):
        raise ConfigError(f"none of the sets can be read: {next(iter(found.values()))['error']}")
    return found
