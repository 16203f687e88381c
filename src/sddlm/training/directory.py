"""The run directory: exclusive, checked, and cleaned of leftovers of a kill."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sddlm.errors import ConfigError
from sddlm.io import locked
from sddlm.model_dir import sweep
from sddlm.training.args import LAST, has_checkpoint, is_first

logger = logging.getLogger(__name__)

CONFIG, ENVIRONMENT, LOGS = "config.yaml", "environment.json", "logs"

#: what a run writes before its first checkpoint
_FILES = (CONFIG, ENVIRONMENT, "metrics.csv", "curves.png", "previews.jsonl", "alarms.jsonl")
_LOCK = ".lock"
#: prefixes of temporary files
_UNFINISHED = tuple(f".{name}." for name in (*_FILES, "model"))


@contextmanager
def run_directory(run: Path, resume: bool, changed: Callable[[], str]) -> Iterator[None]:
    """Make the directory of a run, and lock it until the run ends.

    A run that was stopped before its first checkpoint starts over. If a run fails before it begins,
    the folders that it made are removed, unless they contain something else. Only the first process
    of a run does this; it starts the others when the directory exists.

    Args:
        run: the directory.
        resume: whether to continue from a checkpoint in it.
        changed: lists the options that differ from its ``config.yaml``.

    Raises:
        ConfigError: it has other content, another process uses it, or it cannot be written.
    """
    if not is_first():
        yield
        return
    _check(run, resume, changed)
    made: list[Path] = []
    busy = f"`out` {run} is in use by another process; wait for it, or choose another directory"
    try:
        with ExitStack() as stack:
            try:
                made += _make(run)
                stack.enter_context(locked(run / _LOCK, busy))
            except OSError as error:
                raise ConfigError(f"cannot write to `out` {run}: {error.strerror}") from error
            _check(run, resume, changed)  # again, now that no other process changes it
            _clear(run)
            yield
    except BaseException:
        with suppress(OSError):  # not empty
            for folder in reversed(made):
                folder.rmdir()
        raise


@contextmanager
def removed_on_failure(run: Path) -> Iterator[None]:
    """Remove the description of a run that fails to begin."""
    try:
        yield
    except BaseException:
        if is_first() and not has_checkpoint(run):
            for name in (CONFIG, ENVIRONMENT):
                (run / name).unlink(missing_ok=True)
        raise


def _check(run: Path, resume: bool, changed: Callable[[], str]) -> None:
    """Check that a directory is empty or holds this run."""
    if not run.exists():
        if resume:
            raise ConfigError(f"cannot resume: there is no run {run}; leave `resume` out")
        return
    if has_checkpoint(run):
        if not resume:
            raise ConfigError(
                f"`out` {run} exists and is not empty; choose another directory, or add "
                "`resume=True`"
            )
        if options := changed():
            raise ConfigError(
                f"cannot resume: {options}; resume with the options of {run / CONFIG}"
            )
        return
    if not run.is_dir() or (others := _others(run)):
        what = f"not empty: it holds {others[0]} and no checkpoint" if run.is_dir() else "a file"
        raise ConfigError(f"`out` {run} is {what}; choose another directory")
    if (run / CONFIG).is_file() and (options := changed()):
        raise ConfigError(
            f"`out` {run} holds another run, stopped before its first checkpoint: {options}; "
            "choose another directory, or remove it"
        )


def _others(run: Path) -> Sequence[str]:
    """Names in a directory other than the files of a run without a checkpoint."""
    names = {path.name for path in run.iterdir()} - {*_FILES, _LOCK, LOGS, LAST.parent.name}
    names |= {path.name for path in (run / LAST.parent).glob("*") if path.suffix != ".tmp"}
    return sorted(name for name in names if not name.startswith(_UNFINISHED))


def _make(run: Path) -> list[Path]:
    """Make the directory and its parents; return the new ones, outermost first."""
    made = []
    for folder in [path for path in (run, *run.parents) if not path.exists()][::-1]:
        with suppress(FileExistsError):  # another process may make it at this moment
            folder.mkdir()
            made.append(folder)
    return made


def _clear(run: Path) -> None:
    """Remove temporary files, and all files of a run without a checkpoint."""
    if not has_checkpoint(run):
        if (run / CONFIG).is_file():
            logger.info("%s was stopped before its first checkpoint: starting over", run)
        for name in _FILES:
            (run / name).unlink(missing_ok=True)
        shutil.rmtree(run / LOGS, ignore_errors=True)
    for path in run.iterdir():
        if path.is_file() and path.name.startswith(_UNFINISHED):
            path.unlink()
    (run / LAST).with_suffix(".tmp").unlink(missing_ok=True)
    sweep(run / "model")
