"""What a user can get wrong ends as one clear line, before any work, with nothing left behind."""

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.table import Table

import fuzz
import sddlm
from sddlm import ConfigError, Cosine, DataArgs, TrainArgs, UniformProcess, objectives
from sddlm.cli import _messages, _parse, main
from sddlm.cli_errors import with_flags
from sddlm.data.config import trained_on
from sddlm.generation.correct import correct
from sddlm.generation.sample import sample
from sddlm.objectives import NELBO, SDDLM, SDDLMV1, SDDLMV2, Objective
from sddlm.objectives.negatives import NoisyToken, UniformNegatives
from sddlm.progress import PlainConsole
from sddlm.sampling.lazy import Lazy
from sddlm.verbs import READS_RECIPES, VERBS

FILES = {
    "typo.yaml": b"train:\n  stpes: 3\n",
    "type.yaml": b"train: {steps: abc}\n",
    "top.yaml": b"steps: 3\n",
    "section.yaml": b"train: 5\n",
    "hollow.yaml": b"train:\n",
    "literal.yaml": b"train: {schedule: cosin}\n",
    "objective.yaml": b"objective: SDDLMX\n",
    "positions.yaml": b"objective:\n  class_path: SDDLM\n  init_args: {positions: foo}\n",
    "option.yaml": b"objective:\n  class_path: SDDLM\n  init_args: {position: changed}\n",
    "list.yaml": b"- 1\n- 2\n",
    "word.yaml": b"hello\n",
    "broken.yaml": b"a: [1\nb: }\n",
    "empty.yaml": b"",
    "binary.yaml": bytes(range(256)),
    "heir.yaml": b"inherit: [typo.yaml]\n",
    "heir2.yaml": b"inherit: type.yaml\ntrain: {batch: 2}\n",
    "heir3.yaml": b"inherit: objective.yaml\nobjective: {init_args: {positions: changed}}\n",
    "heir4.yaml": b"inherit: heir.yaml\ntrain: {stpes: 4}\n",
    "heir5.yaml": b"inherit: plain.yaml\nobjective: {init_args: {positions: foo}}\n",
    "plain.yaml": b"objective: SDDLM\n",
    "parts.yaml": b"objective: {class_path: SDDLMV1, init_args: {negatives: {class_path: "
    b"MixedNegatives, init_args: {shares: [1], parts: [{class_path: UniformNegatives, "
    b"init_args: {count: x}}]}}}}\n",
    "orphan.yaml": b"inherit: no.yaml\n",
    "orphan2.yaml": b"inherit: folder\n",
    "orphan3.yaml": b"inherit: [orphan.yaml]\n",
    "unread.yaml": b"inherit: broken.yaml\n",
    "wordy.yaml": b"inherit: word.yaml\n",
    "sectioned.yaml": b"inherit: section.yaml\ntrain: {steps: 3}\n",
    "inherit.yaml": b"inherit: 5\n",
    "inherit2.yaml": b"inherit: {a: b}\n",
    "inherit3.yaml": b"inherit: [typo.yaml, 5]\n",
    "inherit4.yaml": b"inherit:\n",
    "inherit5.yaml": b"inherit: ['']\n",
    "circle.yaml": b"inherit: circle2.yaml\n",
    "circle2.yaml": b"inherit: [text.yaml, ./circle3.yaml]\n",
    "circle3.yaml": b"inherit: folder/../circle2.yaml\n",
    "self.yaml": b"inherit: self.yaml\n",
    "text.yaml": b"seed: 1\n",
    "empty.txt": b"",
    "binary.txt": bytes(range(256)),
    "text.txt": b"The quick brown fox jumps over the lazy dog.\n" * 20,
}

ONE_OF = "must be one of NaiveDenoising, CalibratedDenoising, SDDLM, SDDLMV1, SDDLMV2"

#: what is typed (``train`` means ``train --out r``), and a part of the line that answers
WRONG = [
    # verbs and flags
    ("trian", f"there is no verb trian, only {', '.join(VERBS)}; did you mean train?"),
    ("train! --seed 1", "--out is missing: type sddlm train --out"),
    ("train! --out", "--out needs a value"),
    ("train more", "more is one argument too many"),
    ("train --stpes 3", "--stpes is no option; did you mean --train.steps?"),
    ("train --steps 3", "--steps is no option; did you mean --train.steps?"),
    ("train --preset tiny", "--preset is no option; did you mean --model.preset?"),
    ("train --train.stpes=3", "--train.stpes is no option; did you mean --train.steps?"),
    ("train --tr 3", "--tr is no option"),
    ("train --data.batch 3", "--data.batch is no option; did you mean --train.batch?"),
    ("train --resume maybe", "--resume is 'maybe', must be true or false"),
    ("train --train typo.txt", "--train is 'typo.txt', must be a section of options; a file of"),
    ("sample", "the directory of a run or model is missing: type sddlm sample RUN"),
    ("sample nodir more", "more is one argument too many"),
    ("sample nodir --top-p 1", "--top-p is no option; did you mean --top_p?"),
    ("sample nodir --seed", "--seed needs a value"),
    ("eval", "the directory of a run or model is missing: type sddlm eval RUN"),
    ("eval report", "the directory of a run or model is missing: type sddlm eval report RUN"),
    ("eval nodir --metric x", "--metric is no option; did you mean --metrics?"),
    ("eval nodir --data.lenght 3", "--data.lenght is no option; did you mean --data.length?"),
    # types and choices
    ("train --train.steps abc", "--train.steps is 'abc', must be a whole number"),
    (
        "train --train.steps=" + "[" * 100_000,
        "--train.steps has more than 500 lists or mappings in one another",
    ),
    ("train --train.steps=", "--train.steps is '', must be a whole number"),
    ("train --train.lr x", "--train.lr is 'x', must be a number"),
    ("train --model.width 2.5", "--model.width is '2.5', must be a whole number"),
    ("train --model.tie_embeddings=2", "--model.tie_embeddings is '2', must be true or false"),
    ("train --train.schedule cosin", "must be cosine or constant; did you mean cosine?"),
    ("train --train.precision 16", "--train.precision is '16', must be one of auto, 32, bf16"),
    ("train --train.devices x", "--train.devices is 'x', must be a whole number or auto"),
    ("train --model.preset big", "--model.preset is 'big', must be one of mini, tiny, small"),
    ("train --objective SDDLMX", ONE_OF),
    ("train --objective SDDLMX", "did you mean SDDLM?"),
    ("train --objective sddlmv1", "did you mean SDDLMV1?"),
    ("train --objective Objective", ONE_OF),
    ("train --objective no.such", ONE_OF),
    ("train --objective null", ONE_OF),
    (
        "train --objective SDDLM --objective.positions foo",
        "--objective.positions is 'foo', must be one of resampled, changed, all",
    ),
    (
        "train --objective SDDLM --objective.weight 2",
        "--objective.weight is no option; there are --objective.process, --objective.positions",
    ),
    (
        "train --objective SDDLMV2 --objective.negatives UniformNegatives",
        "--objective.negatives is no option; there are --objective.process, --objective.positions",
    ),
    (
        "train --objective SDDLMV1 --objective.negatives exact",
        "--objective.negatives is 'exact', must be one of UniformNegatives, UnigramNegatives",
    ),
    (
        "train --objective SDDLMV1 --objective.negatives UniformNegatives "
        "--objective.negatives.count x",
        "--objective.negatives.count is 'x', must be a whole number or exact",
    ),
    (
        "train --objective SDDLMV1 --objective.negatives MixedNegatives "
        "--objective.negatives.parts [NoisyToke,TopNegatives]",
        "--objective.negatives.parts is 'NoisyToke', must be one of UniformNegatives",
    ),
    (
        "train --objective SDDLMV1 --objective.negatives MixedNegatives "
        "--objective.negatives.parts [{count:1}]",
        "--objective.negatives.parts is {'count:1': None}, must be one of UniformNegatives",
    ),
    (
        "train --objective SDDLM --objective.process.schedule Cosin",
        "--objective.process.schedule is 'Cosin', must be one of LogLinear, ",
    ),
    ("sample nodir --tail foo", "--tail is 'foo', must be sample or greedy"),
    ("eval nodir --data.length x", "--data.length is 'x', must be a whole number"),
    # YAML
    ("train --config", "--config needs a value"),
    ("train --config no.yaml", "--config no.yaml cannot be read: No such file or directory"),
    ("train --config .", "--config . cannot be read: Is a directory"),
    ("train --config list.yaml", "holds '[1, 2]', must hold options"),
    ("train --config word.yaml", "holds 'hello', must hold options"),
    ("train --config broken.yaml", "--config broken.yaml is no YAML file: line 2"),
    ("train --config empty.yaml", "--config empty.yaml is empty"),
    ("train --config binary.yaml", "--config binary.yaml is no YAML file"),
    ("train --config typo.yaml", "stpes is no option in typo.yaml; did you mean --train.steps?"),
    ("train --config type.yaml", "--train.steps is 'abc' in type.yaml, must be a whole number"),
    ("train --config top.yaml", "--steps is no option in top.yaml; did you mean --train.steps?"),
    ("train --config section.yaml", "--train is 5 in section.yaml, must be a section"),
    ("train --config literal.yaml", "--train.schedule is 'cosin' in literal.yaml, must be cosine"),
    ("train --config objective.yaml", "--objective is 'SDDLMX' in objective.yaml, must be one of"),
    ("train --config positions.yaml", "--objective.positions is 'foo' in positions.yaml, must be"),
    ("train --config option.yaml", "did you mean --objective.positions?"),
    ("train --config hollow.yaml", "--train is empty in hollow.yaml, must be a section of options"),
    # YAML that inherits: the file that says it is the one named
    ("train --config heir.yaml", "stpes is no option in typo.yaml; did you mean --train.steps?"),
    ("train --config heir2.yaml", "--train.steps is 'abc' in type.yaml, must be a whole number"),
    ("train --config heir3.yaml", "--objective is 'SDDLMX' in objective.yaml, must be one of"),
    ("train --config heir4.yaml", "stpes is no option in typo.yaml; did you mean"),
    ("train --config parts.yaml", "--objective.negatives.parts.count is 'x' in parts.yaml, must"),
    ("train --config heir5.yaml", "--objective.positions is 'foo' in heir5.yaml, must be"),
    ("train --config ok.yaml --config heir.yaml", "--config ok.yaml cannot be read"),
    ("train --config text.yaml --config heir.yaml", "stpes is no option in typo.yaml"),
    (
        "train --config orphan.yaml",
        "no.yaml, which orphan.yaml inherits, cannot be read: No such file or directory",
    ),
    ("train --config orphan2.yaml", "folder, which orphan2.yaml inherits, cannot be read: Is a"),
    ("train --config orphan3.yaml", "no.yaml, which orphan.yaml inherits, cannot be read"),
    (
        "train --config unread.yaml",
        "broken.yaml, which unread.yaml inherits, is no YAML file: line 2",
    ),
    ("train --config wordy.yaml", "word.yaml, which wordy.yaml inherits, holds 'hello', must hold"),
    ("train --config sectioned.yaml", "--train is 5 in section.yaml, must be a section"),
    ("train --config inherit.yaml", "inherit is 5 in inherit.yaml, must be a path or a list"),
    ("train --config inherit2.yaml", "inherit is {'a': 'b'} in inherit2.yaml, must be a path"),
    ("train --config inherit3.yaml", "inherit is ['typo.yaml', 5] in inherit3.yaml, must be a"),
    ("train --config inherit4.yaml", "inherit is None in inherit4.yaml, must be a path"),
    ("train --config inherit5.yaml", "inherit is [''] in inherit5.yaml, must be a path"),
    (
        "train --config circle.yaml",
        "--config circle.yaml inherits in a circle: circle2.yaml -> circle3.yaml -> circle2.yaml",
    ),
    ("train --config self.yaml", "inherits in a circle: self.yaml -> self.yaml"),
    # values
    ("train --train.steps 0", "--train.steps is 0, must be at least 1"),
    ("train --data.length 0", "--data.length is 0, must be at least 1"),
    ("train --data.vocab_size 1", "--data.vocab_size is 1, must be at least 2"),
    ("train --data.corpus x", "--data.corpus is 'x', must be one of classics"),
    (
        "train --model.gate_init 1 --objective Autoregressive",
        "leave it out, or where a file has it, add --model.gate_init 0",
    ),
    ("train --model.heads 7", "--model.heads is 7, must divide --model.width 256"),
    ("train --seed -1", "--seed is -1"),
    ("train --resume", "cannot resume: there is no run r; leave --resume out"),
    ("train --data.path no.txt", "--data.path no.txt: no such file or folder"),
    ("train --data.path empty.txt", "empty.txt"),
    ("train --data.path binary.txt", "binary.txt"),
    ("train --data.path text.txt --data.tokenizer bytes --data.length 9999", "fewer than one row"),
    ("train --data.cache text.txt/c", "--data.cache text.txt/c cannot be written to"),
    ("train! --out text.txt/r", "cannot write to --out text.txt/r: Not a directory"),
    ("train! --out /proc/nope/r", "cannot write to --out /proc/nope/r"),
    ("train! --out .", "--out . is not empty"),
    ("sample nodir", "no such directory: nodir"),
    ("sample folder", "folder is no model directory"),
    ("sample folder --steps 0", "--steps is 0"),
    ("sample folder --count 0", "--count is 0"),
    ("sample folder --out no/s.jsonl", "cannot write no/s.jsonl: there is no directory no"),
    ("eval nodir", "no such directory: nodir"),
    ("eval folder", "folder is no model directory"),
    ("eval folder --metrics foo", "--metrics foo is unknown; allowed: likelihood"),
    ("eval folder --steps 0", "--steps is 0, must be from 1 to 1,000,000: try --steps 128"),
    ("eval folder --data.length 0", "--data.length is 0, must be"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files to stumble over, and to stay as it is."""
    folder = tmp_path / "place"
    (folder / "folder").mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).write_bytes(data)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SDDLM_CACHE", str(tmp_path / "cache"))
    # two thirds of a training's time would go into the picture: as where it cannot be drawn
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.slow
@pytest.mark.parametrize(("typed", "part"), WRONG, ids=[typed[:80] for typed, _ in WRONG])
def test_one_clear_line_and_nothing_left_behind(
    place: Path, capsys: pytest.CaptureFixture[str], typed: str, part: str
) -> None:
    before = listing(place)
    verb, *rest = typed.split()
    start = ["train", "--out", "r"] if verb == "train" else [verb.rstrip("!")]
    assert main([*start, *rest]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    *reports, line = err.splitlines()
    assert line.startswith("sddlm")
    assert part in line
    assert all(report.startswith("prepared tokens") for report in reports)
    for jargon in ("class '", "Parser key", "Namespace", "NestedArg", "Union", "Traceback"):
        assert jargon not in line
    assert listing(place) == before


@pytest.mark.parametrize(
    "make",
    [
        lambda: TrainArgs(schedule="cosin"),
        lambda: TrainArgs(precision="16"),
        lambda: TrainArgs(accelerator="x"),
        lambda: TrainArgs(devices="x"),
        lambda: SDDLM(positions="foo"),
        lambda: SDDLMV1(positions="foo"),
        lambda: SDDLMV1(negatives="foo"),
        lambda: SDDLMV2(positions="foo"),
        lambda: Lazy(tail="foo"),
    ],
)
def test_a_wrong_choice_is_refused_from_python_too(make) -> None:
    with pytest.raises(ConfigError, match=r"^`[a-z]+` is "):
        make()


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("`top_p` is 2: try `top_p=0.9`", "--top_p is 2: try --top_p 0.9"),
        ("`steps` and `length`", "--steps and `length`"),  # an option's own name; one of two
        ("`width` of `model.width`", "--model.width of --model.width"),
        ("`model` is no `option`, `width` is", "--model is no `option`, --model.width is"),
        ("its module: `import mine`", "its module: --import mine"),
        ("`model.tie_embeddings=True` `top_p=None`", "--model.tie_embeddings true --top_p null"),
        ("`model=Mini()` `text='a b'` `text='a'`", "--model Mini --text 'a b' --text a"),
    ],
)
def test_arguments_in_backquotes_become_flags(message: str, line: str) -> None:
    names = ("steps", "train.steps", "data.length", "eval.length", "top_p", "text", "model")
    assert with_flags(message, [*names, "model.width", "model.tie_embeddings"]) == line


def test_reports_name_flags_too_and_what_is_positional_has_none(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with _messages("sample"):
        logging.getLogger("sddlm").warning("`model_dir` `steps`")
    assert capsys.readouterr().err == "`model_dir` --steps\n"


def test_flags_win_over_files_wherever_they_stand(place: Path) -> None:
    Path("ok.yaml").write_text("train: {steps: 7, batch: 5}\nseed: 3\n")
    typed = [
        "--train.steps",
        "9",
        "--config",
        "ok.yaml",
        "--resume",
        "--out",
        "r",
        "--model.tie_embeddings",
    ]
    _, chosen = _parse("train", typed)
    assert (chosen["train"].steps, chosen["train"].batch, chosen["seed"]) == (9, 5, 3)
    assert chosen["resume"] is True
    assert chosen["model"].tie_embeddings is True
    assert _parse("train", ["--out", "r", "--resume", "false"])[1]["resume"] is False
    for typed in (["--whole", "run"], ["run", "--whole"], ["run", "--whole=true"]):
        _, chosen = _parse("sample", typed)
        assert (chosen["whole"], chosen["model_dir"]) == (True, "run")
    assert _parse("sample", ["run", "--prompt", "-x"])[1]["prompt"] == "-x"


def chosen(*typed: str) -> dict[str, Any]:
    """What ``sddlm train`` would be called with."""
    return _parse("train", ["--out", "r", *typed])[1]


def write(files: dict[str, str]) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def test_later_files_win_then_the_file_itself_then_flags(place: Path) -> None:
    write({
        "a/heir.yaml": "inherit: [../b/one.yaml, ../b/two.yaml]\ntrain: {batch: 3}\n",
        "b/base.yaml": "train: {steps: 1, batch: 1, lr: 1e-3, warmup: 1, ema: 0.1}\nseed: 5\n",
        "b/one.yaml": "inherit: base.yaml\ntrain: {steps: 2, batch: 2, warmup: 2}\n",
        "b/two.yaml": f"inherit: {place / 'b' / 'base.yaml'}\ntrain: {{warmup: 4, ema: 0.4}}\n",
    })  # fmt: skip
    found = chosen("--config", "a/heir.yaml", "--train.ema", "0.5")
    train = found["train"]
    # the base that both build on is read once, so that two.yaml does not bring its steps back
    assert (train.steps, train.batch, train.lr, train.warmup) == (2, 3, 1e-3, 4)
    assert (train.ema, found["seed"]) == (0.5, 5)
    assert "inherit" not in found
    # but a base that is asked for itself is read again
    again = chosen("--config", "a/heir.yaml", "--config", "b/base.yaml")["train"]
    assert (again.steps, again.batch, again.warmup) == (1, 1, 1)


CHANGED = "objective: {class_path: SDDLM, init_args: {positions: changed}}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "heir", "objective"),
    [
        (CHANGED, "objective: SDDLM\n", SDDLM(positions="changed")),
        (CHANGED, "objective: sddlm.SDDLM\n", SDDLM(positions="changed")),
        (CHANGED, "objective: NELBO\n", NELBO()),
        (CHANGED, "objective: {class_path: SDDLMV1}\n", SDDLMV1()),
        (
            CHANGED,
            "objective: {class_path: SDDLMV1, init_args: {weight: 2}}\n",
            SDDLMV1(weight=2.0),
        ),
        (
            CHANGED,
            "objective: {init_args: {process: {init_args: {schedule: Cosine}}}}\n",
            SDDLM(UniformProcess(Cosine()), "changed"),
        ),
        ("objective: SDDLMV2\n", "objective: {init_args: {weight: 2}}\n", SDDLMV2(weight=2.0)),
        ("objective: SDDLMV2\n", "objective: {weight: 2}\n", SDDLMV2(weight=2.0)),
        ("objective: SDDLMV2\n", CHANGED, SDDLM(positions="changed")),
        (
            "objective: {class_path: SDDLMV1, init_args: {weight: 3, negatives: "
            "{class_path: UniformNegatives, init_args: {count: 4}}}}\n",
            "objective: {init_args: {negatives: {class_path: NoisyToken}}}\n",
            SDDLMV1(weight=3.0, negatives=NoisyToken()),
        ),
        (
            "objective: {class_path: SDDLMV1, init_args: {negatives: UniformNegatives}}\n",
            "objective: {init_args: {negatives: {init_args: {count: exact}}}}\n",
            SDDLMV1(negatives=UniformNegatives("exact")),
        ),
    ],
)
def test_a_class_merges_with_itself_and_replaces_another(
    place: Path, base: str, heir: str, objective: Objective
) -> None:
    write({"base.yaml": base, "heir.yaml": "inherit: base.yaml\n" + heir})
    assert chosen("--config", "heir.yaml")["objective"] == objective
    write({"heir.yaml": heir})  # two files in a row are merged alike
    assert chosen("--config", "base.yaml", "--config", "heir.yaml")["objective"] == objective


def test_a_run_says_what_it_inherited(place: Path) -> None:
    write({
        "base.yaml": "data: {path: text.txt, tokenizer: bytes, length: 8, validation: 0.2}\n"
        "model: {preset: mini, width: 32, heads: 2, blocks: 1}\n",
        "heir.yaml": "inherit: base.yaml\ntrain: {steps: 1, batch: 2, accelerator: cpu}\n",
    })  # fmt: skip
    assert main(["train", "--config", "heir.yaml", "--out", "r"]) == 0
    written = yaml.safe_load(Path("r/config.yaml").read_text())
    assert (written["data"]["path"], written["train"]["batch"]) == ("text.txt", 2)
    assert "inherit" not in written
    again = chosen("--config", "r/config.yaml")
    assert again == chosen("--config", "heir.yaml")


def reads_data(
    data: DataArgs = DataArgs(),  # noqa: B008
    name: str = "",
) -> DataArgs:
    """A verb that reads the data section of a recipe, and something of its own."""
    return data


def test_a_verb_beside_train_takes_its_part_of_a_recipe(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = (__name__, "reads_data", False, "")
    for verb in READS_RECIPES:
        monkeypatch.setitem(VERBS, verb, row)
    write({
        "base.yaml": "data: {length: 9}\ntrain: {steps: 5}\nobjective: NELBO\nseed: 3\n",
        "recipe.yaml": "inherit: base.yaml\nmodel: {preset: mini}\nout: run\nname: mine\n",
        "typo.yaml": "inherit: recipe.yaml\ntrian: 5\n",
    })  # fmt: skip
    for verb in READS_RECIPES:
        _, arguments = _parse(verb, ["--config", "recipe.yaml"])
        assert arguments == {"data": DataArgs(length=9), "name": "mine"}
        assert main([verb, "--config", "typo.yaml"]) == 2
        assert "--trian is no option in typo.yaml" in capsys.readouterr().err
        assert main([verb, "--train.steps", "3"]) == 2
        assert "--train.steps is no option" in capsys.readouterr().err
    assert main(["sample", "folder", "--config", "base.yaml"]) == 2  # not for train's recipes
    assert "is no option in base.yaml" in capsys.readouterr().err


def test_a_verb_of_two_words_is_a_subcommand_and_the_first_is_the_default(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read one", "read two"):
        monkeypatch.setitem(VERBS, name, (__name__, "reads_data", False, f"do {name}"))
    reached: list[tuple[str, list[str]]] = []
    monkeypatch.setattr("sddlm.cli._run", lambda *given: reached.append(given) or 0)
    for typed in (
        "read one",
        "read two --name x",
        "read",
        "read --name x",
        "read text.txt",
        "train",
    ):
        assert main(typed.split()) == 0
    assert reached == [
        ("read one", []),
        ("read two", ["--name", "x"]),
        ("read", []),
        ("read", ["--name", "x"]),
        ("read", ["text.txt"]),
        ("train", []),
    ]
    assert main(["read", "tow"]) == 2
    assert capsys.readouterr().err == (
        "sddlm read: no subcommand tow, only one, two; did you mean two?\n"
    )


def test_help_and_errors_name_the_subcommand_that_was_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("read one", "read two"):
        monkeypatch.setitem(VERBS, name, (__name__, "reads_data", False, f"do {name}"))
    assert main(["--help"]) == 0
    assert re.search("  read two +do read two\n", capsys.readouterr().out)
    assert main(["read", "two", "--help"]) == 0
    out = capsys.readouterr().out
    assert "usage: sddlm read two" in out
    assert "See also: sddlm read one" in out
    assert main(["read", "two", "--data.length", "0"]) == 2
    assert capsys.readouterr().err.startswith("sddlm read two: --data.length")
    for words in (["read"], ["read", "one"]):
        typed = f"sddlm {' '.join(words)}"
        assert main([*words, "--data.length", "0"]) == 2
        assert capsys.readouterr().err.startswith(f"{typed}: --data.length")
        assert main([*words, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: {typed} [")


def test_a_refused_call_leaves_nothing_to_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--print_config", "--data.length", "x"]) == 2
    _, arguments = _parse("prepare", ["--data.path", "a.txt"])
    assert arguments["data"].path == "a.txt"
    assert capsys.readouterr().out == ""


def test_help_shows_the_documentation_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "optimiser steps" in out
    assert "share of the steps over which" in " ".join(out.split())
    assert main(["train", "--objective.help", "SDDLMV1"]) == 0
    out = capsys.readouterr().out
    assert "--objective.negatives" in out
    assert "distribution of the negatives" in " ".join(out.split())


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (OSError(28, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (FloatingPointError("the gradient is not finite"), 1, "the gradient is not finite"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_failures(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch, error, code: int, line: str
) -> None:
    def fails(*args: object, **kwargs: object) -> None:
        raise error

    monkeypatch.setattr("sddlm.generation.sample.LanguageModel.load", fails)
    assert main(["sample", "folder"]) == code
    expected = f"sddlm sample: {line}\n" if line else ""
    assert capsys.readouterr().err == expected


def test_train_then_says_what_to_type_next(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed = (
        "train --out r --data.path text.txt --data.tokenizer bytes --data.length 8 "
        "--data.validation 0.2 --model.preset mini --model.width 32 --model.heads 2 "
        "--model.blocks 1 --train.steps 2 --train.batch 2 --train.accelerator cpu"
    )
    assert main(typed.split()) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].endswith("the model in r/model")
    assert [line.split("sddlm ")[1] for line in out[1:]] == ["sample r", "eval r"]
    assert main(["sample", "r", "--steps", "2", "--count", "2"]) == 0
    out = capsys.readouterr().out
    assert "--- 1 ---" in out
    assert "--- 2 ---" in out
    if not torch.cuda.is_available():
        assert main(["sample", "r", "--device", "cuda"]) == 2
        assert (
            "--device is cuda, but torch finds no GPU here; use --device cpu"
            in capsys.readouterr().err
        )
    assert len(Path("r/samples.jsonl").read_text().splitlines()) == 2


def test_the_program_itself(place: Path) -> None:
    program = [sys.executable, "-m", "sddlm"]
    before = listing(place)
    done = subprocess.run([*program, "trian"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert listing(place) == before


def test_nobody_reads_the_output(place: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "sddlm", "--help"], stdout=write, stderr=subprocess.PIPE, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_standard_input_as_json_lines() -> None:
    for flags in (["--data.path", "-.jsonl"], ["--data.path=-.jsonl"]):
        assert _parse("prepare", flags)[1]["data"].path == "-.jsonl"
    assert _parse("prepare", ["--data.path", "-"])[1]["data"].path == "-"


TINY = (
    "--data.path text.txt --data.tokenizer bytes --data.length 8 --data.validation 0.2 "
    "--model.preset mini --model.width 32 --model.heads 2 --model.blocks 1 --train.steps 1 "
    "--train.batch 2 --train.accelerator cpu"
)
MINE = """from dataclasses import dataclass
from sddlm import SDDLM, UniformProcess

@dataclass
class MyProcess(UniformProcess):
    pass

@dataclass
class Mine(SDDLM):
    every: int = 4
"""


@pytest.fixture
def own_module(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder; whether it was imported is in ``sys.modules``."""
    name = "my_objective_of_test_cli"
    Path(f"{name}.py").write_text(MINE)
    monkeypatch.setattr(sys, "path", [*sys.path, str(place)])
    yield name
    sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("typed", "part"),
    [
        ("--config a.yaml", "a class of your own needs --import MODULE"),
        ("--config b.yaml", "only the command line chooses what is imported: --import MODULE"),
        ("--config c.yaml", "--train.class_path is no option in c.yaml"),
        ("--objective OWN.Mine", "a class of your own needs --import MODULE"),
        ("--objective.help OWN.Mine", "a class of your own needs --import MODULE"),
        ("--objective SDDLM --objective.process OWN.MyProcess", "own needs --import MODULE"),
        ("--import no_such_module", "--import no_such_module: No module named 'no_such_module'"),
        ("--import a-b", "--import is 'a-b', must be a module, such as my_objective"),
        ("--import jsonargparse", "must be a module, such as my_objective"),
        ("--import", "--import needs a value: --import MODULE"),
    ],
)
def test_nothing_is_imported_that_the_user_did_not_name(
    own_module: str, capsys: pytest.CaptureFixture[str], typed: str, part: str
) -> None:
    write({
        "a.yaml": f"objective: {{class_path: {own_module}.Mine}}\n",
        "b.yaml": f"import: {own_module}\n",
        "c.yaml": f"train: {{class_path: {own_module}.Mine}}\n",
    })  # fmt: skip
    assert main(["train", "--out", "r", *typed.replace("OWN", own_module).split()]) == 2
    assert part.replace("OWN", own_module) in capsys.readouterr().err
    assert own_module not in sys.modules


@pytest.mark.slow
def test_an_objective_and_a_process_of_ones_own(
    own_module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ["--import", own_module]
    chosen = ["--objective", "Mine", "--objective.process", f"{own_module}.MyProcess"]
    assert main(["train", "--out", "r", *TINY.split(), *own, *chosen]) == 0
    sample = ["sample", "r", "--steps", "2", "--count", "1"]
    assert main([*sample, *own]) == 0
    assert main(["train", "--out", "s", "--config", "r/config.yaml", *own]) == 0
    capsys.readouterr()
    del sys.modules[own_module]
    assert main(sample) == 2
    assert f"{own_module}.MyProcess' is no class of sddlm; if it is" in capsys.readouterr().err
    assert own_module not in sys.modules


def test_an_error_nobody_foresaw_is_one_line_and_a_saved_traceback(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class PanicException(BaseException):  # as of libraries in Rust
        """Not an ``Exception``."""

    def fails(*args: object, **kwargs: object) -> None:
        raise PanicException("two\nlines \x1b[31m" + "x" * 5000)

    monkeypatch.setattr("sddlm.generation.sample.LanguageModel.load", fails)
    assert main(["sample", "folder"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(r"sddlm sample: two lines \x1b[31mxxx")
    assert len(line) < 1300
    path = Path(line.rpartition(" ")[2].rstrip(")"))
    saved = path.read_text()
    path.unlink()
    assert saved.startswith("Traceback")
    assert "PanicException: two\nlines" in saved


def test_a_refusal_is_printed_by_the_first_process_alone(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert main(["sample", "nodir"]) == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("terminal", [False, True])
def test_generated_text_does_not_steer_a_terminal(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    terminal: bool,
) -> None:
    text = "a\x1b]0;title\x07\r\n\tb \u202eevil \ud800"
    monkeypatch.setattr("sddlm.cli._parse", lambda verb, typed: (lambda out: [text], {"out": "x"}))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    assert main(["sample", "folder"]) == 0
    out = capsys.readouterr().out
    exact = text.replace("\ud800", "\\ud800")
    safe = "a\\x1b]0;title\\x07\n\tb \\u202eevil \\ud800"
    assert out == f"--- 1 ---\n{safe if terminal else exact}\n"


def test_messages_do_not_steer_a_terminal(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "no\x1b[31mdir\x9b"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(r"sddlm sample: no such directory: no\x1b[31mdir\x9b;")
    assert main(["train", "--out", "r", "--data.path", "no\x1b.txt"]) == 2
    assert "\x1b" not in capsys.readouterr().err


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    console = PlainConsole()
    console.print("runs/[/red] [bold]:smile: \x1b[31m")
    table = Table("[/figure]", title="[/title]")
    table.add_row("[/cell]\x07")
    console.print(table)
    out = capsys.readouterr().out
    for part in (r"runs/[/red] [bold]:smile: \x1b[31m", "[/figure]", "[/title]", r"[/cell]\x07"):
        assert part in out


BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (BOMB, "holds more than 20000 values, aliases counted"),
        (MERGES, "holds more than 20000 values, aliases counted"),
        ("train: &a {steps: *a}\n", "is nested more than 32 levels deep"),
        ("a: &a [*a, *a]\n", "holds more than 20000 values"),
        ("[" * 400, "is no YAML file: "),
        ("seed: " + "[" * 40 + "]" * 40, "is nested more than 32 levels deep"),
        ("seed: 1" + "0" * 5000, "is no YAML file: Exceeds the limit"),
        ("seed: 2020-13-99", "is no YAML file: month must be in 1..12"),
        ("seed: 1 # " + "x" * (1 << 18), "has more than 262144 bytes"),
        ("1: 2\n", "--1 is no option in hostile.yaml"),
        (
            f"seed: '{'[' * 100_000}'",
            "--seed has more than 500 lists or mappings in one another in h",
        ),
        (
            f"data: {{mixture: {{b: ['{'- ' * 50_000}']}}}}",
            "--data.mixture has more than 500 lists or mappings in one another in hostile.yaml",
        ),
        ("seed: !!python/object/apply:os.getcwd []\n", "is no YAML file: "),
    ],
)
def test_a_hostile_file_of_options_is_refused_before_it_is_built(
    place: Path, capsys: pytest.CaptureFixture[str], text: str, part: str
) -> None:
    Path("hostile.yaml").write_text(text)
    assert main(["train", "--out", "r", "--config", "hostile.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert part in line


def test_the_record_of_a_run_may_come_from_anywhere_too(place: Path) -> None:
    Path("config.yaml").write_text(BOMB)
    with pytest.raises(ConfigError, match="holds more than 20000 values"):
        trained_on(Path())


def test_aliases_that_help_are_read(place: Path) -> None:
    write({"a.yaml": "train: &a {steps: 7, batch: 5}\n", "b.yaml": "x: 1"})
    Path("c.yaml").write_text("train: &a {lr: &b 0.5, clip: *b}\n")
    train = chosen("--config", "a.yaml", "--config", "c.yaml")["train"]
    assert (train.steps, train.lr, train.clip) == (7, 0.5, 0.5)


@pytest.mark.parametrize("name", fuzz.HOSTILE)
def test_a_hostile_model_directory_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    assert fuzz.model(name, tmp_path) == ("worked" if fuzz.HOSTILE[name][1] else "refused")


@pytest.mark.slow
def test_random_options_are_refused_in_one_line_or_work() -> None:
    found = fuzz.options(0, 100, (Path(__file__).parent / "options.txt").read_text())
    assert found["refused"] + found["worked"] == 100
    assert found["imported"] == 0


RUN = "no_run"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sample([RUN]), "`model_dir` is ['no_run'], must be text"),
        (lambda: sample(RUN, count="3"), "`count` is '3', must be a whole number"),
        (lambda: sample(RUN, count=True), "`count` is True, must be a whole number"),
        (lambda: sample(RUN, seed=2**64), "`seed` is 18446744073709551616, must be"),
        (lambda: sample(RUN, steps=[8]), "`steps` is [8], must be a whole number"),
        (lambda: sample(RUN, prompt=b"a"), "`prompt` is b'a', must be text"),
        (lambda: sample(RUN, prompt="\udcff"), "`prompt` is no UTF-8 text (character 0)"),
        (lambda: sample(RUN, count=10**7), "`count` is 10000000, must be at most 1000000"),
        (lambda: sample(RUN, length=10**12), "`length` is 1000000000000, must be at most"),
        (lambda: correct(RUN, 5), "`text` is 5, must be text"),
        (lambda: correct(".", "a\ud800"), "`text` is no UTF-8 text (character 1)"),
        (lambda: correct(RUN, "a", t=[1]), "`t` is [1], must be a number or auto"),
        (lambda: sddlm.evaluate(RUN, rows=1.5), "`rows` is 1.5, must be a whole number"),
        (lambda: sddlm.evaluate(RUN, data="x.txt"), "`data` is 'x.txt', must be DataArgs"),
        (lambda: sddlm.evaluate(RUN, metrics=[1]), "`metrics` is [1], must be text"),
        (lambda: sddlm.distill(RUN, dt="x"), "`dt` is 'x', must be a number"),
        (lambda: sddlm.train_model(["r"]), "`out` is ['r'], must be text"),
        (lambda: sddlm.train_model("r", data={}), "`data` is {}, must be DataArgs"),
        (lambda: sddlm.train_model("r", objective="SDDLMX"), "did you mean SDDLM?"),
        (lambda: sddlm.train_model("r", objective=SDDLM), "`objective` is "),
        (lambda: sddlm.train_model("r", seed=None), "`seed` is None, must be a whole number"),
        (lambda: sddlm.prepare("x.txt"), "`args` is 'x.txt', must be DataArgs"),
        (
            lambda: sddlm.prepare(DataArgs(), split="x"),
            "`split` is 'x', must be one of both, validation, all",
        ),
        (lambda: sddlm.make_plan(1, 2, 3, 4), "`data` is 1, must be DataArgs"),
        (lambda: DataArgs(path=["a"]), "`path` is ['a'], must be text"),
        (lambda: DataArgs(length="9"), "`length` is '9', must be a whole number"),
        (lambda: DataArgs(mixture={"a": "b"}), "`mixture` is {'a': 'b'}, must be"),
        (lambda: DataArgs(bos_eos="no"), "`bos_eos` is 'no', must be true or false"),
        (lambda: TrainArgs(steps=2**63), "`steps` is 9223372036854775808, must be"),
        (lambda: TrainArgs(lr=10**400), "`lr` is 1000"),
        (lambda: sddlm.ModelArgs(width="x"), "`width` is 'x', must be a whole number"),
        (lambda: sddlm.ModelArgs(width=10**9).build(vocab_size=9, length=9), "must be at most"),
        (lambda: sddlm.SamplerConfig(top_p="x"), "`top_p` is 'x', must be a number"),
        (lambda: sddlm.Truncation(top_k=1.5), "`top_k` is 1.5, must be a whole number"),
        (lambda: Lazy(steps="8"), "`steps` is '8', must be a whole number"),
        (lambda: SDDLM("uniform"), "`process` is 'uniform', must be UniformProcess"),
        (lambda: NELBO(process=Cosine()), "`process` is Cosine(eps"),
        (lambda: UniformProcess(3), "`schedule` is 3, must be one of LogLinear"),
        (lambda: Cosine(eps="x"), "`eps` is 'x', must be a number"),
        (lambda: UniformNegatives([1]), "`count` is [1], must be a whole"),
        (lambda: sddlm.Request(count="x"), "`count` is 'x', must be a whole number"),
    ],
)
def test_python_is_answered_as_the_command_line_is(
    place: Path, call: Callable[[], object], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        call()
    assert message in str(error.value)


def test_python_may_give_paths_and_numbers_of_numpy(place: Path) -> None:
    assert DataArgs(path=Path("text.txt"), length=np.int64(9)) == DataArgs("text.txt", length=9)
    assert type(DataArgs(length=np.int64(9)).length) is int
    assert type(TrainArgs(lr=np.float32(0.5)).lr) is float
    with pytest.raises(ConfigError, match="no such directory: folder/x"):
        sample(Path("folder") / "x")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("base", "flags", "objective"),
    [
        (CHANGED, ["--objective", "NELBO"], NELBO()),
        (CHANGED, ["--objective=sddlm.NELBO"], NELBO()),
        (CHANGED, ["--objective.class_path", "NELBO"], NELBO()),
        (CHANGED, ["--objective", "SDDLM"], SDDLM(positions="changed")),
        (CHANGED, ["--objective.process.schedule", "Cosine"], SDDLM(positions="changed")),
        ("objective: MDLM\n", ["--objective", "SDDLM"], SDDLM()),
        (
            "objective: {class_path: SDDLMV1, init_args: {weight: 3}}\n",
            ["--objective", "SDDLMV2"],
            SDDLMV2(),
        ),
    ],
)
def test_another_objective_on_the_command_line_drops_the_files_options(
    place: Path, base: str, flags: list[str], objective: Objective
) -> None:
    write({"base.yaml": base})
    found = chosen("--config", "base.yaml", *flags)["objective"]
    if "Cosine" in flags:
        objective = replace(objective, process=UniformProcess(Cosine()))
    assert found == objective


@pytest.mark.slow
def test_a_run_from_a_model_records_its_network_and_its_objective_can_be_changed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--out", "a b", *TINY.split()]) == 0
    out = capsys.readouterr().out
    assert out.endswith("next:  sddlm sample 'a b'\n       sddlm eval 'a b'\n")
    same = re.sub(r"--model\.\w+ \w+ ", "", TINY)
    start = ["train", "--out", "b", *same.split(), "--start", "a b"]
    assert main(start) == 0
    recorded = yaml.safe_load(Path("b/config.yaml").read_text())["model"]
    assert (recorded["width"], recorded["blocks"], recorded["heads"]) == (32, 1, 2)
    assert main([*start, "--resume"]) == 0  # without the measures
    # a run written before its network was recorded can be resumed too
    old = yaml.safe_load(Path("b/config.yaml").read_text())
    old["model"] |= dict.fromkeys(("width", "blocks", "heads", "architecture"))
    Path("b/config.yaml").write_text(yaml.safe_dump(old))
    assert main([*start, "--resume"]) == 0
    config = ["--config", "a b/config.yaml", "--objective", "Autoregressive"]
    assert main(["train", "--out", "c", *config]) == 0


LAWS = ("Uniform", "Unigram", "Sequence", "Top", "Mixed")
CHOICES = [
    *(("", name) for name in objectives.__all__ if name != "Objective"),
    *((f"SDDLMV1 --objective.negatives {law}Negatives", f"{law}Negatives") for law in LAWS),
    *((f"NELBO --objective.process {name}", name) for name in ("HybridProcess", "MaskedProcess")),
]


@pytest.mark.slow
@pytest.mark.parametrize(("place", "name"), CHOICES)
def test_what_is_chosen_by_name_has_its_own_defaults(place: str, name: str) -> None:
    """And not those of what stood there before, which may have an option of the same name."""
    flags = (place or name).split()
    chosen = _parse("train", ["--out", "x", "--objective", *flags])[1]["objective"]
    if place:
        chosen = getattr(chosen, flags[1].rpartition(".")[2])
    assert chosen == getattr(sddlm, name)()
