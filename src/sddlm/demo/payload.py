"""JSON data of a page's script."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sddlm.demo.frames import Recording
from sddlm.demo.tokens import LONGEST, Decodes, TokenTexts, printable


def payload(recordings: Sequence[Recording], tokenizer: Decodes) -> dict[str, Any]:
    """What the page's script reads.

    Args:
        recordings: recordings with the same number of sequences.
        tokenizer: decodes single tokens.

    Returns:
        ``texts``: the different tokens' texts; ``joins``: texts of neighbours that only together
        make a character; ``moments`` ``[M]``: the times at which anything happens; ``takes``, each
        with ``label``, ``notes``, ``steps`` and ``times`` ``[F]``, ``at`` ``[M]`` (its frame at
        each moment) and ``samples``: for each sequence its ``first`` tokens ``[L]`` (places in
        ``texts``), the ``changes`` that lead from each frame to the next, flat
        ``[position, token, position, token, ...]``, and ``known`` positions.
    """
    used = torch.cat([take.frames.tokens.flatten() for take in recordings]).unique()
    # [F, B, L] each
    numbers = [torch.searchsorted(used, take.frames.tokens) for take in recordings]
    texts = TokenTexts(tokenizer)
    joins: dict[str, str] = {}
    for each in numbers:
        joins |= _joins(each, used, texts)
    moments, at = moments_of([take.frames.times for take in recordings])
    return {
        "texts": ["\n".join(map(printable, texts(i).split("\n"))) for i in used.tolist()],
        "joins": joins,
        "moments": moments,
        "takes": [
            {
                "label": printable(take.label),
                "notes": [*map(printable, take.notes)],
                "steps": take.frames.steps,
                "times": [round(t, 6) for t in take.frames.times],
                "at": frame_at,
                "samples": [_sample(each[:, b], take.known, b) for b in range(each.shape[1])],
            }
            for take, each, frame_at in zip(recordings, numbers, at, strict=True)
        ],
    }


def _sample(rows: Tensor, known: Tensor | None, b: int) -> dict[str, Any]:
    """Data of one sequence ``[F, L]``, as indices into ``used``."""
    changes = []
    for before, after in pairwise(rows):
        places = (before != after).nonzero()[:, 0]
        changes.append(torch.stack((places, after[places]), 1).flatten().tolist())
    given = [] if known is None else known[b].nonzero()[:, 0].tolist()
    return {"first": rows[0].tolist(), "changes": changes, "known": given}


def moments_of(times: Sequence[Sequence[float]]) -> tuple[list[float], list[list[int]]]:
    """Merge the diffusion times at which any of several denoisings has a frame.

    Samplers may stay at one time for several steps; their k-th frames of a time are one moment.

    Args:
        times: of each denoising's frames, from noise to text.

    Returns:
        The time of each moment ``[M]``, and for each denoising its latest frame at each
        moment ``[M]``, which is the first one until it begins.
    """
    keys = []  # of each frame, ascending: (-time, how often this time was there before)
    for row in times:
        seen: Counter[float] = Counter()
        own, lowest = [], float("inf")
        for t in row:
            lowest = min(lowest, round(t, 6))
            own.append((-lowest, seen[lowest]))
            seen[lowest] += 1
        keys.append(own)
    moments = sorted({key for own in keys for key in own})
    at = [[max(bisect_right(own, key) - 1, 0) for key in moments] for own in keys]
    return [-minus_t + 0.0 for minus_t, _ in moments], at


def _joins(numbers: Tensor, used: Tensor, texts: TokenTexts) -> dict[str, str]:
    """Texts of neighbouring tokens that form one UTF-8 character together.

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
    """Serialise JSON for use inside ``<script>``: no ``<``, ``>``, ``&`` and nothing but ASCII."""
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
