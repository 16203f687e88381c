"""The corpus ``pydoc``: the English documentation in the Python standard library."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

from sddlm.data.cache import digest, state
from sddlm.data.documents import Document
from sddlm.data.sources import Source
from sddlm.errors import ConfigError

#: Folders in the standard library without prose of its own.
_SKIPPED = frozenset(
    "site-packages dist-packages test tests idlelib lib2to3 pydoc_data encodings".split()  # noqa: SIM905
)
_MIN_WORDS = 5  # of a paragraph
_MIN_PROSE = 0.7  # share of ordinary words among the words of a paragraph

_WORD = re.compile(r"[\"'(“‘]*[A-Za-z]+(?:['’-][A-Za-z]+)*[.,;:!?\"')”’]*")
_MARKUP = re.compile(r":\w+(?::\w+)?:`([^`]*)`")  # :class:`x` -> x
_QUOTES = re.compile(r"``?([^`]+?)``?")  # ``x`` and `x` -> x
_RULE = re.compile(r"\s*([^\w\s])\1{2,}\s*")  # ====, ****, ----: an underline
_CODE = re.compile(  # doctests, grammar, tables and box drawings, braces, calls, headers of source
    r">>>|::=|^\s*[+|]|={3}|-{4}|\.{4}|[{}]|\w\(\w*=|^\s*(?:import|from|def|class) \w+$"
)
_BULLET = re.compile(r"\s*(?:[-*•]|\d+[.)]|\w+:)\s+\S")  # "- x", "1. x", "name: x"


class PythonDocs(Source):
    """The corpus ``pydoc`` as a source; see `python_documents`."""

    name = "pydoc"

    def read(self) -> Iterator[Document]:
        """See `Source.read`."""
        return map(Document, python_documents())

    def signature(self) -> str | None:
        """See `Source.signature`; changes with this Python, the files and the cleaning code.

        Raises:
            ConfigError: as `python_documents`.
        """
        from pydoc_data import topics

        read = state([*_modules(), Path(str(topics.__file__)), Path(__file__)])
        return read and digest("pydoc", sys.version, read)


@functools.cache
def python_documents() -> tuple[str, ...]:
    """Return the documentation in this Python: English prose without a download.

    A document is one topic of ``pydoc_data.topics`` (the language reference), or all docstrings of
    one module of the standard library (module, classes, functions in the order of the source). The
    sources are parsed, never imported; tests, ``idlelib``,
    ``encodings`` (tables) and installed packages are left out.
    On one Python the documents are always the same; another version of Python has other ones.

    The text is made easy to learn from, paragraph by paragraph (blank lines, underlines, bullets
    and the beginnings of indented blocks separate paragraphs):

    * docstrings lose their indentation (``inspect.cleandoc``), reST roles and backquotes go;
    * a paragraph becomes one line: line ends and runs of spaces become one space;
    * headings' underlines go, and so do paragraphs with doctests, grammar, tables or braces;
    * paragraphs of fewer than 5 words go, and those in which fewer than 70% of the words are
      ordinary (letters with usual punctuation): signatures, code, lists of names;
    * a paragraph that occurred before goes. The reference repeats whole sections under several
      topics; without this the validation split would be a copy of training text.

    Reading takes some 3 seconds, once in a process; what is read, some 1.5 MB, is kept.

    Raises:
        ConfigError: this Python has no library sources (an embedded or zipped one).
    """
    seen: set[str] = set()
    found = []
    for text in _raw_documents():
        fresh = [p for p in dict.fromkeys(_prose(text)) if p not in seen]
        seen.update(fresh)
        if fresh:
            found.append("\n".join(fresh) + "\n")
    return tuple(found)


def _raw_documents() -> Iterator[str]:
    """Topics by name, then modules by path; uncleaned but for indentation."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield str(topics[name])
    for path in _modules():
        docstrings = list(_docstrings(path))
        if docstrings:
            yield "\n\n".join(docstrings)


def _modules() -> list[Path]:
    """Source files of the standard library that are read, sorted."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(p for p in root.rglob("*.py") if _SKIPPED.isdisjoint(p.relative_to(root).parts))
    if not paths:
        raise ConfigError(
            f"`data.corpus` pydoc needs the standard library's sources, and {root} has no .py "
            "files (a zipped or embedded Python); use another Python, or your own text: "
            "`data.path='FILE'`"
        )
    return paths


def _docstrings(path: Path) -> Iterator[str]:
    """Docstrings of one source file, dedented, in source order."""
    with warnings.catch_warnings():  # invalid escapes in the standard library
        warnings.simplefilter("ignore")
        tree = ast.parse(path.read_bytes(), str(path))
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield inspect.cleandoc(docstring)
        # docstrings lie in blocks of statements; expressions, the most of a tree, need no visit
        for name in ("finalbody", "orelse", "handlers", "body"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                stack.extend(reversed(block))


def _prose(text: str) -> Iterator[str]:
    """Paragraphs of prose, each on one line."""
    for paragraph in _paragraphs(text):
        line = _QUOTES.sub(r"\1", _MARKUP.sub(r"\1", " ".join(paragraph.split())))
        words = line.split()
        ordinary = sum(_WORD.fullmatch(word) is not None for word in words)
        if (
            len(words) >= _MIN_WORDS
            and ordinary >= _MIN_PROSE * len(words)
            and not any(_CODE.search(part) for part in paragraph.splitlines())
        ):
            yield line


def _paragraphs(text: str) -> Iterator[str]:
    """Blocks of lines between blank lines, underlines, bullets and starts of indented blocks."""
    block: list[str] = []
    for line in text.splitlines():
        rule = not line.strip() or _RULE.fullmatch(line) is not None
        if rule or _BULLET.match(line) or (block and _steps_in(block[-1], line)):
            if block:
                yield "\n".join(block)
            block = []
        if not rule:
            block.append(line)
    if block:
        yield "\n".join(block)


def _steps_in(above: str, line: str) -> bool:
    """Whether an indented block begins, and not the second line of a hanging definition."""
    ended = above.rstrip().endswith((".", ":", ")"))
    return ended and len(line) - len(line.lstrip()) > len(above) - len(above.lstrip())
