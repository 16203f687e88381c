import base64
import hashlib
import html.parser
import json
import re

import pytest
import torch

from sddlm.data.tokenizer import Tokenizer
from sddlm.demo.page import Frames, Recorder, Recording, write_page
from sddlm.demo.payload import moments_of, payload
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
    data = payload([Recording("", frames)], Words())
    (take,) = data["takes"]
    assert take["at"] == [0, 1, 2, 3, 4]
    assert data["moments"] == take["times"] == [0.8, 0.6, 0.4, 0.2, 0.0]
    for b, sample in enumerate(take["samples"]):
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
    policy = re.search(r"default-src 'none'; style-src '(.+?)'; script-src '(.+?)'\"", page)
    script = page.rpartition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy[2] == f"sha256-{digest}"  # nothing else may run
    assert '<html lang="en">' in page
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page
    assert "&lt;i&gt;" in page
    assert "{{" not in page
    assert [p.name for p in tmp_path.iterdir()] == ["page.html"]


def test_given_places_are_marked():
    known = torch.zeros(2, 9, dtype=torch.bool)
    known[1, 3] = True
    data = payload([Recording("", some_frames(), known=known)], Words())
    assert [sample["known"] for sample in data["takes"][0]["samples"]] == [[], [3]]


def test_parts_of_a_character_are_shown_together():
    tokenizer = Tokenizer.bytes()
    ids = tokenizer.encode_batch(["é€x"])[0]  # two bytes, three bytes, one byte
    frames = Frames(torch.tensor([[ids], [ids]]), [1, 2], [0.5, 0.0])
    data = payload([Recording("", frames)], tokenizer)
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


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_a_recorder_keeps_its_own_copy_of_the_first_samples(dtype):
    recorder = Recorder(samples=2)
    x = torch.zeros(5, 3, dtype=dtype)
    recorder(1, 0.0, x)
    x += 1
    assert recorder.frames().tokens.tolist() == [[[0, 0, 0], [0, 0, 0]]]


def test_two_recordings_share_their_texts_and_the_time(tmp_path):
    one, two = some_frames(F=5), some_frames(F=3, seed=1)
    two = Frames(two.tokens, [0, 1, 2], [1.0, 0.4, 0.0])
    recordings = [Recording("a <i>", one, ["x"]), Recording("b\x1b", two)]
    data, _ = data_of(write_page(tmp_path / "two.html", recordings, Words()).read_text())
    assert data["moments"] == [1.0, 0.8, 0.6, 0.4, 0.2, 0.0]
    assert [take["at"] for take in data["takes"]] == [[0, 0, 1, 2, 3, 4], [0, 0, 0, 1, 1, 2]]
    assert [take["label"] for take in data["takes"]] == ["a <i>", "b␛"]
    assert data["takes"][0]["notes"] == ["x"]
    used = sorted({*one.tokens.flatten().tolist(), *two.tokens.flatten().tolist()})
    firsts = [[used[i] for i in take["samples"][1]["first"]] for take in data["takes"]]
    assert firsts == [one.tokens[0, 1].tolist(), two.tokens[0, 1].tolist()]


def test_moments_of_samplers_that_stay_at_a_time():
    times = [[0.9, 0.9, 0.9, 0.0], [1.0, 0.9, 0.9 + 1e-9, 0.0]]  # the third is a rounding error
    moments, at = moments_of(times)
    assert moments == [1.0, 0.9, 0.9, 0.9, 0.0]
    assert at == [[0, 0, 1, 2, 3], [0, 1, 2, 2, 3]]
    assert moments_of([[0.5, 0.7, 0.0]]) == ([0.5, 0.5, 0.0], [[0, 1, 2]])  # no way back


def test_recordings_that_cannot_stand_side_by_side(tmp_path):
    one, path = some_frames(), tmp_path / "page.html"
    none = torch.zeros(2, 9, dtype=torch.bool)
    for recordings, more, message in (
        ([], {}, "1 or 2 recordings, not 0"),
        ([Recording("", one)] * 3, {}, "1 or 2 recordings, not 3"),
        ([Recording("", one), Recording("", some_frames(B=1))], {}, "2 and 1 samples"),
        ([Recording("", some_frames(B=0))], {}, "no tokens"),
        ([Recording("", one)], {"known": none}, "give it to each Recording"),
    ):
        with pytest.raises(ConfigError, match=message):
            write_page(path, recordings, Words(), **more)
    assert not path.exists()


def test_misuse_is_an_error():
    with pytest.raises(ConfigError, match="nothing was recorded"):
        Recorder().frames()
    with pytest.raises(ConfigError, match="at least 2 frames"):
        Recorder(1)
