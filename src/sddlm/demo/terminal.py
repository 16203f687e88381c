"""Watch a denoising in the terminal."""

from __future__ import annotations

import time
from types import TracebackType

import torch
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.text import Text
from torch import Tensor

from sddlm.demo.tokens import Decodes, TokenTexts, printable

NOISE, CHANGED, SETTLED = "bright_black", "bold black on yellow", "default"

#: without a terminal a frame is printed whenever t falls to one of these
_PRINTED_AT = (0.75, 0.5, 0.25, 0.0)


class Watch:
    """An ``OnStep`` that draws one sample as it comes out of the noise.

    Grey tokens have not been touched since the start, so they are noise; yellow ones changed since
    the last frame; plain ones changed before. On a terminal the picture is redrawn in place;
    elsewhere a few frames are printed. Use it as a context manager, so that the terminal is put
    back if sampling fails; without ``with`` it ends when t reaches 0.
    """

    def __init__(
        self,
        tokenizer: Decodes,
        *,
        console: Console | None = None,
        sample: int = 0,
        steps: int | None = None,
        frames_per_second: float = 12.0,
    ) -> None:
        self.console = Console() if console is None else console
        self.sample = sample
        self.steps = steps
        self._texts = TokenTexts(tokenizer)
        self._pause = 1 / frames_per_second
        self._live: Live | None = None
        self._begin = self._drawn = 0.0
        self._shown: Tensor | None = None  # [L] tokens of the last frame
        self._touched = torch.zeros(0, dtype=torch.bool)  # [L]
        self._to_print = list(_PRINTED_AT)

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was, with the last frame on it."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __call__(self, step: int, t: float, x: Tensor) -> None:
        """Show the tokens ``[B, L]`` after a step (see ``sddlm.types.OnStep``)."""
        now = time.perf_counter()
        if self._shown is None:
            self._begin = now
        ended = t <= 0
        if not (ended or self._due(t, now)):
            return
        frame = self._frame(step, t, x[self.sample].cpu(), now - self._begin)
        self._drawn = now
        if not self.console.is_terminal:
            self.console.print(frame)
        elif self._live is None:
            self._live = Live(frame, console=self.console, auto_refresh=False)
            self._live.start(refresh=True)
        else:
            self._live.update(frame, refresh=True)
        if ended:
            self.close()

    def _due(self, t: float, now: float) -> bool:
        """Whether it is time for a frame."""
        if self.console.is_terminal:
            return self._shown is None or now - self._drawn >= self._pause
        due = bool(self._to_print) and t <= self._to_print[0]
        while self._to_print and t <= self._to_print[0]:
            self._to_print.pop(0)
        return due or self._shown is None

    def _frame(self, step: int, t: float, tokens: Tensor, seconds: float) -> RenderableType:
        """The picture of one sample ``[L]``; remembers what it showed."""
        if self._shown is None:
            self._shown, self._touched = tokens.clone(), torch.zeros_like(tokens, dtype=torch.bool)
        changed = tokens != self._shown  # [L]
        self._touched |= changed
        self._shown = tokens.clone()
        body = Text(overflow="fold")
        texts = self._texts.line(tokens.tolist())
        for text, new, old in zip(texts, changed.tolist(), self._touched.tolist(), strict=True):
            style = CHANGED if new else SETTLED if old else NOISE
            # a newline breaks the line only once it is more than noise
            shown = "\n".join(map(printable, text.split("\n"))) if old else printable(text)
            body.append(shown, style)
        of = "" if self.steps is None else f"/{self.steps}"
        rate = f"{step / seconds:.3g} steps/s" if seconds > 0 and step > 1 else "-"
        status = Text(
            f"step {step}{of}   t {t:.3f}   changed {int(changed.sum())}   "
            f"{seconds:.1f} s   {rate}",
            style="dim",
        )
        return Group(Panel(body, title=f"sample {self.sample}", height=self._height()), status)

    def _height(self) -> int | None:
        """On a terminal, as much as fits, so that the picture does not scroll away."""
        if not self.console.is_terminal or self._shown is None:
            return None
        wanted = 3 + 6 * len(self._shown) // max(self.console.width, 1)
        return max(4, min(wanted, self.console.height - 2))


def watch(
    tokenizer: Decodes,
    *,
    console: Console | None = None,
    sample: int = 0,
    steps: int | None = None,
) -> Watch:
    """An ``on_step`` for a sampler that shows the text denoising in the terminal.

        with watch(tokenizer, steps=64) as on_step:
            sampler.sample(model, ..., on_step=on_step)

    Args:
        tokenizer: decodes tokens.
        console: where to; None for standard output.
        sample: which sequence of the batch.
        steps: number of steps, shown beside the current one.
    """
    return Watch(tokenizer, console=console, sample=sample, steps=steps)
