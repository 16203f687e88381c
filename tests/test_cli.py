"""What a user can get wrong ends as one clear line, before any work, with nothing left behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sddlm import ConfigError, TrainArgs
from sddlm.cli import main
from sddlm.objectives import SDDLM, SDDLMV1, SDDLMV2
from sddlm.sampling.lazy import Lazy

FILES = {
    "typo.yaml": b"train:\n  stpes: 3\n",
    "type.yaml": b"train: {steps: abc}\n",
    "top.yaml": b"steps: 3\n",
    "section.yaml": b"train: 5\n",
    "literal.yaml": b"train: {schedule: cosin}\n",
    "objective.yaml": b"objective: SDDLMX\n",
    "positions.yaml": b"objective:\n  class_path: SDDLM\n  init_args: {positions: foo}\n",
    "option.yaml": b"objective:\n  class_path: SDDLM\n  init_args: {position: changed}\n",
    "list.yaml": b"- 1\n- 2\n",
    "word.yaml": b"hello\n",
    "broken.yaml": b"a: [1\nb: }\n",
    "empty.yaml": b"",
    "binary.yaml": bytes(range(256)),
    "empty.txt": b"",
    "binary.txt": bytes(range(256)),
    "text.txt": b"The quick brown fox jumps over the lazy dog.\n" * 20,
}

ONE_OF = "must be one of NaiveDenoising, CalibratedDenoising, SDDLM, SDDLMV1, SDDLMV2"

#: what is typed (``train`` means ``train --out r``), and a part of the line that answers
WRONG = [
    # verbs and flags
    ("trian", "there is no verb trian, only train, sample, eval; did you mean train?"),
    ("train! --seed 1", "--out is missing: type sddlm train --out"),
    ("train! --out", "--out needs a value"),
    ("train more", "more is one argument too many"),
    ("train --stpes 3", "--stpes is no option; did you mean --train.steps?"),
    ("train --steps 3", "--steps is no option; did you mean --train.steps?"),
    ("train --preset tiny", "--preset is no option; did you mean --model.preset?"),
    ("train --train.stpes=3", "--train.stpes is no option; did you mean --train.steps?"),
    ("train --tr 3", "--tr is no option"),
    ("train --train typo.txt", "no file typo.txt of options; use --config FILE"),
    ("sample", "the directory of a run or model is missing: type sddlm sample RUN"),
    ("sample nodir more", "more is one argument too many"),
    ("sample nodir --top-p 1", "--top-p is no option; did you mean --top_p?"),
    ("sample nodir --seed", "--seed needs a value"),
    ("eval", "the directory of a run or model is missing: type sddlm eval RUN"),
    ("eval nodir --metric x", "--metric is no option; did you mean --metrics?"),
    ("eval nodir --data.lenght 3", "--data.lenght is no option; did you mean --data.length?"),
    # types and choices
    ("train --train.steps abc", "--train.steps is 'abc', must be a whole number"),
    ("train --train.steps=", "--train.steps is '', must be a whole number"),
    ("train --train.lr x", "--train.lr is 'x', must be a number"),
    ("train --model.width 2.5", "--model.width is '2.5', must be a whole number"),
    ("train --model.tie=2", "--model.tie is '2', must be true or false"),
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
        "--objective.positions is 'foo', must be resampled or changed",
    ),
    (
        "train --objective SDDLM --objective.weight 2",
        "--objective.weight is no option; there are --objective.process, --objective.positions",
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
    # values
    ("train --train.steps 0", "--train.steps is 0, must be at least 1"),
    ("train --data.length 0", "--data.length 0 is too small; use at least 1"),
    ("train --data.vocab_size 1", "--data.vocab_size 1 is too small; use at least 2"),
    ("train --data.corpus x", "--data.corpus x is unknown; there are: builtin"),
    ("train --model.heads 7", "--model.heads is 7, must divide --model.width 256"),
    ("train --seed -1", "--seed is -1"),
    ("train --resume", "--resume: there is no checkpoint"),
    ("train --data.path no.txt", "--data.path no.txt: no such file or folder"),
    ("train --data.path empty.txt", "empty.txt"),
    ("train --data.path binary.txt", "binary.txt"),
    ("train --data.path text.txt --data.tokenizer bytes --data.length 9999", "fewer than one row"),
    ("train --data.cache text.txt/c", "--data.cache text.txt/c cannot be written to"),
    ("train! --out text.txt/r", "cannot write to --out text.txt/r: Not a directory"),
    ("train! --out /proc/nope/r", "cannot write to --out /proc/nope/r"),
    ("train! --out .", "--out . exists and is not empty"),
    ("sample nodir", "no such directory: nodir"),
    ("sample folder", "folder is no model directory"),
    ("sample folder --steps 0", "--steps is 0"),
    ("sample folder --count 0", "--count is 0"),
    ("sample folder --out no/s.jsonl", "cannot write no/s.jsonl: there is no directory no"),
    ("eval nodir", "no such directory: nodir"),
    ("eval folder", "folder is no model directory"),
    ("eval folder --metrics foo", "--metrics foo is unknown; allowed: likelihood"),
    ("eval folder --steps 0", "--steps is 0, must be at least 1"),
    ("eval folder --data.length 0", "--data.length 0 is too small"),
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
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(("typed", "part"), WRONG, ids=[typed for typed, _ in WRONG])
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
    with pytest.raises(ConfigError, match="--"):
        make()


def test_flags_win_over_files_wherever_they_stand(place: Path) -> None:
    from sddlm.cli import _parse

    Path("ok.yaml").write_text("train: {steps: 7, batch: 5}\nseed: 3\n")
    typed = ["--train.steps", "9", "--config", "ok.yaml", "--resume", "--out", "r", "--model.tie"]
    _, chosen = _parse("train", typed)
    assert (chosen["train"].steps, chosen["train"].batch, chosen["seed"]) == (9, 5, 3)
    assert chosen["resume"] is True
    assert chosen["model"].tie is True
    assert _parse("train", ["--out", "r", "--resume", "false"])[1]["resume"] is False
    for typed in (["--watch", "run"], ["run", "--watch"], ["run", "--watch=true"]):
        _, chosen = _parse("sample", typed)
        assert (chosen["watch"], chosen["model_dir"]) == (True, "run")


def test_help_shows_the_documentation_of_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    out = capsys.readouterr().out
    assert "optimiser steps" in out
    assert "share of the steps over which" in " ".join(out.split())
    assert main(["train", "--objective.help", "SDDLMV1"]) == 0
    out = capsys.readouterr().out
    assert "--objective.negatives" in out
    assert "Law of the negatives" in out


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

    monkeypatch.setattr("sddlm.sampling.run.ModelDir.load", fails)
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
        assert "--device cuda: torch finds no GPU here" in capsys.readouterr().err
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
