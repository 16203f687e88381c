"""Local files of questions: whatever their layout, lm-eval sees the same."""

import importlib.util
import json
import os
import socket
import sys

import pytest

from sddlm.errors import ConfigError
from sddlm.eval.tasks import LOCAL, SPLIT, _definitions, _version, check_tasks, local_tasks
from sddlm.work import ProcessGroup

ARC = {"text": ["ash", "a café", "rain"], "label": ["A", "B", "C"]}
SCIQ = {"support": " Water boils.", "question": "What boils?", "correct_answer": "water"}
SCIQ |= {"distractor1": "ice", "distractor2": "sand", "distractor3": "wood"}
FIVE = {"text": ["bank", "library", "mall", "mat", "sea"], "label": ["A", "B", "C", "D", "E"]}
NESTED = [{"label": k, "text": t} for k, t in zip(FIVE["label"], FIVE["text"], strict=True)]
COPA = {"premise": "The ice melted.", "choice1": "The sun came out.", "choice2": "It snowed."}
#: task: a question in the schema of the hub
HUB = {
    "hellaswag": {
        "activity_label": "Ice fishing",
        "ctx_a": "Two men sit. They wait.",
        "ctx_b": "the Older one",
        "endings": ["catches a fish.", "[substeps] Stand  up."],
        "label": "1",
    },
    "lambada_openai": {"text": "It was the end of the\nlong road"},
    "arc_easy": {"question": "What falls?", "choices": ARC, "answerKey": "C"},
    "arc_challenge": {"question": "What is warm?", "choices": ARC, "answerKey": "B"},
    "piqa": {"goal": "Cut bread", "sol1": "with a knife", "sol2": "with a fork", "label": 1},
    "winogrande": {"sentence": "The _ ran.", "option1": "dog", "option2": "mat", "answer": "1"},
    "boolq": {"question": "is ice cold", "passage": "Ice is frozen.", "label": 1},
    "sciq": SCIQ,
    "openbookqa": {"question_stem": "The sun is", "choices": ARC, "answerKey": "A"},
    "copa": COPA | {"question": "cause", "label": 0},
    "commonsense_qa": {"question": "Where is money?", "choices": FIVE, "answerKey": "A"},
}
#: task: (file, the same question in another layout)
OTHER = {
    "hellaswag": (
        "hellaswag_val.jsonl",
        {
            "ind": 0,
            "query": "Ice fishing: Two men sit. They wait. the Older one",
            "label": 1,
            "endings": ["catches a fish.", " Stand up."],
        },
    ),
    "lambada_openai": (
        "lambada_openai.jsonl",
        {"context": "It was the end of the\nlong", "continuation": " road"},
    ),
    "arc_easy": (
        "arc_easy_test_mc.jsonl",
        {"query": "Question: What falls?", "choices": ARC["text"], "gold": 2},
    ),
    "arc_challenge": (
        "arc_challenge_test_mc.jsonl",
        {"query": "Question: What is warm?\nAnswer:", "choices": ARC["text"], "gold": 1},
    ),
    "piqa": ("piqa_valid.jsonl", {k: v for k, v in HUB["piqa"].items() if k != "label"}),
    "winogrande": ("winogrande_xl_validation.jsonl", HUB["winogrande"]),
    "boolq": (
        "boolq_validation.jsonl",
        {"question": "is ice cold", "answer": True, "passage": "Ice is frozen."},
    ),
    "sciq": ("sciq_test.jsonl", HUB["sciq"]),
    "openbookqa": ("openbookqa_validation.jsonl", HUB["openbookqa"] | {"id": "7-1"}),
    "copa": ("copa_val.jsonl", HUB["copa"] | {"idx": 3}),
    "commonsense_qa": (
        "commonsense_qa_dev_rand_split.jsonl",
        {
            "answerKey": "A",
            "id": "1",
            "question": {"question_concept": "x", "choices": NESTED, "stem": "Where is money?"},
        },
    ),
}
#: task: context of each choice, what is scored, which is right; written by hand from lm-eval's YAML
SEEN = {
    "hellaswag": (
        "Ice fishing: Two men sit. They wait. The older one",
        ["catches a fish.", "Stand up."],
        1,
    ),
    "lambada_openai": ("It was the end of the\nlong", ["road"], None),
    "arc_easy": ("Question: What falls?\nAnswer:", ARC["text"], 2),
    "arc_challenge": ("Question: What is warm?\nAnswer:", ARC["text"], 1),
    "piqa": ("Question: Cut bread\nAnswer:", ["with a knife", "with a fork"], 1),
    "winogrande": (["The dog", "The mat"], ["ran."], 0),
    "boolq": ("Ice is frozen.\nQuestion: is ice cold?\nAnswer:", ["no", "yes"], 1),
    "sciq": ("Water boils.\nQuestion: What boils?\nAnswer:", ["ice", "sand", "wood", "water"], 3),
    "openbookqa": ("The sun is", ARC["text"], 0),
    "copa": ("The ice melted because", ["the sun came out.", "it snowed."], "the sun came out."),
    "commonsense_qa": (
        "Question: Where is money?\nA. bank\nB. library\nC. mall\nD. mat\nE. sea\nAnswer:",
        ["A", "B", "C", "D", "E"],
        "A",
    ),
}


def put(place, lines, name):
    place.mkdir(exist_ok=True)
    path = place / name
    path.write_text("".join(json.dumps(line) + "\n\n" for line in lines), encoding="utf-8")
    return path


def files_of(place, other):
    """A folder with two questions of every task."""
    for task in LOCAL:
        name, line = OTHER[task] if other else (f"{task}.jsonl", HUB[task])
        put(place, [line, line], name)
    if other:
        (place / "piqa_valid-labels.lst").write_text("1\n0\n")
    return place


@pytest.mark.parametrize("task", [task for task in LOCAL if task != "hellaswag"])
def test_another_layout_becomes_the_schema_of_the_hub(task, tmp_path):
    written = [
        local_tasks([task], files_of(tmp_path / str(other), other), tmp_path / f"out{other}")
        for other in (False, True)
    ]
    first, second = ((place / f"{task}.jsonl").read_text().splitlines() for place in written)
    assert json.loads(first[0]) == HUB[task]
    assert first[0] == second[0]
    assert "\\u" not in first[0]  # as it was


def test_labels_beside_the_questions_are_each_ones_own(tmp_path):
    local_tasks(["piqa"], files_of(tmp_path / "in", True), tmp_path)
    text = (tmp_path / "piqa.jsonl").read_text()
    labels = [json.loads(line)["label"] for line in text.splitlines()]
    assert labels == [1, 0]


def test_a_title_is_put_where_superglue_has_it(tmp_path):
    line = {"title": "Ice", "question": "q", "answer": False, "passage": "Cold."}
    put(tmp_path, [line], "boolq.jsonl")
    local_tasks(["boolq"], tmp_path, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "boolq.jsonl").read_text())
    assert found == {"question": "q", "passage": "Ice -- Cold.", "label": 0}


def seen(task):
    """Contexts, choices and right answer of the first document, by lm-eval's own code."""
    doc = next(iter(task.eval_docs))
    context = task.doc_to_text(doc)
    if task.OUTPUT_TYPE == "loglikelihood":
        return context, [task.doc_to_target(doc).strip()], None
    choices = task.doc_to_choice(doc)
    if task.multiple_input:
        return choices, [task.doc_to_target(doc)], context
    target = task.doc_to_target(doc)
    return context, [each.strip() for each in choices], getattr(target, "strip", lambda: target)()


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    from sddlm.eval import harness

    return harness


def test_lm_eval_sees_every_task_and_asks_no_server(harness, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *host: asked.append(host))
    monkeypatch.setenv("DISABLE_MULTIPROC", "maybe")
    monkeypatch.setattr(sys.modules["datasets"].config, "HF_HUB_OFFLINE", False)
    place = files_of(tmp_path / "in", True)
    found = harness.load_tasks(
        list(LOCAL), files=place, limit=None, out_folder=tmp_path / "out", team=ProcessGroup()
    )["tasks"]
    assert {name: seen(task) for name, task in found.items()} == SEEN
    assert {len(task.eval_docs) for task in found.values()} == {2}
    assert found["piqa"].get_config("num_fewshot") == 0
    assert found["boolq"].VERSION == 2.0
    assert asked == []
    assert os.environ["DISABLE_MULTIPROC"] == "maybe"
    assert not sys.modules["datasets"].config.HF_HUB_OFFLINE
    monkeypatch.delenv("DISABLE_MULTIPROC")
    # the same questions in the schema of the hub
    put(place, [HUB["hellaswag"]], "hellaswag.jsonl")
    again = harness.load_tasks(
        ["hellaswag"], files=place, limit=None, out_folder=tmp_path / "out", team=ProcessGroup()
    )["tasks"]
    assert seen(again["hellaswag"]) == SEEN["hellaswag"]
    assert len(again["hellaswag"].eval_docs) == 1  # not the old ones from a cache
    assert "DISABLE_MULTIPROC" not in os.environ


def test_every_definition_is_lm_evals_own(tmp_path):
    pytest.importorskip("lm_eval")
    for name, task in LOCAL.items():
        text = (_definitions() / task.definition).read_text()
        assert f"task: {name}\n" in text
        stated = float(_version(_definitions() / task.definition))
        assert stated >= 1 or name == "commonsense_qa"  # which states none
    local_tasks(["arc_challenge"], files_of(tmp_path, False), tmp_path / "out")
    text = (tmp_path / "out" / "arc_challenge.yaml").read_text()
    assert f"validation_split: {SPLIT}\n" in text
    assert "version: 1.0," in text  # that of the file that it includes


@pytest.mark.parametrize(
    ("names", "limit", "message"),
    [
        (["piqua"], None, "task piqua is none .* did you mean piqa"),
        (["mmlu"], None, "task mmlu is none of .* groups left out: known are hellaswag"),
        (["piqa"], None, r"no questions of task piqa in .*piqa.jsonl, piqa_valid.jsonl, piqa_\*"),
        ([], None, "needs names, such as hellaswag"),
        (["piqa", ""], None, "needs names"),
        (["sciq", "sciq"], None, "names sciq twice"),
        (["sciq"], 0, "--limit is 0, must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(names, limit, message, tmp_path):
    pytest.importorskip("lm_eval")
    put(tmp_path, [SCIQ], "sciq.jsonl")
    with pytest.raises(ConfigError, match=message):
        check_tasks(names, tmp_path, limit)


def test_names_without_files_are_lm_evals_business(monkeypatch):
    pytest.importorskip("lm_eval")
    check_tasks(["mmlu", "gsm8k"], None, 3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs lm-eval; type: pip install 'sddlm\[tasks\]'"):
        check_tasks(["mmlu"], None)


@pytest.mark.parametrize(
    ("task", "line", "message"),
    [
        ("piqa", {"goal": "a", "sol1": "b"}, "line 3 has no 'sol2'; it has goal, sol1"),
        (
            "piqa",
            HUB["piqa"] | {"label": 2},
            r"line 3 is no question .* label 2 must lie in 0\.\.1",
        ),
        ("piqa", [1], "line 3 is no JSON object"),
        ("boolq", HUB["boolq"] | {"label": -1}, "label -1"),
        ("arc_easy", HUB["arc_easy"] | {"answerKey": "D"}, "answerKey 'D' is none of the labels"),
        ("arc_easy", {"query": "q", "choices": ["a"], "gold": 1}, "label 1 must lie in 0..0"),
        ("arc_easy", HUB["arc_easy"] | {"choices": ["a"]}, "line 3 is no question"),
        ("openbookqa", HUB["openbookqa"] | {"choices": ARC | {"label": "AB"}}, "as many labels"),
        ("winogrande", HUB["winogrande"] | {"answer": ""}, "answer must be 1 or 2, not ''"),
        ("winogrande", HUB["winogrande"] | {"sentence": "No."}, "must have a _"),
        ("lambada_openai", {"context": "a", "continuation": "b c"}, "one word, not 'b c'"),
        ("hellaswag", OTHER["hellaswag"][1] | {"query": "no colon"}, "activity and a colon"),
        ("hellaswag", OTHER["hellaswag"][1] | {"label": 2}, "label 2"),
    ],
)
def test_a_wrong_line_is_named(task, line, message, tmp_path):
    pytest.importorskip("lm_eval")
    put(tmp_path, [HUB[task], line], f"{task}.jsonl")  # an empty line between them
    with pytest.raises(ConfigError, match=message):
        local_tasks([task], tmp_path, tmp_path / "out")
    assert not (tmp_path / "out" / f"{task}.jsonl").exists()


def test_wrong_files_are_named(tmp_path):
    pytest.importorskip("lm_eval")
    (tmp_path / "piqa.jsonl").write_text('{"goal": \n')
    with pytest.raises(ConfigError, match=r"piqa.jsonl, line 1 is no JSON"):
        local_tasks(["piqa"], tmp_path, tmp_path / "out")
    (tmp_path / "piqa.jsonl").write_text("\n")
    with pytest.raises(ConfigError, match=r"piqa.jsonl has no questions"):
        local_tasks(["piqa"], tmp_path, tmp_path / "out")
    (tmp_path / "piqa-labels.lst").write_text("1\n0\n")
    with pytest.raises(ConfigError, match=r"labels.lst has 2 labels, .*piqa.jsonl 0 questions"):
        local_tasks(["piqa"], tmp_path, tmp_path / "out")
    (tmp_path / "sciq.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot read"):
        local_tasks(["sciq"], tmp_path, tmp_path / "out")
    put(tmp_path, [HUB["boolq"]], "boolq.jsonl")
    with pytest.raises(ConfigError, match="cannot write tasks to"):
        local_tasks(["boolq"], tmp_path, tmp_path / "sciq.jsonl")


def test_a_file_is_found_by_the_tasks_name(tmp_path):
    """At 7bd1212 ``sciq_validation.jsonl`` was not recognised."""
    pytest.importorskip("lm_eval")
    put(tmp_path, [SCIQ], "sciq_validation.jsonl")
    local_tasks(["sciq"], tmp_path, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "sciq.jsonl").read_text()) == SCIQ
    put(tmp_path, [SCIQ], "sciq_train.jsonl")
    with pytest.raises(ConfigError, match=r"any of sciq_train.jsonl, sciq_validation.jsonl in"):
        local_tasks(["sciq"], tmp_path, tmp_path / "out")


def test_any_other_task_takes_lines_as_on_the_hub(harness, tmp_path):
    """At 7bd1212 all but nine tasks were refused."""
    line = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1, "idx": 0}
    place = put(tmp_path / "in", [line], "rte.jsonl").parent
    found = harness.load_tasks(
        ["rte"], files=place, limit=None, out_folder=tmp_path / "out", team=ProcessGroup()
    )["tasks"]["rte"]
    assert seen(found) == (
        "It rains.\nQuestion: It is wet. True or False?\nAnswer:", ["True", "False"], 1
    )  # fmt: skip


OWN = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: a
"""


@pytest.mark.parametrize("way", ["file", "folder", "name"])
def test_a_task_of_ones_own(harness, tmp_path, monkeypatch, way):
    """At 7bd1212 a YAML file of the user's was an unknown task."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    place = put(tmp_path / "in", [{"q": "wet?", "a": 0}, {"q": "dry?", "a": 1}], "x.jsonl").parent
    (place / "mine.yaml").write_text(OWN.replace("DATA", json.dumps(str(place / "x.jsonl"))))
    name = {"file": str(place / "mine.yaml"), "folder": str(place), "name": "mine"}[way]
    check_tasks([name], place)
    found = harness.load_tasks(
        [name], files=place, limit=None, out_folder=tmp_path / "out", team=ProcessGroup()
    )["tasks"]["mine"]
    assert seen(found) == ("wet?", ["yes", "no"], 0)
    assert len(found.eval_docs) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("task: [", "cannot be loaded"), ("a: b", "Unknown config"), (OWN, "cannot be loaded")],
)
def test_a_wrong_task_of_ones_own_is_one_line(harness, tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)  # the last one: there is no file DATA
    with pytest.raises(ConfigError, match=message) as caught:
        harness.load_tasks(
            [str(tmp_path / "t.yaml")],
            files=tmp_path,
            limit=None,
            out_folder=tmp_path / "out",
            team=ProcessGroup(),
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no.yaml", "no/mine.yaml", "./empty", "no/folder"])
def test_no_such_task_file(tmp_path, monkeypatch, name):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"--tasks {name}: no such YAML file"):
        check_tasks([name], None)


def test_a_task_of_the_hub_gets_a_file_that_names_our_model(harness, tmp_path):
    """lm-eval's command line knew the model only where there were local questions."""
    from lm_eval.tasks._yaml_loader import load_yaml

    local_tasks(["copa"], None, tmp_path)
    own = load_yaml(tmp_path / "copa.yaml")
    theirs = load_yaml(_definitions() / "super_glue" / "copa" / "default.yaml")
    assert own.pop("metadata") == {"version": 1.0, "adapter": "sddlm"}
    assert own.pop("tag") is None
    assert own == {key: theirs[key] for key in theirs if key not in ("metadata", "tag")}
