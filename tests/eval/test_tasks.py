"""Names of lm-eval's tasks, and task files: lm-eval's own with questions from local files too."""

import importlib.util
import json
import os
import sys
from pathlib import Path

import pytest

from sddlm.errors import ConfigError
from sddlm.eval.tasks import check_tasks, load_tasks

#: as on docs/evaluation.md, but for the paths
LOCAL = """include: LM_EVAL/tasks/DEFINITION
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {validation: QUESTIONS}}
training_split: null
validation_split: validation
test_split: null
fewshot_split: null
metadata: {adapter: !function sddlm.eval.harness.NAME}
"""
OWN = """task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["yes", "no"]
doc_to_target: a
"""


@pytest.fixture(scope="module")
def harness():
    pytest.importorskip("lm_eval")
    from sddlm.eval import harness

    return harness


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.mktemp("cache")))


def questions(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return json.dumps(str(path))  # JSON is YAML


def task_file(folder, definition, lines):
    """A task of lm-eval with questions of ours; its path."""
    home = Path(importlib.util.find_spec("lm_eval").origin).parent
    path = folder / Path(definition).name
    data = questions(path.with_suffix(".jsonl"), lines)
    text = LOCAL.replace("DEFINITION", definition).replace("LM_EVAL", str(home))
    path.write_text(text.replace("QUESTIONS", data))
    return str(path)


def seen(task):
    """Context, choices and right answer of the first document, by lm-eval's own code."""
    doc = next(iter(task.eval_docs))
    return task.doc_to_text(doc), task.doc_to_choice(doc), task.doc_to_target(doc)


def test_lm_evals_own_task_reads_local_questions(harness, tmp_path, monkeypatch):
    """The task file of docs/evaluation.md; prompts, choices and metrics are lm-eval's."""
    monkeypatch.setenv("DISABLE_MULTIPROC", "maybe")
    line = {"goal": "Cut a café", "sol1": "with a knife", "sol2": "with a fork", "label": 1}
    name = task_file(tmp_path, "piqa/piqa.yaml", [line, line])
    (found,) = load_tasks([name])["tasks"].values()
    assert seen(found) == ("Question: Cut a café\nAnswer:", ["with a knife", "with a fork"], 1)
    assert len(found.eval_docs) == 2
    assert found.get_config("num_fewshot") == 0
    assert os.environ["DISABLE_MULTIPROC"] == "maybe"
    page = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    assert all(line.split(": ")[0] in page for line in LOCAL.splitlines())


def test_a_task_file_makes_lm_eval_import_our_model(harness, tmp_path, monkeypatch):
    """The line ``adapter``: lm-eval's own command line loads no foreign package by itself."""
    from lm_eval.api import registry

    monkeypatch.setattr(registry.model_registry, "_objs", {})
    monkeypatch.delitem(sys.modules, "sddlm.eval.harness")
    line = {"goal": "Cut bread", "sol1": "with a knife", "sol2": "with a fork", "label": 0}
    load_tasks([task_file(tmp_path, "piqa/piqa.yaml", [line])])
    assert registry.get_model("sddlm").__name__ == "SDDLM"


@pytest.mark.parametrize("way", ["file", "folder"])
def test_a_task_of_ones_own(harness, tmp_path, way):
    data = questions(tmp_path / "x.jsonl", [{"q": "wet?", "a": 0}, {"q": "dry?", "a": 1}])
    (tmp_path / "mine.yaml").write_text(OWN.replace("DATA", data))
    name = {"file": str(tmp_path / "mine.yaml"), "folder": str(tmp_path)}[way]
    check_tasks([name])
    found = load_tasks([name])["tasks"]["mine"]
    assert seen(found) == ("wet?", ["yes", "no"], 0)
    assert len(found.eval_docs) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [("task: [", "cannot be loaded"), ("a: b", "Unknown config"), (OWN, "cannot be loaded")],
)
def test_a_wrong_task_of_ones_own_is_one_line(harness, tmp_path, text, message):
    (tmp_path / "t.yaml").write_text(text)  # the last one: there is no file DATA
    with pytest.raises(ConfigError, match=message) as caught:
        load_tasks([str(tmp_path / "t.yaml")])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no.yaml", "no/mine.yaml", "./empty", "no/folder"])
def test_no_such_task_file(tmp_path, monkeypatch, name):
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=f"`tasks` is {name}: no such YAML file"):
        check_tasks([name])


@pytest.mark.parametrize(
    ("names", "limit", "message"),
    [
        ([], None, "`tasks` is empty; name tasks of lm-eval, such as hellaswag"),
        (["piqa", ""], None, "`tasks` is empty"),
        (["sciq", "sciq"], None, "names sciq twice"),
        (["sciq"], 0, "`limit` is 0, must be at least 1"),
    ],
)
def test_what_cannot_be_is_refused_at_once(names, limit, message):
    pytest.importorskip("lm_eval")
    with pytest.raises(ConfigError, match=message):
        check_tasks(names, limit)


def test_names_are_lm_evals_business(monkeypatch):
    pytest.importorskip("lm_eval")
    check_tasks(["mmlu", "gsm8k"], 3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs lm-eval; type: pip install 'sddlm\[tasks\]'"):
        check_tasks(["mmlu"])
