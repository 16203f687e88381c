"""What a user sees: one kind of console, and one progress bar with rate and time left."""

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
    """Shows strings literally: no markup, no emoji codes, no control characters.

    They hold names of files and generated text, which may hold anything.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False, highlight=False)

    def render_str(self, text: str, **how: Any) -> Text:
        """See rich; cells and titles of tables come here too."""
        return super().render_str(visible(text), **how)


class _Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """``3.2/s``, or a dash before the first step."""
        speed = task.finished_speed or task.speed
        return Text("-/s" if speed is None else f"{speed:.3g}/s", style="dim")


def track(items: Iterable[T], *, total: int, label: str, show: bool = True) -> Iterator[T]:
    """Go through ``items`` with a progress bar on stderr.

    Args:
        items: anything iterable.
        total: how many there are.
        label: what is being done.
        show: False for silence; without a terminal nothing is shown anyway.
    """
    with bar(label, total=total, show=show) as advance:
        for item in items:
            yield item
            advance()


@contextmanager
def bar(label: str, *, total: int | None, show: bool = True) -> Iterator[Callable[..., None]]:
    """The bar by itself; call what it gives after each step, or after n of them (see `track`)."""
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
