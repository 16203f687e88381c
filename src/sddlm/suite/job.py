"""One run or one evaluation of a suite: an ordinary command line, its checks and its result."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml

from sddlm.cli import _parse
from sddlm.errors import ConfigError
from sddlm.model_dir import is_model_dir
from sddlm.objectives.base import check_architecture
from sddlm.options import Tree
from sddlm.training.args import TrainArgs
from sddlm.training.directory import CONFIG
from sddlm.training.monitor import read_metrics
from sddlm.training.run import changed, check_options, resolved


@dataclass(frozen=True, eq=False)
class Job:
    """A run or an evaluation.

    Attributes:
        part: name of the variant, auxiliary run or evaluation.
        name: variant and seed, and the name of the evaluation.
        variant: name of the variant or auxiliary run.
        verb: of the command line.
        options: of the verb, beside those that every job has.
        seed: the seed.
        out: run directory, or file of results.
        needs: run directories that must be complete before.
        model: the run that is evaluated; None for a run.
    """

    part: str
    name: str
    variant: str
    verb: str
    options: Tree
    seed: int
    out: Path
    needs: set[Path]
    model: Path | None = None

    def arguments(self) -> list[str]:
        """The command line behind ``sddlm``; a run that was interrupted is resumed."""
        resume = ["--resume=true"] if self.model is None and self.out.exists() else []
        return [
            *self.verb.split(),
            *self._own(),
            f"--seed={self.seed}",
            f"--out={self.out}",
            *resume,
        ]

    def _own(self) -> list[str]:
        """What differs between variants and evaluations."""
        model = [] if self.model is None else [str(self.model)]
        imports = [f"--import={module}" for module in sorted({*_modules(self.options)})]
        return [*model, *imports, *(f"--{k}={_as_text(v)}" for k, v in self.options.items())]

    def check(self) -> None:
        """Check all options; for a run also that its directory has no other ones.

        Raises:
            ConfigError: names the job and what cannot be used.
        """
        try:
            if self.verb == "train":
                data, model, objective, train, start = self._sections().values()
                check_options(data, model, objective, train, self.seed)
                if start is None:  # else the network is that of the other run
                    check_architecture(objective, hollow=model.architecture == "hollow")
                config = self.out / CONFIG
                if config.is_file() and (options := changed(self.out, self._config())):
                    raise ConfigError(f"{self.out} holds another run ({options}): remove it")
            else:
                _check_values(self.verb, _parsed(self.verb, *self._own()))
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def _sections(self) -> dict[str, Any]:
        """Arguments of a training beside those that every job has."""
        chosen = _parsed(self.verb, *self._own())
        return {name: chosen[name] for name in ("data", "model", "objective", "train", "start")}

    def _config(self) -> dict[str, Any]:
        """What ``config.yaml`` of the run records."""
        return resolved(**self._sections(), seed=self.seed)

    def _steps(self) -> int:
        return int(self.options.get("train", {}).get("steps", TrainArgs.steps))

    @property
    def progress(self) -> float:
        """The share that is done, 1 only with a complete result."""
        if self.model is not None:
            return float(self.out.is_file())
        if self.verb != "train":
            return float(is_model_dir(self.out))
        rows = read_metrics(self.out)
        done = rows[-1]["step"] / self._steps() if rows else 0.0
        return min(done, 1.0 if is_model_dir(self.out) else 0.99)


def _check_values(verb: str, chosen: dict[str, Any]) -> None:
    """Check options that the function of the verb itself checks when it is called."""
    from sddlm.suite.config import verb_function

    for hint in get_type_hints(verb_function(verb), include_extras=True).values():
        if get_origin(hint) is Annotated:  # the class of the options
            kind = get_args(hint)[1]
            names = {field.name for field in fields(kind)} - {"against"}  # runs that come later
            kind(**{name: chosen[name] for name in names})


@cache
def _parsed(verb: str, *own: str) -> dict[str, Any]:
    """The arguments that the command line makes of options; slow, and the same for all seeds."""
    return _parse(verb, [*own, "--out=out"])[1]


def _as_text(value: Any) -> str:
    """A value in the form in which it is typed."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump([value], default_flow_style=True, width=10**9, allow_unicode=True)
    return text.strip()[1:-1]


def _modules(value: Any) -> Iterator[str]:
    """Modules of classes of the user's own in options."""
    if isinstance(value, dict):
        module = str(value.get("class_path", "")).rpartition(".")[0]
        if module and module.split(".")[0] != "sddlm":
            yield module
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for part in parts:
        yield from _modules(part)
