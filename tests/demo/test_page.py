import html.parser
import json
import re

import pytest
import torch

from sddlm.data.tokenizers import Tokenizer
from sddlm.demo.page import Frames, Recorder, payload, write_page
from sddlm.errors import ConfigError


class Words:
    """A tokenizer of a few awkward tokens."""

    texts = ("a", " b", "</script><script>alert(1)</script>", "\n", "<!--", "\u202e\x1b[31m", "&")

    def decode(self, ids):
        return "".join(self.texts[i] for i in ids)


def some_frames(F=5, B=2, L=9, V=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, V, (F, B, L), generator=g)
    return Frames(tokens, list(range(1, F + 1)), [1 - (i + 1) / F for i in range(F)])


def data_of(page):
    """What the page's script would parse."""

    class Reader(html.parser.HTMLParser):
        inside, found, scripts = False, "", 0

        def handle_starttag(self, tag, attributes):
            self.scripts += tag == "script"
            self.inside = dict(attributes).get("id") == "data"

        def handle_data(self, data):
            self.found += data if self.inside else ""

        def handle_endtag(self, tag):
            self.inside = False

    reader = Reader()
    reader.feed(page)
    return json.loads(reader.found), reader.scripts


def test_the_payload_tells_every_moment():
    frames = some_frames()
    data = payload(frames, Words())
    for b, sample in enumerate(data["samples"]):
        row = list(sample["first"])
        rows = [list(row)]
        for changes in sample["changes"]:
            for place, token in zip(changes[::2], changes[1::2], strict=True):
                assert row[place] != token
                row[place] = token
            rows.append(list(row))
        used = frames.tokens.unique().tolist()
        assert [[used[i] for i in r] for r in rows] == frames.tokens[:, b].tolist()


def test_awkward_tokens_cannot_leave_the_data(tmp_path):
    path = write_page(tmp_path / "new" / "page.html", some_frames(), Words(), title="{{data}} <b>")
    page = path.read_text(encoding="utf-8")
    data, scripts = data_of(page)
    assert scripts == 2
    assert "</script><script>alert(1)</script>" in data["texts"]
    assert page.count("</script>") == 2
    assert "alert(1)" in page
    assert "<title>{{data}} &lt;b&gt;</title>" in page
    assert "\x1b" not in json.dumps(data["texts"], ensure_ascii=False)
    assert "·␛[31m" in data["texts"]


def test_the_page_needs_nothing_else(tmp_path):
    page = write_page(tmp_path / "page.html", some_frames(), Words(), notes=["<i>"]).read_text()
    assert not re.search(r"https?:|src=|@import|url\(", page)
    assert "default-src 'none'" in page
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert "&lt;i&gt;" in page
    assert "{{" not in page
    for wanted in ('id="play"', 'id="slider"', 'id="sample"', "ArrowLeft", "aria-label"):
        assert wanted in page
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_given_places_are_marked():
    known = torch.zeros(2, 9, dtype=torch.bool)
    known[1, 3] = True
    data = payload(some_frames(), Words(), known=known)
    assert [sample["known"] for sample in data["samples"]] == [[], [3]]


def test_parts_of_a_character_are_shown_together():
    tokenizer = Tokenizer.bytes()
    ids = tokenizer.encode_batch(["é€x"])[0]  # two bytes, three bytes, one byte
    data = payload(Frames(torch.tensor([[ids], [ids]]), [1, 2], [0.5, 0.0]), tokenizer)
    place = {i: n for n, i in enumerate(sorted(set(ids)))}
    assert data["joins"][",".join(str(place[i]) for i in ids[:2])] == "é"
    assert data["joins"][",".join(str(place[i]) for i in ids[2:5])] == "€"


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 37, 1000])
def test_a_recorder_keeps_evenly_and_the_last_step(steps):
    recorder = Recorder(10)
    for step in range(1, steps + 1):
        recorder(step, 1 - step / steps, torch.full((2, 3), step))
    frames = recorder.frames()
    assert len(frames.steps) <= 10
    assert frames.tokens.shape == (len(frames.steps), 2, 3)
    assert frames.tokens[:, 0, 0].tolist() == frames.steps  # copies, not views of one tensor
    assert frames.steps[0] == 1
    assert frames.steps[-1] == steps
    assert frames.times[-1] == 0
    gaps = {b - a for a, b in zip(frames.steps[:-2], frames.steps[1:-1], strict=False)}
    assert len(gaps) <= 1  # even but for the last
    if steps <= 9:
        assert frames.steps == list(range(1, steps + 1))


def test_a_recorder_keeps_its_own_copy_of_the_first_samples():
    recorder = Recorder(samples=2)
    x = torch.zeros(5, 3, dtype=torch.int64)
    recorder(1, 0.0, x)
    x += 1
    assert recorder.frames().tokens.tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_misuse_is_an_error():
    with pytest.raises(ConfigError, match="nothing was recorded"):
        Recorder().frames()
    with pytest.raises(ConfigError, match="at least 2 frames"):
        Recorder(1)
