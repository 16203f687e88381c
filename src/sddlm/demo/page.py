"""Self-contained HTML page that plays a denoising, without server or network."""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from torch import Tensor

from sddlm.demo.frames import Frames, Recorder, Recording
from sddlm.demo.payload import embed, payload
from sddlm.demo.tokens import Decodes, printable
from sddlm.errors import ConfigError
from sddlm.io import atomic_write

__all__ = ["Frames", "Recorder", "Recording", "write_page"]


def write_page(
    path: str | Path,
    recordings: Frames | Sequence[Recording],
    tokenizer: Decodes,
    *,
    title: str = "Denoising",
    notes: Sequence[str] = (),
    known: Tensor | None = None,
) -> Path:
    """Write a self-contained HTML page that plays recorded denoisings.

        recorder = Recorder()
        sampler.sample(..., on_step=recorder)
        write_page("out.html", recorder.frames(), tokenizer)

    Args:
        path: the file, ``.html``; its folder is made.
        recordings: the frames of a `Recorder`; or one or two `Recording`, two being played side by
            side at the same diffusion time.
        tokenizer: decodes single tokens.
        title: title of the page.
        notes: facts shown under the title (model, sampler, steps, seconds).
        known: positions that were given and never noisy ``[B, L]`` bool; each `Recording` has its
            own.

    Returns:
        the path.

    Raises:
        ConfigError: no recording, more than two, or two with different numbers of samples.
    """
    if isinstance(recordings, Frames):
        recordings = [Recording("", recordings, known=known)]
    elif known is not None:
        raise ConfigError(
            "write_page(..., known=) is for frames: give it to each Recording instead"
        )
    _check(recordings)
    style, script = _read("page.css"), _read("page.js")
    filling = {
        "title": html.escape(printable(title)),
        "notes": "".join(f"<li>{html.escape(printable(note))}</li>" for note in notes),
        "style": style,
        "script": script,
        "style_hash": _digest(style),
        "script_hash": _digest(script),
        "data": embed(payload(recordings, tokenizer)),
    }
    # one pass, so that a placeholder inside a text is left alone
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: filling[match[1]], _read("page.html"))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(page)
    return path


def _check(recordings: Sequence[Recording]) -> None:
    """Check that recordings can be shown side by side."""
    if not 1 <= len(recordings) <= 2:
        raise ConfigError(
            f"a page shows 1 or 2 recordings, not {len(recordings)}: write one page for each"
        )
    counts = [each.frames.tokens.shape[1] for each in recordings]
    if len(set(counts)) > 1:
        raise ConfigError(
            f"the recordings have {counts[0]} and {counts[1]} samples: record equally many, "
            "such as Recorder(samples=1)"
        )
    if any(each.frames.tokens.numel() == 0 for each in recordings):
        raise ConfigError("a recording has no tokens: record at least one sample of one token")


def _read(name: str) -> str:
    """Read a part of the page."""
    return (resources.files("sddlm.demo") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """Hash by which the page's content security policy allows its script and style."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
