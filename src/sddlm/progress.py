"""Console output: a plain console, and a progress bar with rate and remaining time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from sddlm.errors import visible

T = TypeVar("T")


class PlainConsole(Console):
    """Console that prints strings literally: no markup, no emoji codes, no control characters.

    File names and generated text may contain anything.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """See rich; also used for cells and titles of tables."""
        return super().render_str(visible(text), **how)


class _Rate(ProgressColumn):
    """Column with the rate in steps per second."""

    def render(self, task: Task) -> Text:
        """``3.2/s``, or a dash before the first step."""
        speed = task.finished_speed or task.speed
        return Text("-/s" if speed is None else f"{speed:.3g}/s", style="dim")


def track(items: Iterable[T], *, total: int, label: str, show: bool = True) -> Iterator[T]:
    """Iterate over ``items`` with a progress bar on stderr.

    Args:
        items: any iterable.
        total: number of items.
        label: description of the work.
        show: whether to show the bar; it is shown on a terminal only.
    """
    with bar(label, total=total, show=show) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def bar(label: str, *, total: int | None, show: bool = True) -> Iterator[Callable[..., None]]:
    """Progress bar as a context; call what it yields after each step, or with n (see `track`)."""
    console = PlainConsole(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    disabled = not (show and console.is_terminal)
    with Progress(*columns, console=console, transient=True, disable=disabled) as progress:
        task = progress.add_task(label, total=total)
        yield lambda n=1: progress.advance(task, n)
