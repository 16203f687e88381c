"""Loggers beside ``metrics.csv``: TensorBoard, Weights & Biases, MLflow.

Their files are in ``logs/`` of the run, unless the variables of W&B and MLflow name a server. A
resumed run goes on in the same record, and no step is in it twice.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sddlm.errors import ConfigError, one_line
from sddlm.io import atomic_write, read_json, read_yaml
from sddlm.training.directory import CONFIG, LOGS

logger = logging.getLogger(__name__)


def check_installed(names: Iterable[str]) -> None:
    """Check that the packages of loggers are installed, without importing them.

    Raises:
        ConfigError: names what to install.
    """
    for name in names:
        if find_spec(name) is None:
            raise ConfigError(
                f"`train.logger` is {name}, which is not installed: pip install 'sddlm[loggers]'"
            )


class Logger(ABC):
    """A record of metrics by step."""

    @abstractmethod
    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record metrics of a step; those of one step may come in several calls."""

    @abstractmethod
    def close(self) -> None:
        """Complete the record; a resumed run goes on with it."""


class TensorBoard(Logger):
    """Event files for ``tensorboard --logdir``; those of steps that are repeated are dropped."""

    def __init__(self, run: Path, config: Any, start_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(run / LOGS / "tensorboard"), purge_step=start_step + 1)  # type: ignore[no-untyped-call]

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Logger.log`."""
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)  # type: ignore[no-untyped-call]
        self.writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """See `Logger.close`."""
        self.writer.close()  # type: ignore[no-untyped-call]


class WandB(Logger):
    """Weights & Biases, in the project ``sddlm`` or that of ``WANDB_PROJECT``."""

    def __init__(self, run: Path, config: Any, start_step: int) -> None:
        import wandb

        self.record = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "sddlm"),
            name=run.resolve().name,
            id=_kept(run, "wandb", lambda: uuid.uuid4().hex[:12]),
            resume="allow",
            dir=run / LOGS,
            config=config,
            settings=wandb.Settings(silent=True, console="off"),
        )
        if self.record.url:
            logger.info("metrics are at %s", self.record.url)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Logger.log`; steps before the newest one are on the server already."""
        if step >= self.record.step:
            self.record.log(dict(figures), step=step)

    def close(self) -> None:
        """See `Logger.close`."""
        self.record.finish()


class MLflow(Logger):
    """MLflow, in the experiment ``sddlm`` or that of ``MLFLOW_EXPERIMENT_NAME``."""

    def __init__(self, run: Path, config: Any, start_step: int) -> None:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # else it wants a database
        from mlflow import MlflowClient

        folder = (run / LOGS / "mlflow").resolve().as_uri()
        self.client = MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or folder)
        self.id = _kept(run, "mlflow", lambda: self._begin(run.resolve().name, config))
        self.client.update_run(self.id, "RUNNING")
        self.newest: dict[str, int] = {}

    def _begin(self, name: str, config: Any) -> str:
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME", "sddlm")
        found = self.client.get_experiment_by_name(title)
        place = found.experiment_id if found else self.client.create_experiment(title)
        begun: str = self.client.create_run(place, run_name=name).info.run_id
        for section, options in config.items():
            self.client.log_param(begun, section, str(options)[:6000])  # more are refused
        return begun

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """See `Logger.log`; a metric that is there for this step is not repeated."""
        for name, value in figures.items():
            if name not in self.newest:
                history = self.client.get_metric_history(self.id, name)
                self.newest[name] = max((each.step for each in history), default=0)
            if step > self.newest[name]:
                self.client.log_metric(self.id, name, value, step=step)
                self.newest[name] = step

    def close(self) -> None:
        """See `Logger.close`."""
        self.client.set_terminated(self.id)


_KINDS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


class Loggers:
    """All loggers of a run; one that fails is left out from then on, with a warning.

    Args:
        run: run directory.
        names: ``tensorboard``, ``wandb``, ``mlflow``.
        start_step: steps completed before, in a resumed run.
    """

    def __init__(self, run: Path, names: Iterable[str], start_step: int) -> None:
        self.open: dict[str, Logger] = {}
        for name in names:
            (run / LOGS).mkdir(exist_ok=True)
            config = read_yaml(run / CONFIG) if (run / CONFIG).is_file() else {}
            try:
                self.open[name] = _KINDS[name](run, config, start_step)
            except Exception as error:
                raise ConfigError(f"`train.logger` {name}: {one_line(error)}") from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Record metrics of a step in all."""
        self._each(lambda each: each.log(step, figures))

    def close(self) -> None:
        """Complete all."""
        self._each(lambda each: each.close())

    def _each(self, act: Any) -> None:
        for name, each in list(self.open.items()):
            try:
                act(each)
            except Exception as error:  # of a server or a disk, which must not cost the run
                del self.open[name]
                logger.warning("no more is logged to %s: %s", name, one_line(error)[:300])


def _kept(run: Path, name: str, begin: Any) -> str:
    """The name of the run's record at a logger, made once."""
    path = run / LOGS / "ids.json"
    ids = read_json(path) if path.is_file() else {}
    if name not in ids:
        ids[name] = begin()
        with atomic_write(path) as file:
            file.write(json.dumps(ids))
    return str(ids[name])
