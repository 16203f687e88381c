"""From requests to texts: batches, blocks, ends."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sddlm.cli import main
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generation, GenerationState, Generator
from sddlm.generation.request import Layout, Request
from sddlm.generation.sample import sample
from sddlm.generation.windows import next_window
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.masked import MaskedProcess
from sddlm.process.uniform import UniformProcess
from sddlm.sampling.adaptive import Adaptive
from sddlm.sampling.ancestral import Ancestral
from sddlm.sampling.autoregressive import Autoregressive
from sddlm.sampling.first_hitting import FirstHitting
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.psi import Psi

TOKENIZER = Tokenizer.bytes()
EOS, L = TOKENIZER.eos_id, 24
HOW = SamplerConfig(steps=6)


def model(
    process: Process | None = None,
    *,
    causal: bool = False,
    length: int = L,
    ends: bool = False,
    eos: bool = True,
    likely: int | None = None,
    push: float = 4.5,
) -> LanguageModel:
    """An untrained model of bytes; ``likely`` is a token that it writes more often."""
    process = process or UniformProcess()
    config = DiTConfig(
        vocab_size=TOKENIZER.vocab_size + process.extra_tokens, length=length, width=32, heads=2,
        blocks=1, head_init=0.3, causal=causal, num_extra_tokens=process.extra_tokens,
    )  # fmt: skip
    network = DiT(config, seed=2).eval()
    if likely is not None:
        with torch.no_grad():
            network.head.bias[likely] += push
    estimate = Estimate.NEXT_TOKEN if causal else Estimate.LEAVE_ONE_OUT
    data = {"packing": {"packing": "wrap", "bos_eos": ends, "eos": eos}}
    return LanguageModel(network, process, estimate, TOKENIZER, {}, data)


def write(
    loaded: LanguageModel, *requests: Request, how: SamplerConfig = HOW, **more: int
) -> list[Generation]:
    return Generator(loaded, requests, how, **more).generate()


REQUESTS = [
    Request(prompt="abc"),
    Request(count=3, length=9),
    Request(suffix="xyz", length=20),
    Request(infill="a{3}b{1:8}c", count=2),
    Request(prompt="ab", suffix="yz", length=13),
    Request(prompt="abc", length=60, count=2),
    Request(infill="{2}"),
]
PROMPTS = [Request(prompt="abc"), Request(count=2), Request(prompt="a", length=9)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loaded", "how"),
    [
        (model(), HOW),
        (model(ends=True), HOW),
        (model(), SamplerConfig(sampler="psi", preset="cap", steps=5, top_k=20)),
        (model(), SamplerConfig(sampler="adaptive", steps=8, min_p=0.01)),
        (model(MaskedProcess()), SamplerConfig(sampler="first_hitting")),
        (model(causal=True), SamplerConfig(top_p=0.9)),
    ],
    ids=["lazy", "ends", "psi", "adaptive", "first hitting", "left to right"],
)
def test_a_text_is_the_same_whatever_is_asked_beside_it(
    loaded: LanguageModel, how: SamplerConfig
) -> None:
    asked = REQUESTS if loaded.estimate.diffusion else PROMPTS
    together = write(loaded, *asked, how=how, batch=16)
    few = write(loaded, *asked, how=how, batch=2)
    turned = write(loaded, *reversed(asked), how=how, batch=3)
    for number, request in enumerate(asked):
        alone = [each.tokens for each in write(loaded, request, how=how, batch=1)]
        back = len(asked) - 1 - number
        for found, at in ((together, number), (few, number), (turned, back)):
            assert [each.tokens for each in found if each.request == at] == alone
    other = write(loaded, *asked, how=how, batch=16, seed=1)
    assert sum(a.tokens != b.tokens for a, b in zip(together, other, strict=True)) > len(asked) / 2


def test_what_is_given_stands_in_the_text_and_blanks_are_told() -> None:
    found = write(model(), *REQUESTS)
    assert Counter(each.request for each in found) == {0: 1, 1: 3, 2: 1, 3: 2, 4: 1, 5: 2, 6: 1}
    for each in found:
        request = REQUESTS[each.request]
        assert each.text == TOKENIZER.decode(each.tokens)
        assert each.text.startswith(request.prompt or "")
        if request.suffix:
            assert each.text.endswith(request.suffix)
            assert not each.ended
        if request.infill == "a{3}b{1:8}c":
            first, second = each.blanks
            assert each.text == f"a{first}b{second}c"
        assert all(known == (i not in _written(each)) for i, known in enumerate(each.known))


def _written(each: Generation) -> set[int]:
    """Places of a text that were not given, found by its request."""
    request, n = REQUESTS[each.request], len(each.tokens)
    if request.infill == "a{3}b{1:8}c":
        return {*range(1, 4), *range(5, n - 1)}
    return set(range(len(request.prompt or ""), n - len(request.suffix or "")))


@pytest.mark.parametrize("loaded", [model(likely=EOS), model(likely=EOS, ends=True)])
def test_a_text_ends_where_the_model_ends_it(loaded: LanguageModel) -> None:
    asked = [Request(prompt="ab", count=20), Request(count=20)]
    writer = Generator(loaded, asked, HOW)
    cut, whole = writer.generate(), writer.generations(whole=True)
    ended = [each for each in cut if each.ended]
    assert len(ended) > 10
    for each, all_of_it in zip(cut, whole, strict=True):
        assert all_of_it.tokens[: len(each.tokens)] == each.tokens
        words = [i for i, token in enumerate(each.tokens) if token != EOS]
        assert EOS not in each.tokens[words[0] : -1]
        assert each.ended == (each.tokens[-1] == EOS and len(each.tokens) > words[0])
        assert len(all_of_it.tokens) == L - (each.request == 0)


def test_no_text_ends_in_a_blank_that_it_goes_on_behind() -> None:
    loaded = model(likely=EOS)
    asked = [Request(suffix="z", count=10), Request(infill="a{9}b", count=10)]
    found = write(loaded, *asked)
    assert not any(EOS in each.tokens for each in found)
    assert len(found) == 20


# --- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [None, 1, 5, 22])
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("whole", [5, 24, 25, 60, 200])
def test_blocks_cover_a_text_each_seeing_what_is_written(
    whole: int, ends: bool, overlap: int | None
) -> None:
    writer = Generator(model(ends=ends), [Request(length=whole)], HOW, overlap=overlap)
    (text,) = writer._texts
    seen = overlap or 12
    while text.done < whole:
        ((batch,), done) = writer.next_batches(), text.done
        (window,) = batch.windows
        start, end = window.start, window.end
        assert 0 <= start <= done == window.first < end == window.stop <= whole
        assert end - start + ends * (start > 0) == min(24, whole)
        assert (batch.front == 1) == (ends and start > 0)
        if start > 0 and end < whole:
            assert done - start == seen
        text.done = end
    assert text.done == whole


def test_texts_of_unequal_lengths_share_batches() -> None:
    """Rows are padded to a multiple of 32, or to the model's length."""
    asked = [Request(prompt="a", length=n) for n in (5, 31, 33, 40, 64, 65, 79)]
    batches = Generator(model(length=80), asked, HOW).next_batches()
    widths = sorted((each.condition.given.shape[1], len(each.texts)) for each in batches)
    assert widths == [(32, 2), (64, 1), (64, 2), (80, 2)]  # a full row needs no padding mask


def test_windows_see_context_on_both_sides() -> None:
    assert next_window(10, 40, 12, before=3, after=2).__dict__ == {
        "start": 7, "end": 19, "first": 10, "stop": 17,
    }  # fmt: skip
    last = next_window(36, 40, 12, before=3, after=2)
    assert (last.start, last.end, last.stop) == (28, 40, 40)


class Spy(Lazy):
    """Keeps the conditions of all calls."""

    seen: list[object]

    def sample(self, *args, condition=None, **more):  # type: ignore[no-untyped-def]
        self.seen.append((condition, more["index"].tolist()))
        return super().sample(*args, condition=condition, **more)


@pytest.mark.slow
@pytest.mark.parametrize("ends", [False, True])
def test_a_long_text_is_written_block_by_block(ends: bool) -> None:
    loaded = model(ends=ends)
    writer = Generator(loaded, [Request(prompt="abcdef", length=70)], HOW, overlap=10)
    spy = Spy(6)
    spy.seen = []
    writer._samplers = {False: spy, True: spy}
    (found,) = writer.generate()
    assert len(found.tokens) == 69
    assert found.text.startswith("abcdef")
    first, *others = spy.seen
    assert first[0].known.sum() == 7
    assert len({tuple(index) for _, index in spy.seen}) == len(spy.seen)  # other noise in each
    bos = int(ends)
    for condition, _ in others:
        row = condition.given[0].tolist()
        known = condition.known[0]
        assert condition.lengths is None
        assert known[: 10 + bos].all()
        assert row[:bos] == [loaded.tokenizer.bos_id][:bos]
        assert len(row) == L
    everything = [loaded.first_id, *found.tokens]
    at = 24
    for condition, _ in others[:-1]:  # the last one begins earlier, to be full
        assert condition.given[0, bos : 10 + bos].tolist() == everything[at - 10 : at]
        assert (~condition.known).sum() == L - 10 - bos
        at += L - 10 - bos


def test_a_prompt_longer_than_the_model_is_seen_by_its_end() -> None:
    prompt = "x" * 100 + "abcdefgh"
    (found,) = write(model(), Request(prompt=prompt, length=120), overlap=8)
    assert found.text.startswith(prompt)
    assert len(found.tokens) == 119
    near = write(model(), Request(prompt="y" * 100 + "abcdefgh", length=120), overlap=8)
    assert near[0].tokens[108:] != found.tokens[108:]  # other requests have other noise
    assert found.nfe <= 6


def test_a_long_text_stops_at_its_end() -> None:
    loaded = model(likely=EOS, push=2)
    found = write(loaded, Request(prompt="a", length=400, count=6))
    assert all(each.ended for each in found)
    assert all(each.nfe < 6 * 30 for each in found)
    assert any(each.nfe > 6 for each in found)  # of all its blocks
    assert max(len(each.tokens) for each in found) < 399


def test_steps_are_counted_before() -> None:
    writer, done = Generator(model(), REQUESTS, HOW, batch=2), list[int]()
    total = writer.steps()
    writer.generate(on_step=lambda *_: done.append(1))
    assert len(done) == total >= 6 * 7


def test_the_bar_ends_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    @contextmanager
    def bar(label: str, *, total: int, show: bool) -> Iterator[Callable[[int], None]]:
        yield lambda n: done.extend([total] * n)

    monkeypatch.setattr("sddlm.generation.sample.bar", bar)
    model().save(tmp_path / "model")
    asked = {"prompt": "abc", "suffix": "z", "length": 60, "count": 3}  # which cannot end early
    sample(str(tmp_path / "model"), **asked, steps=5, batch=2)  # type: ignore[arg-type]
    assert len(done) == done[0] > 5 * 2 * 2


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "fields"),
    [
        ({}, Lazy, {"steps": 64, "tail": "sample"}),
        ({"sampler": "ancestral", "tail": "greedy"}, Ancestral, {"tail": "greedy"}),
        ({"sampler": "psi", "kappa": "0.4", "hold": 0.2}, Psi, {"kappa": "0.4", "hold": 0.2}),
        ({"sampler": "psi", "preset": "loop"}, Psi, {"hold": 0.1, "steps": 64}),
        ({"sampler": "psi", "preset": "loop", "hold": 0.3}, Psi, {"hold": 0.3}),
        ({"sampler": "adaptive", "budget": 0.3}, Adaptive, {"budget": 0.3}),
        ({"sampler": "adaptive", "criterion": "confidence"}, Adaptive, {"criterion": "confidence"}),
    ],
)
def test_options_make_samplers(
    options: dict[str, object], kind: type, fields: dict[str, object]
) -> None:
    sampler = SamplerConfig(**options).build(model(), never=(3,))  # type: ignore[arg-type]
    assert type(sampler) is kind
    for name, value in fields.items():
        assert getattr(sampler, name) == value
    assert sampler.truncation.never == (*TOKENIZER.not_sampled, 3)  # type: ignore[attr-defined]


def test_options_cut_predictions() -> None:
    args = SamplerConfig(temperature=0.7, top_p=0.8, top_k=9, min_p=0.1, tail_cut=0.2)
    cut = args.truncation()
    assert (cut.temperature, cut.top_p, cut.top_k, cut.min_p, cut.tail_cut) == (
        0.7,
        0.8,
        9,
        0.1,
        0.2,
    )
    preset = SamplerConfig(sampler="psi", preset="loop")
    assert preset.truncation().top_p == 0.95
    assert replace(preset, top_p=1.0).truncation().top_p == 1.0
    assert SamplerConfig().truncation().top_p == 0.9
    masked = SamplerConfig(sampler="first_hitting").build(model(MaskedProcess()))
    assert isinstance(masked, FirstHitting)
    right = SamplerConfig(top_k=3).build(model(causal=True, ends=True))
    assert isinstance(right, Autoregressive)
    assert right.bos_id == TOKENIZER.bos_id


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kappa": "0.5"}, "add `sampler='psi'`"),
        ({"budget": 0.5, "sampler": "psi"}, "add `sampler='adaptive'`"),
        ({"sampler": "psi", "kappa": "nonsense"}, "`kappa` is 'nonsense'"),
        ({"sampler": "foo"}, "`sampler` is 'foo'"),
        ({"steps": 0}, "`steps` is 0"),
        ({"temperature": float("nan")}, "`temperature` is nan"),
        ({"min_p": 1.0}, "`min_p` is 1.0"),
        ({"top_k": 0}, "`top_k` is 0"),
        ({"sampler": "adaptive", "budget": -1.0}, "`budget` is -1.0"),
    ],
)
def test_wrong_options_are_refused_before_a_model_is_loaded(
    options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplerConfig(**options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=said):
        sample("there is none", **options)  # type: ignore[arg-type]


def test_samplers_that_a_model_cannot_have_are_refused() -> None:
    with pytest.raises(ConfigError, match="first_hitting, which is for MaskedProcess"):
        SamplerConfig(sampler="first_hitting").build(model())
    with pytest.raises(ConfigError, match="left to right: leave it out"):
        SamplerConfig(sampler="lazy").build(model(causal=True))
    with pytest.raises(ConfigError, match="reads only what is before"):
        write(model(causal=True), Request(suffix="a"))


# --- the verb ----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model().save(tmp_path / "model")
    return tmp_path


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_verb_writes_what_is_asked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder / "texts.jsonl"
    command = ["sample", str(folder / "model"), "--steps", "6", "--out", str(out)]
    assert main([*command, "--prompt", "abc", "--count", "2", "--sampler", "ancestral"]) == 0
    said = capsys.readouterr()
    texts = [record["text"] for record in records(out)]
    assert said.out == "--- 1 ---\n{}\n\n--- 2 ---\n{}\n".format(*texts)
    assert "2 texts, 6.0 network calls each (6 steps)" in said.err
    for record in records(out):
        assert str(record["text"]).startswith("abc")
        assert (record["steps"], record["sampler"], record["seed"]) == (6, "ancestral", 0)
        assert record["asked"] == {"prompt": "abc", "count": 2, "seed": 0}
        assert record["nfe"] == 6
    lazy = sample(str(folder / "model"), prompt="abc", count=2, steps=6, batch=1, out=str(out))
    assert lazy == texts  # the same law, the same numbers
    assert main([*command, "--infill", "a{3}b{2}"]) == 0
    assert len(records(out)) == 4


def test_the_function_writes_no_file_and_the_verb_keeps_the_former_one(folder: Path) -> None:
    """At 7bd1212 a call from Python overwrote what the verb had written."""
    place = folder / "model"
    before = sorted(place.iterdir())
    assert len(sample(str(place), count=2, steps=4)) == 2
    assert sorted(place.iterdir()) == before
    command = ["sample", str(place), "--steps", "4", "--count", "2"]
    assert main(command) == main(command) == 0
    first = records(place / "samples.jsonl")
    assert main([*command, "--seed", "1"]) == 0
    assert records(place / "samples-1.jsonl") == first != records(place / "samples.jsonl")
    assert sorted(place.iterdir()) == sorted(
        [*before, place / "samples.jsonl", place / "samples-1.jsonl"]
    )


def test_the_verb_reads_requests(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = folder / "asked.jsonl"
    asked.write_text('{"prompt": "abc", "count": 2}\n{"infill": "a{2}b"}\n{"length": 9}\n')
    out = folder / "texts.jsonl"
    command = ["sample", str(folder / "model"), "--steps", "6", "--out", str(out)]
    assert main([*command, "--requests", str(asked)]) == 0
    found = records(out)
    assert [(record["request"], record["index"]) for record in found] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (2, 0),
    ]
    with asked.open() as lines:
        monkeypatch.setattr("sys.stdin", lines)
        assert main([*command, "--requests", "-"]) == 0
    assert [r["tokens"] for r in records(out)] == [r["tokens"] for r in found]


WRONG = [
    ("--prompt abc --length 3", "--prompt: what is given takes 4 tokens"),
    ("--infill a{30}b", "--infill: a blank of 30 tokens is more than the model, which sees 24"),
    ("--infill a{x}b", "--infill is 'a{x}b': { at 1"),
    ("--sampler foo", "--sampler is 'foo', must be one of lazy, ancestral"),
    ("--steps 0", "--steps is 0"),
    ("--steps x", "--steps is 'x', must be a whole number"),
    ("--temperature nan", "--temperature is 'nan', must be a number"),
    ("--temperature .nan", "--temperature is nan"),
    ("--top-k 3", "did you mean --top_k?"),
    ("--overlap 24", "--overlap is 24, must be from 1 to 23"),
    ("--batch 0", "--batch is 0"),
    ("--requests empty.jsonl", "--requests empty.jsonl is empty"),
    ("--requests binary.jsonl", "--requests binary.jsonl is not UTF-8 text"),
    ("--requests wrong.jsonl", "--requests wrong.jsonl line 2: --prompt: what is given takes"),
    ("--requests none.jsonl", "--requests none.jsonl cannot be read: No such file"),
    ("--requests model", "--requests model cannot be read: Is a directory"),
    ("--requests wrong.jsonl --prompt a", "--requests and --prompt"),
    ("--sampler first_hitting", "--sampler is first_hitting"),
]


@pytest.mark.parametrize(("typed", "said"), WRONG, ids=[typed for typed, _ in WRONG])
def test_bad_input_is_one_line_and_nothing_is_written(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    typed: str,
    said: str,
) -> None:
    monkeypatch.chdir(folder)
    Path("empty.jsonl").write_text("\n")
    Path("binary.jsonl").write_bytes(bytes(range(128, 256)))
    Path("wrong.jsonl").write_text('{"prompt": "a"}\n{"prompt": "%s"}\n' % ("a" * 40))
    before = sorted(Path().rglob("*"))
    assert main(["sample", "model", *typed.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert said in err
    assert sorted(Path().rglob("*")) == before


def test_known_tokens_are_seen_by_those_who_watch(folder: Path) -> None:
    writer = Generator(
        LanguageModel.load(folder / "model"), [Request(infill="ab{4}cd", count=2)], HOW
    )
    first = writer.next_batches()[0]
    seen: list[Tensor] = []
    writer.draw(first, lambda n, t, x: seen.append(x.clone()))
    assert len(seen) == 6
    known = first.condition.known[:, :9]
    assert known.sum() == 2 * 5
    for x in seen:
        assert torch.equal(x[:, :9][known], first.condition.given[:, :9][known])


@pytest.mark.parametrize(
    ("tokens", "done", "is_open", "end"),
    [
        ([9, 8, 5, 9, 6], 5, True, 3),  # 9 ends, 8 begins
        ([9, 9, 8, 9, 5, 6], 6, True, None),  # none before the first word
        ([9, 9, 5, 9, 9], 5, True, 3),
        ([5, 6, 9], 2, True, None),  # not yet written
        ([5, 9, 6], 3, False, None),  # goes on behind a blank
    ],
)
def test_the_end_of_a_text(tokens: list[int], done: int, is_open: bool, end: int | None) -> None:
    layout = Layout(tokens, [False] * len(tokens), [(0, len(tokens))], 0, open=is_open)
    text = GenerationState(
        torch.tensor(tokens), torch.tensor(layout.known), layout=layout, done=done
    )
    assert text.end(9, 8) == end


def test_blocks_begin_as_rows_do(tmp_path: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(names))
    bert = Tokenizer.load(tmp_path)
    config = DiTConfig(vocab_size=13, length=8, width=16, heads=2, blocks=1, head_init=0.3)
    data = {"packing": {"packing": "wrap", "bos_eos": True, "eos": False}}
    loaded = LanguageModel(
        DiT(config).eval(), UniformProcess(), Estimate.LEAVE_ONE_OUT, bert, {}, data
    )
    writer = Generator(loaded, [Request(prompt="a b", length=30)], HOW)
    begun = []
    while batches := writer.next_batches():
        for batch in batches:
            begun.append(batch.condition.given[0, 0].item())
            drawn = writer.draw(batch)
            writer.apply(batch, drawn.tokens, drawn.nfe, drawn.seconds)
    assert set(begun) == {2}
    assert len(begun) > 3
