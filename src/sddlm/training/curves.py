"""Plot of a run: training loss, held-out bound, gradients and diagnostics."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sddlm.io import atomic_write

logger = logging.getLogger(__name__)

Rows = Sequence[Mapping[str, float]]

#: columns of one panel, and its title; the first four are always drawn
PANELS = (
    (("loss",), "training loss (nats per position)"),
    (("val_nelbo",), "held-out NELBO (nats per token)"),
    (("val_bpc",), "held-out bits per character"),
    (("gradient_norm",), "gradient norm"),
    (("copy_prob", "clean_prob", "copy_prob_noise"), "probability of x_t kept, x0 changed, noise"),
    (("output_entropy",), "entropy of the output (nats)"),
    (("logit_range",), "logit range (nats)"),
    (("preview_entropy", "text_entropy"), "entropy within previews and text (nats)"),
    (("attractive_norm", "repulsive_norm"), "gradient norm of the parts"),
)
_ALWAYS = 4
_EVERY_STEP = {"loss", "gradient_norm"}  # drawn without markers


def draw_curves(runs: Mapping[str, Rows], path: Path) -> None:
    """Plot the rows of ``metrics.csv`` of one or several runs.

    Args:
        runs: rows by name of the run.
        path: PNG file; not written without matplotlib (``pip install 'sddlm[plots]'``).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: pip install 'sddlm[plots]' to draw the curves", path.name)
        return
    panels = panels_of(runs)
    wide = 2 if len(panels) <= _ALWAYS else 3
    high = -(-len(panels) // wide)
    figure = Figure(figsize=(4.5 * wide, 3 * high))
    figure.subplots_adjust(0.06, 0.08, 0.98, 0.94, hspace=0.42, wspace=0.2)
    for i, (columns, title) in enumerate(panels):
        axes = figure.add_subplot(high, wide, i + 1)
        for name, rows in runs.items():
            _draw(axes, rows, columns, name if len(runs) > 1 else "")
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        if axes.lines and (len(runs) > 1 or len(columns) > 1):
            axes.legend(fontsize=8)
    with atomic_write(path, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)


def panels_of(runs: Mapping[str, Rows]) -> list[tuple[tuple[str, ...], str]]:
    """Select the panels: the standard ones, and those for which a run has metrics."""
    there = {column for rows in runs.values() for row in rows for column in row}
    return [
        (columns, title)
        for i, (columns, title) in enumerate(PANELS)
        if i < _ALWAYS or there & set(columns)
    ]


def _draw(axes: Any, rows: Rows, columns: Sequence[str], run: str) -> None:
    """Plot one run in one panel, with a dash pattern for each column."""
    for column, dashes in zip(columns, ("-", "--", ":"), strict=False):
        points = [(row["step"], row[column]) for row in rows if column in row]
        if points:
            label = " ".join(word for word in (run, column if len(columns) > 1 else "") if word)
            marker = "" if column in _EVERY_STEP else "."
            axes.plot(*zip(*points, strict=True), ls=dashes, marker=marker, lw=1, label=label)
