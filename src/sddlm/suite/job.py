"""One run or one evaluation of a suite: an ordinary command line, its checks and its result."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import yaml

from sddlm.cli import _parse
from sddlm.errors import ConfigError
from sddlm.io import read_json
from sddlm.model_dir import is_model_dir
from sddlm.models.config import DiTConfig
from sddlm.objectives.base import check_architecture
from sddlm.options import Tree
from sddlm.plan.cost import CostModel
from sddlm.training.args import TrainArgs
from sddlm.training.directory import CONFIG
from sddlm.training.monitor import read_metrics
from sddlm.training.run import changed, check_options, resolved
from sddlm.verbs import VERBS

#: before a command line in a log
PROMPT = "$ sddlm "
#: the directory of a suite in the paths of runs, which may be moved and typed in several ways, and
#: the quotes that a space in it needs
_FOLDER = re.compile(r"(?:^|(?<=[=,]))[^=,]*?/runs/|'")


@dataclass(frozen=True, eq=False)
class Job:
    """A run or an evaluation.

    Attributes:
        variant: name of the variant or auxiliary run.
        seed: the seed.
        verb: of the command line.
        options: of the verb, beside those that every job has.
        run: run directory.
        needs: run directories that must be complete before.
        evaluation: name of the evaluation of the run; empty for the run itself.
    """

    variant: str
    seed: int
    verb: str
    options: Tree
    run: Path
    needs: set[Path]
    evaluation: str = ""

    @property
    def name(self) -> str:
        """Variant and seed, and the evaluation."""
        return f"{self.run.name} {self.evaluation}".strip()

    @property
    def out(self) -> Path:
        """Run directory, or file of results."""
        kind = "jsonl" if self.verb == "sample" else "json"
        return self.run / f"{self.evaluation}.{kind}" if self.evaluation else self.run

    @property
    def log(self) -> Path:
        """File for what its processes print, each behind its command line."""
        return self.run.parents[1] / "logs" / f"{self.name.replace(' ', '.')}.log"

    def arguments(self) -> list[str]:
        """The command line behind ``sddlm``; a run that was interrupted is resumed."""
        resume = ["--resume=true"] if not self.evaluation and self.out.exists() else []
        given = [f"--seed={self.seed}", f"--out={self.out}", *resume]
        return [*self.verb.split(), *self._own(), *given]

    def _own(self) -> list[str]:
        """What differs between variants and evaluations."""
        model = [str(self.run)] if self.evaluation else []
        imports = [f"--import={module}" for module in sorted({*_modules(self.options)})]
        return [*model, *imports, *(f"--{k}={_as_text(v)}" for k, v in self.options.items())]

    def check(self) -> None:
        """Check all options, also against those of a result that is there.

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
                self._check_made()
        except ConfigError as error:
            raise ConfigError(f"{self.name}: {error}") from error

    def _check_made(self) -> None:
        """Refuse a result of another command line: of the last one in the log."""
        if not (self.log.is_file() and self.out.exists()):
            return
        typed = shlex.join(each for each in self.arguments() if each != "--resume=true")
        made = self.log.read_text(encoding="utf-8", errors="replace").rpartition(PROMPT)[2]
        if not _FOLDER.sub("", made).startswith(_FOLDER.sub("", typed)):
            raise ConfigError(
                f"{self.out} was made with other options, which {self.log} states: remove it, or "
                "choose another name"
            )

    def network(self) -> DiTConfig:
        """Configuration of the network of a finished run."""
        return DiTConfig.from_dict(read_json(self.out / "model" / "config.json"))

    def flops(self) -> float:
        """FLOPs of a finished training, by the cost model of ``sddlm plan``."""
        network, sections = self.network(), self._sections()
        train = sections["train"]
        costs = CostModel(network, sections["objective"], train, train.batch, gpu=False)
        return costs.flops["all"] * train.steps * train.batch * network.length

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
        if self.evaluation:
            return float(self.out.is_file())
        if self.verb != "train":
            return float(is_model_dir(self.out))
        rows = read_metrics(self.out)
        done = rows[-1]["step"] / self._steps() if rows else 0.0
        return min(done, 1.0 if is_model_dir(self.out) else 0.99)


def verb_function(verb: str) -> Any:
    """The function of a verb."""
    module, name, *_ = VERBS[verb]
    return getattr(import_module(module), name)


def _check_values(verb: str, chosen: dict[str, Any]) -> None:
    """Check options that the function of the verb itself checks when it is called."""
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
