"""Names of lm-eval's tasks and paths of task files, checked without importing lm-eval."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from sddlm.errors import ConfigError


def check_tasks(names: Sequence[str], limit: int | None = None) -> None:
    """Refuse what cannot be evaluated, before lm-eval or a model is loaded.

    Args:
        names: of tasks, as in lm-eval, or paths of YAML files.
        limit: most questions of a task; None is all.

    Raises:
        ConfigError: lm-eval is missing, there are no names, a name is given twice, a file is
            missing, or the limit is below 1.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("`tasks` needs lm-eval; type: pip install 'sddlm[tasks]'")
    if not names or not all(names):
        raise ConfigError("`tasks` is empty; name tasks of lm-eval, such as hellaswag,piqa")
    if len(set(names)) < len(names):
        twice = next(name for name in names if list(names).count(name) > 1)
        raise ConfigError(f"`tasks` names {twice} twice; name it once")
    if limit is not None and limit < 1:
        raise ConfigError(f"`limit` is {limit}, must be at least 1; leave it out for all questions")
    for name in names:
        task_files(name)


def task_files(name: str) -> list[Path]:
    """The YAML files that a name means: a file, or those of a folder; none for a task of lm-eval.

    Raises:
        ConfigError: it is written as a path, and nothing is there.
    """
    given = Path(name)
    if given.suffix not in (".yaml", ".yml") and given.name == name:
        return []
    found = sorted(given.glob("*.yaml")) if given.is_dir() else [given]
    if not found or not found[0].is_file():
        raise ConfigError(f"`tasks` is {name}: no such YAML file of a task, or folder with some")
    return found
