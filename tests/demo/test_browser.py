"""The page in a real Chromium without a window: what one sees, hears and can do."""

import os
import re
from contextlib import contextmanager

import pytest
import torch
from playwright.sync_api import sync_playwright

import chromium
from sddlm.data.tokenizer import Tokenizer
from sddlm.demo.page import Frames, Recording, write_page
from sddlm.sampling.entropy import entropies

EVIL = "</script><img src=x onerror=alert(1)>"


class Words:
    """A tokenizer of a few words, one of them without text, one evil."""

    texts = (" the", " cat", " sat", "\n", EVIL, "", " mat", "ly", "{{data}}", " <b>on</b>")

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def some_frames(F=9, B=3, L=40, seed=0, start=1.0):
    """Tokens that change at a third of the places from moment to moment."""
    g = torch.Generator().manual_seed(seed)
    tokens = [torch.randint(0, 10, (B, L), generator=g)]
    for _ in range(F - 1):
        change = torch.rand(B, L, generator=g) < 0.3
        tokens.append(torch.where(change, torch.randint(0, 10, (B, L), generator=g), tokens[-1]))
    times = [start * (1 - f / (F - 1)) for f in range(F)]
    return Frames(torch.stack(tokens), list(range(F)), times)


@pytest.fixture(scope="module")
def browser():
    if (path := chromium.find()) is None:
        pytest.skip("needs Chromium, which `make browser` installs")
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=arguments, timeout=600_000)
        yield found
        found.close()


@contextmanager
def opened(browser, path, at="", motion="reduce", width=1000, height=800):
    """The page; it must not complain, ask for anything else or let anything run.

    Its clock stands still but for ``page.clock.run_for(milliseconds)``.
    """
    said, asked = [], []
    with browser.new_context(
        viewport={"width": width, "height": height}, reduced_motion=motion
    ) as context:
        page = context.new_page()
        page.set_default_timeout(600_000)  # of a busy machine
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append("a dialog"), dialog.dismiss()))
        page.on("request", lambda request: asked.append(request.url))
        page.clock.install(time=0)
        page.clock.pause_at(1)
        page.goto(f"{path.as_uri()}{at}")
        yield page
    assert said == []
    assert asked == [path.as_uri()]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """A page of one take, and its frames."""
    frames = some_frames()
    known = torch.zeros(3, 40, dtype=torch.bool)
    known[0, :2] = True
    frames.tokens[:, 0, :2] = 1
    path = tmp_path_factory.mktemp("one") / "page.html"
    return write_page(path, frames, Words(), notes=[EVIL], known=known), frames


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A page of two takes, and their frames."""
    a, b = some_frames(F=9), some_frames(F=5, seed=1)
    path = tmp_path_factory.mktemp("two") / "page.html"
    recordings = [Recording("Lazy, 8 steps", a, ["nfe 7"]), Recording(f"Psi {EVIL}", b)]
    return write_page(path, recordings, Words(), title=EVIL), a, b


def moment(page):
    return int(page.locator("#slider").input_value())


def set_slider(page, value):
    page.locator("#slider").fill(str(value))


def tokens_shown(page, take=0):
    return page.locator(".text").nth(take).locator(".tok").all_text_contents()


def texts(row, breaks=True):
    shown = [Words.texts[i] for i in row.tolist()]
    return shown if breaks else [text.replace("\n", "↵") for text in shown]


def heights(page, curve, line="a"):
    """The points of a curve: [(x, y), ...]."""
    d = page.locator(f"#{curve} path.{line}").get_attribute("d")
    return [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", d)]


def history(page):
    """(text, when, now?) of each token of the picked place."""
    return [
        (
            item.locator("code").text_content(),
            item.locator("small").text_content(),
            item.get_attribute("class") == "now",
        )
        for item in page.locator("#history li").all()
    ]


def history_of(frames, b, place, at):
    """What `history` should be."""
    rows, told = frames.tokens[:, b, place].tolist(), []
    for f, token in enumerate(rows):
        if f == 0 or token != rows[f - 1]:
            text = Words.texts[token].replace("\n", "↵")
            when = f"{f'step {frames.steps[f]}' if f else 'at first'}, t {frames.times[f]:.3f}"
            told.append([text if text.strip() else f"“{text}”", when, f])
    now = max(f for *_, f in told if f <= at)
    return [(text, when, f == now) for text, when, f in told]


@pytest.mark.slow
def test_it_plays_by_itself_to_the_end_and_can_be_stopped(browser, one):
    with opened(browser, one[0], motion="no-preference") as page:
        page.clock.run_for(2500)  # a moment lasts a second
        assert moment(page) == 2
        page.locator("#play").click()
        assert page.locator("#play").inner_text() == "▶ Play"
        page.clock.run_for(9000)
        assert moment(page) == 2
        page.locator("#speed").select_option("4")
        page.locator("#play").click()
        assert page.locator("#play").inner_text() == "❚❚ Pause"
        page.clock.run_for(1500)
        assert moment(page) == 8
        assert page.locator("#play").inner_text() == "↻ Replay"


@pytest.mark.slow
def test_it_does_not_move_for_who_does_not_want_it(browser, one):
    with opened(browser, one[0]) as page:
        page.clock.run_for(9000)
        assert moment(page) == 0
        page.locator("#play").click()
        page.clock.run_for(1000)
        assert moment(page) == 1


@pytest.mark.slow
def test_every_moment_shows_its_tokens_and_numbers(browser, one):
    path, frames = one
    with opened(browser, path) as page:
        for f, step in enumerate(frames.steps):
            set_slider(page, f)
            row = frames.tokens[f, 0]
            fresh = row != frames.tokens[max(f - 1, 0), 0]
            stays = (frames.tokens[f:, 0] == row).all(0)
            shown = tokens_shown(page)
            for place in range(40):
                breaks = bool(stays[place]) or place < 2
                assert shown[place] == texts(row[place : place + 1], breaks)[0]
            assert page.locator(".take h2").count() == 0
            names = page.locator(".tok").evaluate_all("all => all.map(one => one.className)")
            for place, name in enumerate(names):
                kind = "given" if place < 2 else "settled" if stays[place] else "noise"
                assert name.split() == [
                    "tok", kind, *(["fresh"] if fresh[place] else []),
                    *(["end"] if shown[place] == "\n" else []),
                ]  # fmt: skip

            assert page.locator("#where").inner_text().split() == [
                "step", f"{step}/8", "t", f"{frames.times[f]:.3f}"
            ]  # fmt: skip
            assert page.locator("#changesNow").inner_text() == str(int(fresh.sum()))
            assert page.locator("#entropyNow").inner_text() == f"{entropies(row[None])[0]:.3f}"


@pytest.mark.slow
def test_the_last_moment_is_the_text(browser, tmp_path):
    tokenizer = Tokenizer.bytes()
    text = f"Ça coûte 3 €, \U0001f600 {EVIL}\nline two & <i>three</i>  "
    final = torch.tensor(tokenizer.encode_batch([text]))  # [1, L]
    noise = torch.randint(0, 256, final.shape, generator=torch.Generator().manual_seed(0))
    frames = Frames(torch.stack([noise, final]), [0, 1], [1.0, 0.0])
    with opened(browser, write_page(tmp_path / "a.html", frames, tokenizer), "#moment=1") as page:
        assert "".join(tokens_shown(page)) == text
        assert page.locator(".text img, .text i").count() == 0


@pytest.mark.slow
def test_a_take_alone_has_its_name(browser, tmp_path):
    take = Recording("Lazy, 8 steps", some_frames(), ["nfe 7"])
    with opened(browser, write_page(tmp_path / "a.html", [take], Words())) as page:
        assert page.locator(".take h2").all_inner_texts() == ["Lazy, 8 steps"]
        assert page.locator(".facts").all_inner_texts() == ["nfe 7"]
        assert page.locator("#where").inner_text().split() == ["step", "0/8", "t", "1.000"]


@pytest.mark.slow
def test_the_curves_are_those_of_the_frames(browser, two):
    path, a, b = two
    with opened(browser, path, "#sample=2") as page:
        assert page.locator("#sample").input_value() == "1"
        changes = [(f.tokens[1:, 1] != f.tokens[:-1, 1]).sum(1).tolist() for f in (a, b)]
        entropy = [entropies(f.tokens[:, 1]).tolist() for f in (a, b)]
        low = 0.95 * min(map(min, entropy))
        for curve, values, bottom, first in (
            ("changes", changes, 0, 1),
            ("entropy", entropy, low, 0),
        ):
            top = max(map(max, values))
            for line, own, stride in (("a", values[0], 1), ("b", values[1], 2)):
                wanted = [
                    (300 * (k + first) * stride / 8, 93 - 90 * (v - bottom) / (top - bottom))
                    for k, v in enumerate(own)
                ]
                assert heights(page, curve, line) == [
                    (pytest.approx(x, abs=0.01), pytest.approx(y, abs=0.01)) for x, y in wanted
                ]
        assert page.locator("#changesTop").inner_text() == f"up to {max(map(max, changes))}"


@pytest.mark.slow
def test_a_click_on_a_curve_goes_there(browser, one):
    with opened(browser, one[0]) as page:
        for curve, to in (("changes", 6), ("entropy", 2)):
            box = page.locator(f"#{curve}").bounding_box()
            page.locator(f"#{curve}").click(position={"x": box["width"] * to / 8, "y": 40})
            assert moment(page) == to
            assert float(page.locator(f"#{curve} .now").get_attribute("x1")) == 300 * to / 8


@pytest.mark.slow
def test_the_history_of_a_place_under_the_pointer(browser, one):
    path, frames = one
    with opened(browser, path, "#moment=5") as page:
        assert page.locator("#hint").is_visible()
        page.locator(".tok").nth(11).hover()
        assert history(page) == history_of(frames, 0, 11, 5)
        page.locator(".tok").nth(12).hover()
        assert history(page) == history_of(frames, 0, 12, 5)
        set_slider(page, 2)
        assert history(page) == history_of(frames, 0, 12, 2)
        page.locator(".tok").nth(20).click()  # holds it
        page.locator(".tok").nth(12).hover()
        assert history(page) == history_of(frames, 0, 20, 2)
        assert page.locator("#place").inner_text() == "position 21 of 40"
        page.keyboard.press("Escape")
        assert history(page) == []


@pytest.mark.slow
def test_every_token_has_its_history(browser, one):
    path, frames = one
    with opened(browser, path, "#moment=8&sample=2") as page:
        tokens = page.locator(".tok")
        for place in range(0, 40, 7):
            tokens.nth(place).focus()
            assert history(page) == history_of(frames, 1, place, 8)


@pytest.mark.slow
def test_the_keyboard_alone_does_everything(browser, one):
    path, frames = one
    with opened(browser, path) as page:
        press = page.keyboard.press
        active = "document.activeElement.id || document.activeElement.className"
        order = []
        for _ in range(5):
            press("Tab")
            order.append(page.evaluate(active).split(" ")[0])
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid"  # one sees where one is
        assert order == ["play", "slider", "sample", "speed", "tok"]
        # in the text: from token to token
        press("ArrowRight")
        press("ArrowRight")
        press("ArrowRight")
        press("ArrowLeft")
        assert history(page) == history_of(frames, 0, 2, 0)
        press("End")
        assert history(page) == history_of(frames, 0, 39, 0)
        press("Home")
        assert history(page) == history_of(frames, 0, 0, 0)
        assert moment(page) == 0
        # elsewhere: through time
        page.locator("#slider").focus()
        for key, to in (("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("End", 8)):
            press(key)
            assert moment(page) == to
        assert page.locator("#slider").get_attribute("aria-valuetext") == "step 8/8\u2002 t 0.000"
        press("Home")
        page.locator("#play").focus()
        press("ArrowRight")
        assert moment(page) == 1
        for key in (" ", "Enter"):  # of the button itself: on and off
            press(key)
        assert page.locator("#play").inner_text() == "▶ Play"
        page.locator("#sample").focus()
        press("ArrowDown")
        assert tokens_shown(page) == [
            text if stays else text.replace("\n", "↵")
            for text, stays in zip(
                texts(frames.tokens[1, 1]),
                (frames.tokens[1:, 1] == frames.tokens[1, 1]).all(0),
                strict=True,
            )
        ]
        page.locator(".tok").first.focus()
        press(" ")
        assert page.locator("#play").inner_text() == "❚❚ Pause"
        press(" ")
        assert page.locator("#play").inner_text() == "▶ Play"


@pytest.mark.slow
def test_two_takes_stay_at_the_same_time(browser, two):
    path, a, b = two
    with opened(browser, path) as page:
        labels = page.locator(".take .name").all_text_contents()
        assert labels == ["Lazy, 8 steps", f"Psi {EVIL}"]
        assert page.locator(".facts").all_text_contents() == ["nfe 7"]
        for m in range(9):
            set_slider(page, m)
            for take, (frames, f) in enumerate(((a, m), (b, m // 2))):
                told = page.locator(".take .at").nth(take).inner_text().split()
                assert told == [
                    "step",
                    f"{f}/{len(frames.steps) - 1}",
                    "t",
                    f"{frames.times[f]:.3f}",
                ]
                row = frames.tokens[f, 0]
                shown = [text.replace("\n", "↵") for text in tokens_shown(page, take)]
                assert shown == texts(row, breaks=False)
            assert page.locator("#where").inner_text() == f"t {a.times[m]:.3f}"
        page.locator(".text").nth(1).locator(".tok").nth(4).click()
        both = history_of(a, 0, 4, 8) + history_of(b, 0, 4, 4)
        assert history(page) == both
        assert page.locator(".tok.picked").count() == 2
        first, second = page.locator(".take").all()
        assert first.bounding_box()["y"] == second.bounding_box()["y"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["one", "two"])
def test_it_can_be_read_on_a_phone(browser, request, name):
    path = request.getfixturevalue(name)[0]
    with opened(browser, path, "#moment=4&place=5", width=360, height=640) as page:
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 360
        sizes = page.evaluate(
            """[...document.querySelectorAll("body *")].filter((n) => n.checkVisibility()
              && [...n.childNodes].some((c) => c.nodeType === 3 && c.data.trim()))
              .map((n) => [parseFloat(getComputedStyle(n).fontSize), n.tagName])"""
        )
        assert len(sizes) > 40
        assert min(sizes)[0] >= 14
        tall = [take.bounding_box()["y"] for take in page.locator(".take").all()]
        assert len(set(tall)) == len(tall)  # one below the other
        page.locator(".tok").nth(7).scroll_into_view_if_needed()
        page.locator(".tok").nth(7).click()
        box = page.locator(".history").bounding_box()  # in sight at once
        assert box["y"] < 640
        assert page.locator("#place").inner_text() == "position 8 of 40"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser, one, scheme):
    """At least 4.5 between text and what is behind it (WCAG 2.2, 1.4.3)."""
    with opened(browser, one[0], "#moment=4") as page:
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        found = page.evaluate(
            """[".tok.noise:not(.fresh)", ".tok.settled:not(.fresh)", ".tok.given:not(.fresh)",
              ".tok.fresh", ".notes", ".where", ".help", "#play", "#hint", "h1"].map((name) => {
                const node = document.querySelector(name), own = getComputedStyle(node);
                let behind = node;
                while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)")
                  behind = behind.parentElement;
                return [name, own.color, getComputedStyle(behind).backgroundColor];
              })"""
        )
    for name, *colors in found:
        light, dark = sorted(map(luminance, colors), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def luminance(color):
    """Relative luminance of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_a_page_is_small(tmp_path):
    """Of 64 tokens, 128 steps and 4 samples of a large vocabulary."""

    class Numbers:
        def decode(self, ids):
            return "".join(f" word{i}" for i in ids)

    g = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 50_000, (4, 64), generator=g)]
    for step in range(1, 129):  # about 2 ln(steps) changes of a place
        change = torch.rand(4, 64, generator=g) < 2 / step
        rows.append(torch.where(change, torch.randint(0, 50_000, (4, 64), generator=g), rows[-1]))
    frames = Frames(torch.stack(rows), list(range(129)), [1 - i / 128 for i in range(129)])
    assert write_page(tmp_path / "page.html", frames, Numbers()).stat().st_size < 200_000
