"""Completion in bash: every verb and option, without Python."""

import shutil
import subprocess

import pytest

from sddlm.cli import main
from sddlm.verbs import VERBS
from test_architecture import OPTIONS

#: words typed, the word at the cursor last; prints its completions
COMPLETE = """
complete_() {{ COMP_WORDS=(sddlm "$@"); COMP_CWORD=$#; _sddlm; echo "${{COMPREPLY[*]}}"; }}
{}
"""


@pytest.mark.slow
def test_bash_completes_verbs_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--completion"]) == 0
    script = capsys.readouterr().out
    asked = ["''", "tr", "eval f", "eval run --fre", "train --out run --train.st", "sample run.j"]
    asked += ["eval frontier run --swe", *(f"{verb} --" for verb in VERBS), "eval --"]
    lines = [f"complete_ {words}" for words in asked]
    done = subprocess.run(
        [str(shutil.which("bash"))], input=script + COMPLETE.format("\n".join(lines)),
        env={"PATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    found = dict(zip(asked, done.stdout.splitlines(), strict=True))
    assert found["''"].split() == list(dict.fromkeys(verb.split()[0] for verb in VERBS))
    assert found["tr"] == "train"
    assert found["eval f"] == "frontier"
    assert found["eval run --fre"] == ""
    assert found["train --out run --train.st"] == "--train.steps"
    assert found["eval frontier run --swe"] == "--sweep"
    assert found["sample run.j"] == ""  # which leaves it to the names of files
    assert found["eval --"] == found["eval report --"]
    for verb in VERBS:
        known = [
            line.split()[-1]
            for line in OPTIONS.read_text().splitlines()
            if line.startswith(f"{verb} --") and not line.endswith("--print_config")
        ]
        assert set(known) - set(found[f"{verb} --"].split()) == set(), verb
