"""Loggers of a real run, read back: TensorBoard, W&B offline, MLflow in a folder."""

import json
import os

import pytest
from test_recovery import at_step, ctrl_c, refused
from test_training import train

from sddlm.training import loggers
from sddlm.training.loggers import Loggers
from sddlm.training.monitor import SPENT, read_metrics

OFTEN = [
    "--train.validate_every=4", "--train.checkpoint_every=6", "--train.preview_every=0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    """As on a machine without a network; nothing in the environment names a server."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")


def events(run):
    """Points of each curve of TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "logs" / "tensorboard")).Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def history(run):
    """Points of each curve of MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=(run / "logs" / "mlflow").as_uri())
    record = json.loads((run / "logs" / "ids.json").read_text())["mlflow"]
    names = client.get_run(record).data.metrics
    return {n: [(m.step, m.value) for m in client.get_metric_history(record, n)] for n in names}


def table(run):
    """Points of each column of ``metrics.csv``."""
    rows = read_metrics(run)
    names = {name for row in rows for name in row} - {"step", *SPENT}
    return {n: [(row["step"], row[n]) for row in rows if n in row] for n in names}


def assert_like_the_table(run, found):
    for name, points in table(run).items():
        assert [step for step, _ in points] == [step for step, _ in found[name]], name
        values = [value for _, value in points]
        assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-5), name


@pytest.mark.slow
def test_curves_are_those_of_the_table_also_after_a_kill(config, tmp_path, monkeypatch):
    """At step 8, with figures of that step in the records and the last checkpoint at step 6."""
    run = tmp_path / "run"
    chosen = [*OFTEN, "--train.logger", "tensorboard,mlflow"]

    def killed():
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        at_step(patch, 9, killed)
        assert train(config, run, *chosen) == 1
    assert [step for step, _ in events(run)["val_nelbo"]] == [4, 8]
    assert [step for step, _ in history(run)["val_nelbo"]] == [4, 8]
    assert train(config, run, *chosen, "--resume") == 0
    assert [step for step, _ in table(run)["val_nelbo"]] == [4, 8, 12]
    assert_like_the_table(run, events(run))
    assert_like_the_table(run, history(run))


@pytest.mark.slow
def test_wandb_offline_goes_on_under_the_same_name(config, tmp_path, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, 5, ctrl_c)
        assert train(config, run, *OFTEN, "--train.logger=csv,wandb") == 130
    assert train(config, run, *OFTEN, "--train.logger=csv,wandb", "--resume") == 0
    name = json.loads((run / "logs" / "ids.json").read_text())["wandb"]
    parts = sorted((run / "logs" / "wandb").glob(f"offline-run-*-{name}/run-{name}.wandb"))
    assert len(parts) == 2
    first, _, third = table(run)["val_nelbo"]
    for part, (_, value) in zip(parts, (first, third), strict=True):
        data = part.read_bytes()
        assert b"val_nelbo" in data
        assert str(value).encode() in data


def test_a_missing_package_is_one_line_before_any_work(config, tmp_path, capsys, monkeypatch):
    find = loggers.find_spec
    monkeypatch.setattr(loggers, "find_spec", lambda name: None if name == "wandb" else find(name))
    code = train(config, tmp_path / "run", "--train.logger", "tensorboard,wandb")
    refused(capsys, code, "--train.logger is wandb", "pip install 'sddlm[loggers]'")
    assert not (tmp_path / "run").exists()
    code = train(config, tmp_path / "run", "--train.logger", "tensorbord")
    refused(capsys, code, "must be some of csv, tensorboard, wandb, mlflow; did you mean tensorb")


def test_a_logger_that_fails_does_not_cost_the_run(tmp_path, caplog):
    found = Loggers(tmp_path, ["tensorboard", "mlflow"], 0)
    found.open["mlflow"].id = "no such run"
    found.log(1, {"loss": 2.0})
    found.log(2, {"loss": 1.0})
    found.close()
    assert [message.split(":")[0] for message in caplog.messages] == ["no more is logged to mlflow"]
    assert events(tmp_path)["loss"] == [(1, 2.0), (2, 1.0)]
