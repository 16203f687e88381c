"""The scripts that measure start-up, data, growth and plans run; what they find is not judged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(name: str, *arguments: str, tiny: tuple[str, ...] = ("--tiny",)) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), *tiny, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_startup() -> None:
    found = run("startup.py")
    assert "| sample | --help |" in found
    assert "its first sample is there" in found


@pytest.mark.slow
def test_data() -> None:
    found = run("data.py")
    assert found.count("|---|\n") == 4
    assert "load, 2 workers" in found


@pytest.mark.slow
def test_growth(tmp_path: Path) -> None:
    found = run("growth.py", "--out", str(tmp_path / "growth.png"))
    assert "SDDLM step" in found
    assert (tmp_path / "growth.png").stat().st_size > 1000


@pytest.mark.slow
def test_plan(tmp_path: Path) -> None:
    found = run("plan.py", "--cells", "toy:300:8:2", "--rounds", "1", tiny=())
    assert "| toy:300:8:2 |" in found
    (tmp_path / "base.yaml").write_text("model: {preset: mini}\ntrain: {steps: 10}\n")
    (tmp_path / "a.yaml").write_text("inherit: base.yaml\ndata: {tokenizer: bytes, length: 8}\n")
    found = run("plan.py", "--recipes", str(tmp_path), tiny=())
    assert "| a | " in found
    assert found.count("\n") == 3  # a base is no recipe
