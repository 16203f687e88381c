"""The picture of a run: training loss, held-out bound, learning rate and noise."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from sddlm.files import atomic_write

logger = logging.getLogger(__name__)

PANELS = (
    ("loss", "training loss (nats per position)"),
    ("val_nelbo", "held-out NELBO (nats per token)"),
    ("val_bpc", "held-out bits per character"),
    ("gradient_norm", "gradient norm"),
)


def draw_curves(runs: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Draw the rows of ``metrics.csv`` of one or several runs.

    Args:
        runs: name of a run to its rows.
        path: of the PNG. Nothing is drawn without matplotlib (``pip install 'sddlm[plots]'``).
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.warning("no %s: pip install 'sddlm[plots]' to draw the curves", path.name)
        return
    figure = Figure(figsize=(9, 6), layout="constrained")
    for i, (column, title) in enumerate(PANELS):
        axes = figure.add_subplot(2, 2, i + 1)
        for name, rows in runs.items():
            points = [(row["step"], row[column]) for row in rows if column in row]
            marker = "." if column.startswith("val") else ""
            if points:
                axes.plot(*zip(*points, strict=True), marker=marker, lw=1, label=name)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        if len(runs) > 1:
            axes.legend(fontsize=8)
    with atomic_write(path, "wb") as file:
        FigureCanvasAgg(figure).print_png(file)
