"""Records of a run: its resolved options, and where and with what it was made."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from sddlm import __version__
from sddlm.io import atomic_write
from sddlm.training.args import is_first
from sddlm.training.directory import CONFIG, ENVIRONMENT


def write_records(run: Path, config: dict[str, Any], data: dict[str, Any]) -> None:
    """Write the resolved configuration and the environment, in the first process.

    Args:
        run: run directory.
        config: resolved configuration.
        data: ``Prepared.meta`` of its tokens.
    """
    if not is_first():
        return
    with atomic_write(run / CONFIG) as file:
        file.write(yaml.safe_dump(config, sort_keys=False))
    environment = {
        "command": sys.argv,
        "sddlm": __version__,
        "commit": _git("rev-parse", "HEAD"),
        "changed": None if (status := _git("status", "--porcelain")) is None else bool(status),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "data": data,
    }
    with atomic_write(run / ENVIRONMENT) as file:  # other processes may be reading it
        file.write(json.dumps(environment, indent=2) + "\n")


def _git(*arguments: str) -> str | None:
    """Output of git for the source tree, or None if it is none."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
