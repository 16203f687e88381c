"""What `make docs` generates: option tables from the parsers, paths of public names.

``<!-- options of every verb -->`` stands for the tables, ``::: sddlm.SDDLM`` for the documentation
of a public name and ``(#sddlm.SDDLM)`` for a link to it. A built page that loads anything from
another host ends the build.
"""

from __future__ import annotations

import inspect
import re
from argparse import SUPPRESS, Action
from typing import Any, Literal, get_args, get_origin

import sddlm
from sddlm.cli import _parser
from sddlm.verbs import VERBS

TABLES = "<!-- options of every verb -->"
#: links that are followed by a click are fine; these are fetched with the page
FETCHED = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>")
#: link elements that name an address and fetch nothing
NAMED = re.compile(r"\brel=[\"']?(?:canonical|prev|next|license)\b")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the option tables, and write the public names with the modules they live in."""
    if TABLES in markdown:
        parts = (f"## {verb}\n\n{sentence(VERBS[verb][3])}\n\n{options(verb)}" for verb in VERBS)
        markdown = markdown.replace(TABLES, "\n\n".join(parts))
    links = r"\(#sddlm\.([A-Za-z]\w*)(\.\w+)?\)"  # of a name, or of a method of it
    markdown = re.sub(links, lambda found: f"(#{path(found[1])}{found[2] or ''})", markdown)
    return re.sub(r"^::: sddlm\.(\w+)$", lambda found: api(found[1]), markdown, flags=re.MULTILINE)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Refuse a page that fetches something from another host."""
    foreign = [tag for tag in FETCHED.findall(output) if not NAMED.search(tag)]
    if foreign:
        raise SystemExit(f"{page.file.src_uri} loads from another host: {foreign[0]}")
    return output


def path(name: str) -> str:
    """The place of a public name."""
    return f"sddlm.{sddlm._PUBLIC[name]}.{name}"


def sentence(text: str) -> str:
    """A line of ``sddlm --help`` as a sentence."""
    return f"{text[0].upper()}{text[1:]}."


def api(name: str) -> str:
    """The directive of mkdocstrings for a public name, without the members that its bases have."""
    lines = [f"::: {path(name)}", "    options:", f"      heading: sddlm.{name}"]
    lines += [f"      toc_label: {name}", f"      members: {members(getattr(sddlm, name))}"]
    return "\n".join(lines)


def members(found: Any) -> list[str]:
    """Public members of a class that neither a base nor the list of its attributes documents."""
    if not isinstance(found, type):
        return []
    known = {each for base in found.__mro__[1:] for each in vars(base)}
    known |= set(re.findall(r"^    (\w+): ", inspect.getdoc(found) or "", re.MULTILINE))
    return [each for each in vars(found) if not each.startswith("_") and each not in known]


def options(verb: str) -> str:
    """The options of a verb, a table for each section."""
    sections: dict[str, list[str]] = {}
    for action in _parser(verb)[1]._actions:
        if action.default != SUPPRESS:
            section = action.dest.partition(".")[0] if "." in action.dest else ""
            sections.setdefault(section, []).append(_row(action))
    head = "| option | values | default | meaning |\n|---|---|---|---|\n"
    titles = (f"**`--{section}.*`**\n\n" if section else "" for section in sections)
    rows = ("\n".join(each) for each in sections.values())
    return "\n\n".join(title + head + table for title, table in zip(titles, rows, strict=True))


def _row(action: Action) -> str:
    """One option as a row of a table."""
    names = action.option_strings[:1] or [action.dest]
    hint = getattr(action, "_typehint", None)
    default = "" if action.default is None else f"`{action.default}`"
    default = default.lower() if isinstance(action.default, bool) else default
    required = "required" if getattr(action, "required", False) else default
    cells = (f"`{names[0]}`", values(hint), required, " ".join((action.help or "").split()))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def values(hint: Any) -> str:
    """The values of a type, in the form in which a user types them."""
    if hint is None or hint is str:
        return "text"
    if get_origin(hint) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(hint))
    simple = {int: "integer", float: "number", bool: "`true`, `false`"}
    if hint in simple:
        return simple[hint]
    origin = get_origin(hint)
    if origin in (list, dict, tuple):
        return {list: "list", dict: "mapping", tuple: "list"}[origin]
    if get_args(hint):
        parts = [values(part) for part in get_args(hint) if part is not type(None)]
        return " or ".join(dict.fromkeys(parts))
    return f"`{getattr(hint, '__name__', hint)}`"
