"""Completion of the command line: a script for bash that holds every verb and option.

The shell reads the script once and starts no Python to complete a word.
"""

from __future__ import annotations

import importlib

from sddlm.options import option_types, required
from sddlm.verbs import VERBS

_SCRIPT = """_sddlm() {{
    local words
    case "${{COMP_WORDS[*]:1:COMP_CWORD-1}} " in
        " ") words="{verbs}" ;;
{cases}
    esac
    COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _sddlm sddlm
"""


def script() -> str:
    """The script; every verb's module is imported for its options."""
    words = {verb: _options(verb) for verb in VERBS}
    for first, second in (verb.split() for verb in VERBS if " " in verb):
        words[first] = [*words.get(first, words[f"{first} {second}"]), second]  # behind its own
    verbs = dict.fromkeys(verb.split()[0] for verb in VERBS)
    cases = [f'        "{verb} "*) words="{" ".join(found)}" ;;' for verb, found in words.items()]
    return _SCRIPT.format(verbs=" ".join(verbs), cases="\n".join(cases))


def _options(verb: str) -> list[str]:
    """Options of a verb and of the classes that it lets choose, without positional arguments."""
    module, name, positional, _ = VERBS[verb]
    function = getattr(importlib.import_module(module), name)
    without = required(function) if positional else []
    names = [each for each in option_types(function) if each.split(".")[0] not in without]
    return [f"--{each}" for each in ("config", "import", "help", *names)]
