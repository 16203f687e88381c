"""A report as Markdown with pictures beside it, and as one HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from sddlm.errors import visible
from sddlm.io import atomic_write

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  color: #1f2328; background: #fff }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #d0d7de; padding: .25rem .75rem; text-align: right }
th:first-child, td:first-child { text-align: left }
figure { display: inline-block; margin: .5rem 0 } svg { max-width: 100%; height: auto }
pre { background: #f6f8fa; padding: .75rem; white-space: pre-wrap; overflow-wrap: anywhere }
"""


class Table(NamedTuple):
    """Rows of cells; a cell in two stars on each side is bold."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Picture(NamedTuple):
    """A picture with the name of its file."""

    name: str
    svg: str


class Texts(NamedTuple):
    """Generated texts below a label; they may hold anything."""

    label: str
    texts: Sequence[str]


Part = Table | Picture | Texts


class Section(NamedTuple):
    """A part of a report with a heading."""

    title: str
    notes: Sequence[str]
    parts: Sequence[Part]


def write_pages(folder: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write ``report.html``, ``report.md`` and the pictures of the latter; returns the first."""
    (folder / "report").mkdir(exist_ok=True)
    lines = [f"# {title}", ""]
    for section in sections:
        lines += [
            f"## {section.title}",
            "",
            *(line for note in section.notes for line in (note, "")),
        ]
        for part in section.parts:
            if isinstance(part, Picture):
                file = f"report/{_file_name(section.title)}-{part.name}.svg"
                _write(folder / file, part.svg + "\n")
                lines += [f"![{part.name}]({file})", ""]
            else:
                lines += [*_markdown(part), ""]
    _write(folder / "report.md", "\n".join(lines))
    body = "\n".join(line for section in sections for line in _html(section))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    page = f"<!DOCTYPE html>\n{head}\n<h1>{escape(title)}</h1>\n{body}\n"
    _write(folder / "report.html", page)
    return folder / "report.html"


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text)


def _file_name(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _markdown(part: Table | Texts) -> Iterator[str]:
    if isinstance(part, Texts):
        yield f"**{part.label}**"
        for text in part.texts:  # an indented block ends with nothing that a text may hold
            yield from (
                "",
                *(f"    {line}" for line in visible(text).splitlines() or [""]),
                "",
                "---",
            )
        return
    for row in (part.head, ["---"] * len(part.head), *part.rows):
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _html(section: Section) -> Iterator[str]:
    yield f"<h2>{escape(section.title)}</h2>"
    yield from (f"<p>{escape(note)}</p>" for note in section.notes)
    for part in section.parts:
        if isinstance(part, Picture):
            yield f"<figure>{part.svg}</figure>"
        elif isinstance(part, Texts):
            yield f"<h3>{escape(part.label)}</h3>"
            yield from (f"<pre>{escape(visible(text))}</pre>" for text in part.texts)
        else:
            yield "<table>"
            yield f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in part.head)}</tr>"
            for row in part.rows:
                yield f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>"
            yield "</table>"


def _cell(cell: str) -> str:
    bold = re.fullmatch(r"\*\*(.*)\*\*", cell)
    return f"<b>{escape(bold[1])}</b>" if bold else escape(cell)
