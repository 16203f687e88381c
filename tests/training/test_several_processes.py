"""Processes that a training starts by itself: they end together, in one line, and leave nothing."""

import os
import signal
import time
from pathlib import Path

import pytest

from processes import Command
from sddlm.training.checkpoints import newest_checkpoint

#: an objective by which the second of two processes, or the first, fails in the sixth step
MINE = """
import os, signal, time
from dataclasses import dataclass
from sddlm import SDDLM

@dataclass
class Failing(SDDLM):
    fault: str = ""

    def loss(self, model, x0, draw, loss_mask=None):
        second = os.environ["RANK"] == "1"
        if draw.step == 4 and second:
            with open("second", "w") as file:
                file.write(str(os.getpid()))
        if draw.step == 5:
            getattr(self, "_" + self.fault)(second)
        return super().loss(model, x0, draw, loss_mask)

    def _exit(self, second):
        if second:
            os._exit(9)

    def _error(self, second):
        if second:
            raise OSError("no room in the second")

    def _killed(self, second):
        if not second:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(300)  # so that no closed connection ends it

    def _ctrl_c(self, second):
        if second:  # a terminal sends it to both, and the first one alone decides
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getppid(), signal.SIGINT)
"""


def gone(process: int) -> bool:
    """Whether a process ends within a minute."""
    for _ in range(600):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("fault", "code", "line"),
    [
        (
            "exit",
            1,
            "process 1 of 2 has failed (exit code 9), and all have ended; the checkpoints ",
        ),
        ("error", 1, "process 1 of 2 has failed (no room in the second), and all have ended"),
        ("killed", -signal.SIGKILL, ""),
        ("ctrl_c", 130, "stopped at step 6 of 12; go on with: sddlm train"),
    ],
)
def test_the_end_of_one_process_is_the_end_of_all(config, tmp_path, monkeypatch, fault, code, line):
    monkeypatch.chdir(tmp_path)
    Path("failing.py").write_text(MINE)
    command = Command(
        "train", "--config", config, "--out", "run", "--train.devices", 2,
        "--train.accelerator", "cpu", "--train.validate_every", 12, "--train.preview_every", 0,
        "--import", "failing", "--objective", "failing.Failing", "--objective.fault", fault,
    )  # fmt: skip
    found, _, said = command.wait()
    lines = [each for each in said.splitlines() if each.startswith("sddlm train: ")]
    assert found == code, said
    assert "Traceback" not in said
    assert len(lines) == bool(line)
    assert line in said
    assert gone(int(Path("second").read_text()))
    assert newest_checkpoint(Path("run"))["global_step"] == (6 if fault == "ctrl_c" else 5)
