"""The verb ``sddlm sample`` as users meet it: killed, stopped, started again, by two processes."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_writer import model

from processes import Command
from sddlm.generation.sample import sample
from sddlm.jobs import digest


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model().save(tmp_path / "model")
    lines = [{"prompt": "ab"}, {"infill": "a{3}b{1:8}c"}, {"length": 70}, {"suffix": "z"}]
    asked = [json.dumps({**line, "seed": seed}) for seed in range(4) for line in lines]
    (tmp_path / "asked.jsonl").write_text("\n".join(asked))
    return tmp_path


def options(place: Path, out: str) -> dict[str, object]:
    return {
        "requests": str(place / "asked.jsonl"),
        "steps": 8,
        "batch": 2,
        "out": str(place / out),
    }


def arguments(place: Path, out: str) -> list[str]:
    flags = [x for name, value in options(place, out).items() for x in (f"--{name}", str(value))]
    return ["sample", str(place / "model"), *flags]


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_what_was_written_before_a_kill_is_kept(place: Path, sent: signal.Signals) -> None:
    texts = sample(str(place / "model"), **options(place, "whole.jsonl"))  # type: ignore[arg-type]
    assert len(texts) == 16
    partial = place / "stopped.jsonl.partial"
    # killed in the fourth batch
    fourth = ("sddlm.generation.generator:Generator.draw", 3)
    code, err = Command(*arguments(place, "stopped.jsonl"), hold=fourth).interrupted(sent)
    assert not (place / "stopped.jsonl").exists()
    kept = {file.name: file.read_text() for file in partial.iterdir()}
    if sent == signal.SIGINT:
        assert code == 130
        assert "the same command goes on" in err
    # what is kept is used: a mark that no model would leave comes out at the end
    (name, text), *_ = kept.items()
    marked = text.splitlines()
    number, result, _ = json.loads(marked[1])
    result["nfe"] = [1000] * len(result["nfe"])
    marked[1] = json.dumps([number, result, digest(number, json.dumps(result))])
    (partial / name).write_text("\n".join(marked))
    again = sample(str(place / "model"), **options(place, "stopped.jsonl"))  # type: ignore[arg-type]
    assert again == texts
    assert not partial.exists()
    lines = (place / "stopped.jsonl").read_text().splitlines()
    nfe = [json.loads(line)["nfe"] for line in lines]
    assert sum(n >= 1000 for n in nfe) == 2


@pytest.mark.slow
def test_other_settings_use_nothing_of_it(place: Path) -> None:
    """What a killed run has kept belongs to its model, requests, sampler, seed and overlap."""
    # killed in the second batch of second windows
    tenth = ("sddlm.generation.generator:Generator.draw", 9)
    Command(*arguments(place, "texts.jsonl"), hold=tenth).interrupted(signal.SIGKILL)
    kept = shutil.copytree(place / "texts.jsonl.partial", place / "kept")
    for change in ({"seed": 1}, {"steps": 5}, {"temperature": 0.5}, {"overlap": 5}):
        shutil.copytree(kept, place / "texts.jsonl.partial", dirs_exist_ok=True)
        found, fresh = (
            sample(str(place / "model"), **{**options(place, out), **change})  # type: ignore[arg-type]
            for out in ("texts.jsonl", "fresh.jsonl")
        )
        assert found == fresh


@pytest.mark.slow
def test_two_processes_write_what_one_does(place: Path) -> None:
    texts = sample(str(place / "model"), **options(place, "one.jsonl"))  # type: ignore[arg-type]
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sddlm"]
    done = subprocess.run(
        [sys.executable, *two, *arguments(place, "two.jsonl")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--- 16 ---") == 1  # one process speaks
    assert (place / "two.jsonl").read_text() == (place / "one.jsonl").read_text()
    assert len(texts) == 16
