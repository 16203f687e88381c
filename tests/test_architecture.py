"""The house keeps its shape: who imports whom, how big things are, and which options there are.

docs/architecture.md is held by this file. ``tests/options.txt`` lists every option there is, so
that a new one is a decision: write it anew with ``python tests/test_architecture.py``.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

import sddlm
from sddlm import objectives
from sddlm.cli import _parser
from sddlm.eval.correction import CorrectionConfig
from sddlm.eval.frontier import FrontierConfig
from sddlm.eval.report import ReportConfig
from sddlm.eval.retention import RetentionConfig
from sddlm.eval.tasks import TasksConfig
from sddlm.eval.zero_shot import ZeroShotConfig
from sddlm.sampling.float32 import Float32
from sddlm.verbs import VERBS

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src" / "sddlm"
OPTIONS = Path(__file__).parent / "options.txt"
FILES = sorted(SRC.rglob("*.py"))
TREES = {path.relative_to(SRC).as_posix(): ast.parse(path.read_text()) for path in FILES}

ANYWHERE = {"errors", "types", "rng", "io", "progress", "__init__"}
#: what every room needs that writes text with a model
WRITING = {"process", "models", "data", "lm", "model_dir", "spec", "sampling"}
#: room: the rooms that it may import, beside those of ANYWHERE
ROOMS = {
    "__init__": set(),
    "errors": set(),
    "types": set(),
    "rng": set(),
    "io": set(),
    "progress": set(),
    "process": set(),
    "models": set(),
    "data": set(),
    "demo": set(),
    "demo/run.py": {"lm", "model_dir", "sampling", "generation"},  # the verb
    "exact": {"process", "models", "objectives", "sampling"},
    "objectives": {"process", "models"},
    "objectives/distillation.py": {"process", "models", "lm", "model_dir"},  # its teacher
    "spec": {"process"},
    "model_dir": {"process", "models", "data", "spec"},
    # the last three only in its methods, which call what works for it
    "lm": {"process", "models", "data", "model_dir", "hub", "sampling", "generation", "eval"},
    "adaptation": {"process", "models", "data", "model_dir", "lm", "hub"},
    "importer": {"process", "models", "data", "model_dir", "lm", "hub"},
    # all but the first two when called
    "hub": {"models", "model_dir", "lm", "sampling", "importer", "card"},
    "card": {"models", "lm", "spec", "eval", "training"},
    "modeling_sddlm": {"hub", "sampling"},
    "jobs": set(),
    "sampling": {"process"},
    "generation": {*WRITING, "jobs"},
    "eval": {*WRITING, "objectives", "generation", "jobs"},
    "training": {*WRITING, "objectives", "generation"},
    "plan": {"process", "models", "data", "objectives", "training"},
    "suite": {
        *("models", "objectives", "model_dir", "training", "eval", "plan"),
        *("options", "inherit", "cli", "verbs"),
    },
    "options": set(),
    "inherit": {"options"},
    "flags": {"options"},
    "completion": {"options", "verbs"},
    "cli_errors": {"options"},
    "verbs": set(),
    "cli": {"cli_errors", "completion", "flags", "inherit", "options", "verbs"},
    "__main__": {"cli"},
}
LATE_OF_LM = ("sddlm.sampling", "sddlm.generation", "sddlm.eval")
#: library: the only files that may import it
ONLY_IN = {
    "transformers": {"eval/judge.py", "models/backbone.py", "modeling_sddlm.py"},
    "mauve": {"eval/mauve.py"},
    "lm_eval": {"eval/harness.py", "eval/tasks.py"},
    "wandb": {"training/loggers.py"},
    "peft": {"training/lora.py"},
    "mlflow": {"training/loggers.py"},
    "matplotlib": {"training/curves.py", "eval/pictures.py"},
    "zstandard": {"data/readers.py"},
    "datasets": {"data/hf.py"},
    "filelock": {"data/cache.py", "io.py"},
    "jsonargparse": {"cli.py", "options.py"},
    "tokenizers": {"data/tokenizer.py", "data/tokenize.py", "data/ids.py"},
    "huggingface_hub": {"data/tokenizer.py", "hub.py", "models/dit.py"},
    "safetensors": {"models/dit.py", "models/backbone.py", "model_dir.py", "importer/files.py"},
    "triton": {"models/row_kernels.py"},  # which is imported only where there is a GPU
}
#: what the core install may import anywhere
CORE = {"torch", "numpy", "rich", "yaml"}
#: what only one file of an extra may import, and only when it is needed
LATE = {
    "transformers",
    "matplotlib",
    "zstandard",
    "datasets",
    "jsonargparse",
    "mauve",
    "wandb",
    "peft",
    "mlflow",
}


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """Imported modules, and whether that happens as soon as the file is imported."""
    inner = {
        id(node)
        for parent in ast.walk(tree)
        if isinstance(parent, (ast.FunctionDef, ast.If))
        for node in ast.walk(parent)
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) not in inner) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or "", id(node) not in inner


IMPORTS = [(name, *found) for name, tree in TREES.items() for found in imports(tree)]


def test_imports_go_one_way() -> None:
    wrong = []
    for name, module, at_once in IMPORTS:
        room = name.split("/")[0].removesuffix(".py")
        allowed = ANYWHERE | {room} | ROOMS.get(name, ROOMS[room])
        if room in ANYWHERE:
            allowed = {"errors", "types", "rng"}
        top, *rest = module.split(".")
        if top == "sddlm" and (rest[0] if rest else "__init__") not in allowed:
            wrong.append(f"{name} imports {module}")
        if at_once and name == "lm.py" and module.startswith(LATE_OF_LM):
            wrong.append(f"{name} imports {module} before it is needed")
    assert not wrong


def test_libraries_stay_in_their_rooms() -> None:
    wrong = []
    for name, module, at_once in IMPORTS:
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top in CORE | {"sddlm"}:
            continue
        if name not in ONLY_IN.get(top, ()):
            wrong.append(f"{name} imports {top}")
        if at_once and top in LATE and name != "modeling_sddlm.py":  # which nothing imports
            wrong.append(f"{name} imports {top} before it is needed")
    assert not wrong


def test_the_page_names_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    block = re.search(r"## Imports go one way\n+```\n(.*?)```", page, re.DOTALL)
    assert block
    said = set(re.findall(r"\w+", block[1]))
    assert {room for room in ROOMS if "/" not in room and not room.startswith("_")} <= said


def test_the_package_and_its_help_import_nothing_heavy() -> None:
    code = """
import sys, sddlm
dir(sddlm)
from sddlm.cli import main
assert main(["--help"]) == main(["--version"]) == main([]) == 0
assert main(["trian"]) == 2
heavy = {"torch", "jsonargparse", "numpy", "tokenizers", "rich", "yaml"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_public_name_is_there() -> None:
    for name in sddlm.__all__:
        assert getattr(sddlm, name) is not None
    with pytest.raises(AttributeError):
        _ = sddlm.no_such_name


def test_files_are_short() -> None:
    lines = {str(path.relative_to(SRC)): len(path.read_text().splitlines()) for path in FILES}
    assert not {name: n for name, n in lines.items() if n >= 330}


def test_functions_are_short() -> None:
    """Under 70 lines from the first statement after the documentation."""
    long = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
                lines = (node.end_lineno or 0) - body[0].lineno + 1
                if lines >= 70:
                    long.append(f"{name}: {node.name} has {lines} lines")
    assert not long


def reads(tree: ast.AST) -> Counter[str]:
    """How often each attribute is read."""
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Attribute))
    return Counter(node.attr for node in nodes if isinstance(node.ctx, ast.Load))


READS = sum(map(reads, TREES.values()), Counter[str]())
CLASSES = [n for tree in TREES.values() for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]


def reads_outside(kind: type) -> set[str]:
    """Attributes that any code reads, but for the checks in the class's own definition."""
    own = Counter[str]()
    for owner in CLASSES:
        if owner.name == kind.__name__:
            for check in owner.body:
                if isinstance(check, ast.FunctionDef) and check.name in ("__post_init__", "check"):
                    own += reads(check)
    return set(READS - own)


LEAVES = [getattr(objectives, name) for name in objectives.__all__ if name != "Objective"]
NEGATIVES = [
    sddlm.UniformNegatives, sddlm.UnigramNegatives, sddlm.SequenceNegatives, sddlm.TopNegatives,
    sddlm.NoisyToken, sddlm.MixedNegatives,
]  # fmt: skip
KNOBS = [
    sddlm.TrainArgs, sddlm.Muon, sddlm.DataArgs, sddlm.ModelArgs, sddlm.DiTConfig, sddlm.Truncation,
    sddlm.Ancestral, sddlm.Lazy, sddlm.Psi, sddlm.FirstHitting, Float32, sddlm.Adaptive,
    sddlm.SamplerConfig, sddlm.Request,
    sddlm.UniformProcess, sddlm.MaskedProcess, sddlm.HybridProcess, sddlm.MixtureProcess,
    sddlm.LogLinear, sddlm.Cosine, sddlm.CosinePower, sddlm.Polynomial, sddlm.Geometric, *LEAVES,
    *NEGATIVES, ReportConfig, FrontierConfig, ZeroShotConfig, TasksConfig, CorrectionConfig,
    RetentionConfig,
]  # fmt: skip


@pytest.mark.parametrize("kind", KNOBS, ids=lambda kind: kind.__name__)
def test_every_knob_is_read(kind: type) -> None:
    assert {f.name for f in fields(kind)} <= reads_outside(kind)


PROCESSES = [
    sddlm.UniformProcess, sddlm.MaskedProcess, sddlm.HybridProcess, sddlm.MixtureProcess,
]  # fmt: skip


EVALUATIONS = [
    *(ReportConfig, FrontierConfig, ZeroShotConfig, TasksConfig, CorrectionConfig, RetentionConfig),
]


@pytest.mark.parametrize(
    "kind", [*LEAVES, *PROCESSES, *NEGATIVES, *EVALUATIONS], ids=lambda kind: kind.__name__
)
def test_the_command_line_knows_the_types_of_options(kind: type) -> None:
    """It reads them in the leaf's module, and checks nothing where it fails at that."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, "it")
    hints = {action.dest: str(getattr(action, "_typehint", "")) for action in parser._actions}
    assert "Unvalidated" not in str(hints)


def options() -> str:
    """Every option of every verb, one a line."""
    lines = []
    for verb in VERBS:
        function, parser = _parser(verb)
        found = re.findall(r"^  (--[\w.]+)", parser.format_help(), re.MULTILINE)
        lines += [f"{verb} {option}" for option in found if not option.endswith(".help")]
        if verb.startswith("eval"):
            nested = fields(sddlm.DataArgs) if "--data" in found else ()
            lines += [f"{verb} --data.{f.name}" for f in nested]
        if verb == "train":
            lines += [
                f"train --objective {leaf.__name__} --objective.{f.name}"
                for leaf in LEAVES
                for f in fields(leaf)
            ]
            lines += [
                f"train --objective.negatives {leaf.__name__} --objective.negatives.{f.name}"
                for leaf in NEGATIVES
                for f in fields(leaf)
            ]
        assert importlib.import_module(VERBS[verb][0]).__dict__[VERBS[verb][1]] is function
    return "\n".join(lines) + "\n"


def test_verbs_are_frozen() -> None:
    assert list(VERBS) == [
        "prepare",
        "plan",
        "train",
        "import",
        "adapt",
        "distill",
        "sample",
        "correct",
        "demo",
        "eval report",
        "eval frontier",
        "eval zero-shot",
        "eval tasks",
        "eval correction",
        "eval retention",
        "suite",
        "report",
    ]


def test_options_are_frozen() -> None:
    assert options() == OPTIONS.read_text(), "decided? then: python tests/test_architecture.py"


#: what may name flags: the command line, and the tables of the documentation
FLAGS_IN = {
    "cli.py",
    "verbs.py",
    "cli_errors.py",
    "flags.py",
    "completion.py",
    "inherit.py",
    "options.py",
    "data/corpora.py",
}
#: what names flags of lm-eval's command line
FLAGS_IN |= {"eval/harness.py"}
#: what writes command lines
FLAGS_IN |= {"suite/job.py"}


def texts(tree: ast.AST) -> Iterator[str]:
    """Every text in the code but documentation; of an f-string its fixed parts together."""
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, (ast.JoinedStr, ast.Expr))
        for part in ast.walk(node)
        if part is not node and (isinstance(node, ast.JoinedStr) or part is node.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "" for part in node.values)
            yield "".join(map(str, parts))


def test_messages_name_arguments_and_not_flags() -> None:
    """But in a whole command, such as ``sddlm prepare --data.path FILE``."""
    flag = re.compile(r"^(?!.*\bsddlm [a-z]+ ).*(?:^|[\s(`'\"])--[a-z]\w", re.DOTALL)
    wrong = [
        f"{name}: {text}"
        for name, tree in TREES.items()
        if name not in FLAGS_IN
        for text in texts(tree)
        if flag.match(text) and text != "--porcelain"
    ]
    assert not wrong


def test_no_file_names_a_place_of_one_machine() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git repository")
    places = re.compile(rb"(?<![\w.])/(?:work|root|opt)" + rb"/\w")
    for path in (ROOT / name for name in listed.stdout.splitlines()):
        if path.is_file():
            found = places.search(path.read_bytes())
            assert not found, f"{path.relative_to(ROOT)} names {found and found[0]!r}"


if __name__ == "__main__":
    OPTIONS.write_text(options())
