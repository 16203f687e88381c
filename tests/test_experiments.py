"""docs/experiments.md and the reports of the suites say what their files say."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import ModuleType

import pytest

from sddlm.cli import main
from sddlm.suite.config import read_suite
from sddlm.suite.interval import Mean
from sddlm.suite.results import Results

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
SUITES = sorted(path.parent.name for path in RESULTS.glob("*/suite.yaml"))


@pytest.fixture
def experiments(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, as in the repository's root."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(ROOT)
    return importlib.import_module("experiments")


def test_the_table_is_made_from_the_files(experiments: ModuleType) -> None:
    assert experiments.page() == experiments.PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES)
def test_a_report_is_made_from_the_files(suite: str, tmp_path: Path) -> None:
    shutil.copytree(RESULTS / suite, tmp_path / suite)
    (tmp_path / suite / "report.md").unlink()
    assert main(["report", str(tmp_path / suite)]) == 0
    report = (tmp_path / suite / "report.md").read_text(encoding="utf-8")
    assert report == (RESULTS / suite / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("suite", SUITES)
def test_what_is_kept_of_a_suite_has_its_figures(suite: str) -> None:
    results = Results.read(read_suite(RESULTS / suite / "suite.yaml"), RESULTS / suite)
    assert {"million parameters", "bits per character"} <= results.runs.keys()
    for path in (RESULTS / suite).rglob("*"):
        assert path.is_dir() or "/tmp/" not in path.read_text(encoding="utf-8"), path


def test_outcomes_follow_the_interval(experiments: ModuleType) -> None:
    def outcome(sign: int, value: float, half: float | None, tolerance: float = 0.0) -> str:
        prediction = experiments.Prediction("s", "t", "v/e:bits", sign, tolerance=tolerance)
        return str(experiments.outcome(prediction, Mean(value, half, 3)))

    assert outcome(1, 2.0, 1.0) == outcome(-1, -2.0, 1.0) == outcome(0, 0.1, 0.1, 0.3) == "yes"
    assert outcome(1, -2.0, 1.0) == outcome(-1, 2.0, 1.0) == outcome(0, 1.0, 0.1, 0.3) == "**no**"
    assert outcome(1, 0.5, 1.0) == outcome(-1, 0.5, 1.0) == outcome(0, 0.2, 0.2, 0.3) == "open"
    assert outcome(-1, 0.1, 0.2, 0.4) == "yes"  # not worse, within the tolerance
    assert outcome(1, 1.0, None) == "not measured"  # one seed
