"""The word list of the prose: docstrings, comments and messages of the code, pages and recipes.

``python tests/test_prose.py PATH ...`` lists what is wrong in files or folders.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).parent.parent

#: what not to write, and what to write instead
WORDS = {
    r"say|says|said|saying": "return, report, state, list, name, record",
    r"(?:tell|tells|told|telling)(?! apart)": "return, report, state, list, name, record",
    r"who|whom|whoever|whomever": "the caller, the process, the user, or a passive",
    r"so many": "the number itself: n tokens, a number of tokens, at most N",
    r"as (?:it|they) (?:is|are|was|were|lies|lie|stands|stand)": "unchanged, verbatim, literally",
}
#: how no docstring begins
HEADS = {
    r"(?:Of|That of|Those of|As of)\b": "a noun phrase with its subject: Entropy of the law",
    r"(?:The same|Likewise)\.?$": "the subject and what it is",
}

#: files whose messages are not held to the list yet; their docstrings and comments are
LATER_MESSAGES = (
    "src/sddlm/data/cache.py",
    "src/sddlm/models/config.py",
    "src/sddlm/training/alarms.py",
    "src/sddlm/training/distill.py",
)

Kind = Literal["docstring", "comment", "message"]
Piece = tuple[int, str, Kind]
"""Line, text, and what it is."""


def code_pieces(source: str) -> Iterator[Piece]:
    """Docstrings, comments and strings with a blank of a Python file."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        node.body[0].lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node) is not None
    }
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            yield line, token.string.lstrip("#: "), "comment"
        elif token.type == tokenize.STRING and " " in token.string:
            text = re.sub(r"^[rRfFbBuU]*([\"']{3}|[\"'])", "", token.string).rstrip("\"'")
            kind: Kind = "docstring" if line in docstrings else "message"
            yield line, re.sub(r"\{[^{}]*\}", "{}", text), kind


def page_pieces(source: str) -> Iterator[Piece]:
    """Lines of a page, without blocks of code and quotations: a model or a user wrote these."""
    fenced = False
    for line, text in enumerate(source.splitlines(), 1):
        fenced ^= text.lstrip().startswith("```")
        if not fenced and not text.startswith("> "):
            yield line, text, "comment"


def recipe_pieces(source: str) -> Iterator[Piece]:
    """Comments of a YAML file."""
    for line, text in enumerate(source.splitlines(), 1):
        found = re.search(r"(?:^|\s)#\s?(.*)", text)
        if found:
            yield line, found[1], "comment"


READERS = {".py": code_pieces, ".md": page_pieces, ".yaml": recipe_pieces}


def wrong(path: Path, *, messages: bool = True) -> list[str]:
    """A line for each word of a file that is on the list: where, which, and what instead."""
    found = []
    for first, text, kind in READERS[path.suffix](path.read_text(encoding="utf-8")):
        if kind == "message" and not messages:
            continue
        for offset, line in enumerate(text.split("\n")):
            words = re.sub(r"``.*?``|`[^`]*`", "", line)
            for pattern, instead in WORDS.items():
                for match in re.finditer(rf"\b(?:{pattern})\b(?!-)", words, re.IGNORECASE):
                    found.append(f"{path}:{first + offset}: {match[0]!r}; instead: {instead}")
            if kind == "docstring" and offset == 0:
                for pattern, instead in HEADS.items():
                    if match := re.match(pattern, line.strip()):
                        found.append(f"{path}:{first}: begins {match[0]!r}; instead: {instead}")
    return found


def files(path: Path) -> list[Path]:
    """The files at or below a path that the list holds for."""
    if path.is_file():
        return [path]
    found = (file for file in path.rglob("*") if file.suffix in READERS)
    return sorted(file for file in found if file.name != "report.md")  # models wrote its texts


def held() -> list[Path]:
    """All files that the list holds for, relative to the repository."""
    names = ("src/sddlm", "docs", "recipes", "README.md")
    return [file.relative_to(ROOT) for name in names for file in files(ROOT / name)]


@pytest.mark.slow
def test_the_words_of_the_prose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    found = [
        line
        for file in held()
        for line in wrong(file, messages=file.as_posix() not in LATER_MESSAGES)
    ]
    assert not found, "\n".join(found)


def test_files_that_are_left_out_exist() -> None:
    assert [name for name in LATER_MESSAGES if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("suffix", "text", "lines"),
    [
        (".py", '"""Of all.\n\nIt tells.\n"""\n\n\ndef f():\n    """The same."""\n', [1, 3, 8]),
        (".py", "# who asks\nx = 1  # so many\n", [1, 2]),
        (".py", 'raise ValueError(f"{told} is as it was")\n', [1]),
        (".py", 'said = who = "told"  # `says` is a name, a whole is no who-is\n', []),
        (".md", "Who asks?\n```\ntold\n```\n`told` and ``who``\n> She told.\nTold.\n", [1, 7]),
        (".yaml", "told: who  # says so\n# as they are\n", [1, 2]),
    ],
)
def test_the_list_finds(tmp_path: Path, suffix: str, text: str, lines: list[int]) -> None:
    file = tmp_path / f"file{suffix}"
    file.write_text(text)
    assert [int(line.removeprefix(f"{file}:").split(":")[0]) for line in wrong(file)] == lines


if __name__ == "__main__":
    problems = [line for name in sys.argv[1:] for file in files(Path(name)) for line in wrong(file)]
    print("\n".join(problems) or "nothing on the list")
    sys.exit(bool(problems))
