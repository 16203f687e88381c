"""The verb ``sddlm correct``: a draft, with the tokens replaced that the model finds wrong."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from sddlm.errors import ConfigError, check_arguments
from sddlm.generation.config import CORRECTION, SamplerConfig
from sddlm.generation.corrector import Correction, Corrector, check_level, protection
from sddlm.generation.diff import rendered
from sddlm.generation.levels import LEVELS
from sddlm.generation.request import check_text
from sddlm.io import atomic_write, check_writable
from sddlm.lm import LanguageModel
from sddlm.model_dir import locate
from sddlm.progress import PlainConsole
from sddlm.sampling.base import choose_device

logger = logging.getLogger(__name__)


@check_arguments
def correct(
    model_dir: str,
    text: str | None = None,
    *,
    t: float | Literal["auto"] = "auto",
    protect: str | None = None,
    diff: bool | None = None,
    batch: int = 16,
    seed: int = 0,
    out: str | None = None,
    device: str = "auto",
    steps: int = CORRECTION.steps,
    tail: Literal["sample", "greedy"] = CORRECTION.tail,
    top_p: float | None = CORRECTION.top_p,
    **how: Annotated[Any, SamplerConfig],
) -> Correction:
    """Correct a draft with a trained model: it is taken for noise and denoised.

    Tokens are replaced, never inserted or deleted, and text whose tokens stay is the same byte for
    byte. From Python: ``sddlm.load("run").correct("draft text").text``; for several
    drafts `generation.corrector.Corrector`.

    Args:
        model_dir: run or model directory.
        text: the draft; default: standard input.
        t: noise level that the draft is taken for, from above 0 (change little) to 1 (all is
            noise), about the share of wrong tokens. auto is the level that the model finds most
            likely.
        protect: regular expression; its matches are not changed.
        diff: show deleted and inserted text on stderr; default: on a terminal.
        batch: parts of a long text that are read together; changes no text.
        seed: same seed, same text; with the default greedy tail any seed gives the same.
        out: file for the corrected text, instead of standard output.
        device: cpu, cuda, or auto.
        steps: denoising steps; more than one restores less (docs/generation.md).
        tail: the last step draws (sample) or takes the most likely token (greedy).
        top_p: keep the most likely tokens up to this mass; below 1 good tokens that the model would
            not have guessed are replaced too.
        how: sampler and its other options.

    Returns:
        the corrected text, the level, the changes, and how sure the model is of each token.

    Raises:
        ConfigError: if a value cannot be used; before anything is loaded where possible.
    """
    config = SamplerConfig(steps=steps, tail=tail, top_p=top_p, **how)
    if isinstance(t, str) and t != "auto":
        raise ConfigError(f"`t` is {t!r}, must be a number or auto: try `t=0.1`")
    level = None if isinstance(t, str) else t
    check_level(level)
    protection(protect)
    if batch < 1:
        raise ConfigError(f"`batch` is {batch}, must be at least 1")
    place = locate(model_dir)
    if out is not None:
        check_writable(Path(out))
    source = "standard input" if text is None else "`text`"
    draft = checked_text(read_stdin() if text is None else text, source)
    lm = LanguageModel.load(place, choose_device(device))
    if sharpened := _sharpened(config):
        logger.warning(
            "`%s` sharpens the prediction before the draft's own token is weighed, so good tokens "
            "that are not the model's first guess are replaced too (docs/generation.md)",
            sharpened,
        )
    corrector = Corrector(lm, config, t=level, seed=seed, batch=batch, source=source)
    (corrected,) = corrector.correct([draft], protect=protect, progress=True)
    if out is not None:
        with atomic_write(out) as file:
            file.write(corrected.text)
    console = PlainConsole(stderr=True)
    if console.is_terminal if diff is None else diff:
        colour = console.color_system is not None
        shown = rendered(corrected.draft, corrected.changes, colour=colour)
        console.print(shown, soft_wrap=True, highlight=False)
    logger.info("%s", summary(corrected, chosen=level is None))
    return corrected


def _sharpened(config: SamplerConfig) -> str | None:
    """The first option that takes rare tokens away, or None."""
    cut = config.truncation()
    turned = {
        "temperature": cut.temperature < 1,
        "top_p": cut.top_p < 1,
        "top_k": cut.top_k is not None,
        "min_p": cut.min_p > 0,
    }
    return next((name for name, is_turned in turned.items() if is_turned), None)


def read_stdin() -> str:
    """Read standard input, with its line ends.

    Raises:
        ConfigError: if it is a terminal, or no UTF-8 text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no draft: sddlm correct RUN < draft.txt, or `text='the draft'`")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"standard input is no UTF-8 text (byte {error.start}): give a text file"
        ) from error


def checked_text(text: str, source: str) -> str:
    """Refuse an empty text and one with a zero byte.

    Raises:
        ConfigError: names the source.
    """
    check_text(text, source)
    if not text.strip():
        raise ConfigError(f"{source} is empty: give some text to correct")
    if "\0" in text:
        raise ConfigError(f"{source} has a zero byte, so it is no text: give a text file")
    return text


def summary(corrected: Correction, *, chosen: bool) -> str:
    """Level, changes, network calls and time, in words.

    Args:
        corrected: the result.
        chosen: the level was chosen by the model.
    """
    by = " (the model's choice)" if chosen else ""
    if chosen and corrected.t == LEVELS[0]:
        by = " (the model's choice, the lowest: it finds nothing wrong)"
    places = "1 place" if len(corrected.changes) == 1 else f"{len(corrected.changes)} places"
    calls = "1 network call" if corrected.nfe == 1 else f"{corrected.nfe} network calls"
    return f"t = {corrected.t:g}{by}, {places} changed, {calls}, {corrected.seconds:.1f} s"
