"""Line charts as SVG text, without a library or a script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape
from math import ceil, floor, log10
from typing import NamedTuple

#: patterns of lines, SVG's stroke-dasharray
DASHES = ("", "6 3", "2 2", "8 3 2 3")
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 560, 300, 62, 12, 26, 42
_LINE = 16  # pixels of a line of the legend

Point = tuple[float, float]


class Series(NamedTuple):
    """A line of a chart.

    Attributes:
        name: in the legend; an empty one is not listed.
        points: x and y; a single one is a dot.
        color: of the line.
        dash: SVG's pattern of dashes.
        thin: whether it is one of several seeds, behind their mean.
        dots: whether the points are marked.
    """

    name: str
    points: Sequence[Point]
    color: str
    dash: str = ""
    thin: bool = False
    dots: bool = False


def chart(title: str, series: Sequence[Series], x: str, y: str, *, log: bool = False) -> str:
    """A chart as an SVG element.

    Args:
        title: above it.
        series: its lines; at least one has a point.
        x: name of the horizontal axis.
        y: name of the vertical axis.
        log: whether the vertical axis is logarithmic; all its values are above 0.
    """
    named = [each for each in series if each.name and each.points]
    columns = max(1, (_WIDTH - _LEFT) // (7 * max((len(s.name) for s in named), default=1) + 40))
    height = _HEIGHT + _LINE * ceil(len(named) / columns)
    points = [(px, log10(py) if log else py) for each in series for px, py in each.points]
    across = _Axis([p[0] for p in points], _LEFT, _WIDTH - _RIGHT)
    up = _Axis([p[1] for p in points], _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" role="img" font-family="sans-serif" font-size="11">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="15" font-size="13">{escape(title)}</text>',
        *_grid(across, up, log),
        f'<text x="{(_LEFT + _WIDTH) / 2}" y="{_HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x)}</text>",
        f'<text transform="translate(13 {_HEIGHT / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]
    for each in sorted(series, key=lambda one: not one.thin):
        places = [(across.at(px), up.at(log10(py) if log else py)) for px, py in each.points]
        parts += _line(each, places)
    for number, each in enumerate(named):
        left = _LEFT + number % columns * (_WIDTH - _LEFT) / columns
        middle = _HEIGHT + number // columns * _LINE
        parts.append(_stroke(each, f"M{left:.1f} {middle}h24"))
        parts.append(f'<text x="{left + 30:.1f}" y="{middle + 4}">{escape(each.name)}</text>')
    return "\n".join([*parts, "</svg>"])


class _Axis:
    """Places of values on a line of pixels, and round values along it."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        low, high = min(values), max(values)
        margin = 0.04 * (high - low) or 0.5 * abs(low) or 0.5
        self.low, self.high, self.begin, self.end = low - margin, high + margin, begin, end

    def at(self, value: float) -> float:
        """Pixel of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        """Four to nine round values."""
        rough = (self.high - self.low) / 5
        unit = 10.0 ** floor(log10(rough))
        step = unit * next(k for k in (1, 2, 5, 10) if k * unit >= rough)
        first, last = ceil(self.low / step), floor(self.high / step)
        return [k * step for k in range(first, last + 1)]


def _log_ticks(axis: _Axis) -> list[float]:
    """Logarithms of round values: 1, 2 and 5 of each decade, or equal steps within one."""
    decades = range(floor(axis.low), ceil(axis.high) + 1)
    found = [k + log10(m) for k in decades for m in (1, 2, 5)]
    found = [each for each in found if axis.low <= each <= axis.high]
    if len(found) > 2:
        return found
    equal = _Axis([10**axis.low, 10**axis.high], 0, 1).ticks()
    return [log10(each) for each in equal if 10**axis.low <= each <= 10**axis.high]


def _grid(across: _Axis, up: _Axis, log: bool) -> Iterator[str]:
    for value in across.ticks():
        px = f"{across.at(value):.1f}"
        yield f'<path d="M{px} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#ddd"/>'
        yield f'<text x="{px}" y="{_HEIGHT - _BOTTOM + 14}" text-anchor="middle">{value:g}</text>'
    for value in _log_ticks(up) if log else up.ticks():
        py, shown = f"{up.at(value):.1f}", f"{10**value if log else value:.4g}"
        yield f'<path d="M{_LEFT} {py}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 5}" y="{py}" dy="4" text-anchor="end">{shown}</text>'


def _line(each: Series, places: Sequence[Point]) -> Iterator[str]:
    if len(places) > 1:
        yield _stroke(each, "M" + "L".join(f"{px:.1f} {py:.1f}" for px, py in places))
    if each.dots or len(places) == 1:
        for px, py in places:
            yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{each.color}"/>'


def _stroke(each: Series, path: str) -> str:
    style = 'stroke-width="0.7" opacity="0.4"' if each.thin else 'stroke-width="1.6"'
    dash = f' stroke-dasharray="{each.dash}"' if each.dash else ""
    return f'<path d="{path}" fill="none" stroke="{each.color}" {style}{dash}/>'
