"""Plots: a frontier, generative perplexity over entropy, and correction, restored over damaged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sddlm.eval.correction_score import CorrectionScore, ShareScore
from sddlm.eval.equal_entropy import ModelFigures, PointFigures
from sddlm.io import atomic_write

if TYPE_CHECKING:
    from sddlm.eval.frontier import Frontier

logger = logging.getLogger(__name__)

#: knob: line, marker, and label of a value; no line joins values that have no order
_STYLES = {
    "temperature": ("-", "o", "T {:g}"),
    "top_p": ("--", "s", "p {:g}"),
    "top_k": ("--", "v", "k {:g}"),
    "min_p": ("-", "P", "min {:g}"),
    "tail_cut": ("-.", "^", "cut {:g}"),
    "steps": (":", "D", "{:g} steps"),
    "hold": ("-.", "h", "hold {:g}"),
    "budget": (":", "*", "budget {:g}"),
    "sampler": ("", "X", "{}"),
    "tail": ("", "d", "tail {}"),
    "preset": ("", "p", "{}"),
    "kappa": ("", "p", "kappa {}"),
    "criterion": ("", "8", "{}"),
    "precision": ("", ">", "{}"),
}
#: told apart with any colour vision (Okabe and Ito, 2008); black is real text's
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def draw_frontier(result: Frontier, path: Path) -> None:
    """Draw a frontier.

    One colour a model, one line and marker a knob, bars for the intervals of both figures, and the
    setting beside the ends of each line. Real text is a star on a vertical line at its entropy.
    Where its perplexity is far from that of all samples, the star stands at the edge.

    Args:
        result: the frontier.
        path: of the PNG, 900 pixels wide. Nothing is drawn without matplotlib
            (``pip install 'sddlm[plots]'``).
    """

    def draw(axes: Any) -> None:
        from matplotlib.ticker import LogLocator, StrMethodFormatter

        for number, (name, model) in enumerate(result.models.items()):
            _draw_model(axes, _plain(name), model, COLORS[number % len(COLORS)])
        _draw_real(axes, result)
        for knob in dict.fromkeys(k for model in result.models.values() for k in model.curves):
            line, marker, _ = _STYLES[knob]
            axes.plot([], [], color="0.3", ls=line, marker=marker, ms=4, label=knob)
        axes.plot([], [], color="0.3", marker="o", ms=10, mfc="none", ls="", label="neutral")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter("")
        axes.set_xlabel("unigram entropy within a text (nats); more is more varied")
        judge = _plain(Path(result.judge).name)
        axes.set_ylabel(f"perplexity under {judge}; less is more fluent")
        axes.figure.supxlabel(_caption(result), fontsize=8, color="0.3")

    _draw(path, (9, 6.5), draw, columns=4)


def _draw(path: Path, size: tuple[float, float], draw: Callable[[Any], None], columns: int) -> None:
    """Write a PNG, or a warning where there is no matplotlib.

    Args:
        path: of the PNG.
        size: width and height, 100 pixels each.
        draw: draws into matplotlib's axes.
        columns: of the legend, which stands above.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: pip install 'sddlm[plots]' to draw it", path.name)
        return
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=columns, loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    with atomic_write(path, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def _plain(name: str) -> str:
    """A name as matplotlib shows it: between two dollars it would read a formula."""
    return name.replace("$", r"\$")


def _draw_model(axes: Any, name: str, model: ModelFigures, color: str) -> None:
    """Its curves, and its neutral point in a ring."""
    for knob, points in model.curves.items():
        line, marker, label = _STYLES[knob]
        x, y, bars = _places(points)
        axes.errorbar(
            x, y, **bars, color=color, ls=line, marker=marker, ms=4, lw=1.2, elinewidth=0.6
        )  # fmt: skip
        labelled = (0, len(points) - 1) if line else range(len(points))
        for k in labelled:
            if points[k] != model.neutral:
                value = points[k].setting.get(knob)
                text = f"no {knob}" if value is None else label.format(value)
                axes.annotate(
                    text, (x[k], y[k]), xytext=(4, -9), textcoords="offset points",
                    fontsize=7, color=color,
                )  # fmt: skip
    x, y, bars = _places([model.neutral])
    axes.errorbar(
        x, y, **bars, color=color, marker="o", ms=10, mfc="none", mew=1.5, ls="", elinewidth=0.6
    )  # fmt: skip
    axes.plot([], [], color=color, lw=4, label=name)


def _draw_real(axes: Any, result: Frontier) -> None:
    """The star and the line; at the edge, with its figure, if the curves would shrink to a line."""
    x, y, bars = _places([result.real])
    axes.axvline(x[0], color="black", lw=0.8, alpha=0.5)
    style = {"color": "black", "marker": "*", "ms": 13, "ls": "", "label": "real text"}
    models = result.models.values()
    points = [p for model in models for p in (model.neutral, *chain(*model.curves.values()))]
    seen = [point.gen_ppl.value for point in points if point.gen_ppl.value is not None]
    spread = max(4, max(seen) / min(seen))
    if min(seen) / spread <= y[0] <= max(seen) * spread:
        axes.errorbar(x, y, **bars, **style, elinewidth=0.8)
        return
    edge, arrow = (0.03, "↓") if y[0] < min(seen) else (0.97, "↑")
    where = {"transform": axes.get_xaxis_transform()}
    axes.plot(x, [edge], **style, **where)
    axes.annotate(
        f"{arrow} {y[0]:.3g}", (x[0], edge), xycoords=where["transform"], xytext=(9, -4),
        textcoords="offset points", fontsize=8,
    )  # fmt: skip


def _places(
    points: Sequence[PointFigures],
) -> tuple[list[float], list[float], dict[str, list[list[float]]]]:
    """Entropies, perplexities, and their bars as matplotlib wants them: below and above."""
    values: list[list[float]] = []
    bars = {}
    for axis, found in (
        ("xerr", [point.entropy for point in points]),
        ("yerr", [point.gen_ppl for point in points]),
    ):
        own = [math.nan if one.value is None else one.value for one in found]
        ends = ([one.low for one in found], [one.high for one in found])
        bars[axis] = [
            [0.0 if end is None else abs(value - end) for value, end in zip(own, side, strict=True)]
            for side in ends
        ]
        values.append(own)
    return values[0], values[1], bars


def _caption(result: Frontier) -> str:
    """The circumstances that the figures depend on."""
    real, neutral = result.real, next(iter(result.models.values())).neutral
    return (
        f"judge {_plain(result.judge)}, convention {result.convention.name}; "
        f"{neutral.count} samples of {neutral.length:g} tokens, {result.steps} steps "
        f"unless stated, {result.precision}; {real.count} real texts of "
        f"{real.length:g}\nbars: {result.level:.0%} percentile intervals of "
        f"{result.resamples} resamples of texts"
    )


def draw_correction(found: CorrectionScore, path: Path) -> None:
    """Draw the score of correction.

    One line for each share of wrong tokens: restored ones over damaged ones, with the noise level
    at some points and a star at the model's own choice. A dotted line is where as many tokens
    are damaged as restored, so that only what lies above it is any good.

    Args:
        found: the score.
        path: of the PNG, 800 pixels wide. Nothing is drawn without matplotlib.
    """

    def draw(axes: Any) -> None:
        from matplotlib.ticker import PercentFormatter

        shares = [share for share in found.shares if 0 < share.wrong < share.tokens]
        for number, share in enumerate(shares):
            _draw_share(axes, share, COLORS[number % len(COLORS)])
        axes.set_xscale("log")
        best = max((point.restored for share in shares for point in share.points), default=0)
        axes.set_ylim(0, 1.15 * best or 1)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.plot([], [], color="0.3", marker="*", ms=13, ls="", label="t chosen by the model")
        axes.plot([], [], color="0.3", lw=0.8, ls=":", label="as much damaged as restored")
        axes.set_xlabel("good tokens that were damaged")
        axes.set_ylabel("wrong tokens that were restored")

    _draw(path, (8, 5.5), draw, columns=3)


def _draw_share(axes: Any, share: ShareScore, color: str) -> None:
    """One line, and where nothing is gained."""
    points = [point for point in share.points if point.damaged > 0]
    x, y = [point.damaged for point in points], [point.restored for point in points]
    axes.plot(x, y, color=color, marker="o", ms=4, label=f"{share.share:g} replaced")
    for point in points[::4]:
        axes.annotate(
            f"t {point.t:g}", (point.damaged, point.restored), xytext=(4, -10),
            textcoords="offset points", fontsize=7, color=color,
        )  # fmt: skip
    auto = share.auto
    axes.plot([auto.damaged], [auto.restored], color=color, marker="*", ms=15, mec="black")
    odds = (share.tokens - share.wrong) / share.wrong
    axes.plot(x, [value * odds for value in x], color=color, lw=0.8, ls=":", scaley=False)
