"""The scripts that measure start-up, the data path and growth run; what they find is not judged."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(FOLDER / name), "--tiny", *arguments],
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
