"""A grid of runs through the command line: checked as a whole, resumed, unhurt by kills."""

import json
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from processes import Command, Started
from sddlm import SDDLM, DataArgs, ModelArgs, TrainArgs, make_plan
from sddlm.cli import main
from sddlm.errors import ConfigError
from sddlm.eval.result import _steady
from sddlm.suite import run
from sddlm.suite.config import Suite, jobs_of, read_suite, resolve
from sddlm.suite.run import run_suite
from sddlm.training.checkpoints import newest_checkpoint
from sddlm.training.monitor import SPENT, read_metrics

ROOT = Path(__file__).parent.parent.parent
RECIPES = sorted((ROOT / "recipes" / "suites").glob("*.yaml"))
PAGE = ROOT / "docs" / "how-to" / "suites.md"


# a suite that takes seconds: bytes, a network of 32 channels, two losses, four jobs
BASE = """
data:
  {{path: {place}/text.txt, tokenizer: bytes, length: 16, validation: 0.1, cache: {place}/cache}}
model: {{preset: mini, width: 32, heads: 2, blocks: 1, gate_init: 1.0, head_init: 0.02}}
train:
  {{steps: 12, batch: 8, lr: 0.003, warmup: 2, ema: 0.9, validate_every: 4, validation_rows: 16,
  preview_every: 0, checkpoint_every: 4}}
"""
SUITE = """
title: Two losses <&>
base: {inherit: base.yaml}
seeds: [3]
variants:
  sddlm: {}
  nelbo: {objective: NELBO}
evaluations:
  report: {metrics: "likelihood,samples,controls", draws: 1, count: 4, steps: 4, only: [sddlm]}
  samples: {verb: sample, count: 2, steps: 4, only: [nelbo]}
"""


@contextmanager
def forked() -> Iterator[None]:
    """Context in which jobs are processes that need not import everything first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "start", Started)
        yield


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text, a recipe and a suite."""
    place = tmp_path_factory.mktemp("suite")
    (place / "text.txt").write_text(
        "The quick brown fox jumps over the dog.\nThen it sleeps.\n" * 40
    )
    (place / "base.yaml").write_text(BASE.format(place=place))
    (place / "suite.yaml").write_text(SUITE)
    return place


@pytest.fixture(scope="session")
def whole(place: Path) -> Path:
    """The suite's directory, after an undisturbed run."""
    with forked():
        assert main(["suite", str(place / "suite.yaml"), "--out", str(place / "whole")]) == 0
    return place / "whole"


@pytest.fixture
def quick() -> Iterator[None]:
    """Jobs in processes that need not import everything first."""
    with forked():
        yield


def suite(place: Path, out: Path, *more: object) -> int:
    return main(["suite", str(place / "suite.yaml"), "--out", str(out), *map(str, more)])


def contents(folder: Path) -> dict[str, Any]:
    """All files of a suite, without what differs between two undisturbed runs."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name.startswith("logs/"):
            continue
        if name.endswith("metrics.csv"):
            found[name] = [row | dict.fromkeys(SPENT, 0) for row in read_metrics(path.parent)]
        elif name.endswith("report.json"):
            found[name] = _steady(json.loads(path.read_text()))
        elif path.suffix in (".safetensors", ".jsonl", ".yaml"):
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


def errors(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.strip().splitlines()


# -- the grid --------------------------------------------------------------------------------------


def resolved(place: Path, text: str, overrides: dict[str, Any] | None = None) -> Suite:
    path = place / "other.yaml"
    path.write_text(text)
    return resolve(read_suite(path), path, overrides, {"count": "9", "draws": 3})


def test_every_job_is_a_command_line_behind_those_that_it_needs(place: Path) -> None:
    text = (
        SUITE
        + """
  frontier: {judge: $judge, against: $nelbo, only: [sddlm]}
auxiliary:
  judge: {inherit: base.yaml, objective: Autoregressive, model: {gate_init: 0}}
"""
    )
    text = text.replace("nelbo: {", "tuned: {start: $sddlm, train: {steps: 3}}\n  nelbo: {")
    jobs = jobs_of(resolved(place, text.replace("[3]", "2")), place / "new")
    assert [job.name for job in jobs if not job.run.name.endswith("1")] == [
        "judge-0", "sddlm-0", "sddlm-0 report", "sddlm-0 frontier", "tuned-0", "nelbo-0",
        "nelbo-0 samples",
    ]  # fmt: skip
    by_name = {job.name: job for job in jobs}
    assert len(by_name) == len(jobs) == 1 + 2 * 6
    run = place / "new" / "runs"
    assert by_name["sddlm-1 frontier"].arguments() == [
        "eval", "frontier", f"{run}/sddlm-1", f"--judge={run}/judge-0", f"--against={run}/nelbo-1",
        "--count=9", "--seed=1", f"--out={run}/sddlm-1/frontier.json",
    ]  # fmt: skip
    assert by_name["sddlm-1 frontier"].needs == {run / n for n in ("sddlm-1", "judge-0", "nelbo-1")}
    verb, *typed = by_name["tuned-1"].arguments()
    assert verb == "train"
    assert by_name["tuned-1"].needs == {run / "sddlm-1"}
    assert f"--start={run}/sddlm-1" in typed
    assert "steps: 3" in next(each for each in typed if each.startswith("--train="))
    assert typed[-2:] == ["--seed=1", f"--out={run}/tuned-1"]
    for job in jobs:
        job.check()


def test_flags_win_in_every_run(place: Path) -> None:
    text = SUITE.replace("nelbo: {", "nelbo: {train: {steps: 3}, ")
    text += "auxiliary: {judge: {inherit: base.yaml, objective: Autoregressive}}\n"
    found = resolved(place, text, {"train": {"steps": "7"}, "data": {"length": "8"}})
    for options in (*found.variants.values(), *found.auxiliary.values()):
        assert (options["train"]["steps"], options["data"]["length"]) == ("7", "8")
        assert options["train"]["batch"] == 8
    report, samples = found.evaluations["report"], found.evaluations["samples"]
    assert (report["count"], report["draws"], report["steps"]) == ("9", 3, 4)
    assert (samples["count"], "draws" in samples) == ("9", False)
    again = place / "again.yaml"
    again.write_text(yaml.safe_dump(vars(found)))
    assert read_suite(again) == found


def test_a_flag_that_no_evaluation_has_is_refused(place: Path, tmp_path: Path) -> None:
    path, out = place / "suite.yaml", tmp_path / "out"
    with pytest.raises(ConfigError, match=r"`evaluation\.cuont` is an option of no evaluation"):
        run_suite(str(path), out=str(out), evaluation={"cuont": 3})
    with pytest.raises(ConfigError, match=r"--train\.stepz is no option"):
        run_suite(str(path), out=str(out), train={"stepz": 3})
    assert not out.exists()


def test_modules_of_own_classes_are_imported_by_each_job(place: Path) -> None:
    found = resolved(place, SUITE)
    found.variants["nelbo"]["objective"] = {"class_path": "mine.Loss", "init_args": {}}
    typed = {job.name: job.arguments() for job in jobs_of(found, place / "new")}
    assert "--import=mine" in typed["nelbo-3"]
    assert not any("--import" in each for each in typed["sddlm-3"])


WRONG = {
    "varients: {}": "--varients is no option",
    "seeds: 0": "`seeds` is 0, must be a number above 0",
    "seeds: [1, 1]": "`seeds` is [1, 1], must be",
    "baseline: nelb": "`baseline` is nelb, which is no variant; did you mean nelbo?",
    "variants: {}": "`variants` is empty",
    "variants: {a/b: {}}": "the name 'a/b' must be letters",
    "variants: {a: {train: {stepz: 1}}}": "--train.stepz is no option in variant a of",
    "variants: {a: {train: {steps: x}}}": "--train.steps is 'x' in variant a of",
    "variants: {a: {train: {steps: 0}}}": "a-3: `train.steps` is 0, must be at least 1",
    "variants: {a: {objective: {positions: all}}}": "a-3: ",
    "variants: {a: {model: {heads: 3}}}": "a-3: `heads` is 3, must divide `width` 32",
    "variants: {a: {seed: 3}}": "`seed` in variant a of",
    "variants: {a: {start: $b}}": "$b names no run above it; there is none",
    "variants: {a: {verb: sample}}": "`verb` of a is sample, must be train, distill",
    "variants: {a: 3}": "a is 3, must be options",
    "variants: {a: {inherit: [3]}}": "inherit is [3] in variant a of",
    "base: {inherit: none.yaml}": "none.yaml cannot be read",
    "evaluations: {rapport: {}}": "`verb` of rapport is rapport, must be sample, eval report",
    "evaluations: {report: {raws: 3}}": "--raws is no option in evaluation report of",
    "evaluations: {report: {rows: -3}}": "report: `rows` is -3, must be at least 0",
    "evaluations: {report: {only: [x]}}": "`only` of evaluation report is ['x']",
    "evaluations: {frontier: {judge: $juge}}": "$juge names no run above it; there are sddlm",
    "auxiliary: {sddlm: {}}": "sddlm is a variant and an auxiliary run",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_anywhere_is_one_line_before_any_work(
    place: Path, tmp_path: Path, wrong: str
) -> None:
    path = place / "wrong.yaml"
    tree = yaml.safe_load(SUITE) | yaml.safe_load(wrong)
    if "variants" in yaml.safe_load(wrong):
        tree["evaluations"] = {}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    with pytest.raises(ConfigError) as caught:
        run_suite(str(path), out=str(tmp_path / "out"))
    assert WRONG[wrong] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_pass_all_checks_and_need_no_other_text(path: Path, tmp_path: Path) -> None:
    read = read_suite(path)
    assert path.read_text().startswith("# ")
    assert read.title
    assert len(read.all_seeds) == 3
    assert 1 < len(read.variants) < 17
    found = resolve(replace(read, seeds=1), path)
    jobs = jobs_of(found, tmp_path)
    for job in jobs:
        job.check()
        if job.verb == "train":
            data = job.options["data"]
            assert (data["corpus"], data["validation"]) == ("classics", 0.1)  # the judge's too
        if job.verb == "eval report":
            assert "controls" in job.options["metrics"]
    evaluated = {job.variant for job in jobs if job.evaluation}
    assert evaluated == ({*found.variants} if path.stem != "learning" else set())


@pytest.mark.slow
def test_the_example_of_the_page_passes_all_checks(tmp_path: Path) -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = RECIPES[0].with_name("example.yaml")  # what it inherits is beside the recipes
    (tmp_path / "example.yaml").write_text(example)
    read = read_suite(tmp_path / "example.yaml")
    assert len(jobs_of(resolve(read, path), tmp_path)) == 1 + 3 * (4 + 4 + 1 + 4)
    for job in jobs_of(resolve(replace(read, seeds=1), path), tmp_path):
        job.check()


def test_there_is_a_recipe_for_each_experiment() -> None:
    page = PAGE.read_text()
    assert all(f"`recipes/suites/{path.name}`" in page for path in RECIPES)
    assert [path.stem for path in RECIPES] == [
        "eps-weight", "learning", "masking", "negatives", "retention", "scale", "schedule", "steps",
        "time-free", "truncation",
    ]  # fmt: skip


# -- the runs --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_jobs_leave_their_results_and_are_not_repeated(
    place: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = {path.name for path in (whole / "runs").iterdir()}
    assert runs == {"sddlm-3", "nelbo-3"}
    config = yaml.safe_load((whole / "runs" / "nelbo-3" / "config.yaml").read_text())
    assert config["objective"]["class_path"].endswith("NELBO")
    assert (config["seed"], config["train"]["steps"]) == (3, 12)
    assert (whole / "runs" / "nelbo-3" / "samples.jsonl").read_text().count("\n") == 2
    assert not (whole / "runs" / "sddlm-3" / "samples.jsonl").exists()
    assert not (whole / ".lock").exists()
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*")}
    assert suite(place, whole) == 0
    assert errors(capsys) == [
        "4 of 4 jobs are done already", f"all jobs are done; next:  sddlm report {whole}"
    ]  # fmt: skip
    assert before == {path: path.stat().st_mtime_ns for path in (whole / "runs").rglob("*")}


@pytest.mark.slow
def test_the_report_of_a_real_suite_has_its_cost_and_its_controls(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    assert main(["report", str(out)]) == 0
    page = (out / "report.md").read_text()
    assert "Not finished" not in page
    data = DataArgs(tokenizer="bytes", length=16)
    model = ModelArgs(preset="mini", width=32, heads=2, blocks=1, gate_init=1.0, head_init=0.02)
    train = TrainArgs(steps=12, batch=8, warmup=2)
    plan = make_plan(data, model, SDDLM(), train, device="h200")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| sddlm | ")]
    assert f"{plan.run_flops:.4g}" in rows[0]
    spent = read_metrics(out / "runs" / "sddlm-3")[-1]["cpu_seconds"]
    assert f"{spent:.4g}" in rows[0]
    for name in ("unigram", "bigram"):
        assert f"| {name} (control) | " in page


@pytest.mark.slow
def test_a_result_is_valid_for_the_options_that_made_it_alone(
    place: Path, whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, out = place / "changed.yaml", tmp_path / "moved to" / "out"
    shutil.copytree(whole, out)

    def tried(old: str, new: str) -> list[str]:
        changed.write_text(SUITE.replace(old, new))
        capsys.readouterr()
        code = main(["suite", str(changed), "--out", str(out)])
        found = errors(capsys)
        assert code == (2 if len(found) == 1 else 0)
        return found

    (line,) = tried("nelbo: {", "nelbo: {train: {lr: 0.1}, ")
    assert f"nelbo-3: {out}/runs/nelbo-3 holds another run (" in line
    report = f"sddlm-3 report: {out}/runs/sddlm-3/report.json was made with other options, which"
    (line,) = tried("draws: 1", "draws: 2")
    assert f"{report} {out}/logs/sddlm-3.report.log states" in line
    assert tried("  report:", "  #")[0] == "3 of 3 jobs are done already"
    (line,) = tried("draws: 1", "draws: 2")  # put back with other options
    assert report in line
    assert tried("", "")[0] == "4 of 4 jobs are done already"  # put back as it was


@pytest.mark.slow
def test_a_new_variant_is_all_that_is_run_and_a_failure_costs_only_itself(
    place: Path, whole: Path, tmp_path: Path, quick: None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    (out / "runs" / "bad-3").mkdir()
    (out / "runs" / "bad-3" / "notes.txt").write_text("in the way")
    more = place / "more.yaml"
    text = SUITE.replace("nelbo: {", "bad: {}\n  nelbo: {")
    more.write_text(f"{text}  texts: {{verb: sample, count: 1, steps: 4, only: [bad, nelbo]}}\n")
    before = contents(out)
    capsys.readouterr()
    assert main(["suite", str(more), "--out", str(out), "--jobs", "2"]) == 1
    lines = errors(capsys)
    assert lines[0] == "4 of 7 jobs are done already"
    assert [line for line in lines if " of 7: " in line] == ["5 of 7: nelbo-3 texts"]
    (failed,) = (line for line in lines if line.startswith("bad-3 failed with exit code 2: "))
    assert "notes.txt" in failed
    assert failed.endswith(f"(all of it in {out}/logs/bad-3.log)")
    assert "bad-3 texts is left out: it needs a run that failed" in lines
    assert lines[-1] == (
        "sddlm suite: 2 of 7 jobs have no result; the same command tries them again"
    )
    after = contents(out)
    assert {name for name in before if before[name] != after[name]} == {"suite.yaml"}
    shutil.rmtree(out / "runs" / "bad-3")
    assert main(["suite", str(more), "--out", str(out)]) == 0


# -- kills -----------------------------------------------------------------------------------------


def until(there: Callable[[], bool]) -> None:
    """Wait until something is there."""
    end = time.monotonic() + 300
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


def children(folder: Path) -> list[int]:
    """Processes that have a suite's directory on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            typed = (path / "cmdline").read_bytes()
        except OSError:
            continue
        if f"{folder}/runs".encode() in typed:
            found.append(int(path.name))
    return found


@pytest.mark.slow
def test_killed_or_stopped_anywhere_it_ends_with_the_same_files(
    place: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    typed = ("suite", place / "suite.yaml", "--out", out)
    runs = out / "runs"
    first = Command(*typed)  # in the first training
    until(lambda: (runs / "sddlm-3" / "checkpoints" / "last.ckpt").exists())
    first.kill()
    until(lambda: not children(out))
    second = Command(*typed)  # at any moment of its evaluation
    until((runs / "sddlm-3" / "model").is_dir)
    time.sleep(moment := random.uniform(0, 2))
    second.kill()
    until(lambda: not children(out))
    third = Command(*typed)
    until(lambda: (runs / "nelbo-3" / "checkpoints" / "last.ckpt").exists())
    code, err = third.interrupted(signal.SIGINT)
    assert code == 130
    assert "the same command goes on" in err.splitlines()[-1]
    assert not children(out)
    assert newest_checkpoint(runs / "nelbo-3")["global_step"] >= 4
    assert (runs / "nelbo-3" / "model").is_dir()  # of the step at which it was stopped
    last = Command(*typed, "--jobs", 2)
    until(lambda: not (runs / "nelbo-3" / "model").exists())
    code, _, err = last.wait()
    assert (code, err.splitlines()[-1]) == (0, f"all jobs are done; next:  sddlm report {out}")
    assert contents(out) == contents(whole), moment
