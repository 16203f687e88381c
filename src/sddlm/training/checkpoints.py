"""Resumable checkpoints: written whole, verified before use, the previous one kept."""

from __future__ import annotations

import logging
import os
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from sddlm.errors import ConfigError, one_line
from sddlm.io import make_durable
from sddlm.training.args import LAST, PREVIOUS, is_first

logger = logging.getLogger(__name__)


def save_checkpoint(run: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint and keep the one before.

    It is written beside the last one and renamed, so a kill at any moment leaves a complete one.

    Args:
        run: run directory.
        state: state of the training (`loop.Trainer.state_dict`).

    Raises:
        OSError: it cannot be written; the last one is intact.
    """
    last = run / LAST
    temporary = last.with_suffix(".tmp")
    try:
        last.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        if last.exists():
            last.replace(run / PREVIOUS)
        temporary.replace(last)
        make_durable(last.parent)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        # torch reports a full disk by a RuntimeError, which hides the reason
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        before = ", the one before is intact" if last.exists() else ""
        raise OSError(f"cannot write {last}{before}: {reason}") from error


def newest_checkpoint(run: Path) -> dict[str, Any]:
    """Read a run's last checkpoint, or the previous one if it is damaged.

    Raises:
        ConfigError: neither is intact.
    """
    last, problems = run / LAST, []
    for path in (last, run / PREVIOUS):
        try:
            state = _read(path)
        except Exception as error:  # torch raises any exception for a damaged archive
            reason = one_line(error)[:200]
            problems.append(f"{path} is damaged ({reason})" if path.exists() else f"no {path}")
            continue
        if problems and is_first():
            logger.warning("%s; resuming from the one before, step %d", problems[0], step_of(state))
            if last.exists():  # otherwise it would replace the intact one
                last.replace(last.with_suffix(".damaged"))
        return state
    raise ConfigError(f"{'; '.join(problems)}: begin anew in another directory")


def _read(path: Path) -> dict[str, Any]:
    """Read and verify a checkpoint."""
    with zipfile.ZipFile(path) as archive:
        wrong = archive.testzip()  # torch does not verify the checksums that it writes
    if wrong:
        raise ValueError(f"the checksum of {wrong} is wrong")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if "callbacks" in state:  # written by Lightning, by an earlier version
        state["ema"] = state["callbacks"]["EMA"]
    _check(state)
    return state


def _check(state: dict[str, Any]) -> None:
    """Check that the parts of a state are consistent."""
    average = state["ema"]["average"]
    counts = {step_of(state), state["ema"]["updates"]}
    if len(counts) > 1 or min(counts) < 1:
        raise ValueError(f"its counts of steps are {sorted(counts)}")
    moments = [each for part in state["optimizer_states"] for each in part["state"].values()]
    shapes = Counter(
        shape for each in moments for shape in {m.shape for m in each.values()} if shape
    )
    if not shapes:
        raise ValueError("it has no state of the optimiser")
    if shapes != Counter(weight.shape for weight in average):
        raise ValueError("the optimiser's state has other shapes than the weights")
    weights = {**state["state_dict"], **dict(enumerate(average))}
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"weights {name} are not finite numbers")


def check_network(state: dict[str, Any], module: torch.nn.Module, run: Path) -> None:
    """Check that a checkpoint belongs to the network.

    Raises:
        ConfigError: a parameter has another shape or is missing on one side.
    """
    there, here = (
        {name: list(value.shape) for name, value in weights.items()}
        for weights in (state["state_dict"], module.state_dict())
    )
    for name in there.keys() | here.keys():
        if there.get(name) != here.get(name):
            raise ConfigError(
                f"{run / LAST} is of another network: {name} is {there.get(name)} there and "
                f"{here.get(name)} here; begin anew in another directory"
            )


def step_of(state: dict[str, Any]) -> int:
    """Number of optimiser steps of a checkpoint."""
    return int(state["global_step"])
