"""``sddlm`` in processes of its own: real ones, forked from one that has imported it already.

An import costs seconds of CPU, and tests of kills and of several processes need dozens.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = """jsonargparse._optionals
    sddlm.data.prepare sddlm.eval.report sddlm.generation.sample
    sddlm.training.curves sddlm.training.distill sddlm.training.fit"""
CONTEXT.set_forkserver_preload(IMPORTED.split())
atexit.register(lambda: [process.kill() for process in multiprocessing.active_children()])


class Command:
    """``sddlm ARGUMENTS`` in a process; what it prints goes to files.

    Args:
        arguments: what a user types behind ``sddlm``.
        hold: a function as ``module:Class.method`` and a number n: the process stands still before
            its n + 1st call, so that no test races a signal. It has got there, or has ended, when
            the object is made.
        file_size: the largest file that it may write, in bytes: fails a write as a full disk does.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        *arguments: object,
        hold: tuple[str, int] | None = None,
        file_size: int | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory()
        here, there = CONTEXT.Pipe()
        self._pipe = here
        variables = {**os.environ, **(environment or {})}
        typed = [*map(str, arguments)]
        self._process = CONTEXT.Process(
            target=_run, args=(typed, self._folder.name, variables, file_size, hold, there)
        )
        self._process.start()
        there.close()
        if hold:
            here.poll(None)  # also when the other end is closed

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self.wait()

    def interrupted(self, number: int) -> tuple[int, str]:
        """Send a signal, then let it go on; its exit code and standard error."""
        assert self._process.pid
        os.kill(self._process.pid, number)
        self._pipe.close()
        code, _, err = self.wait()
        return code, err

    def wait(self) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        self._process.join(600)
        assert self._process.exitcode is not None
        out, err = ((Path(self._folder.name) / name).read_text() for name in ("out", "err"))
        self._folder.cleanup()
        self._pipe.close()
        return self._process.exitcode, out, err


class Started:
    """``sddlm`` in the place of the process that a suite starts, with its methods.

    Args:
        arguments: what a user types behind ``sddlm``.
        log: file for all that it prints.
        environment: its variables.
    """

    def __init__(self, arguments: list[str], log: Path, environment: dict[str, str]) -> None:
        self._process = CONTEXT.Process(target=_logged, args=(arguments, str(log), environment))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()

    def send_signal(self, number: int) -> None:
        if self._process.is_alive() and self._process.pid:
            os.kill(self._process.pid, number)


def several(number: int, *arguments: object) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of the processes of one command, as a launcher starts them."""
    started = [Command(*arguments, environment=each) for each in ranks(number)]
    return [command.wait() for command in started]


def together(function: Callable[..., None], *calls: tuple[Any, ...]) -> None:
    """Calls of a function, each in a process of its own at the same time; all of them succeed."""
    started = [CONTEXT.Process(target=function, args=each) for each in calls]
    for process in started:
        process.start()
    for process in started:
        process.join()
    assert [process.exitcode for process in started] == [0] * len(calls)


def ranks(number: int) -> list[dict[str, str]]:
    """The variables by which a launcher names each of several processes."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(number), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    return [{**world, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(number)]


def _logged(arguments: list[str], log: str, environment: dict[str, str]) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    _main(arguments)


def _main(arguments: list[str]) -> None:
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115
    from sddlm.cli import main

    sys.argv = ["sddlm", *arguments]
    sys.exit(main(arguments))


def _run(
    arguments: list[str],
    folder: str,
    environment: dict[str, str],
    file_size: int | None,
    hold: tuple[str, int] | None,
    pipe: Connection,
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if hold:
        _hold(*hold, pipe)
    _main(arguments)


def _hold(place: str, calls: int, pipe: Connection) -> None:
    module, _, path = place.partition(":")
    *owners, name = path.split(".")
    owner: Any = functools.reduce(getattr, owners, importlib.import_module(module))
    real, left = getattr(owner, name), calls

    @functools.wraps(real)
    def wait_here(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        left -= 1
        if left == -1:
            pipe.send("held")
            pipe.poll(None)  # until the other end is closed
        return real(*args, **kwargs)

    setattr(owner, name, wait_here)
