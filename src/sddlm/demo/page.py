"""One self-contained HTML page that plays a denoising: no server, no network, no install."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sddlm.demo.tokens import LONGEST, Decodes, TokenTexts, printable
from sddlm.errors import ConfigError
from sddlm.files import atomic_write


@dataclass(frozen=True)
class Frames:
    """What a denoising looked like.

    Attributes:
        tokens: ``[F, B, L]`` int64, F moments in order.
        steps: the sampler's step at each moment ``[F]``.
        times: the diffusion time at each moment ``[F]``.
    """

    tokens: Tensor
    steps: list[int]
    times: list[float]


class Recorder:
    """An ``OnStep`` that keeps the tokens of at most ``limit`` steps, evenly, and of the last one.

    The number of steps need not be known: when there are too many moments every other one is
    dropped and only every second further step is kept.

    Attributes:
        limit: most moments kept, at least 2.
        samples: how many sequences of the batch are kept; None for all.
    """

    def __init__(self, limit: int = 200, *, samples: int | None = None) -> None:
        if limit < 2:
            raise ConfigError(f"a recorder must keep at least 2 frames, not {limit}")
        self.limit = limit
        self.samples = samples
        self._kept: list[tuple[int, float, Tensor]] = []
        self._last: tuple[int, float, Tensor] | None = None
        self._stride = 1
        self._seen = 0

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        """Keep the tokens ``[B, L]`` after a step (see ``sddlm.types.OnStep``)."""
        self._last = (step, t, x[: self.samples].to("cpu", torch.int32, copy=True))
        if self._seen % self._stride == 0:
            self._kept.append(self._last)
            if len(self._kept) == self.limit:  # one place stays free for the last step
                self._kept = self._kept[::2]
                self._stride *= 2
        self._seen += 1

    def frames(self) -> Frames:
        """What was kept, the last step included.

        Raises:
            ConfigError: if nothing was recorded.
        """
        if self._last is None:
            raise ConfigError("nothing was recorded: pass the recorder to a sampler as on_step")
        kept = list(self._kept)
        if kept[-1] is not self._last:
            kept.append(self._last)
        steps, times, tokens = zip(*kept, strict=True)
        return Frames(torch.stack(tokens).long(), list(steps), list(times))


def write_page(
    path: str | Path,
    frames: Frames,
    tokenizer: Decodes,
    *,
    title: str = "Denoising",
    notes: Sequence[str] = (),
    known: Tensor | None = None,
) -> Path:
    """Write the page, atomically.

    Args:
        path: the file, ``.html``; its folder is made.
        frames: from `Recorder`.
        tokenizer: decodes single tokens.
        title: of the page.
        notes: facts shown under the title (model, sampler, steps, seconds).
        known: positions that were given and never noisy ``[B, L]`` bool.

    Returns:
        The path.
    """
    template = (resources.files("sddlm.demo") / "page.html").read_text(encoding="utf-8")
    filling = {
        "title": html.escape(title),
        "notes": "".join(f"<li>{html.escape(note)}</li>" for note in notes),
        "data": embed(payload(frames, tokenizer, known=known)),
    }
    # one pass, so that a placeholder inside a text is left alone
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: filling[match[1]], template)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(page)
    return path


def payload(frames: Frames, tokenizer: Decodes, *, known: Tensor | None = None) -> dict[str, Any]:
    """What the page's script reads.

    Returns:
        ``texts``: the different tokens' texts; ``steps``, ``times`` ``[F]``; ``samples``: for each
        sequence its ``first`` tokens ``[L]`` (places in ``texts``), the ``changes`` that lead from
        each moment to the next, flat ``[position, token, position, token, ...]``, and ``known``
        positions; ``joins``: texts of neighbours that only together make a character.
    """
    used, numbers = frames.tokens.unique(return_inverse=True)
    texts = TokenTexts(tokenizer)
    samples = []
    for b in range(numbers.shape[1]):
        rows = numbers[:, b]  # [F, L]
        changes = []
        for before, after in pairwise(rows):
            places = (before != after).nonzero()[:, 0]
            changes.append(torch.stack((places, after[places]), 1).flatten().tolist())
        given = [] if known is None else known[b].nonzero()[:, 0].tolist()
        samples.append({"first": rows[0].tolist(), "changes": changes, "known": given})
    return {
        "texts": ["\n".join(map(printable, texts(i).split("\n"))) for i in used.tolist()],
        "steps": frames.steps,
        "times": [round(t, 6) for t in frames.times],
        "samples": samples,
        "joins": _joins(numbers, used, texts),
    }


def _joins(numbers: Tensor, used: Tensor, texts: TokenTexts) -> dict[str, str]:
    """Texts of neighbouring tokens that are parts of a UTF-8 character, whole together.

    Args:
        numbers: places in ``used`` ``[F, B, L]``.
        used: token numbers.
        texts: of tokens.

    Returns:
        ``{"a,b": text}`` for runs of two to four, by places in ``used``.
    """
    broken = torch.tensor([texts.broken(i) for i in used.tolist()])
    joins = {}
    for n in range(2, min(LONGEST, numbers.shape[-1]) + 1):
        runs = numbers.unfold(-1, n, 1)  # [F, B, L - n + 1, n]
        for run in runs[broken[runs].all(-1)].unique(dim=0).tolist():
            whole = texts.whole(used[run].tolist())
            if whole is not None:
                joins[",".join(map(str, run))] = printable(whole)
    return joins


def embed(data: dict[str, Any]) -> str:
    """JSON that can stand inside ``<script>``: no ``<``, ``>``, ``&`` and nothing but ASCII."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
