"""docs/results.md says what the files say, and the files say what was run, planned or read."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import sddlm
from sddlm.cli import main
from sddlm.errors import ConfigError

# of jsonargparse, about configs that may build any class
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parent.parent
FIGURE = re.compile(r"(?<![\w.,-])\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?(?![\w-])")


@pytest.fixture(autouse=True)
def _scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As in the repository's root; scripts import each other by name."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.chdir(ROOT)
    yield
    for name in set(sys.modules) - before:
        if str(ROOT / "benchmarks") in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


@pytest.fixture
def results() -> ModuleType:
    return importlib.import_module("results")


@pytest.fixture
def layout() -> ModuleType:
    return importlib.import_module("results_page")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real run, trained and evaluated; copy it before you change it."""
    place = tmp_path_factory.mktemp("results")
    text = place / "my.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\nAnd then it sleeps.\n" * 40)
    sddlm.train_model(
        str(place / "tiny-run"),
        data=sddlm.DataArgs(
            path=str(text), tokenizer="bytes", length=16, validation=0.1, cache=str(place / "cache")
        ),
        model=sddlm.ModelArgs(preset="mini", width=32, heads=2, blocks=1),
        objective=sddlm.SDDLM(),
        train=sddlm.TrainArgs(steps=11, batch=4, preview_every=0, validation_rows=8),
        seed=5,
    )
    few = ["--rows", "4", "--count", "2", "--steps", "2", "--metrics", "likelihood,samples"]
    assert main(["eval", str(place / "tiny-run"), *few]) == 0
    return place / "tiny-run"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with recipes and reported figures and no run."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    (tmp_path / "results").mkdir()
    (tmp_path / "docs").mkdir()
    for name in ("reported.json", "plan.json"):
        shutil.copy(ROOT / "results" / name, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(path: Path | str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def values(tree: Any) -> Iterator[Any]:
    """Every figure and word in nested JSON."""
    if isinstance(tree, (dict, list)):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from values(item)
    else:
        yield tree


def rows(page: str) -> Iterator[list[str]]:
    """Cells of every table, without names of files and links."""
    for line in page.splitlines():
        if line.startswith("|") and not line.startswith("|---"):
            bare = re.sub(r"`[^`]*`|\[[^]]*\]\([^)]*\)", "", line)
            yield [cell.strip() for cell in bare.strip("|").split("|")]


def check_figures(layout: ModuleType, page: str, files: list[Any]) -> int:
    """Every figure in a table is in a file; how many there are."""
    known = set()
    for value in values(files):
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            known.add(layout.shown(value))
        if isinstance(value, float):
            known.add(f"{value:,.0f}")  # GPU-hours
    found = [f for cells in rows(page) for cell in cells for f in FIGURE.findall(cell)]
    headings = {"5", "1.1"}  # 5-gram
    assert [f for f in found if f not in known | headings] == []
    return len(found)


def test_the_page_is_made_from_the_files(results: ModuleType) -> None:
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert page == results.text(), "changed a file? then: python benchmarks/results.py page"


def test_every_figure_of_the_page_is_in_a_file_and_every_file_is_used(
    results: ModuleType, layout: ModuleType
) -> None:
    page = results.text()
    files = sorted((ROOT / "results").rglob("*.json"))
    assert check_figures(layout, page, [load(path) for path in files]) > 100
    for path in files:
        assert f"`{path.relative_to(ROOT).as_posix()}`" in page
    assert all(p in files for p in (ROOT / "results").rglob("*") if p.is_file())


def test_every_reported_figure_is_on_the_page_with_its_source(results: ModuleType) -> None:
    lines = results.text().splitlines()
    tables = load("results/reported.json")["tables"]
    assert len({t["id"] for t in tables}) == len(tables)
    for table in tables:
        wanted = {"id", "paper", "version", "table", "convention", "how_known", "metric"}
        assert all(table[key] for key in wanted)
        assert f"### {table['id']}" in lines
        assert any(f"[{table['id']}](#{table['id']})" in line for line in lines)
        for row, found in table["numbers"].items():
            setting, _, model = row.partition("/")
            assert setting in table["settings"]
            own = [x for x in lines if x.startswith((f"| `{row}` ", f"| {model} "))]
            for figure in values(found):
                said = figure if isinstance(figure, str) else f"{figure:,}"
                assert any(f"{said} " in line for line in own), (row, figure)


def test_every_recipe_has_its_row_and_its_cost(results: ModuleType) -> None:
    names = results.recipe_names()
    plan = load("results/plan.json")
    assert len(names) == 41
    assert sorted(plan["rows"]) == names
    body = results.text()
    for name in names:
        lines = re.findall(rf"^\| `{name}` \|.*\|$", body, re.MULTILINE)
        told = [x for x in lines if "not run: needs" in x or "(nll " in x]
        assert len(told) == 1
    documented = dict(
        re.findall(r"^\| ([\w.-]+/[\w-]+) (?:\|[^|]*){5}\| ([\d,]+) \|",
                   (ROOT / "docs" / "plan.md").read_text(), re.MULTILINE)
    )  # fmt: skip
    assert {n: f"{plan['rows'][n]['gpu_hours']:,.0f}" for n in names} == documented


@pytest.mark.parametrize("name", ["owt/sddlm", "owt/ar"])
def test_the_cost_is_the_planners(results: ModuleType, name: str) -> None:
    assert results.planned(name) == load("results/plan.json")["rows"][name]


def test_each_setting_shows_only_its_own_rows(layout: ModuleType, results: ModuleType) -> None:
    parts = re.split(r"^## ", results.text(), flags=re.MULTILINE)
    for setting, title in layout.SETTINGS.items():
        (own,) = [part for part in parts if part.startswith(f"{title}\n")]
        named = re.findall(r"^\| `([\w.-]+)/", own, re.MULTILINE)
        assert set(named) == {setting}


def test_a_run_becomes_a_file(
    results: ModuleType, layout: ModuleType, run: Path, workspace: Path
) -> None:
    assert results.main(["add", str(run)]) == 0
    file = "results/runs/tiny-run.json"
    found, evaluation = load(file), load(run / "evaluation.json")
    environment = load(run / "environment.json")
    assert found["metrics"]["likelihood"] == evaluation["likelihood"]
    assert found["metrics"]["samples"]["generated"] == evaluation["samples"]["generated"]
    assert (found["row"], found["differs"], found["seed"]) == (None, [], 5)
    assert (found["objective"], found["training"]["steps"]) == ("SDDLM", 11)
    splits = environment["data"]["splits"]
    assert found["data_sha256"] == {name: splits[name]["sha256"] for name in splits}
    assert len(found["data_sha256"]["train"]) == 64
    for name in ("commit", "torch", "threads", "device", "platform"):
        assert found[name] == environment[name]
    last = (run / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert found["training"]["seconds"] == float(last[2])
    assert found["training"]["device_hours"] == pytest.approx(float(last[2]) / 3600, abs=1e-4)
    assert str(run.parent) not in Path(file).read_text()
    assert found["text"] == "my.txt"

    assert results.main(["page"]) == 0
    page = Path("docs/results.md").read_text(encoding="utf-8")
    known = [load(p) for p in ("results/reported.json", "results/plan.json", file)]
    check_figures(layout, page, known)
    (row,) = [cells for cells in page.splitlines() if cells.startswith("| [tiny-run](#tiny-run)")]
    likelihood = evaluation["likelihood"]
    assert f"| ≤ {likelihood['ppl']:.4g} | {likelihood['nll']:.4g} |" in row
    for fact in (file, found["data_sha256"]["train"], f"torch {found['torch']}", "seed: 5"):
        assert fact in page
    with pytest.raises(ConfigError, match="exists; give another --name"):
        results.add(run, None, None)
    assert results.add(run, None, "other").name == "other.json"


@pytest.mark.slow
def test_a_run_in_a_papers_row_says_how_it_differs(
    results: ModuleType, run: Path, workspace: Path
) -> None:
    found = load(results.add(run, "lm1b/sddlm", None))
    assert {"train.steps", "data.length", "model.width"} <= set(found["differs"])
    assert not {"data.cache", "train.preview_every", "objective.class"} & set(found["differs"])
    assert "objective.class" in results.differences(run, "lm1b/v1")
    page = results.text()
    (line,) = re.findall(r"^\| `lm1b/sddlm` \|.*$", page, re.MULTILINE)
    ppl = found["metrics"]["likelihood"]["ppl"]
    assert f"≤ {ppl:.4g} (nll " in line
    assert "`results/runs/tiny-run.json`, [differs from the recipe](#tiny-run)" in line
    assert "not run" not in line
    assert f"- differs from the recipe in: {', '.join(found['differs'])}" in page
    assert "None is in `results/runs` yet" in page  # of the small ones


@pytest.mark.slow
def test_a_recipe_does_not_differ_from_itself(
    results: ModuleType, workspace: Path, tmp_path: Path
) -> None:
    run = tmp_path / "same"
    run.mkdir()
    recipe = Path("recipes/paper/lm1b/v1.yaml").resolve()
    (run / "config.yaml").write_text(f"inherit: {recipe}\ntrain: {{devices: 3}}\n")
    assert results.differences(run, "lm1b/v1") == []
    (run / "config.yaml").write_text(f"inherit: {recipe}\ntrain: {{lr: 0.5}}\n")
    assert results.differences(run, "lm1b/v1") == ["train.lr"]


@pytest.mark.parametrize(
    ("broken", "row", "says"),
    [
        ("evaluation.json", None, "there is no .*evaluation.json; run sddlm eval"),
        ("environment.json", None, "there is no .*environment.json; give the directory"),
        ("metrics.csv", None, "no metrics in"),
        (None, "lm1b/sdlm", "--row is lm1b/sdlm, must be one of: lm1b-wrap/ar, "),
    ],
)
def test_what_is_no_result_is_refused(
    results: ModuleType, run: Path, workspace: Path, capsys: pytest.CaptureFixture[str],
    broken: str | None, row: str | None, says: str,
) -> None:  # fmt: skip
    copy = shutil.copytree(run, workspace / "copy")
    if broken:
        (copy / broken).unlink()
    assert results.main(["add", str(copy), *(["--row", row] if row else [])]) == 2
    told = capsys.readouterr().err
    assert re.match(says, told)
    assert told.count("\n") == 1
    assert not list(Path("results").glob("runs/*"))


def test_a_file_that_is_no_json_is_refused(results: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*evaluation.json; run sddlm eval"):
        results.read(tmp_path / "evaluation.json")


@pytest.mark.parametrize("words", [["plan", "x"], ["page", "--row", "x"], ["add"]])
def test_words_that_mean_nothing_are_refused(results: ModuleType, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        results.main(words)


def test_places_of_a_machine_are_cut(results: ModuleType) -> None:
    kept = ["and/or", "https://a.b/c/d", "runs/x", "a / b", "./x/y", "../x"]
    assert results.without_places(kept) == kept
    place = "/" + "root/data/my.txt"
    assert results.without_places({"a": [f"--path={place} {place}", 3]}) == {
        "a": ["--path=my.txt my.txt", 3]
    }


def test_commands_can_be_typed_again(results: ModuleType) -> None:
    assert results.command(["/bin/sddlm", "train", "--out", "a b"]) == "sddlm train --out 'a b'"
    assert results.command(["/x/sddlm/__main__.py", "eval"]) == "sddlm eval"
    assert results.command(["/x/quickstart.py"]) == "python quickstart.py"
    assert results.command("sddlm eval run") == "sddlm eval run"
    assert results.command(None) is None


def synthetic(row: str | None, **metrics: Any) -> dict[str, Any]:
    """What `record` would give for a run on devices whose number is not known."""
    training = {"steps": 10, "tokens": 5120, "seconds": 7.25, "device_hours": None}
    return {
        "row": row, "differs": [], "seed": 1, "objective": "SDDLM", "text": "t.txt",
        "commands": {"train": "sddlm train", "eval": "sddlm eval r"}, "data_sha256": {},
        "commit": None, "torch": "2.11", "platform": "P", "threads": 1, "device": "H100",
        "devices": None, "training": training, "evaluation": {}, "metrics": metrics,
    }  # fmt: skip


def page_of(layout: ModuleType, **runs: dict[str, Any]) -> str:
    plan = load(ROOT / "results" / "plan.json")
    reported = load(ROOT / "results" / "reported.json")
    found: str = layout.page(reported, plan, {f"results/runs/{k}.json": v for k, v in runs.items()})
    return found


def test_every_kind_of_figure_has_its_place(layout: ModuleType) -> None:
    """Zero-shot sets (one could not be read), a judge, tasks, and a model without a bound."""
    figures = {
        "likelihood": {"ppl": 17.125, "nll": 2.84, "stderr": 0.0125, "bound": False},
        "zero_shot": {"ptb": {"ppl": 81.5}, "lm1b": {"error": "cannot be read"}},
        "generative": {"samples": {"ppl": 36.75}, "real": {"ppl": 21.5}},
        "samples": {"origin": {"steps": 1024}, "generated": {"entropy": 5.4375}},
    }
    tasks = {"arc_easy": {"acc": 0.3125, "alias": "arc"}}
    page = page_of(
        layout, big=synthetic("owt/ar", **figures), little=synthetic(None, tasks=tasks, **figures)
    )
    assert "| 17.12 (nll 2.84 ± 0.0125), `results/runs/big.json` |" in page
    assert "| `owt/ar` | `results/runs/big.json` | 81.5 |  |  |" in page
    assert "| `owt/ar` | `results/runs/big.json` | 1,024 | 36.75 | 5.438 |" in page
    assert "| little | arc_easy | acc | 0.3125 |" in page
    columns = "perplexity | nll | stderr | entropy | generative perplexity | of real text"
    assert f"| steps | {columns} | device-hours |" in page  # no column that nobody has
    assert "| 10 | 17.12 | 2.84 | 0.0125 | 5.438 | 36.75 | 21.5 |  |" in page
    assert "unknown number of x H100" in page
    assert "not known device-hours" in page
    assert "not recorded" not in page
    assert "sddlm train\nsddlm eval r\n```" in page


@pytest.mark.parametrize(
    ("commit", "changed", "told"),
    [
        (None, None, "- commit: unknown\n"),
        ("abc", None, "- commit: `abc`, state of the tree not recorded\n"),
        ("abc", True, "- commit: `abc` with changes\n"),
        ("abc", False, "- commit: `abc`\n"),
    ],
)
def test_the_commit_is_told_as_far_as_it_is_known(
    layout: ModuleType, commit: str | None, changed: bool | None, told: str
) -> None:
    known = {"commit": commit, "changed": changed}
    assert told in page_of(layout, x=synthetic(None) | known)


def test_a_missing_command_is_not_made_up(layout: ModuleType) -> None:
    commands = {"commands": {"train": "sddlm train", "eval": None}}
    page = page_of(layout, x=synthetic(None) | commands)
    assert "The command of the evaluation was not recorded." in page
    assert "```bash\nsddlm train\n```" in page
