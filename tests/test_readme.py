"""What the README and the documents say can be typed, run and found."""

import importlib
import inspect
import json
import re
import shlex
import shutil
from dataclasses import fields
from pathlib import Path

import pytest

import sddlm
from hub_server import hub
from sddlm.cli import _parse, _subcommand
from sddlm.verbs import VERBS

# of jsonargparse, about configs that may build any class
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = ROOT / "README.md"
#: what a test does in place of a thousand steps
FEWER = "steps=2, tokenizer='bytes', length=16, batch=4, width=32, heads=2, blocks=1"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    return [code for name, code in FENCE.findall(page.read_text()) if name == language]


def lighter(code):
    """Code of a page with less work."""
    return code.replace("steps=1000", FEWER)


def commands(page):
    """The commands of a page's bash blocks, split as a shell would."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = (shlex.split(re.split(r" [<>] ", line)[0], comments=True) for line in lines)
    return [w for w in words if w]


def named(pages):
    return {"argvalues": pages, "ids": [str(p.relative_to(ROOT)) for p in pages]}


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A folder with what the documents take for granted: ``my.txt``, ``run/``, the recipes."""
    place = tmp_path_factory.mktemp("readme")
    text = place / "my.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\nAnd then it sleeps.\n" * 40)
    shutil.copytree(ROOT / "recipes", place / "recipes")
    data = sddlm.DataArgs(
        path=str(text), tokenizer="bytes", length=16, validation=0.1, cache=str(place / "cache")
    )
    sddlm.train_model(
        str(place / "run"),
        data=data,
        model=sddlm.ModelArgs(preset="mini", width=32, heads=2, blocks=1),
        objective=sddlm.SDDLM(),
        train=sddlm.TrainArgs(steps=2, batch=4, preview_every=0, validation_rows=8),
    )
    return place


@pytest.fixture
def inside(workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("SDDLM_CACHE", str(workspace / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    with hub(monkeypatch, str(workspace / "hub")):
        yield workspace


def test_the_readme_has_examples_and_is_short():
    page = ROOT / "README.md"
    assert len(page.read_text().splitlines()) <= 150
    (ten_lines,) = blocks(page, "python")
    for call in ("load", "generate", "infill", "correct", "nll", "sample", "loss", "train", "save"):
        assert f".{call}(" in ten_lines
    verbs = {verb.split()[0] for verb in VERBS}
    assert {words[1] for words in commands(page) if words[0] == "sddlm"} == verbs
    assert {words[1] for words in commands(page) if words[0] == "make"} == {"quickstart", "test"}


@pytest.mark.slow
@pytest.mark.parametrize("page", **named([p for p in PAGES if blocks(p, "python")]))
def test_python_blocks_run_in_order(page, inside, capsys):
    names = {"__name__": "__readme__"}
    for number, code in enumerate(blocks(page, "python")):
        exec(compile(lighter(code), f"{page.name}, python block {number + 1}", "exec"), names)
    for name, value in list(names.items()):
        if name.startswith("test_"):
            value()
    if page.name == "objectives.md":  # the figures of its table, two of which the README quotes
        printed = re.findall(r"^(\w+) (16|128) 0(\.\d+)$", capsys.readouterr().out, re.MULTILINE)
        assert printed == [
            ("leave_one_out", "16", ".0803"),
            ("leave_one_out", "128", ".0097"),
            ("denoiser", "16", ".5261"),
            ("denoiser", "128", ".521"),
            ("without_x_t", "16", ".6967"),
            ("without_x_t", "128", ".6982"),
        ]
        assert all(f" {figure.ljust(5, '0')} " in page.read_text() for _, _, figure in printed)
        assert "0.521 from the data in total variation instead of 0.010" in README.read_text()


@pytest.mark.slow
def test_the_notebook_runs_with_fewer_steps(inside, capsys):
    cells = json.loads((ROOT / "examples" / "sddlm.ipynb").read_text())["cells"]
    names = {}
    for cell in cells:
        code = "".join(cell["source"])
        if cell["cell_type"] == "code" and not code.startswith("%pip"):
            assert not cell["outputs"]
            code = re.sub(r"steps=\d+", "steps=2", code).replace("length=64", "length=16")
            code = code.replace("path = None", 'path = "my.txt"')
            exec(compile(code, "sddlm.ipynb", "exec"), names)
    assert capsys.readouterr().out.startswith("Once upon a time")
    assert names["own"].data["training"]["steps"] == 2
    assert sddlm.load("my-model").data["source"] == "my.txt"


@pytest.mark.slow
@pytest.mark.parametrize("page", **named([p for p in PAGES if blocks(p, "bash")]))
def test_commands_can_be_typed(page, inside):
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for program, *words in commands(page):
        if program == "sddlm":
            verb, *options = words
            function, chosen = _parse(*_subcommand(verb, options))
            assert callable(function)
            assert chosen
        elif program == "make":
            assert words[0] in targets
        else:
            assert program in {"pip", "python"}


def test_commands_in_the_text_can_be_typed(inside):
    for page in PAGES:
        prose = FENCE.sub("", page.read_text())
        for line in re.findall(r"`sddlm ((?:train|sample|eval) [^`]*)`", prose):
            if not re.search(r"\b[A-Z]{2,}\b|--help", line):  # with DIR in it, it is a pattern
                verb, *options = shlex.split(line)
                assert _parse(*_subcommand(verb, options))[1]


def test_options_in_the_text_exist(capsys):
    """Every ``--name`` in the documents is an option of some verb, an objective or a benchmark."""
    known = {"--help", "--config", "--resume", "--objective.every", "--objective.negatives.count"}
    known |= {f"--train.optimizer.{field.name}" for field in fields(sddlm.Muon)}
    known |= {"--nproc", "--model", "--model_args"}  # of torchrun and lm_eval
    known |= {"--completion"}  # in the place of a verb
    known |= {f"--evaluation.{name}" for name in ("count", "rows", "steps")}  # a mapping
    known |= {f"--sweep.{field.name}" for field in fields(sddlm.SamplerConfig)}
    for verb in VERBS:
        with pytest.raises(SystemExit):
            _parse(verb, ["--help"])
    known |= set(re.findall(r"--[a-z][\w.]*", capsys.readouterr().out))
    for name in ("SDDLMV1", "DataArgs"):
        prefix = "--data." if name == "DataArgs" else "--objective."
        known |= {prefix + field for field in vars(getattr(sddlm, name)())}
    scripts = "".join(p.read_text() for p in (ROOT / "benchmarks").glob("*.py"))
    measuring = set(re.findall(r'add_argument\(\s*"(--\w+)"', scripts))
    for page in PAGES:
        for line in page.read_text().splitlines():
            if line.startswith("> "):  # a model wrote it
                continue
            allowed = measuring if line.startswith("python benchmarks/") else known
            for option in re.findall(r"(?<![\w-])--[a-z][\w.]*\w", line):
                assert option in allowed, f"{page.name}: {option}"


def anchors(page):
    """Anchors of a page's headings, as mkdocs and GitHub make them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\s-]", "", title).strip().lower().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", **named(PAGES))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        path, _, anchor = link.partition("#")
        if not re.match(r"\w+://", link):
            target = page.parent / path if path else page
            assert target.exists(), link
            # the reference makes those of public names
            assert not anchor or anchor.startswith("sddlm.") or anchor in anchors(target), link


@pytest.mark.parametrize("page", **named(PAGES))
def test_classes_in_tables_exist(page):
    """A class in a table is a public name, or lives in the module that its row names."""
    for row in re.findall(r"^\|.*\|$", page.read_text(), re.MULTILINE):
        modules = [
            importlib.import_module(f"sddlm.{path.replace('/', '.')}")
            for path in re.findall(r"`(?:[\w./]*sddlm/)?([\w/]+)\.py`", row)
        ]
        for name in re.findall(r"`([A-Z]\w*[a-z]\w*)`", row) + re.findall(r"`(SDDLM\w*)`", row):
            found = name in sddlm.__all__ or any(hasattr(m, name) for m in modules)
            assert found, f"{page.name}: {name}"
        for path in re.findall(r"`((?:\w+\.)+[A-Z]\w+)`", row):
            module, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(f"sddlm.{module.removeprefix('sddlm.')}"), name)


def test_files_in_the_text_exist():
    """Paths of our sources, tests and recipes in the documents are real ones."""
    made = {"config.yaml", "suite.yaml"}  # by a run, and by a suite
    for page in PAGES:
        for path in re.findall(r"`([\w/]+\.(?:py|yaml))`", page.read_text()):
            places = (ROOT / path, ROOT / "src" / path, ROOT / "src" / "sddlm" / path)
            assert any(p.exists() for p in places) or path in made, f"{page.name}: {path}"


def test_names_of_the_architecture_exist():
    """Classes, functions and options that the page names are words of the sources."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    spans = re.findall(r"`([^`\n]+)`", FENCE.sub("", page))
    names = {name for span in spans for name in re.findall(r"[A-Za-z]\w{2,}", span)}
    for _, block in FENCE.findall(page):
        names |= set(re.findall(r"\b[a-z]\w*_\w+\b|\b[A-Z]\w*[a-z]\w*\b|\b\w+(?=\()", block))
    names -= {"weight_n", "rows_n"}  # of a formula
    texts = [f"{p} {p.read_text()}" for p in (ROOT / "src/sddlm").rglob("*.py")]
    texts += map(str, (ROOT / "tests").rglob("*.py"))
    assert names - set(re.findall(r"\w+", " ".join(texts))) == set()
    assert len(names) > 100


def test_every_public_name_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "api.md").read_text()
    shown = re.findall(r"^::: sddlm\.(\w+)$", page, re.MULTILINE)
    assert len(shown) == len(set(shown))
    assert set(shown) == set(sddlm.__all__) - {"__version__"}
    assert set(re.findall(r"\(#sddlm\.(\w+)\)", page)) <= set(shown)
    for path in re.findall(r"^::: (sddlm\.\w+\..*)$", page, re.MULTILINE):  # bases and results
        module, _, name = path.rpartition(".")
        assert inspect.getdoc(getattr(importlib.import_module(module), name))


def test_the_reference_shows_a_method_where_it_is_defined(hooks):
    assert hooks.members(sddlm.load) == []
    assert "generate" in hooks.members(sddlm.LanguageModel)
    assert "loss" not in hooks.members(sddlm.SDDLM)
    assert "::: sddlm.Objective" in (ROOT / "docs/reference/api.md").read_text()
    assert hooks.members(sddlm.Psi) == ["preset"]
    assert "      members: ['preset']" in hooks.api("Psi").splitlines()


@pytest.fixture
def hooks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    return importlib.import_module("hooks")


def test_the_reference_has_every_option_of_every_verb(hooks, capsys):
    page = hooks.on_page_markdown((ROOT / "docs" / "reference" / "cli.md").read_text())
    assert re.findall(r"^## ([\w -]+)$", page, re.MULTILINE) == [*VERBS]
    parts = re.split(r"^## [\w -]+$", page, flags=re.MULTILINE)[1:]
    for verb, part in zip(VERBS, parts, strict=True):
        with pytest.raises(SystemExit):
            _parse(verb, ["--help"])
        wanted = set(re.findall(r"^  (--[a-z][\w.]*)\b", capsys.readouterr().out, re.MULTILINE))
        wanted = {option for option in wanted if not option.endswith(("print_config", ".help"))}
        shown = set(re.findall(r"^\| `(--[\w.]+)` \|", part, re.MULTILINE))
        assert wanted - shown <= {"--data", "--model", "--train"}, verb  # sections
        assert "--config" in shown
    assert "| `--steps` | integer | `64` |" in parts[[*VERBS].index("sample")]


def test_a_page_that_loads_from_another_host_is_not_built(hooks):
    class Page:
        class file:  # noqa: N801
            src_uri = "index.md"

    link = '<a href="https://arxiv.org">paper</a><link rel="canonical" href="https://a.org/">'
    assert hooks.on_post_page(link, Page) == link
    for tag in ('<script src="https://a.org/x.js">', '<link rel="stylesheet" href="//a.org/x">'):
        with pytest.raises(SystemExit, match=r"index\.md loads from another host: <"):
            hooks.on_post_page(link + tag, Page)


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    listed = re.findall(r": ([\w/-]+\.md)$", text, re.MULTILINE)
    pages = {str(p.relative_to(ROOT / "docs")) for p in PAGES if ROOT / "docs" in p.parents}
    assert sorted(listed) == sorted(pages)


def test_the_picture_plays_and_loads_nothing():
    picture = (ROOT / "docs" / "images" / "denoising.svg").read_text()
    assert "@keyframes" in picture
    assert picture.count('<g class="f"') > 30
    assert not re.search(r"<script|https?://(?!www\.w3\.org/2000/svg)", picture)


def test_the_quick_start_writes_its_part_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    quickstart = importlib.import_module("quickstart")
    begin, end = quickstart.BEGIN, quickstart.END
    page = (ROOT / "README.md").read_text()
    assert page.count(begin) == page.count(end) == 1
    readme, run = tmp_path / "README.md", tmp_path / "sddlm"
    readme.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    run.mkdir()
    texts = ["one *two*\n\n--three `x.py`", "four", "five"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    (run / "curves.png").write_bytes(b"picture")
    (tmp_path / "docs" / "images").mkdir(parents=True)
    quickstart.write_readme(readme, tmp_path, [("entropy", "1", "2")])
    first, *rows, last = readme.read_text().split(begin)[1].split(end)[0].strip().split("\n\n")
    assert re.fullmatch(r"Measured on \d{4}-\d\d-\d\d by .* cores .*, torch [\d.]+:", first)
    assert rows == [
        "| | this model | to compare |\n| --- | --- | --- |\n| entropy | 1 | 2 |",
        r"> one \*two\* --three \`x.py\`",
    ]
    assert last == "> four"
    assert readme.read_text().startswith(f"before\n{begin}\n")
    assert readme.read_text().endswith(f"\n{end}\nafter\n")
    assert (tmp_path / "docs" / "images" / "quickstart-curves.png").read_bytes() == b"picture"
    readme.write_text("no marks\n")
    with pytest.raises(SystemExit, match="has no <!-- quickstart:begin -->"):
        quickstart.write_readme(readme, tmp_path, [])
    assert readme.read_text() == "no marks\n"
