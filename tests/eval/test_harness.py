"""lm-eval's requests: what they mean to a model, and that its own command line agrees."""

import functools
import json
import math
import runpy
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_tasks import task_file

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError
from sddlm.eval.questions import LoglikelihoodScorer, split
from sddlm.eval.result import plain
from sddlm.eval.tasks import load_tasks, run_tasks
from sddlm.jobs import ResumableJob
from sddlm.lm import LanguageModel
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess
from sddlm.rng import Draw

EOS = 256
LENGTH = 32
LETTERS = {"a": 0.5, "b": 0.3, "c": 0.1}


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    from sddlm.eval import harness

    return harness


def make(estimate, unigram=False, **data):
    """A model of bytes: random, or one whose text is letters drawn one by one."""
    config = DiTConfig(
        vocab_size=257, length=LENGTH, width=16, blocks=1, heads=2, causal=not estimate.diffusion
    )
    model = DiT(config)
    model.init(0)
    tokenizer = Tokenizer.bytes()
    p = torch.full((257,), 0.1 / 254)
    for letter, share in LETTERS.items():
        p[tokenizer.encode_batch([letter])[0]] = share
    with torch.no_grad():
        if unigram:
            model.head.weight.zero_()
            model.head.bias.copy_(p.log())
        else:
            for i, parameter in enumerate(model.parameters()):
                noise = Draw.simple(1, i, 1).uniform("w", parameter.numel()) - 0.5
                parameter += noise.float().reshape(parameter.shape)
    return LanguageModel(model.eval(), UniformProcess(), estimate, tokenizer, {}, data)


AR, DIFFUSION = Estimate.NEXT_TOKEN, Estimate.LEAVE_ONE_OUT


@pytest.fixture(scope="module")
def ar():
    return make(AR)


@pytest.fixture(scope="module")
def diffusion():
    return make(DIFFUSION)


@pytest.fixture(scope="module")
def letters():
    return make(DIFFUSION, unigram=True)


def request(context, continuation, doc=0, task="t"):
    """What lm-eval sends, but for what no model looks at."""
    return SimpleNamespace(args=(context, continuation), doc_id=doc, task_name=task)


def next_logits(loaded, tokens):
    with torch.no_grad():
        hidden = loaded.network(torch.tensor([tokens]), torch.zeros(1))[0, -1]
        return loaded.network.head.logits(hidden[None])[0].double()


def by_hand(loaded, prompt, tokens):
    """Log p of tokens after a prompt, one at a time, and whether each is the most likely."""
    logits = [next_logits(loaded, prompt + tokens[:i]) for i in range(len(tokens))]
    log_p = sum(float(x.log_softmax(0)[i]) for x, i in zip(logits, tokens, strict=True))
    return log_p, all(int(x.argmax()) == i for x, i in zip(logits, tokens, strict=True))


def greedy_text(loaded, prompt, count):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(next_logits(loaded, tokens).argmax()))
    return tokens[len(prompt) :]


# ---------------------------------------------------------------------- likelihood


def test_an_autoregressive_model_gives_the_chain_rule(harness, ar):
    encode = ar.tokenizer.encode_batch
    pairs = [("The cat", " sat"), ("Der Bär  ", "läuft ♥"), ("", "x"), ("no end", ""), (" ", "é")]
    lm = harness.SDDLM(ar)
    found = lm.loglikelihood([request(*pair, doc=i) for i, pair in enumerate(pairs)])
    for (context, continuation), (log_p, is_greedy) in zip(pairs, found, strict=True):
        stripped = context.rstrip()
        (prompt,) = encode([stripped])
        (scored,) = encode([context[len(stripped) :] + continuation])
        expected, best = by_hand(ar, [EOS, *prompt], scored)
        assert log_p == pytest.approx(expected, rel=1e-5)
        assert is_greedy is best
    assert found[3] == (0.0, True)
    (prompt,) = encode(["Hello"])
    best = greedy_text(ar, [EOS, *prompt], 3)
    text = ar.tokenizer.decode(best)
    if encode([text])[0] == best:  # bytes that are text
        assert lm.loglikelihood([request("Hello", text)])[0][1] is True
    assert lm.loglikelihood([request("Hello", text + "?"), request("Hello", text)])[1][1] is False


def test_a_unigram_law_is_found_within_the_stated_error(harness, letters):
    lm = harness.SDDLM(letters, draws=128)
    (log_p, _), (empty, greedy) = lm.loglikelihood(
        [request("ab", "cabca", doc=1), request("ab", "", doc=2)]
    )
    log = {letter: math.log(share) for letter, share in LETTERS.items()}
    exact = 2 * log["a"] + log["b"] + 2 * log["c"]
    error = lm.found["t"][0]["stderr"][0]
    assert 0 < error < 1
    assert abs(log_p - exact) < 4 * error + 0.05  # the prior term of five tokens
    assert (empty, greedy) == (0.0, True)


def test_rolling_scores_the_whole_text_once(harness, ar, letters):
    text = "abcab " * 12  # longer than two rows
    (scored,) = ar.tokenizer.encode_batch([text])
    (found,) = harness.SDDLM(ar).loglikelihood_rolling(
        [SimpleNamespace(args=(text,), task_name="t")]
    )
    lowest, _ = by_hand(ar, [EOS], scored[: LENGTH - 1])
    assert found < lowest  # more than the first row, and no token is left out:
    lm = harness.SDDLM(letters)
    (found,) = lm.loglikelihood_rolling([SimpleNamespace(args=(text,), task_name="t")])
    each = 2 * math.log(0.5) + 2 * math.log(0.3) + math.log(0.1) + math.log(0.1 / 254)
    assert abs(found - 12 * each) < 4 * lm.found["t"][0]["stderr"][0] + 0.5
    # nobody asks whether a whole text is greedy; of a continuation it is found
    lm.loglikelihood_rolling([SimpleNamespace(args=("aaa",), task_name="t")])
    assert [each["greedy"] for each in lm.found["t"]] == [False, False]
    assert lm.loglikelihood([request("b", "aaa")])[0][1] is True


def test_the_order_and_company_of_questions_change_nothing(harness, diffusion):
    requests = [
        request("one", " two"), request("one", " three"), request("one", " two"),
        request("four", " five", doc=1), request("four", " six", doc=1),
        request("x", " y", task="other"),
    ]  # fmt: skip
    first = harness.SDDLM(diffusion, draws=32, batch=7).loglikelihood(requests)
    assert first[0] == first[2]
    assert len({log_p for log_p, _ in first}) == 5
    lm = harness.SDDLM(diffusion, draws=32, batch=64)
    again = lm.loglikelihood([requests[i] for i in (5, 4, 0, 3, 1)])
    wanted = [first[i][0] for i in (5, 4, 0, 3, 1)]
    assert [log_p for log_p, _ in again] == pytest.approx(wanted, rel=1e-5)
    assert [len(each["log_p"]) for each in lm.found["t"]] == [2, 2]
    assert [len(each["log_p"]) for each in lm.found["other"]] == [1]
    other = harness.SDDLM(diffusion, draws=32, seed=1).loglikelihood(requests)
    assert other[0][0] != pytest.approx(first[0][0], rel=1e-5)
    # who gives no number of a document asks about each by itself
    alone = [request("a", "b", doc=None), request("a", "c", doc=None)]
    lm.loglikelihood(alone)
    assert [len(each["log_p"]) for each in lm.found["t"][2:]] == [1, 1]


def test_choices_share_their_noise_and_a_clear_ranking_stops_early(letters):
    questions = LoglikelihoodScorer(letters, draws=128, seed=0, batch=64)
    clear = questions.score([("ab", " aaaaaa"), ("ab", " cccccc"), ("ab", " zzzzzz")])
    assert clear["draws"] < 128
    assert clear["log_p"] == sorted(clear["log_p"], reverse=True)
    # by sum the short one is the best, by sum over characters the long one
    unclear = questions.score([("", "bb"), ("", "aaab")])
    assert unclear["log_p"][0] > unclear["log_p"][1]
    assert unclear["log_p"][0] / 2 < unclear["log_p"][1] / 4
    # clear by sum, but a character is worth the same in both
    assert questions.score([("ab", "aa"), ("ab", "a" * 12)])["draws"] == 128
    # without a context beside it the question is about a difference, and a ranking is no answer
    mutual = questions.score([("ab", " aaaaaa"), ("ab", " zzzzzz"), ("", " aaaaaa")])
    assert mutual["draws"] == 128


def test_long_prompts_are_cut_on_the_left_and_counted(harness, ar):
    lm = harness.SDDLM(ar)
    context = "".join(chr(ord("a") + i % 26) for i in range(50))
    (prompt,) = ar.tokenizer.encode_batch([context])
    (scored,) = ar.tokenizer.encode_batch([" end"])
    found = lm.loglikelihood([request(context, " end"), request(context[:27], " end")])
    assert found[0][0] == pytest.approx(by_hand(ar, prompt[-28:], scored)[0], rel=1e-5)
    assert found[1][0] == pytest.approx(by_hand(ar, [EOS, *prompt[:27]], scored)[0], rel=1e-5)
    assert lm.found["t"][0]["cut"] == 1
    long = lm.loglikelihood([request("short", context, doc=1)])[0][0]  # more than a row
    assert -math.inf < long < by_hand(ar, [EOS], prompt[:20])[0] / 2
    # rows that begin with a token of their own keep it
    begun = replace(ar, data={"packing": {"bos_eos": True}})
    lm = harness.SDDLM(begun)
    found = lm.loglikelihood([request(context, " end")])
    expected = by_hand(ar, [ar.tokenizer.bos_id, *prompt[-27:]], scored)[0]
    assert found[0][0] == pytest.approx(expected, rel=1e-5)
    assert lm.found["t"][0]["cut"] == 1


def test_tokens_across_the_border_are_scored():
    bpe = Tokenizer.train_bpe(["abab abab abab"] * 50, 262)

    def encode(text):
        return bpe.encode_batch([text])[0]

    assert len(encode("abab")) == 1 < len(encode("aba"))
    for context, continuation in [("aba", "b"), ("ab", "ab"), ("a", "bab abab"), ("abab", " x")]:
        prompt, scored = split(encode, context, continuation)
        assert scored, "something is to be scored"
        assert prompt == encode(context)[: len(prompt)]
        assert scored == encode(context + continuation)[len(prompt) :]
    assert split(encode, "abab ", "") == (encode("abab"), encode(" "))
    assert split(encode, "abab", "") == (encode("abab"), [])


# ---------------------------------------------------------------------- writing


def written(lm, context, options, **how):
    from sddlm.eval.harness import GenerationConfig, write

    return write(lm, context, GenerationConfig.of(options), **how)["texts"]


def test_an_autoregressive_model_writes_the_most_likely_tokens(ar):
    (prompt,) = ar.tokenizer.encode_batch(["Once"])
    best = greedy_text(ar, [EOS, *prompt], LENGTH - 5)
    best = best[: best.index(EOS)] if EOS in best else best
    text, most = ar.tokenizer.decode(best), {"max_gen_toks": LENGTH - 5}
    assert written(ar, "Once", {"until": []} | most) == [text]
    stop = text[2:4]
    assert written(ar, "Once", {"until": [stop, ""]} | most) == [text.partition(stop)[0]]
    few = written(ar, "Once", {"max_gen_toks": 3, "until": "\0"})
    assert few == [ar.tokenizer.decode(greedy_text(ar, [EOS, *prompt], 3))]


def test_a_diffusion_model_writes_after_its_prompt(harness, letters):
    options = {"until": ["\n"], "do_sample": True, "temperature": 0.2, "max_tokens": 20}
    asked = [SimpleNamespace(args=("cab ", options), task_name="t")] * 3
    lm = harness.SDDLM(letters, steps=8)
    texts = lm.generate_until(asked)
    assert all(set(text) <= {"a", "b"} and len(text) == 20 for text in texts)
    assert len(set(texts)) == 3  # copies of one request
    other = SimpleNamespace(args=("abc", options), task_name="t")
    company = harness.SDDLM(letters, steps=8).generate_until([asked[0], other, *asked[1:]])
    assert [company[i] for i in (0, 2, 3)] == texts
    assert texts != harness.SDDLM(letters, steps=8, seed=1).generate_until(asked)
    options = {"until": [], "max_gen_toks": LENGTH + 8}  # more than a row, behind more than one
    long = [SimpleNamespace(args=("cab " * 20, options), task_name="t")]
    lm = harness.SDDLM(letters, steps=1)
    (text,) = lm.generate_until(long)
    assert text == "a" * (LENGTH + 8)  # the most likely letter in the last step
    assert [each["cut"] for each in lm.found["t"]] == [1]
    for letters_before, tokens, cut in ((20, 8, 0), (20, 20, 1), (10, 30, 0)):
        options = {"until": [], "max_gen_toks": tokens}
        lm = harness.SDDLM(letters, steps=1)
        lm.generate_until([SimpleNamespace(args=("a" * letters_before, options), task_name="t")])
        assert lm.found["t"][0]["cut"] == cut  # half a row of context is kept beside the text


def test_a_task_is_written_to_as_the_library_writes(letters):
    """One way from a prompt to text: `LanguageModel.generate`."""
    options = {"temperature": 0.5, "top_p": 0.8, "max_tokens": 12}
    how = {"steps": 8, "temperature": 0.5, "top_p": 0.8, "seed": 3, "length": 4 + 12}
    found = letters.generate("cab", n=2, **how)  # with the end of text in front
    assert written(letters, "cab", options, count=2, steps=8, seed=3) == [
        each.text.removeprefix("cab") for each in found
    ]


def test_writing_ends_with_the_text():
    loaded = make(DIFFUSION, unigram=True)
    with torch.no_grad():
        loaded.network.head.bias[EOS] = math.log(0.5)  # as likely as an a
    options = {"temperature": 0.3, "max_tokens": 31}
    texts = written(loaded, "c", options, steps=8, count=6)
    assert 0 < sum(map(len, texts)) < 30  # of 6 * 31 tokens


def test_options_of_writing(harness):
    GenerationConfig = harness.GenerationConfig
    default = GenerationConfig()
    assert GenerationConfig.of({}) == default
    asked = {"do_sample": False, "temperature": 0.7, "top_p": 0.5}
    assert GenerationConfig.of(asked) == default
    assert GenerationConfig.of({"do_sample": True, "temperature": 0.0}) == default
    asked = {"temperature": 0.7, "top_p": 0.5, "max_tokens": 9, "until": "x"}
    assert GenerationConfig.of(asked) == GenerationConfig(("x",), 9, 0.7, 0.5)
    with pytest.raises(ConfigError, match="generation option top_k is unknown, must be until,"):
        GenerationConfig.of({"top_k": 5})


# ---------------------------------------------------------------------- lm-eval's tasks


NAMES = ["arc_easy", "piqa", "lambada_openai"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Task files with questions whose answers have many of the likely letters."""
    place = tmp_path_factory.mktemp("questions")
    arc = [
        {
            "question": f"{i}?",
            "choices": {"text": ["zz", "aaa" + "b" * (i % 3), "ccc"], "label": ["A", "B", "C"]},
            "answerKey": "B",
        }
        for i in range(6)
    ]
    piqa = [{"goal": f"go {i}", "sol1": "zcz", "sol2": "aba", "label": i % 2} for i in range(5)]
    lambada = [{"text": "it was " + "long " * i + "ab"} for i in range(3)]
    folders = zip(("arc", "piqa", "lambada"), NAMES, (arc, piqa, lambada), strict=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        return {name: task_file(place, f"{of}/{name}.yaml", lines) for of, name, lines in folders}


def run(harness, loaded, files, names, limit=None, **more):
    tasks = load_tasks([files[name] for name in names], limit=limit)
    return plain(run_tasks(loaded, tasks, limit=limit, **more))


@pytest.mark.slow
def test_a_known_law_answers_rightly_and_goes_on_where_it_stopped(
    harness, letters, files, tmp_path, monkeypatch
):
    names = NAMES
    whole = run(harness, letters, files, names, draws=64)
    assert whole["arc_easy"]["metrics"] == {"acc": 1.0, "acc_norm": 1.0}
    assert whole["piqa"]["metrics"]["acc"] == 0.4  # of 0, 1, 0, 1, 0
    assert whole["piqa"]["stderr"]["acc"] == pytest.approx(math.sqrt(0.24 / 4))
    assert [whole[name]["documents"] for name in names] == [6, 5, 3]
    assert 32 <= whole["arc_easy"]["draws"] < 64 == whole["lambada_openai"]["draws"]
    assert 0 < whole["piqa"]["monte_carlo"] < 5
    assert whole["lambada_openai"]["metrics"]["acc"] == 0.0  # the space is not likely
    # a process that is killed after four questions, and one that goes on
    score, asked = LoglikelihoodScorer.score, []

    def dying(self, pairs, **more):
        asked.append(pairs)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return score(self, pairs, **more)

    monkeypatch.setattr(LoglikelihoodScorer, "score", dying)
    job = ResumableJob(tmp_path / "kept", {"model": 1})
    with pytest.raises(KeyboardInterrupt):
        run(harness, letters, files, names, draws=64, job=job)
    again = run(harness, letters, files, names, draws=64, job=job)
    assert len(asked) == 5 + (14 - 4)
    for report in (whole, again):
        for each in report.values():
            assert each.pop("seconds") >= 0
    assert again == whole
    few = run(harness, letters, files, ["piqa"], limit=2, draws=32)
    assert (few["piqa"]["documents"], few["piqa"]["metrics"]["acc"]) == (2, 0.5)


@pytest.mark.slow
def test_lm_evals_own_command_line_agrees(harness, diffusion, files, tmp_path, monkeypatch):
    """As docs/evaluation.md types it, but for lm-eval's list of all its tasks: half a minute."""
    diffusion.save(tmp_path / "run" / "model")
    names = ["arc_easy", "piqa"]
    own = run(harness, diffusion, files, names, limit=3, draws=32, seed=5)
    from lm_eval.tasks import TaskManager

    few = functools.partial(TaskManager, include_defaults=False)
    monkeypatch.setattr("lm_eval.tasks.TaskManager", few)
    theirs = tmp_path / "theirs.json"
    tasks = ",".join(files[name] for name in names)
    command = ["run", "--model", "sddlm", "--device", "cpu", "--tasks", tasks, "--limit", "3",
               "--model_args", f"path={tmp_path / 'run'},draws=32,seed=5",
               "--output_path", str(theirs)]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["lm_eval", *command])
    harness.main()
    (path,) = tmp_path.glob("theirs*.json")
    theirs = json.loads(path.read_text())
    for name in names:
        for metric, value in own[name]["metrics"].items():
            assert theirs["results"][name][f"{metric},none"] == value
            error = theirs["results"][name][f"{metric}_stderr,none"]
            assert error == pytest.approx(own[name]["stderr"][metric])
        figures = theirs["config"]["sddlm"]["tasks"][name]
        for key in ("draws", "monte_carlo", "cut"):
            assert figures[key] == pytest.approx(own[name][key], rel=1e-6)
    assert theirs["config"]["sddlm"]["seed"] == 5


def test_the_adapter_is_lm_evals_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["lm_eval", "run", "--help"])
    with pytest.raises(SystemExit) as end, pytest.warns(RuntimeWarning, match="found in sys.mod"):
        runpy.run_module("sddlm.eval.harness", run_name="__main__")
    assert end.value.code == 0
    assert "--model_args" in capsys.readouterr().out


def test_lm_eval_makes_it_from_arguments(harness, ar, tmp_path):
    from lm_eval.api.registry import get_model

    ar.save(tmp_path / "model")
    kind = get_model("sddlm")
    assert kind is harness.SDDLM
    lm = kind.create_from_arg_string(
        f"path={tmp_path},draws=32,seed=3,batch=5,steps=7,device=cpu,keep={tmp_path / 'kept'}",
        {"batch_size": 1, "max_batch_size": None, "device": None},
    )
    own = lm.scorer
    assert (own.draws, own.seed, own.batch, lm.steps) == (32, 3, 5, 7)
    found = lm.loglikelihood([request("a", " b")])
    assert list((tmp_path / "kept").iterdir())
    assert kind(ar).loglikelihood([request("a", " b")]) == found
    other = lm.loglikelihood([request("a", " c")])  # as many, but not the same
    assert other == kind(ar).loglikelihood([request("a", " c")]) != found
    for given, batch in (("8", 8), ("auto", 64), (1, 64), (4, 4)):
        assert kind(ar, batch_size=given).scorer.batch == batch
    assert (lm.rank, lm.world_size) == (0, 1)
    with pytest.raises(ConfigError, match="--model_args path=RUN"):
        kind.create_from_arg_string("draws=32")


def test_what_is_kept_is_of_the_same_model_and_settings(harness, letters, diffusion, tmp_path):
    settings = [{"draws": 32}, {"draws": 48}, {"draws": 32, "seed": 1}]
    asked = [(letters, each) for each in settings] + [(diffusion, settings[0])]
    found = [
        harness.SDDLM(model, keep=str(tmp_path), **more).loglikelihood([request("ab", "cab")])
        for model, more in asked * 2
    ]
    assert len({log_p for ((log_p, _),) in found}) == 4
    assert found[:4] == found[4:]


def test_a_name_that_lm_eval_does_not_know(harness, monkeypatch):
    monkeypatch.setattr(
        "lm_eval.tasks.TaskManager", lambda **_: SimpleNamespace(all_tasks=["piqa"])
    )
    with pytest.raises(ConfigError, match="lm-eval has no task piqua: did you mean piqa"):
        load_tasks(["piqua"])


def test_a_model_without_ends_of_text_gets_none_in_front(harness, ar, diffusion):
    """One rule with generation: what rows have in front, and nothing where they have nothing."""
    (prompt,) = ar.tokenizer.encode_batch(["The cat"])
    (scored,) = ar.tokenizer.encode_batch([" sat"])
    kinds = [({"eos": False}, []), ({"eos": True}, [EOS]), ({"packing": "document"}, [])]
    for packing, front in kinds:
        data = {"packing": packing}
        lm = harness.SDDLM(replace(ar, data=data))
        ((found, _),) = lm.loglikelihood([request("The cat", " sat")])
        assert found == pytest.approx(by_hand(ar, [*front, *prompt], scored)[0], rel=1e-5)
        assert replace(diffusion, data=data).prompt_ids(prompt) == [*front, *prompt]
        assert replace(diffusion, data=data).prompt_ids([]) == front
    # a next-token model must have something: what its sampler begins with
    silent = replace(ar, data={"packing": {"eos": False}})
    ((found, _),) = harness.SDDLM(silent).loglikelihood([request("", " sat")])
    assert found == pytest.approx(by_hand(ar, [EOS], scored)[0], rel=1e-5)
    assert written(silent, "", {"max_tokens": 3}) == written(ar, "", {"max_tokens": 3}) != [""]
