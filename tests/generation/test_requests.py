"""What is asked for, in tokens."""

import json
from collections import Counter

import pytest

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.generation.request import Blank, Request, blanks, encode, lay_out, read_requests

BYTES = Tokenizer.bytes()
WORDS = Tokenizer.train_bpe(["the quick brown fox and a lazy dog said the fox"] * 9, 300)
EOS = BYTES.eos_id


@pytest.mark.parametrize(
    ("template", "parts"),
    [
        ("The {3} fox", ("The ", Blank(3, 3), " fox")),
        ("{1:8}", (Blank(1, 8),)),
        ("{2}{3}x", (Blank(2, 2), Blank(3, 3), "x")),
        ("a {{b}} {1}", ("a {b} ", Blank(1, 1))),
        ("{{{1}}}", ("{", Blank(1, 1), "}")),
        ("no", ("no",)),
        ("", ()),
    ],
)
def test_a_text_with_blanks_is_taken_apart(template: str, parts: tuple[object, ...]) -> None:
    assert blanks(template) == parts


@pytest.mark.parametrize("template", ["{", "}", "{}", "{x}", "{-1}", "{1:}", "a {1.5} b", "{:3}"])
def test_a_brace_that_is_no_blank_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match=r"a blank is \{3\}"):
        blanks(template)


@pytest.mark.parametrize("template", ["{0}", "{3:2}", "{0:5}", "{9999999}"])
def test_an_impossible_blank_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="is no blank"):
        blanks(template)


def laid_out(request: Request, copy: int = 0, **more: object) -> object:
    options: dict[str, object] = {"first": EOS, "length": 12, "seed": 0, **more}
    return lay_out(request, copy, BYTES, **options)  # type: ignore[arg-type]


def ids(text: str) -> list[int]:
    return BYTES.encode_batch([text])[0]


def test_a_prompt_a_suffix_and_both() -> None:
    prompt = laid_out(Request(prompt="abc"))
    assert prompt.tokens == [EOS, *ids("abc"), *[0] * 8]
    assert prompt.known == [True] * 4 + [False] * 8
    assert (prompt.spans, prompt.front, prompt.open) == ([(4, 12)], 1, True)
    suffix = laid_out(Request(suffix="abc"))
    assert suffix.tokens == [EOS, *[0] * 8, *ids("abc")]
    assert suffix.known == [True, *[False] * 8, *[True] * 3]
    assert (suffix.spans, suffix.open) == ([(1, 9)], False)
    both = laid_out(Request(prompt="ab", suffix="c", length=6))
    assert both.tokens == [EOS, *ids("ab"), 0, 0, *ids("c")]
    assert both.spans == [(3, 5)]
    bare = laid_out(Request(prompt="abc"), first=None)
    assert bare.tokens == [*ids("abc"), *[0] * 9]
    assert (bare.front, bare.spans) == (0, [(3, 12)])
    free = laid_out(Request())
    assert (free.tokens, free.known, free.front) == ([0] * 12, [False] * 12, 0)
    begun = laid_out(Request(prompt=""))
    assert begun.known == [True, *[False] * 11]


def test_blanks_have_their_sizes() -> None:
    layout = laid_out(Request(infill="a{2}bc{1}"))
    assert layout.tokens == [EOS, *ids("a"), 0, 0, *ids("bc"), 0]
    assert layout.known == [True, True, False, False, True, True, False]
    assert (layout.spans, layout.open) == ([(2, 4), (6, 7)], True)
    assert not laid_out(Request(infill="a{2}bc")).open


@pytest.mark.slow
def test_a_range_is_drawn_evenly_and_each_blank_by_itself() -> None:
    request = Request(infill="{1:4}-{1:4}")
    sizes = Counter()
    for copy in range(800):
        sizes[tuple(end - start for start, end in laid_out(request, copy).spans)] += 1
    assert len(sizes) == 16
    assert all(25 < n < 80 for n in sizes.values())
    again = [laid_out(request, 3, seed=seed).spans for seed in (0, 0, 1, 2, 3, 4)]
    assert again[0] == again[1]
    assert len({str(spans) for spans in again}) > 2


def test_spaces_before_a_blank_are_left_to_it_where_words_bring_theirs() -> None:
    assert encode(WORDS, "the ", "`prompt`", before_blank=True) == encode(WORDS, "the", "`prompt`")
    assert encode(WORDS, "the ", "`prompt`") != encode(WORDS, "the", "`prompt`")
    kept = encode(BYTES, "the ", "`prompt`", before_blank=True)
    assert kept == ids("the ")
    layout = lay_out(Request(infill="the {1} fox "), 0, WORDS, first=None, length=9, seed=0)
    fox = WORDS.encode_batch([" fox "])[0]
    assert layout.tokens == [*WORDS.encode_batch(["the"])[0], 0, *fox]


def test_randomness_is_named_by_what_is_asked() -> None:
    asked = [
        Request(), Request(seed=1), Request(prompt="a"), Request(prompt="b"), Request(suffix="a"),
        Request(infill="a{1}"), Request(prompt="a", length=5), Request(prompt="a", seed=2),
    ]  # fmt: skip
    keys = [request.key for request in asked]
    assert keys[0] == 0
    assert len(set(keys)) == len(keys)
    assert all(0 <= key < 2**56 for key in keys)
    # the number of copies and the place in a file are no part of it
    assert Request(prompt="a", count=9, where="line 3").key == keys[2]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"length": 0}, "`length` is 0"),
        ({"count": 0}, "`count` is 0"),
        ({"seed": -1}, "`seed` is -1"),
        ({"infill": "a"}, "has no blank"),
        ({"infill": ""}, "has no blank"),
        ({"infill": "{1}", "prompt": "a"}, "leave `prompt` out"),
        ({"infill": "{1}", "suffix": ""}, "leave `suffix` out"),
        ({"infill": "{1}", "length": 4}, "leave `length` out"),
    ],
)
def test_what_cannot_be_meant_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Request(**asked)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"prompt": "a" * 11}, "`prompt`: what is given takes 12 tokens .* `length` 12: try"),
        ({"suffix": "a" * 12}, "`suffix`: what is given takes 13 tokens"),
        ({"prompt": "abc", "length": 4}, "`length` 4: try `length=8`"),
    ],
)
def test_no_room_is_refused(asked: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        laid_out(Request(**asked))  # type: ignore[arg-type]
    assert laid_out(Request(prompt="a" * 10)).known.count(False) == 1


def test_characters_that_the_tokenizer_lacks_are_refused() -> None:
    letters = Tokenizer.characters(["abc"])
    for option, request in (
        ("`prompt`", Request(prompt="axb")),
        ("`suffix`", Request(suffix="x")),
        ("`infill`", Request(infill="{1}x")),
    ):
        with pytest.raises(ConfigError, match=rf"{option}: the tokenizer does not know 'x'"):
            lay_out(request, 0, letters, first=None, length=12, seed=0)


def test_a_stand_in_for_the_unknown_is_refused(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b"]))
    bert = Tokenizer.load(tmp_path)
    with pytest.raises(ConfigError, match="`prompt` 'a x': the tokenizer does not know part"):
        encode(bert, "a x", "`prompt`")
    assert encode(bert, "a b", "`prompt`") == [4, 5]
    asked, kept = Request(prompt="a x"), Request(prompt="a x", allow_unknown=True)
    assert lay_out(kept, 0, bert, first=None, length=3, seed=0).tokens == [4, 1, 0]
    assert kept.key == asked.key  # texts of what is known stay as they are


def test_a_file_of_requests() -> None:
    lines = [
        json.dumps({"prompt": "a"}),
        "",
        json.dumps({"infill": "a{1}", "count": 3}),
        json.dumps({"suffix": "b", "length": 7, "seed": 5}),
    ]
    found = read_requests(lines, "f", {"count": 2, "length": 20})
    assert found == [
        Request(prompt="a", count=2, length=20),
        Request(infill="a{1}", count=3),
        Request(suffix="b", count=2, length=7, seed=5),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "f line 2 is no JSON"),
        ("[1]", "f line 2 is no object"),
        ('{"promt": "a"}', "f line 2: promt is unknown, there are prompt,"),
        ('{"prompt": 3}', "f line 2: prompt is 3, must be text"),
        ('{"count": "3"}', "f line 2: count is '3', must be a whole number"),
        ('{"count": true}', "f line 2: count is True"),
        ('{"count": 0}', "f line 2: `count` is 0"),
        ('{"infill": "x"}', "f line 2: `infill` is 'x' and has no blank"),
        ('{"where": "x"}', "where is unknown"),
    ],
)
def test_a_wrong_line_is_named(line: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_requests(["{}", line], "f", {})


def test_an_empty_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="f is empty"):
        read_requests(["", " \n"], "f", {})
