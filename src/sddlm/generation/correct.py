"""The verb ``sddlm correct``: a draft, with what the model finds wrong in it replaced."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.text import Text

from sddlm.errors import ConfigError, check_arguments, visible
from sddlm.generation.corrector import (
    Correction,
    Corrector,
    CorrectorConfig,
    check_level,
    protection,
)
from sddlm.generation.drafts import pieces
from sddlm.generation.levels import LEVELS
from sddlm.generation.requests import check_text
from sddlm.io import atomic_write, check_writable
from sddlm.lm import LanguageModel
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
    **how: Annotated[Any, CorrectorConfig],
) -> Correction:
    """Correct a draft with a trained model: it is taken for noise and denoised.

    Tokens are replaced, never put in or taken out, and text whose tokens stay is the same byte for
    byte. From Python: ``sddlm.correct("run", "draft text").text``; for several drafts
    `generation.corrector.Corrector`.

    Args:
        model_dir: run or model directory.
        text: the draft; default: standard input.
        t: how noisy the draft is taken to be, from above 0 (change little) to 1 (all is noise); it
            is about the share of wrong tokens. auto is what the model itself finds most likely.
        protect: regular expression; what it matches is not changed.
        diff: show the draft on stderr with what is deleted and put in; default: on a terminal.
        batch: parts of a long text that are read together; changes no text.
        seed: same seed, same text; with the default greedy tail any seed gives the same.
        out: file for the corrected text, instead of standard output.
        device: cpu, cuda, or auto.
        how: sampler and its knobs.

    Returns:
        the corrected text, the level, the changes, and how sure the model is of each token.

    Raises:
        ConfigError: if a value cannot be used; before anything is loaded where possible.
    """
    chosen = CorrectorConfig(**how)
    if isinstance(t, str) and t != "auto":
        raise ConfigError(f"--t is {t!r}, allowed is a number or auto: try --t 0.1")
    level = None if isinstance(t, str) else t
    check_level(level)
    protection(protect)
    if batch < 1:
        raise ConfigError(f"--batch is {batch}, must be at least 1")
    if not Path(model_dir).is_dir():
        raise ConfigError(f"no such directory: {model_dir}; give that of a finished run")
    if out is not None:
        check_writable(Path(out))
    source = "standard input" if text is None else "--text"
    draft = checked_text(read_stdin() if text is None else text, source)
    loaded = LanguageModel.load(model_dir, choose_device(device))
    if sharpened := _sharpened(chosen):
        logger.warning(
            "--%s sharpens what the model predicts before the draft's own token is weighed, so "
            "good tokens that are not its first guess are replaced too (docs/generation.md)",
            sharpened,
        )
    corrector = Corrector(loaded, chosen, t=level, seed=seed, batch=batch, source=source)
    (corrected,) = corrector.correct([draft], protect=protect, progress=True)
    if out is not None:
        with atomic_write(out) as file:
            file.write(corrected.text)
    show(corrected, PlainConsole(stderr=True), diff)
    logger.info("%s", facts(corrected, chosen=level is None))
    return corrected


def _sharpened(how: CorrectorConfig) -> str | None:
    """The first knob that takes rare tokens away, or None."""
    cut = how.truncation()
    turned = {
        "temperature": cut.temperature < 1,
        "top_p": cut.top_p < 1,
        "top_k": cut.top_k is not None,
        "min_p": cut.min_p > 0,
    }
    return next((name for name, is_turned in turned.items() if is_turned), None)


def read_stdin() -> str:
    """Standard input, its line ends as they are.

    Raises:
        ConfigError: if it is a terminal, or no UTF-8 text.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError("no draft: sddlm correct RUN < draft.txt, or --text 'the draft'")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"standard input is no UTF-8 text (byte {error.start}): give a text file"
        ) from error


def checked_text(text: str, source: str) -> str:
    """The text, if it is one.

    Raises:
        ConfigError: if it is empty or has a zero byte, which no text has.
    """
    check_text(text, source)
    if not text.strip():
        raise ConfigError(f"{source} is empty: give some text to correct")
    if "\0" in text:
        raise ConfigError(f"{source} has a zero byte, so it is no text: give a text file")
    return text


def show(corrected: Correction, console: Console, diff: bool | None) -> None:
    """The draft with what is deleted in red and what is put in in green.

    Without colours they are ``[-deleted-]`` and ``{+put in+}``.

    Args:
        corrected: what to show.
        console: where.
        diff: whether at all; None is on a terminal.
    """
    if not (console.is_terminal if diff is None else diff):
        return
    shown = Text()
    for old, new in pieces(corrected.draft, corrected.changes):
        if old == new:
            shown.append(visible(old))
            continue
        for text, style, marks in ((old, "strike red", "[--]"), (new, "underline green", "{++}")):
            if text:
                marked = f"{marks[:2]}{visible(text)}{marks[2:]}"
                shown.append(visible(text) if console.color_system else marked, style)
    console.print(shown, soft_wrap=True, highlight=False)


def facts(corrected: Correction, *, chosen: bool) -> str:
    """What was done, in words.

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
