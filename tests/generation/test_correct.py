"""Correction: the exact posterior, the level that is chosen, what must stay, and wrong input."""

import io
import itertools
import random
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers as hf
import torch
from rich.console import Console
from scipy import stats
from torch import Tensor, nn

from sddlm.cli import main
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.exact import TabularModel, World, state_id, states
from sddlm.generation.config import CORRECTION
from sddlm.generation.correct import correct
from sddlm.generation.corrector import Corrector, correction_windows
from sddlm.generation.diff import Change, Draft, apply_changes, rendered
from sddlm.generation.levels import LEVELS, most_likely, score_tokens
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process import HybridProcess, LogLinear, MaskedProcess, Process, UniformProcess
from sddlm.process.estimate import Estimate
from sddlm.sampling.condition import Condition

LOO = Estimate.LEAVE_ONE_OUT
NOTHING_IN_FRONT = {"packing": {"eos": False}}
SCHEDULE = LogLinear(eps=1e-12)  # alpha = 1 - t


# --- the law, by enumeration ----------------------------------------------------------------------


def a_world(seed: int = 1) -> World:
    """Texts of three tokens among a, b and c; the fourth token, the end of text, is in none."""
    world = World.random(4, 3, seed=seed, concentration=0.5)
    p = world.probabilities * (states(4, 3) < 3).all(1)
    return World(p / p.sum(), 4, 3)


WORLD = a_world()


def of_world(world: World, process: Process, estimate: Estimate = LOO) -> LanguageModel:
    """The model that knows all of a world."""
    model = TabularModel(
        world.optimum(estimate, process),
        vocab_size=world.vocab_size + process.extra_tokens,
        length=3,
        num_extra_tokens=process.extra_tokens,
    )
    tokenizer = Tokenizer.characters(["abc"])
    return LanguageModel(model, process, estimate, tokenizer, {}, NOTHING_IN_FRONT)  # type: ignore[arg-type]


def posterior(world: World, process: Process, x_t: Tensor, t: float) -> Tensor:
    """p(x0 | x_t) of all texts ``[S]``."""
    V = world.vocab_size + process.extra_tokens
    odds = process.odds(process.schedule.alpha(torch.tensor(t, dtype=torch.float64)), V)
    x0 = states(world.vocab_size, 3)
    seen = world.probabilities * ((x0 == x_t) + odds[x_t]).prod(1)
    return seen / seen.sum()


DRAFTS = ["".join(letters) for letters in itertools.product("abc", repeat=3)]
PROCESSES = [UniformProcess(SCHEDULE), HybridProcess(SCHEDULE)]
name_of = lambda value: type(value).__name__  # noqa: E731


@pytest.mark.parametrize("estimate", [LOO, Estimate.DENOISER], ids=lambda e: e.value)
@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_each_token_is_the_most_likely_one_given_the_whole_draft(
    process: Process, estimate: Estimate, t: float
) -> None:
    corrector = Corrector(of_world(WORLD, process, estimate), t=t)
    changed = 0
    for draft, found in zip(DRAFTS, corrector.correct(DRAFTS), strict=True):
        x_t = torch.tensor(["abc".index(letter) for letter in draft])
        exact = posterior(WORLD, process, x_t, t)
        marginal = torch.stack(
            [
                torch.stack([exact[states(4, 3)[:, place] == v].sum() for v in range(3)])
                for place in range(3)
            ]
        )  # [L, V]
        assert found.text == "".join("abc"[v] for v in marginal.argmax(1))
        right = marginal.gather(1, x_t[:, None])[:, 0]
        places, sure = zip(*((c[:2], c[2]) for c in found.confidence), strict=True)
        assert places == ((0, 1), (1, 2), (2, 3))
        assert sure == pytest.approx(right.tolist(), abs=1e-5)
        assert (found.t, found.nfe) == (t, 2)
        changed += found.text != draft
    assert changed >= {0.1: 1, 0.5: 3, 0.9: 9}[t]


def test_drawn_in_many_steps_it_is_the_posterior() -> None:
    process, count, t = PROCESSES[0], 4000, 0.5
    loaded = of_world(WORLD, process)
    sampler = replace(CORRECTION, steps=48, tail="sample").build(loaded)
    x_t = torch.tensor([0, 1, 1])
    known = torch.zeros(count, 3, dtype=torch.bool)
    condition = Condition(x_t.repeat(count, 1), known, None, t)
    drawn = sampler.sample(loaded, condition=condition)
    exact = posterior(WORLD, process, x_t, t)
    counts = torch.bincount(state_id(drawn.tokens, 4), minlength=64).double()
    live = exact * count >= 5
    wanted = exact[live] / exact[live].sum() * counts[live].sum()
    assert counts[~live].sum() < 30
    assert stats.chisquare(counts[live].numpy(), wanted.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("process", PROCESSES, ids=name_of)
def test_a_reading_is_the_law_of_a_token_given_the_others(process: Process) -> None:
    t = 0.3
    loaded = of_world(WORLD, process)
    x = states(4, 3)[(states(4, 3) < 3).all(1)]  # drafts
    found = score_tokens(loaded, x, t)
    V = 4 + process.extra_tokens
    noisy = WORLD.noisy(1 - t, process)
    for place in range(3):
        others = [replaced(x, place, v) for v in range(4)]  # no mask is in a draft
        mass = torch.stack([noisy[state_id(other, V)] for other in others], 1)  # [n, 4]
        exact = mass.gather(1, x[:, place, None])[:, 0] / mass.sum(1)
        assert torch.allclose(found.fit[:, place], exact.log(), atol=1e-5)


def replaced(x: Tensor, place: int, token: int) -> Tensor:
    other = x.clone()
    other[:, place] = token
    return other


def test_on_average_the_true_level_fits_best() -> None:
    """For every level of the grid, over all noisy texts with their probabilities."""
    process = UniformProcess(SCHEDULE)
    loaded = of_world(WORLD, process)
    x = states(4, 3)
    fits = torch.stack([score_tokens(loaded, x, t).fit.sum(1) for t in LEVELS])  # [levels, S]
    for number, t in enumerate(LEVELS):
        mean = (fits * WORLD.noisy(1 - t, process)).sum(1)
        assert int(mean.argmax()) == number


def test_of_equal_levels_the_smallest_is_taken() -> None:
    scores = torch.tensor([[0.0, -2.0], [0.0, -1.0], [-1.0, -1.0]])
    assert most_likely(scores).tolist() == [0, 1]


# --- networks that show what they saw -------------------------------------------------------------


class Rule(nn.Module):
    """Answers with certainty at every place what a rule says of the tokens on both sides."""

    def __init__(self, rule, vocab_size: int, length: int, sure: float = 60.0) -> None:
        super().__init__()
        self.rule, self.vocab_size, self.length, self.sure = rule, vocab_size, length, sure
        self.causal = False
        self.seen: list[list[int]] = []

    @property
    def head(self):
        return self

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden

    def forward(self, x_t, sigma, rows=None, attention_mask=None):
        out = torch.zeros(*x_t.shape, self.vocab_size)
        for b, row in enumerate(x_t.tolist()):
            stop = len(row) if attention_mask is None else int(attention_mask[b].sum())
            self.seen.append(row[:stop])
            for place in range(stop):
                left = row[place - 1] if place else -1
                right = row[place + 1] if place + 1 < stop else -1
                out[b, place, self.rule(left, row[place], right)] = self.sure
        return out if rows is None else out.flatten(0, 1)[rows]


def ruled(rule, tokenizer: Tokenizer, length: int, data=NOTHING_IN_FRONT, **more) -> LanguageModel:
    model = Rule(rule, tokenizer.vocab_size, length, **more)
    return LanguageModel(model, UniformProcess(), LOO, tokenizer, {}, data)  # type: ignore[arg-type]


LETTERS = "abcdefgh"


def mixed(left: int, own: int, right: int) -> int:
    """A letter that depends on both sides."""
    return (3 * left + 5 * right + 7) % len(LETTERS)


@pytest.mark.parametrize(("length", "in_front"), [(8, None), (8, "eos"), (8, "bos"), (5, None)])
def test_windows_see_what_is_corrected_before_and_the_draft_behind(
    length: int, in_front: str | None
) -> None:
    """Against a slow walk over lists."""
    tokenizer = Tokenizer.characters([LETTERS])
    data = {"packing": {"eos": in_front == "eos", "bos_eos": in_front == "bos"}}
    loaded = ruled(mixed, tokenizer, length, data)
    rng = random.Random(0)
    drafts = ["".join(rng.choices(LETTERS, k=k)) for k in (1, 4, 5, 7, 8, 9, 12, 13, 31)]
    found = Corrector(loaded, t=0.9, batch=4).correct(drafts)
    for draft, each in zip(drafts, found, strict=True):
        x = tokenizer.encode_batch([draft])[0]
        x = x if in_front is None else [tokenizer.eos_id, *x]
        fixed = 0 if in_front is None else 1
        room = length - (in_front == "bos" and len(x) > length)
        done = 0
        while done < len(x):
            if len(x) <= room:
                start, end = 0, len(x)
            else:
                start = min(max(0, done - room // 4), len(x) - room)
                end = start + room
            stop = end if end == len(x) else end - room // 4
            before = list(x)
            for place in range(max(done, fixed), stop):
                front = tokenizer.eos_id if in_front == "bos" and start > 0 else -1
                left = before[place - 1] if place > start else front
                right = before[place + 1] if place + 1 < end else -1
                x[place] = mixed(left, before[place], right)
            done = stop
        assert each.text == tokenizer.decode(x)
        assert each.text != draft


@pytest.mark.parametrize("width", [1, 2, 3, 4, 7, 64])
def test_every_token_is_corrected_once_and_windows_are_full(width: int) -> None:
    for count in range(1, 3 * width + 5):
        parts = list(correction_windows(count, width))
        assert [i for w in parts for i in range(w.first, w.stop)] == list(range(count))
        for w in parts:
            assert 0 <= w.start <= w.first < w.stop <= w.end <= count
            assert w.end - w.start == min(width, count)
            assert w.first == 0 or w.first - w.start >= width // 4
            assert w.end == count or w.end - w.stop == width // 4


def test_nothing_that_is_protected_changes() -> None:
    """Under a model that wants every letter to be another."""
    tokenizer = Tokenizer.characters([LETTERS + " "])
    space = tokenizer.encode_batch([" "])[0][0]
    loaded = ruled(lambda left, own, right: space if own != space else 3, tokenizer, 16)
    draft = "abc def gab had beef cafe abba dad"
    for pattern in ("beef", "[a-c]+", "^ab|d$", r"\b", "d.f|abba", "."):
        (found,) = Corrector(loaded, t=0.9).correct([draft], protect=pattern)
        kept = {i for m in re.finditer(pattern, draft) for i in range(*m.span())}
        for i, (old, new) in enumerate(zip(draft, found.text, strict=True)):
            assert (old == new) == (i in kept), (pattern, i)
    assert found.text == draft
    assert found.changes == []
    assert found.t == 0.9


def test_tokens_that_a_match_touches_are_protected_whole() -> None:
    tokenizer = words("the", "cat", "sat", "##ter")
    draft = Draft.of("The  catter sat", tokenizer, "x")
    for pattern, known in (
        ("a", [False, True, False, True]),
        ("tt", [False, True, True, False]),
        ("T", [True, False, False, False]),
        ("  ", [False, True, False, False]),
        ("e  cat|q", [True, True, False, False]),
        ("$|(?=c)", [False] * 4),
    ):
        assert draft.protected([re.compile(pattern)]) == known, pattern


def test_line_ends_of_windows_stay() -> None:
    tokenizer = Tokenizer.bytes()
    a = tokenizer.encode_batch(["a"])[0][0]
    loaded = ruled(lambda left, own, right: a, tokenizer, 16)
    (found,) = Corrector(loaded, t=0.9).correct(["b\r\nc\n"])
    assert found.text == "a\raaa"
    typed = Draft.of("the\r\ncat", words("the", "cat"), "x")
    assert typed.protected([]) == [False, False]


# --- text and tokens ------------------------------------------------------------------------------


def words(*pieces: str) -> Tokenizer:
    """A tokenizer as BERT's: lower case, spaces and capitals lost."""
    vocab = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    vocab |= {piece: i for i, piece in enumerate(pieces, start=4)}
    tokenizer = hf.Tokenizer(hf.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = hf.normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = hf.decoders.WordPiece()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    return Tokenizer(tokenizer)


ODD = "Ein Bär\r\n saß\t  im Wald … ☃😀! é e\u0301 \u200b\u00a0.\n\n"
TOKENIZERS = {
    "bytes": Tokenizer.bytes(),
    "characters": Tokenizer.characters([ODD]),
    "bpe": Tokenizer.train_bpe([ODD * 3, "im Wald saß ein Bär und im Bär ein Wald"], 290),
    "words": words("ein", "bar", "sa", "##ß", "im", "wald", "…", "!", "e", ".", "##r", "☃😀"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_the_model_leaves_alone_is_the_same_byte_for_byte(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    loaded = ruled(lambda left, own, right: own, tokenizer, 24)
    (found,) = Corrector(loaded).correct([ODD])
    assert found.text == ODD
    assert found.changes == []
    assert found.t == LEVELS[0]
    if name == "words":
        assert tokenizer.decode(tokenizer.encode_batch([ODD])[0]) != ODD


@pytest.mark.parametrize("name", ["bytes", "characters", "bpe"])
def test_a_changed_text_is_that_of_the_tokens_where_that_is_one(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    draft, rng = Draft.of(ODD, tokenizer, "x"), random.Random(1)
    seen = {"whole": 0, "broken": 0}
    for _ in range(300):
        tokens = list(draft.tokens)
        for place in rng.sample(range(len(tokens)), rng.choice([1, 2, 9])):
            tokens[place] = rng.choice([t for t in range(tokenizer.vocab_size - 1)])
        changes = draft.changes(tokens)
        text, exact = apply_changes(ODD, changes), tokenizer.decode(tokens)
        assert "\ufffd" not in text
        for change in changes:
            assert ODD[change.start : change.end] == change.old != change.new
        if "\ufffd" not in exact:
            assert text == exact
        seen["broken" if "\ufffd" in exact else "whole"] += 1
    assert seen["whole"] > 10
    assert seen["broken"] > 10 or name == "characters"


def test_half_a_character_is_no_correction_but_its_neighbours_are() -> None:
    tokenizer = Tokenizer.bytes()
    draft = Draft.of("a é b", tokenizer, "x")
    a, x, lead = (tokenizer.encode_batch([c])[0][0] for c in ("a", "x", "é"))
    first = draft.tokens[0]
    assert first == a
    tokens = [x, *draft.tokens[1:3], a, *draft.tokens[4:5], x]
    assert apply_changes("a é b", draft.changes(tokens)) == "x é x"
    tokens[2:4] = tokenizer.encode_batch(["ß"])[0]
    assert apply_changes("a é b", draft.changes(tokens)) == "x ß x"
    tokens[2:4] = [x, a]
    assert apply_changes("a é b", draft.changes(tokens)) == "x xa x"
    assert lead == draft.tokens[2]


@pytest.mark.parametrize(
    ("new", "text"),
    [
        (["the", "dog", "##ter", "sat", "."], "The  dogter\nsat."),
        (["the", "cat", "##s", "sat", "."], "The  cats\nsat."),
        (["the", "cat", "dog", "sat", "."], "The  Cat dog\nsat."),
        (["the", "cat", "##ter", "##s", "."], "The  Catters."),
        (["dog", "cat", "##ter", "sat", "."], "dog  Catter\nsat."),
        (["the", "cat", "##ter", "sat", "dog"], "The  Catter\nsat dog"),
        (["the", "dog", "##s", "sat", "dog"], "The  dogs\nsat dog"),
    ],
)
def test_words_bring_their_space_along(new: list[str], text: str) -> None:
    tokenizer = words("the", "cat", "sat", "##ter", "dog", "##s", ".")
    typed = "The  Catter\nsat."
    draft = Draft.of(typed, tokenizer, "x")
    ids = {tokenizer._hf.id_to_token(i): i for i in range(tokenizer.vocab_size)}
    got = apply_changes(typed, draft.changes([ids[word] for word in new]))
    if new[2] == "##s" and new[1] == "cat":
        text = "The  Cats\nsat."
    assert got == text


def test_changes_name_their_places() -> None:
    tokenizer = words("the", "cat", "sat", "dog", "ran")
    draft = Draft.of("The cat sat the  cat", tokenizer, "x")
    the, cat, sat, dog, ran = range(4, 9)
    assert draft.tokens == [the, cat, sat, the, cat]
    assert draft.changes([the, dog, ran, the, dog]) == [
        Change(4, 11, "cat sat", "dog ran"),
        Change(17, 20, "cat", "dog"),
    ]


def test_no_special_token_is_written() -> None:
    tokenizer = Tokenizer.characters([LETTERS])
    loaded = ruled(lambda left, own, right: tokenizer.eos_id, tokenizer, 8)
    (found,) = Corrector(loaded, t=0.9).correct(["abcdefg"])
    assert len(found.text) == 7


# --- several drafts, seeds, real networks ---------------------------------------------------------


def network(
    process: Process | None = None, estimate: Estimate = LOO, length: int = 40, **data: object
) -> LanguageModel:
    process = process or UniformProcess()
    tokenizer = Tokenizer.characters([LETTERS + " ."])
    config = DiTConfig(
        vocab_size=tokenizer.vocab_size + process.extra_tokens, length=length, width=32, heads=2,
        blocks=1, head_init=0.5, causal=not estimate.diffusion,
        gate_init=1 if estimate.diffusion else 0, num_extra_tokens=process.extra_tokens,
    )  # fmt: skip
    return LanguageModel(DiT(config, seed=1).eval(), process, estimate, tokenizer, {}, data)


TEXTS = ["abc def.", "a bad hag had beef. " * 3, "a", "deaf head. " * 4, "abc def."]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "t"),
    [({}, None), ({}, 0.5), (NOTHING_IN_FRONT, 0.5), ({"packing": {"bos_eos": True}}, 0.5)],
)
def test_a_draft_is_corrected_the_same_whatever_is_beside_it(data: dict, t: float | None) -> None:
    loaded = network(**data)
    how = replace(CORRECTION, steps=6, tail="sample")
    whole = Corrector(loaded, how, t=t, batch=3).correct(TEXTS, protect="beef")
    for which in ([0], [1], [2], [3], [3, 1, 0], [4, 2, 1, 0, 3]):
        part = Corrector(loaded, how, t=t, batch=2).correct(
            [TEXTS[i] for i in which], protect="beef"
        )
        for i, found in zip(which, part, strict=True):
            assert replace(found, seconds=0) == replace(whole[i], seconds=0)
    assert whole[0].text == whole[4].text
    assert {found.text == text for found, text in zip(whole, TEXTS, strict=True)} >= {False}
    assert whole[1].text.count("beef") >= 3


def test_the_seed_says_what_is_drawn() -> None:
    loaded, how = network(), replace(CORRECTION, steps=6, tail="sample")
    texts = [
        Corrector(loaded, how, t=0.8, seed=seed).correct([TEXTS[1]])[0].text for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]
    greedy = [Corrector(loaded, t=0.8, seed=seed).correct([TEXTS[1]])[0].text for seed in (0, 1)]
    assert greedy[0] == greedy[1]


def successors() -> LanguageModel:
    """A model of texts in which every letter follows the one before in the alphabet."""
    tokenizer = Tokenizer.characters(["abcdefghijklmnopqrstuvwxyz"])
    return ruled(
        lambda left, own, right: (left + 1) % 26 if left >= 0 else own, tokenizer, 64, sure=6.0
    )


def alphabets(count: int, share: float, seed: int = 0) -> str:
    rng = random.Random(seed)
    x = [rng.randrange(26) if rng.random() < share else i % 26 for i in range(count)]
    return "".join(chr(97 + v) for v in x)


@pytest.mark.slow
def test_a_noisier_text_gets_a_higher_level_by_itself_and_beside_others() -> None:
    loaded = successors()
    drafts = [alphabets(300, share) for share in (0.4, 0, 0.7, 0.1)]
    together = Corrector(loaded).correct(drafts)
    alone = [Corrector(loaded).correct([draft])[0] for draft in drafts]
    for a, b in zip(together, alone, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)
    t = [found.t for found in alone]
    assert t[1] < t[3] < t[0] < t[2]


def test_what_is_protected_does_not_count_for_the_level() -> None:
    draft = alphabets(200, 0.8) + alphabets(200, 0, 1)
    levels = [
        Corrector(successors()).correct([draft], protect=pattern)[0].t
        for pattern in (None, "^.{200}", ".{200}$", ".")
    ]
    assert levels[1] == levels[3] == LEVELS[0] < levels[0] < levels[2]


def test_drafts_are_corrected_independently() -> None:
    """At t = 1 all is noise, and with it what is drawn."""
    how = replace(CORRECTION, steps=4, tail="sample")
    a, b, c = Corrector(network(), how, t=1.0).correct(["a" * 30, "b" * 30, "a" * 60])
    assert sum(x == y for x, y in zip(a.text, b.text, strict=True)) < 15
    assert c.text[:30] != a.text
    # of a model that knows nothing, windows of one text
    loaded = ruled(mixed, Tokenizer.characters([LETTERS]), 8, sure=0.0)
    (found,) = Corrector(loaded, how, t=1.0).correct(["a" * 18])
    assert [(w.first, w.start) for w in correction_windows(18, 8)][1:3] == [(6, 4), (10, 8)]
    assert found.text[6:10] != found.text[10:14]


def test_what_is_corrected_is_known_to_the_next_window_at_every_step() -> None:
    tokenizer = words("the", "cat", "sat", "dog", "ran", "far")
    loaded = ruled(
        lambda left, own, right: 4 + (left + right) % 6,
        tokenizer,
        8,
        {"packing": {"bos_eos": True}},
    )
    how = replace(CORRECTION, steps=5, tail="sample", sampler="ancestral")
    draft = " ".join(["the cat sat"] * 7)
    (found,) = Corrector(loaded, how, t=0.9).correct([draft])
    model = loaded.network
    assert isinstance(model, Rule)
    final = [tokenizer.bos_id, *tokenizer.encode_batch([found.text])[0]]
    parts = list(correction_windows(22, 7))
    calls = model.seen[len(parts) :]
    assert len(calls) == 5 * len(parts)
    for number, part in enumerate(parts):
        front = [] if part.start == 0 else [tokenizer.bos_id]
        before = [*front, *final[part.start : part.first]]
        assert len(before) == (0 if number == 0 else len(front) + part.first - part.start)
        for row in calls[5 * number : 5 * number + 5]:
            assert row[: len(before)] == before
            assert row[0] == tokenizer.bos_id


def test_network_calls_are_counted() -> None:
    (found,) = Corrector(network()).correct(["abc"])
    assert found.nfe == len(LEVELS) + 1
    (found,) = Corrector(network(), t=0.3).correct(["abc"])
    assert found.nfe == 2
    parts = len(list(correction_windows(1 + len(TEXTS[1]), 40)))
    assert parts > 2
    (found,) = Corrector(
        network(), replace(CORRECTION, steps=3, tail="greedy", sampler="ancestral"), t=0.3
    ).correct([TEXTS[1]])
    assert found.nfe == 4 * parts


# --- the verb -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("runs")
    network().save(place / "uniform")
    network(MaskedProcess()).save(place / "masked")
    network(estimate=Estimate.NEXT_TOKEN).save(place / "left")
    return place


def piped(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


def test_the_verb_prints_the_text_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    draft = "he had a bag. a deaf chef."
    wanted = correct(str(run / "uniform"), draft, t=0.9, protect="chef")
    assert wanted.draft == draft
    assert wanted.text != draft
    assert wanted.text[21:25] == "chef"
    capsys.readouterr()
    arguments = ["correct", str(run / "uniform"), "--t", "0.9", "--protect", "chef"]
    piped(monkeypatch, draft.encode())
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out == wanted.text
    assert "{+" not in err
    assert f"t = 0.9, {len(wanted.changes)} place" in err
    piped(monkeypatch, draft.encode())
    target = tmp_path / "new.txt"
    assert main([*arguments, "--diff", "true", "--out", str(target)]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert target.read_bytes().decode() == wanted.text
    plain = "".join(err.splitlines()[:-1])
    assert re.sub(r"\[-(.*?)-\]|\{\+(.*?)\+\}", r"\1", plain) == draft
    assert re.sub(r"\[-(.*?)-\]|\{\+(.*?)\+\}", r"\2", plain) == wanted.text


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        (["--temperature", "0.5"], "temperature"),
        (["--top_p", "0.9"], "top_p"),
        (["--top_k", "3"], "top_k"),
        (["--min_p", "0.1"], "min_p"),
        (["--temperature", "1.5"], None),
        (["--tail_cut", "0.5"], None),
    ],
)
def test_who_sharpens_the_prediction_is_warned(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    warned: str | None,
) -> None:
    piped(monkeypatch, b"a bad egg")
    assert main(["correct", str(run / "uniform"), "--t", "0.1", *options]) == 0
    err = capsys.readouterr().err
    assert ("sharpens" in err) == (warned is not None)
    assert warned is None or f"--{warned} sharpens" in err


def test_colours_and_no_control_characters_on_a_terminal() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=20)
    text = "a \x1b[31mlong line [bold]that is not cut\n"
    changes = [Change(0, 1, "a", "b")]
    console.print(rendered(text, changes, colour=True), soft_wrap=True, highlight=False)
    shown = file.getvalue()
    assert "\x1b[9;31ma\x1b[0m\x1b[4;32mb\x1b[0m" in shown
    assert r"\x1b[31mlong line [bold]that is not cut" in shown


WRONG = {
    "empty": (b"", [], "standard input is empty"),
    "blank": (b" \n\t\n", [], "standard input is empty"),
    "empty text": (b"", ["--text", ""], "--text is empty"),
    "binary": (bytes(range(128, 256)), [], "standard input is no UTF-8 text (byte 0)"),
    "zero byte": (b"abc\0def", [], "zero byte"),
    "t 0": (b"abc", ["--t", "0"], "--t is 0.0, must be above 0"),
    "t 1.5": (b"abc", ["--t", "1.5"], "--t is 1.5, must be above 0"),
    "t below": (b"abc", ["--t=-1"], "--t is -1"),
    "t nan": (b"abc", ["--t", ".nan"], "--t is nan"),
    "t word": (b"abc", ["--t", "much"], "--t"),
    "regex": (b"abc", ["--protect", "(a"], "--protect is '(a', which is no regular expression"),
    "unknown": ("ab Ω c".encode(), [], "'Ω' (U+03A9)"),
    "batch": (b"abc", ["--batch", "0"], "--batch is 0, must be at least 1"),
    "steps": (b"abc", ["--steps", "0"], "--steps is 0"),
    "temperature": (b"abc", ["--temperature", ".nan"], "--temperature is nan"),
    "sampler": (b"abc", ["--sampler", "best"], "--sampler"),
    "mask sampler": (b"abc", ["--sampler", "first_hitting"], "is for MaskedProcess"),
    "option": (b"abc", ["--tt", "1"], "--tt"),
    "no model": (b"abc", ["MODEL=nowhere"], "no such directory"),
    "masks": (b"abc", ["MODEL=masked"], "trained with masks alone and never changes a token"),
    "left": (b"abc", ["MODEL=left"], "autoregressive and never changes a token"),
    "out": (b"abc", ["--out", "nowhere/a.txt"], "there is no directory"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line_and_nothing_is_written(
    name: str,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    data, options, said = WRONG[name]
    monkeypatch.chdir(tmp_path)
    piped(monkeypatch, data)
    model = next((o.removeprefix("MODEL=") for o in options if o.startswith("MODEL=")), "uniform")
    options = [option for option in options if not option.startswith("MODEL=")]
    if "--out" not in options:
        options += ["--out", "new.txt"]
    assert main(["correct", str(run / model), *options]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_terminal_is_no_draft(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(ConfigError, match="no draft"):
        correct(str(run / "uniform"))


def test_words_that_the_tokenizer_cannot_write_are_named() -> None:
    with pytest.raises(ConfigError, match="does not know 'Unicorn', '☃'"):
        Draft.of("the Unicorn ☃ sat Unicorn", words("the", "sat"), "x")
    with pytest.raises(ConfigError, match="has no text"):
        Draft.of(" \u200b ", words("the"), "x")
