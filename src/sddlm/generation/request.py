"""Requests for text: what is given, and the blanks to be written."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_choices
from sddlm.rng import Draw

#: ``{3}``, ``{1:8}``, ``{{`` and ``}}``, and any brace that is none of these
_MARKS = re.compile(r"\{\{|\}\}|\{(\d+)(?::(\d+))?\}|[{}]")
_HELP = "a blank is {3} or {1:8}, tokens, and a brace of the text is {{ or }}"
#: most tokens of a blank or a text, and most texts of a request; more are a mistake
MOST = 10**6


@dataclass(frozen=True)
class Blank:
    """Tokens to be written; their number is drawn evenly from ``least`` to ``most``."""

    least: int
    most: int


#: text and blanks in turn
Parts = tuple[str | Blank, ...]


@dataclass(frozen=True)
class Request:
    """Request for texts: what is given of them, and their length.

    Attributes:
        prompt: beginning of the text; an empty one begins a text as training rows do.
        suffix: end of the text.
        infill: a text with blanks, ``The {3} fox jumped over {1:8} dog``, instead of these two.
        length: tokens of the whole text; None is the model's. Not with ``infill``, which fixes it.
        count: number of texts.
        seed: of the randomness, beside that of the generator.
        where: prefix of messages, such as a file and a line.
        allow_unknown: give the model its unknown token for characters that its tokenizer lacks,
            which are refused otherwise.
    """

    prompt: str | None = None
    suffix: str | None = None
    infill: str | None = None
    length: int | None = None
    count: int = 1
    seed: int = 0
    where: str = field(default="", compare=False, repr=False)
    allow_unknown: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_choices(self)
        for name, low in (("length", 1), ("count", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"`{name}` is {value}, must be at least {low}")
            if name != "seed" and value is not None and value > MOST:
                raise ConfigError(f"`{name}` is {value}, must be at most {MOST}")
        for name in ("prompt", "suffix", "infill"):
            check_text(getattr(self, name) or "", f"`{name}`")
        if self.infill is not None:
            for name in ("prompt", "suffix", "length"):
                if getattr(self, name) is not None:
                    raise ConfigError(
                        f"`infill` and `{name}`: the text around the blanks and their sizes are "
                        f"all of it, leave `{name}` out"
                    )
            if not any(isinstance(part, Blank) for part in blanks(self.infill)):
                raise ConfigError(f"`infill` is {self.infill!r} and has no blank: {_HELP}")

    @property
    def free(self) -> bool:
        """Whether nothing is given."""
        return self.prompt is None and self.suffix is None and self.infill is None

    @property
    def key(self) -> int:
        """Name of the randomness, a hash of the request; 0 where nothing is given."""
        if self.free and not self.seed:
            return 0
        return digest([self.asked[name] for name in sorted(self.asked) if name != "count"]) >> 8

    @property
    def asked(self) -> dict[str, Any]:
        """The fields that its texts depend on, for the record."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.compare}


def check_text(text: str, argument: str) -> None:
    """Refuse a text with half a surrogate pair, as a terminal of another encoding gives.

    Raises:
        ConfigError: names the argument.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{argument} is no UTF-8 text (character {error.start}): give text in UTF-8"
        ) from error


def digest(value: Any) -> int:
    """63 bits of the hash of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def blanks(template: str) -> Parts:
    """Text and blanks of a template, in turn.

    Raises:
        ConfigError: for a brace that is no blank, a blank of no token, or a range turned round.
    """
    parts: list[str | Blank] = []
    text, end = "", 0
    for mark in _MARKS.finditer(template):
        text += template[end : mark.start()]
        end = mark.end()
        if mark[0] in ("{{", "}}"):
            text += mark[0][0]
        elif mark[1] is None:
            raise ConfigError(f"`infill` is {template!r}: {mark[0]} at {mark.start()}: {_HELP}")
        else:
            parts += [text] if text else []
            parts.append(_blank(mark))
            text = ""
    text += template[end:]
    return (*parts, text) if text else tuple(parts)


def _blank(mark: re.Match[str]) -> Blank:
    least, most = int(mark[1]), int(mark[2] or mark[1])
    if not 1 <= least <= most <= MOST:
        raise ConfigError(
            f"`infill`: {mark[0]} is no blank, {_HELP}, at least one and at most {MOST}"
        )
    return Blank(least, most)


@dataclass(frozen=True)
class Layout:
    """The tokens of one text.

    Attributes:
        tokens: given ones, and 0 elsewhere.
        known: where they are given.
        spans: beginning and end of each blank.
        front: number of tokens that stand before the text and are not part of it.
        open: it ends with a blank, so that the model may end it early.
    """

    tokens: list[int]
    known: list[bool]
    spans: list[tuple[int, int]]
    front: int
    open: bool


def lay_out(
    request: Request,
    copy: int,
    tokenizer: Tokenizer,
    *,
    first: int | None,
    length: int,
    seed: int,
) -> Layout:
    """Tokens and blanks of one text of a request.

    Words of most tokenizers bring the space before them, so spaces at the end of a text before a
    blank are left to the blank where the tokenizer is of that kind.

    Args:
        request: the request.
        copy: number of the text, for blanks whose size is drawn.
        tokenizer: of the model.
        first: the token that stands in front of a text, or None.
        length: tokens of the whole text where the request has none.
        seed: of all randomness.

    Raises:
        ConfigError: if there is no room to write, or the tokenizer does not know a character.
    """
    if request.free:
        wide = request.length or length
        return Layout([0] * wide, [False] * wide, [(0, wide)], 0, open=True)
    tokens = [] if first is None else [first]
    front, known = len(tokens), [True] * len(tokens)
    spans: list[tuple[int, int]] = []
    draw = Draw(seed, 0, torch.tensor([request.key + copy]), 1)
    for number, part in enumerate(_parts(request, tokenizer, request.length or length, front)):
        if isinstance(part, Blank):
            more = int(draw.integers(f"blank {number}", high=part.most - part.least + 1)[0])
            size = part.least + more
            spans.append((len(tokens), len(tokens) + size))
            tokens, known = tokens + [0] * size, known + [False] * size
        else:
            tokens, known = tokens + part, known + [True] * len(part)
    return Layout(tokens, known, spans, front, open=not known[-1])


def _parts(
    request: Request, tokenizer: Tokenizer, length: int, front: int
) -> Iterator[list[int] | Blank]:
    """Tokens and blanks in turn."""
    encoded = partial(encode, tokenizer, allow_unknown=request.allow_unknown)
    if request.infill is not None:
        parts = blanks(request.infill)
        for i, part in enumerate(parts):
            if isinstance(part, Blank):
                yield part
            else:
                yield encoded(part, "`infill`", before_blank=i + 1 < len(parts))
        return
    prompt = encoded(request.prompt or "", "`prompt`", before_blank=True)
    suffix = encoded(request.suffix or "", "`suffix`")
    taken = front + len(prompt) + len(suffix)
    room = length - taken
    if room < 1:
        name = "`prompt`" if request.prompt else "`suffix`"
        raise ConfigError(
            f"{name}: what is given takes {taken} tokens with what stands in front, which leaves "
            f"no room to write in `length` {length}: try `length={2 * taken}`"
        )
    yield prompt
    yield Blank(room, room)
    yield suffix


def encode(
    tokenizer: Tokenizer,
    text: str,
    argument: str,
    *,
    before_blank: bool = False,
    allow_unknown: bool = False,
) -> list[int]:
    """Encode a part of a text.

    Args:
        tokenizer: of the model.
        text: the part.
        argument: names it in messages.
        before_blank: see `lay_out`.
        allow_unknown: see `Request`.

    Raises:
        ConfigError: if the tokenizer has no token for a character.
    """
    if before_blank and text.endswith(" ") and _words_bring_spaces(tokenizer):
        text = text.rstrip(" ")
    try:
        ids = tokenizer.encode_batch([text])[0] if text else []
    except ConfigError as error:
        raise ConfigError(f"{argument}: {error}") from error
    if not allow_unknown and set(ids) & set(tokenizer.not_sampled):
        raise ConfigError(
            f"{argument} {text!r}: the tokenizer does not know part of it; write it in characters "
            "that the training text has"
        )
    return ids


def _words_bring_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a word and the space before it are one token."""
    try:
        return len(tokenizer.encode_batch([" a"])[0]) == 1
    except ConfigError:  # of characters that are no space or no a
        return False


def read_requests(lines: Iterable[str], name: str, base: Mapping[str, Any]) -> list[Request]:
    """Read requests from a JSON lines file.

    Args:
        lines: each an object with any of the fields of `Request`; empty ones are skipped.
        name: of the file, for messages.
        base: defaults of the fields.

    Raises:
        ConfigError: names the line that is no request.
    """
    kinds = {name: int if name in ("length", "count", "seed") else str for name in Request().asked}
    found = []
    try:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                found.append(_request(line, f"{name} line {number}", base, kinds))
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"`requests` {name} is not UTF-8 text: give a file of JSON lines"
        ) from error
    if not found:
        raise ConfigError(f'`requests` {name} is empty: write lines such as {{"prompt": "Once"}}')
    return found


def _request(line: str, where: str, base: Mapping[str, Any], kinds: Mapping[str, type]) -> Request:
    try:
        said = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"`requests` {where} is no JSON: {error}") from error
    if not isinstance(said, dict):
        raise ConfigError(f'`requests` {where} is no object: write {{"prompt": "Once"}}')
    for key, value in said.items():
        if key not in kinds:
            raise ConfigError(f"`requests` {where}: {key} is unknown, there are {', '.join(kinds)}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            kind = "text" if kinds[key] is str else "a whole number"
            raise ConfigError(f"`requests` {where}: {key} is {value!r}, must be {kind}")
    inherited = {k: v for k, v in base.items() if not (k == "length" and said.get("infill"))}
    try:
        return Request(**{**inherited, **said, "where": f"`requests` {where}: "})
    except ConfigError as error:
        raise ConfigError(f"`requests` {where}: {error}") from error
