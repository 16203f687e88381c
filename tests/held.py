"""A command of ``sddlm`` that stands still in a known place, so that no test races a signal.

``Held("sddlm.work:Work.run", 2, "sample", ...)`` is a real process that waits before the third call
of that function. A test does to it what it likes, and knows where it meets it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

PROGRAM = """
import functools, importlib, os, sys
place, calls, held, go, *arguments = sys.argv[1:]
module, _, path = place.partition(":")
*owners, name = path.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
real, left = getattr(owner, name), int(calls)

@functools.wraps(real)
def wait_here(*args, **kwargs):
    global left
    left -= 1
    if left == -1:
        os.close(int(held))
        os.read(int(go), 1)
    return real(*args, **kwargs)

setattr(owner, name, wait_here)
from sddlm.cli import main
sys.exit(main(arguments))
"""


class Held(subprocess.Popen[str]):
    """The process; it has reached the place when this is made, unless it ended before."""

    def __init__(self, place: str, calls: int, *arguments: object, **more: Any) -> None:
        held, its_held = os.pipe()
        its_go, self.go = os.pipe()
        pipes = [str(calls), str(its_held), str(its_go)]
        super().__init__(
            [sys.executable, "-c", PROGRAM, place, *pipes, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=(its_held, its_go), **more,
        )  # fmt: skip
        os.close(its_held)
        os.close(its_go)
        os.read(held, 1)  # returns at the end of file
        os.close(held)

    def interrupted(self, number: int) -> str:
        """Send a signal, then let it go on; what it wrote to standard error."""
        self.send_signal(number)
        os.close(self.go)
        return self.communicate()[1]
