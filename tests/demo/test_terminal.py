import io
import re
from types import SimpleNamespace

import pytest
import torch
from rich.cells import cell_len
from rich.console import Console

from sddlm.data.tokenizer import Tokenizer
from sddlm.demo import terminal
from sddlm.demo.terminal import TerminalView, pleasant_fps
from sddlm.demo.tokens import TokenTexts, printable
from sddlm.errors import ConfigError


class Words:
    """A tokenizer of a few awkward tokens."""

    texts = ("a", " cat", "\n", "\x1b[31mred", "[bold]", "漢字", "\r", "\u202e", "\ud800")
    calls = 0

    def decode(self, ids):
        self.calls += 1
        return "".join(self.texts[i] for i in ids)


def run(console, steps=40, B=3, L=30, tokenizer=None, **options):
    g = torch.Generator().manual_seed(0)
    x = torch.randint(0, 9, (B, L), generator=g)
    x[:, :9] = torch.arange(9)
    with TerminalView(tokenizer or Words(), console=console, steps=steps, **options) as on_step:
        for step in range(1, steps + 1):
            x = x.clone()
            x[:, step % L] = 1
            before = x.clone()
            on_step(step, 1 - step / steps, x)
            assert torch.equal(x, before)
    return console.file.getvalue()


def test_without_a_terminal_a_few_frames_are_printed():
    shown = run(Console(file=io.StringIO(), width=90))
    times = [float(t) for t in re.findall(r"step .+?/40   t ([\d.]+)", shown)]
    assert times == [0.975, 0.75, 0.5, 0.25]
    assert "\x1b" not in shown
    assert "- steps/s" in shown  # not known at the first frame
    assert len(re.findall(r"\d steps/s   \d+ s left", shown)) == 3


def test_at_the_end_there_is_the_text_alone():
    tokens = torch.tensor([[1, 0, 0, 1] * 8 + [2, 1, 2]])  # lines wider than the console, and not
    console = Console(file=io.StringIO(), width=30)
    with TerminalView(Words(), console=console) as on_step:
        on_step(1, 0.5, tokens)
        on_step(2, 0.0, tokens)
    text = Words().decode(tokens[0].tolist())
    assert console.file.getvalue().endswith("\n" + text + "\n")  # its own line ends and no others


def test_nothing_in_a_token_reaches_the_terminal_as_a_command():
    shown = run(Console(file=io.StringIO(), width=500))
    assert not set(shown) & {"\x1b", "\r", "\u202e", "\ud800"}
    assert "[bold]" in shown  # not read as markup
    shown.encode()


@pytest.mark.parametrize("width", [20, 60])
def test_lines_are_no_wider_than_the_terminal(width):
    shown = run(Console(file=io.StringIO(), width=width), nfe=lambda: 7)
    frames = shown[: shown.rindex("step ")]  # then comes the text
    assert max(map(cell_len, frames.splitlines())) <= width
    assert ("changed" in shown, "nfe 7" in shown) == (width > 20, width > 20)
    assert "step 1/40" in shown


@pytest.mark.parametrize("width", range(12, 90, 7))
def test_of_the_status_only_whole_parts_are_shown(width):
    shown = run(Console(file=io.StringIO(), width=width), nfe=lambda: 7)
    parts = ("t [.0-9]+", r"changed \d+", "nfe 7", r"\S+ steps/s", r"\d+ s left")
    told = [line.rstrip() for line in shown.splitlines() if line.startswith("step ")]
    assert len(told) == 4
    for line in told:
        first, *rest = line.split("   ")
        assert re.fullmatch(r"step \d+/40", first)
        for part, wanted in zip(rest, parts, strict=False):
            assert re.fullmatch(wanted, part)


def test_on_a_terminal_it_is_redrawn_in_place_and_put_back():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)
    shown = run(console)
    assert "\x1b[?25l" in shown  # the cursor was hidden
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown.split("\x1b[?25l")[-1]
    assert "40/40" in shown
    assert max(map(cell_len, re.sub(r"\x1b\[[\d;?]*\w", "", shown).splitlines())) <= 60


@pytest.mark.parametrize(("width", "height"), [(8, 4), (20, 6), (80, 24)])
def test_a_frame_fits_the_terminal(width, height, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height)
    monkeypatch.setattr(terminal, "time", Clock())
    with TerminalView(Words(), console=console, steps=3, fps=1) as on_step:
        for step in (1, 2):
            on_step(step, 1 - step / 3, torch.full((1, 200), step))
            shown = console.render_lines(on_step._live.renderable, pad=False)
            assert len(shown) <= height - 1 or height < 5  # the cursor stands below
    assert console.file.getvalue().count("\x1b[?25h") == 1


def test_a_terminal_that_cannot_redraw_is_none(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    shown = run(Console(file=io.StringIO(), force_terminal=True, width=60))
    assert "\x1b[?25l" not in shown
    assert shown.count("step ") == 4


class Clock(SimpleNamespace):
    """Time that passes while one sleeps, and a millisecond whenever one looks."""

    now, slept = 0.0, ()

    def perf_counter(self):
        self.now += 0.001
        return self.now

    def sleep(self, seconds):
        self.slept += (seconds,)
        self.now += seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "fps", "seen"), [(10, 5.0, 10), (10, 0.0, 2), (1000, 100.0, 201)]
)
def test_a_fast_run_waits_for_the_eye(monkeypatch, steps, fps, seen):
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)
    frames = []
    monkeypatch.setattr(TerminalView, "_redraw", spy(TerminalView._redraw, frames))
    with TerminalView(Words(), console=console, steps=steps, fps=fps) as on_step:
        for step in range(1, steps + 1):
            on_step(step, 1 - step / steps, torch.full((1, 9), step % 9))
    assert len(frames) == seen + 1  # and the finished text
    waits = len(frames) - 1 if fps else 0
    assert len(clock.slept) == waits
    assert sum(clock.slept) == pytest.approx(on_step.paused)
    assert on_step.paused <= waits / (fps or 1)
    assert on_step.paused >= waits * (1 / fps - 0.02) if fps else True


def spy(method, calls):
    def spied(self, *arguments):
        calls.append(arguments)
        return method(self, *arguments)

    return spied


def test_the_rate_is_the_samplers_and_the_time_left_is_the_viewers(monkeypatch):
    monkeypatch.setattr(terminal, "time", Clock())
    console = Console(file=io.StringIO(), force_terminal=True, width=90, height=20)
    with TerminalView(Words(), console=console, steps=100, fps=1) as on_step:
        for step in range(51):
            on_step(step, 1 - step / 100, torch.zeros(1, 9, dtype=torch.int64))
    last = re.findall(r"step 50/100.+?([\d.e+]+) steps/s   (\d+) s left", console.file.getvalue())
    rate, left = map(float, last[0])
    assert left == pytest.approx(50, abs=1)  # a second a frame
    assert rate > 100


def test_what_it_takes_to_watch():
    seconds = {steps: steps / pleasant_fps(steps) for steps in (16, 64, 128)}
    assert all(5 <= took <= 8 for took in seconds.values())
    assert pleasant_fps(4) == 2
    assert pleasant_fps(1024) == 30


@pytest.mark.parametrize("fps", [-1, float("nan"), float("inf")])
def test_a_wrong_rate(fps):
    with pytest.raises(ConfigError, match="`fps` is"):
        TerminalView(Words(), fps=fps)


def test_it_watches_one_run_after_another():
    console = Console(file=io.StringIO(), width=90)
    on_step = TerminalView(Words(), console=console, steps=4, title="[b]mine")
    for token in (1, 4):
        for step in range(5):
            on_step(step, 1 - step / 4, torch.full((1, 3), token))
    shown = console.file.getvalue()
    assert shown.count("step 0/4   t 1.000   changed 0") == 2
    assert shown.count("[b]mine") == 8
    assert "\n cat cat cat\n" in shown
    assert shown.endswith("\n[bold][bold][bold]\n")


def styles_of(tokens, known=None, before=None):
    """(text, style) of each token of a frame."""
    console = Console(file=io.StringIO(), width=60)
    on_step = TerminalView(Words(), console=console, known=known)
    if before is not None:
        on_step._frame(0, 1.0, before)
    panel, _ = on_step._frame(1, 0.5, tokens).renderables
    text = panel.renderable
    return [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]


def test_colors_tell_noise_changed_settled_and_given():
    known = torch.tensor([[True, False, False]])
    start, then = torch.tensor([2, 2, 2]), torch.tensor([2, 2, 1])
    assert styles_of(then, known, start) == [
        ("\n", terminal.GIVEN), ("↵", terminal.NOISE), (" cat", terminal.CHANGED)
    ]  # fmt: skip
    console = Console(file=io.StringIO(), width=60)
    on_step = TerminalView(Words(), console=console)
    for x in (start, then, then):
        panel, _ = on_step._frame(1, 0.5, x).renderables
    kinds = [str(span.style) for span in panel.renderable.spans]
    assert kinds == [terminal.NOISE, terminal.NOISE, terminal.SETTLED]
    assert "underline" in terminal.GIVEN
    assert len({terminal.GIVEN, terminal.NOISE, terminal.CHANGED, terminal.SETTLED}) == 4
    assert "given" not in panel.subtitle.plain
    assert "just changed" in panel.subtitle.plain


def test_a_token_without_text_can_be_seen():
    class Ends:
        def decode(self, ids):
            return "".join(["", "a"][i] for i in ids)

    console = Console(file=io.StringIO(), width=60)
    with TerminalView(Ends(), console=console) as on_step:
        on_step(1, 0.5, torch.tensor([[1, 0, 1]]))
        on_step(2, 0.0, torch.tensor([[1, 0, 1]]))
    assert "a▫a" in console.file.getvalue()
    assert console.file.getvalue().endswith("\naa\n")  # but it is no part of the text


def test_a_failure_while_sampling_puts_the_terminal_back():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)

    def fail():
        with TerminalView(Words(), console=console) as on_step:
            on_step(1, 0.9, torch.zeros(1, 4, dtype=torch.int64))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert "\x1b[?25h" in console.file.getvalue()


def test_a_sample_other_than_the_first():
    shown = run(Console(file=io.StringIO(), width=60), sample=2)
    assert "sample 2" in shown


def test_printable():
    assert printable("a b") == "a b"
    assert printable("\n\t\x00\x1b\x7f\x85\u200d") == "↵⇥␀␛␡··"
    assert printable("\ud800") == "\N{REPLACEMENT CHARACTER}"
    assert printable("漢é") == "漢é"


def test_tokens_are_decoded_once():
    tokenizer = Words()
    texts = TokenTexts(tokenizer)
    assert [texts(1), texts(1)] == [" cat", " cat"]
    assert tokenizer.calls == 1


def test_parts_of_a_character_are_joined_at_the_first():
    tokenizer = Tokenizer.bytes()
    ids = tokenizer.encode_batch(["aé€"])[0]
    line = TokenTexts(tokenizer).line([*ids, ids[1]])
    assert line == ["a", "é", "", "€", "", "", "\N{REPLACEMENT CHARACTER}"]
