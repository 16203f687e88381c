"""Layouts of files of questions: each line to the schema that lm-eval's task knows, the hub's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """A task whose local files may have several layouts.

    Attributes:
        definition: lm-eval's own, below its folder ``tasks``.
        names: files that it may lie in, beside ``NAME.jsonl``; the first one there is taken.
        convert: a line of any of the known layouts to the schema of the hub.
    """

    definition: str
    names: tuple[str, ...]
    convert: Callable[[Record], Record]


def _copy(*keys: str) -> Callable[[Record], Record]:
    """Takes these keys of a line that is in the schema of the hub already."""
    return lambda line: {key: line[key] for key in keys}


def _hellaswag(line: Record) -> Record:
    """The hub's schema, or llama.cpp's: ``query`` and ``endings`` that are cleaned already.

    lm-eval cleans them and begins the last, unfinished sentence (``ctx_b``) with a capital. A
    cleaned query does not say where that is; it is what follows the last full stop, if it begins
    with a small letter.
    """
    if "ctx_a" in line:
        return _copy("activity_label", "ctx_a", "ctx_b", "endings", "label")(line) | {
            "label": str(int(line["label"]))
        }
    activity, colon, context = line["query"].partition(": ")
    if not colon:
        raise ValueError("query must begin with an activity and a colon")
    found = re.fullmatch(r"(.*[.!?\"')]) ([a-z][^.!?]*)", context, re.DOTALL)
    return {
        "activity_label": activity,
        "ctx_a": found[1] if found else context,
        "ctx_b": found[2] if found else "",
        "endings": list(line["endings"]),
        "label": str(_place(line["label"], line["endings"])),
    }


def _lambada(line: Record) -> Record:
    """``text``, or ``context`` and ``continuation``, its last word."""
    if "text" in line:
        return {"text": line["text"]}
    word = line["continuation"].strip()
    if not word or " " in word:
        raise ValueError(f"continuation must be one word, not {word!r}")
    return {"text": f"{line['context'].rstrip(' ')} {word}"}


def _flat(line: Record) -> Record:
    """A line of the original files of ARC, OpenBookQA and CommonsenseQA in the hub's schema."""
    asked = line.get("question")
    if not isinstance(asked, dict):
        return line
    choices = {key: [choice[key] for choice in asked["choices"]] for key in ("text", "label")}
    stem = {"question": asked["stem"], "question_stem": asked["stem"]}
    return stem | {"choices": choices, "answerKey": line["answerKey"]}


def _arc(line: Record) -> Record:
    """The hub's schema, the original one, or llm-foundry's: ``query``, ``choices``, ``gold``."""
    line = _flat(line)
    if "question" in line:
        choices = _choices(line["choices"])
        return {
            "question": line["question"],
            "choices": choices,
            "answerKey": _key(line["answerKey"], choices),
        }
    texts = list(line["choices"])
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    return {
        "question": line["query"].removeprefix("Question: ").removesuffix("\nAnswer:"),
        "choices": {"text": texts, "label": labels},
        "answerKey": labels[_place(line["gold"], texts)],
    }


def _piqa(line: Record) -> Record:
    return _copy("goal", "sol1", "sol2")(line) | {"label": _place(line["label"], "01")}


def _winogrande(line: Record) -> Record:
    if str(line["answer"]) not in ("1", "2"):
        raise ValueError(f"answer must be 1 or 2, not {line['answer']!r}")
    if "_" not in line["sentence"]:
        raise ValueError("sentence must have a _ where the options go")
    return _copy("sentence", "option1", "option2")(line) | {"answer": str(line["answer"])}


def _boolq(line: Record) -> Record:
    """SuperGLUE's schema, or the original one: ``answer``, and maybe a ``title``."""
    passage = f"{line['title']} -- {line['passage']}" if "title" in line else line["passage"]
    label = line["label"] if "label" in line else bool(line["answer"])
    return {"question": line["question"], "passage": passage, "label": _place(int(label), "01")}


def _openbookqa(line: Record) -> Record:
    line = _flat(line)
    choices = _choices(line["choices"])
    return {
        "question_stem": line["question_stem"],
        "choices": choices,
        "answerKey": _key(line["answerKey"], choices),
    }


def _commonsense_qa(line: Record) -> Record:
    line = _flat(line)
    choices = _choices(line["choices"])
    if len(choices["text"]) != 5:
        raise ValueError(f"there must be 5 choices, not {len(choices['text'])}")
    return {
        "question": line["question"],
        "choices": choices,
        "answerKey": _key(line["answerKey"], choices),
    }


def _copa(line: Record) -> Record:
    if line["question"] not in ("cause", "effect"):
        raise ValueError(f"question must be cause or effect, not {line['question']!r}")
    plain = _copy("premise", "choice1", "choice2", "question")(line)
    return plain | {"label": _place(line["label"], "01")}


def _choices(given: Record) -> Record:
    if len(given["text"]) != len(given["label"]):
        raise ValueError("choices must have as many labels as texts")
    return {"text": list(given["text"]), "label": list(given["label"])}


def _key(answer: str, choices: Record) -> str:
    """The answer, if it is one of the labels."""
    if answer.strip() not in choices["label"]:
        raise ValueError(f"answerKey {answer!r} is none of the labels")
    return answer.strip()


def _place(label: Any, choices: Sequence[Any]) -> int:
    """A label as the place of one of the choices."""
    if not 0 <= int(label) < len(choices):
        raise ValueError(f"label {label!r} must lie in 0..{len(choices) - 1}")
    return int(label)


_SCIQ = ("question", "correct_answer", "distractor1", "distractor2", "distractor3", "support")

#: tasks of which more layouts than the hub's are known, by lm-eval's names
LOCAL = {
    "hellaswag": LocalTask("hellaswag/hellaswag.yaml", ("hellaswag_val.jsonl",), _hellaswag),
    "lambada_openai": LocalTask("lambada/lambada_openai.yaml", ("lambada_test.jsonl",), _lambada),
    "arc_easy": LocalTask("arc/arc_easy.yaml", ("arc_easy_test_mc.jsonl",), _arc),
    "arc_challenge": LocalTask("arc/arc_challenge.yaml", ("arc_challenge_test_mc.jsonl",), _arc),
    "piqa": LocalTask("piqa/piqa.yaml", ("piqa_valid.jsonl",), _piqa),
    "winogrande": LocalTask(
        "winogrande/default.yaml", ("winogrande_xl_validation.jsonl",), _winogrande
    ),
    "boolq": LocalTask("super_glue/boolq/default.yaml", ("boolq_validation.jsonl",), _boolq),
    "sciq": LocalTask("sciq/sciq.yaml", ("sciq_test.jsonl",), _copy(*_SCIQ)),
    "openbookqa": LocalTask(
        "openbookqa/openbookqa.yaml", ("openbookqa_validation.jsonl",), _openbookqa
    ),
    "copa": LocalTask("super_glue/copa/default.yaml", (), _copa),
    "commonsense_qa": LocalTask(
        "commonsense_qa/default.yaml", ("commonsenseqa.jsonl",), _commonsense_qa
    ),
}
