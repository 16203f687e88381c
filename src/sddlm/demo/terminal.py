"""Live view of a denoising in the terminal."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from types import TracebackType

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from torch import Tensor

from sddlm.demo.tokens import EMPTY, Decodes, TokenTexts, printable
from sddlm.errors import ConfigError

NOISE, CHANGED, SETTLED, GIVEN = "bright_black", "bold black on yellow", "default", "underline cyan"

#: without a terminal a frame is printed whenever t falls to one of these
_PRINTED_AT = (0.75, 0.5, 0.25)
#: most frames a second of a run that is not slowed down
_REDRAWN = 12.0
#: most frames of a run that is slowed down; with more steps some have none
_MOST_FRAMES = 200
#: approximate seconds of a run that is slowed down
_PLAYED_SECONDS = 6.0


class TerminalView:
    """An ``OnStep`` that draws one sample as it comes out of the noise.

        with TerminalView(tokenizer, steps=64) as on_step:
            sampler.sample(model, ..., on_step=on_step)

    Grey tokens have not been touched since the start, so they are noise; yellow ones changed since
    the last frame; plain ones changed before; underlined ones were given. On a terminal the picture
    is redrawn in place; elsewhere a few frames are printed. At t = 0 the finished text takes its
    place. Use it as a context manager, so that the terminal is put back if sampling fails or is
    interrupted; without ``with`` it ends when t reaches 0. After that it can watch another run.

    Attributes:
        paused: seconds of waiting so far, which are not the sampler's.
    """

    def __init__(
        self,
        tokenizer: Decodes,
        *,
        console: Console | None = None,
        sample: int = 0,
        steps: int | None = None,
        title: str | None = None,
        known: Tensor | None = None,
        nfe: Callable[[], int] | None = None,
        fps: float | None = None,
    ) -> None:
        """See the class.

        Args:
            tokenizer: decodes tokens.
            console: console to print to; None for standard output.
            sample: index of the sequence in the batch.
            steps: number of steps, shown beside the current one, and for the time left.
            title: title of the picture; None for the number of the sample.
            known: positions that were given and never noisy ``[B, L]`` bool.
            nfe: returns the number of network calls of this sample so far.
            fps: steps shown a second at most, on a terminal; 0 never waits, but then not every
                step has a frame. None is 0.

        Raises:
            ConfigError: ``fps`` is wrong.
        """
        self.console = Console() if console is None else console
        self.sample = sample
        self.steps = steps
        self.title = f"sample {sample}" if title is None else title
        self.known = known
        self.nfe = nfe
        self.fps = check_fps(fps) or 0.0
        self.paused = 0.0
        self._redraws = self.console.is_terminal and not self.console.is_dumb_terminal
        self._texts = TokenTexts(tokenizer)
        self._reset()

    def _reset(self) -> None:
        """Reset the state for a run."""
        self._live: Live | None = None
        self._first = 0  # step of the first frame
        self._begin = self._begin_paused = self._drawn = 0.0
        self._shown: Tensor | None = None  # [L] tokens of the last frame
        self._touched = torch.zeros(0, dtype=torch.bool)  # [L]
        self._lines = 0  # of the tallest frame
        self._to_print = list(_PRINTED_AT)

    def __enter__(self) -> TerminalView:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Restore the terminal, with the last frame on it."""
        if self._live is not None:
            self._live.stop()
        self._reset()

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        """Show the tokens ``[B, L]`` after a step (see ``sddlm.types.OnStep``)."""
        now = time.perf_counter()
        if self._shown is None:
            self._first, self._begin, self._begin_paused = step, now, self.paused
        ended = t <= 0
        if not (ended or self._due(step, t, now)):
            return
        self._wait()
        frame = self._frame(step, t, x[self.sample].cpu())
        if self._redraws:
            self._redraw(frame)
        elif not ended:
            self.console.print(frame)
        if ended:
            self._finish()

    def _redraw(self, frame: RenderableType) -> None:
        """Replace the last frame."""
        if self._live is None:
            self._live = Live(frame, console=self.console, auto_refresh=False)
            self._live.start(refresh=True)
        else:
            self._live.update(frame, refresh=True)
        self._drawn = time.perf_counter()

    def _wait(self) -> None:
        """Wait until the last frame was shown for its time."""
        rest = self._drawn + 1 / self.fps - time.perf_counter() if self.fps else 0.0
        if rest > 0 and self._redraws and self._shown is not None:
            time.sleep(rest)
            self.paused += rest

    def _due(self, step: int, t: float, now: float) -> bool:
        """Whether a frame is due."""
        if self._redraws:
            if self._shown is None:
                return True
            if self.fps:
                return step % math.ceil((self.steps or 1) / _MOST_FRAMES) == 0
            return now - self._drawn >= 1 / _REDRAWN
        due = bool(self._to_print) and t <= self._to_print[0]
        while self._to_print and t <= self._to_print[0]:
            self._to_print.pop(0)
        return due or self._shown is None

    def _frame(self, step: int, t: float, tokens: Tensor) -> RenderableType:
        """Render one sample ``[L]``, and store it as the last frame."""
        if self._shown is None:
            self._shown, self._touched = tokens.clone(), torch.zeros_like(tokens, dtype=torch.bool)
        changed = tokens != self._shown  # [L]
        self._touched |= changed
        self._shown = tokens.clone()
        body = self._body(changed, self._touched)
        status = Text(self._status(step, t, int(changed.sum())), "dim", no_wrap=True)
        panel = Panel(body, title=Text(printable(self.title)), height=self._height(body))
        if self.console.width >= 50:
            panel.subtitle = self._legend()
        return Group(panel, status)

    def _finish(self) -> None:
        """Print the text alone, and restore the terminal."""
        whole = torch.ones_like(self._touched)
        text = self._body(~whole, whole, empty="")
        if self._redraws:
            self._wait()
            self._redraw(text)
        else:
            self.console.print(text, soft_wrap=True)
        self.close()

    def _body(self, changed: Tensor, old: Tensor, empty: str = EMPTY) -> Text:
        """Render the tokens in colors; ``changed`` and ``old`` are ``[L]`` bool."""
        assert self._shown is not None
        given = torch.zeros_like(changed) if self.known is None else self.known[self.sample].cpu()
        body = Text(overflow="fold")
        texts = self._texts.line(self._shown.tolist(), empty)
        places = zip(texts, changed.tolist(), old.tolist(), given.tolist(), strict=True)
        for text, new, touched, known in places:
            style = GIVEN if known else CHANGED if new else SETTLED if touched else NOISE
            # a newline breaks the line only once it is more than noise
            breaks = touched or known
            shown = "\n".join(map(printable, text.split("\n"))) if breaks else printable(text)
            body.append(shown, style)
        return body

    def _legend(self) -> Text:
        """Legend of the colors."""
        pairs = [("noise", NOISE), ("just changed", CHANGED), ("settled", SETTLED)]
        pairs += [] if self.known is None else [("given", GIVEN)]
        return Text("  ").join(Text(word, style) for word, style in pairs)

    def _status(self, step: int, t: float, changes: int) -> str:
        """Status line, the most important first; items that do not fit are omitted."""
        took = time.perf_counter() - self._begin
        worked = took - (self.paused - self._begin_paused)
        done = step - self._first
        parts = [
            f"step {step}" + ("" if self.steps is None else f"/{self.steps}"),
            f"t {t:.3f}",
            f"changed {changes}",
        ]
        if self.nfe is not None:
            parts.append(f"nfe {self.nfe()}")
        parts.append(f"{done / worked:.3g} steps/s" if done and worked > 0 else "- steps/s")
        if self.steps is not None and done:
            parts.append(f"{took / done * (self.steps - step):.0f} s left")
        line = parts[0]
        for part in parts[1:]:
            if len(line) + 3 + len(part) > self.console.width:
                break
            line += f"   {part}"
        return line

    def _height(self, body: Text) -> int | None:
        """Height that fits the terminal, so that the picture does not scroll; None elsewhere."""
        if not self._redraws:
            return None
        lines = body.wrap(self.console, max(self.console.width - 4, 1))
        self._lines = max(self._lines, len(lines) + 2)  # never lower, so that nothing jumps
        return max(3, min(self._lines, self.console.height - 2))


def check_fps(fps: float | None) -> float | None:
    """Check a frame rate, and return it.

    Raises:
        ConfigError: it is negative or not finite.
    """
    if fps is not None and not (fps >= 0 and math.isfinite(fps)):
        raise ConfigError(f"`fps` is {fps}, allowed is 0 (no waiting) and above: try `fps=10`")
    return fps


def pleasant_fps(steps: int) -> float:
    """Frames per second at which a run of n steps takes about six seconds to watch."""
    return min(max(min(steps, _MOST_FRAMES) / _PLAYED_SECONDS, 2.0), 30.0)
