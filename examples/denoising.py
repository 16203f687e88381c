"""Write a picture that plays a denoising: one SVG file, without a script, for a README or a talk.

    python examples/denoising.py RUN denoising.svg --steps 64 --seed 1

Grey tokens will still change, dark ones keep their value to the end, yellow ones just changed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from html import escape
from itertools import groupby
from pathlib import Path

import sddlm
from sddlm.demo.frames import Frames
from sddlm.demo.tokens import TokenTexts, printable

COLUMNS, LINE, CHARACTER = 72, 26, 9.65  # characters in a line; pixels of a line, a character
SECONDS, REST = 7.0, 4.0  # of the denoising, of the finished text
STYLE = """
text { font: 16px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace }
.box { fill: #fff; stroke: #d0d7de } .noise { fill: #a8b1bb } .kept { fill: #1f2328 }
.new { fill: #9a6700; font-weight: bold } .note { fill: #6e7781; font-size: 13px }
.bar { fill: #9a6700 }
@media (prefers-color-scheme: dark) {
  .box { fill: #0d1117; stroke: #30363d } .noise { fill: #4d5560 } .kept { fill: #e6edf3 }
  .new { fill: #e3b341 } .note { fill: #8b949e } .bar { fill: #e3b341 }
}"""

#: a piece of a line: its text and its class
Piece = tuple[str, str]


def main() -> None:
    """Record a denoising, write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="run or model directory")
    parser.add_argument("out", help="the SVG file")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--top_p", type=float, default=0.9)
    chosen = parser.parse_args()
    lm, recorder = sddlm.load(chosen.model, device="cpu"), sddlm.Recorder(limit=chosen.steps + 1)
    sampler = sddlm.Lazy(chosen.steps, truncation=sddlm.Truncation(top_p=chosen.top_p))
    samples = sampler.sample(lm, batch=1, seed=chosen.seed, on_step=recorder)
    size = sum(p.numel() for p in lm.network.parameters()) / 1e6
    note = f"{size:.1f} million parameters, {chosen.steps} steps, {int(samples.nfe)} network calls"
    Path(chosen.out).write_text(svg(recorder.frames(), lm.tokenizer, note), encoding="utf-8")


def svg(frames: Frames, tokenizer: sddlm.Tokenizer, note: str) -> str:
    """The picture of the first sequence.

    Args:
        frames: from `sddlm.Recorder`.
        tokenizer: decodes single tokens.
        note: a line below the text.
    """
    rows = frames.tokens[:, 0].tolist()  # [F][L]
    texts = TokenTexts(tokenizer)
    pages = [list(lines(pieces(rows, number, texts))) for number in range(len(rows))]
    height = max(map(len, pages)) * LINE + 52
    width = round(COLUMNS * CHARACTER + 40)
    total, step = SECONDS + REST, SECONDS / len(pages)
    shown, last = 100 * step / total, 100 * (REST + step) / total
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'role="img" aria-label="a language model turns random tokens into text">',
        f"<style>{STYLE}",
        f".f {{ visibility: hidden; animation: show {total}s step-end infinite }}",
        f"@keyframes show {{ 0% {{ visibility: visible }} {shown:.3f}% {{ visibility: hidden }} }}",
        ".f:last-of-type { animation-name: rest }",
        f"@keyframes rest {{ 0% {{ visibility: visible }} {last:.3f}% {{ visibility: hidden }} }}",
        f".bar {{ animation: grow {total}s linear infinite; transform-origin: 20px }}",
        f"@keyframes grow {{ 0% {{ transform: scaleX(0) }} {100 * SECONDS / total:.1f}% "
        "{ transform: scaleX(1) } }",
        "@media (prefers-reduced-motion: reduce) {",
        "  .f, .bar { animation: none } .f:last-of-type { visibility: visible } }",
        "</style>",
        f'<rect class="box" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="8"/>',
    ]
    for number, page in enumerate(pages):
        parts.append(f'<g class="f" style="animation-delay:{number * step:.3f}s">')
        for place, line in enumerate(page, start=1):
            spans = "".join(f'<tspan class="{kind}">{escape(text)}</tspan>' for text, kind in line)
            parts.append(f'<text x="20" y="{place * LINE + 8}" xml:space="preserve">{spans}</text>')
        parts.append("</g>")
    parts.append(f'<rect class="bar" x="20" y="{height - 34}" width="{width - 40}" height="2"/>')
    parts.append(f'<text class="note" x="20" y="{height - 12}">{escape(note)}</text></svg>\n')
    return "\n".join(parts)


def pieces(rows: Sequence[Sequence[int]], number: int, texts: TokenTexts) -> Iterator[Piece]:
    """The tokens of a frame with their classes: new, kept to the end, or noise."""
    row, before = rows[number], rows[max(number - 1, 0)]
    for place, text in enumerate(texts.line(row)):
        kept = all(later[place] == row[place] for later in rows[number:])
        kind = "kept" if kept else "noise"
        changed = row[place] != before[place] and number < len(rows) - 1
        yield printable(text), "new" if changed else kind


def lines(found: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Lines of at most `COLUMNS` characters, broken at blanks; neighbours of one class joined."""
    characters = [(character, kind) for text, kind in found for character in text]
    while characters:
        blanks = [i for i, (each, _) in enumerate(characters[:COLUMNS], start=1) if each == " "]
        end = blanks[-1] if blanks and len(characters) > COLUMNS else COLUMNS
        joined = groupby(characters[:end], key=lambda each: each[1])
        yield [("".join(character for character, _ in run), kind) for kind, run in joined]
        characters = characters[end:]


if __name__ == "__main__":
    main()
