from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_suite import BASE, SUITE, forked

from sddlm.cli import main


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
