import io

import pytest
import torch
from rich.console import Console

from sddlm.data.tokenizers import Tokenizer
from sddlm.demo.terminal import watch
from sddlm.demo.tokens import TokenTexts, printable


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
    with watch(tokenizer or Words(), console=console, steps=steps, **options) as on_step:
        for step in range(1, steps + 1):
            x = x.clone()
            x[:, step % L] = 1
            before = x.clone()
            on_step(step, 1 - step / steps, x)
            assert torch.equal(x, before)
    return console.file.getvalue()


def test_without_a_terminal_a_few_frames_are_printed():
    shown = run(Console(file=io.StringIO(), width=60))
    assert shown.count("steps/s") + shown.count(" -\n") <= 5
    assert 4 <= shown.count("step ") <= 6
    assert "step 40/40   t 0.000" in shown


def test_nothing_in_a_token_reaches_the_terminal_as_a_command():
    shown = run(Console(file=io.StringIO(), width=500))
    assert not set(shown) & {"\x1b", "\r", "\u202e", "\ud800"}
    assert "[bold]" in shown  # not read as markup
    shown.encode()


@pytest.mark.parametrize("width", [20, 60])
def test_lines_are_no_wider_than_the_terminal(width):
    from rich.cells import cell_len

    shown = run(Console(file=io.StringIO(), width=width))
    assert max(map(cell_len, shown.splitlines())) <= width


def test_on_a_terminal_it_is_redrawn_in_place_and_put_back():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)
    shown = run(console)
    assert "\x1b[?25l" in shown  # the cursor was hidden
    assert shown.rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in shown.split("\x1b[?25l")[-1]
    assert "40/40" in shown


def test_a_failure_while_sampling_puts_the_terminal_back():
    console = Console(file=io.StringIO(), force_terminal=True, width=60, height=20)

    def fail():
        with watch(Words(), console=console) as on_step:
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
