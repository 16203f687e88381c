"""What is installed and cited is what is here; the wheel itself is built and tried by hand."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import yaml

import sddlm

ROOT = Path(__file__).parent.parent
PROJECT = ROOT / "pyproject.toml"


def test_every_file_of_the_package_is_in_the_wheel() -> None:
    (data,) = re.findall(r"^sddlm = (\[.*\])$", PROJECT.read_text(), re.MULTILINE)
    patterns = json.loads(data)
    package = ROOT / "src" / "sddlm"
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(package).as_posix()
            assert any(fnmatch(name, pattern) for pattern in patterns), name
    for path in package.rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == sddlm.__version__
    assert f'license = "{citation["license"]}"' in PROJECT.read_text()


def test_the_container_has_what_an_installation_needs() -> None:
    kept = (ROOT / ".dockerignore").read_text().split()[1:]
    assert all((ROOT / name.removeprefix("!")).exists() for name in kept)
    needed = {"LICENSE", "README.md", "pyproject.toml", "src"}
    assert needed <= {name.removeprefix("!") for name in kept}
