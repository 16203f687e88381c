"""The verb ``sddlm distill``: distillation into a model of fewer steps, in ordinary runs."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

from sddlm.data.config import DataArgs, trained_on
from sddlm.errors import ConfigError, check_arguments
from sddlm.io import atomic_write
from sddlm.lm import LanguageModel
from sddlm.model_dir import is_model_dir, sweep
from sddlm.models.config import ModelArgs
from sddlm.objectives.distillation import DCD, Direction, Prediction
from sddlm.training.args import TrainArgs, has_checkpoint
from sddlm.training.checkpoints import newest_checkpoint, step_of
from sddlm.training.run import changed, resolved, train_model

logger = logging.getLogger(__name__)

_TRAIN = TrainArgs(
    steps=100, lr=1e-3, warmup=20, schedule="constant", ema=0.999, validate_every=100,
    preview_every=0, checkpoint_every=100,
)  # fmt: skip


@check_arguments
def distill(
    model_dir: str,
    out: str | None = None,
    rounds: int = 1,
    dt: float = 0.25,
    divergence: Direction = "reverse",
    compare: Prediction = "denoiser",
    data: DataArgs | None = None,
    train: TrainArgs = _TRAIN,
    seed: int = 0,
    resume: bool = False,
) -> Path:
    """Distil a diffusion model into one that needs fewer steps (Duo, arXiv:2506.10892).

    In each round a student starts from the weights of the previous round, which also are its
    teacher (`DCD`), with twice the time difference. A round is an ordinary run, ``out/round-1`` and
    so on; the model of the last one is ``out/model``.

    Args:
        model_dir: run or model directory of the model to begin from.
        out: the directory to write, new or empty.
        rounds: number of rounds.
        dt: time difference between student and teacher in the first round, in (0, 1]; doubled in
            each round. Duo's are 5 rounds of ten thousand steps from 1 / 512 on.
        divergence: reverse, KL(student || teacher), makes the student sharper; forward,
            KL(teacher || student), its teacher's average.
        compare: denoiser, the whole predictions; leave_one_out, those without the evidence of the
            token itself, as published.
        data: the text to train on, with the model's tokenizer and length; without it, or without
            a path, corpus or mixture in it, that of the model's run.
        train: options of each round; by default 100 steps at a constant learning rate of 1e-3.
        seed: seed of order and noise, the same in each round.
        resume: continue a distillation into ``out`` that was stopped.

    Returns:
        ``out``.

    Raises:
        ConfigError: a value cannot be used; nothing is left behind.
        FloatingPointError: a gradient is not finite.
        KeyboardInterrupt: it was stopped, and saved; the message has the command that goes on.
    """
    place = _checked(out, rounds, dt, resume)
    loaded = LanguageModel.load(model_dir)
    if not loaded.estimate.diffusion:
        raise ConfigError(
            f"{model_dir} is an autoregressive model, which has no steps to save; give the "
            "directory of a diffusion model"
        )
    train, data = _one_process(train), _text(model_dir, data, loaded.network.length)
    teacher = model_dir
    for number in range(1, rounds + 1):
        run = place / f"round-{number}"
        objective = DCD(teacher, dt * 2 ** (number - 1), divergence, compare, loaded.process)
        try:
            _round(run, data, objective, train, seed, resume)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"stopped in round {number} of {rounds}; go on with:  sddlm distill "
                f"{quote(model_dir)} --out {quote(str(place))} --resume true, and the same options"
            ) from stop
        logger.info("round %d of %d, dt %.4g, is done", number, rounds, objective.dt)
        teacher = str(run)
    with atomic_write(place / "config.yaml") as file:  # the record of the training data
        file.write((run / "config.yaml").read_text(encoding="utf-8"))
    sweep(place / "model")
    LanguageModel.load(run).save(place / "model")
    return place


def _checked(out: str | None, rounds: int, dt: float, resume: bool) -> Path:
    """Check the options before the model is read; return the output directory."""
    if not out:
        raise ConfigError("`out` is missing: give a directory to write, new or empty")
    if rounds < 1:
        raise ConfigError(f"`rounds` is {rounds}, must be at least 1")
    last = dt * 2 ** (rounds - 1)
    if not (dt > 0 and last <= 1):
        raise ConfigError(
            f"`dt` is {dt:.4g}, in the last of {rounds} rounds {last:.4g}, must be above 0 and "
            f"there at most 1: `dt={0.5**rounds:.4g}`, or fewer `rounds`"
        )
    place = Path(out)
    if not resume and place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConfigError(
            f"`out` {place} exists and is not empty; choose another directory, or add `resume=True`"
        )
    return place


def _one_process(train: TrainArgs) -> TrainArgs:
    """Options for one process, which alone writes the files of a distillation."""
    if train.devices not in ("auto", 1):
        raise ConfigError(
            f"`train.devices` is {train.devices}, but a distillation is one process: leave it out, "
            "or train single rounds with sddlm train --start MODEL --objective DCD"
        )
    return replace(train, devices=1)


def _text(model_dir: str, data: DataArgs | None, length: int) -> DataArgs:
    """Data options of the training, with the model's length."""
    default = DataArgs()
    if data is not None and data.named:
        return replace(data, length=length) if data.length == default.length else data
    own = trained_on(Path(model_dir))
    if own is None:
        raise ConfigError(
            f"{model_dir} does not say what it was trained on (no config.yaml of a run); give a "
            "text: `data.path='FILE'`"
        )
    cache = own.cache if data is None else data.cache or own.cache
    # the tokenizer is the model's; the run's own options for it are already applied
    asked = replace(own, tokenizer=default.tokenizer, vocab_size=default.vocab_size)
    return replace(asked, length=length, cache=cache)


def _round(
    run: Path, data: DataArgs, objective: DCD, train: TrainArgs, seed: int, resume: bool
) -> None:
    """Train one round, or the rest of it."""
    model, start = ModelArgs(), objective.teacher
    resume = resume and run.is_dir()
    if resume and has_checkpoint(run):
        _check_round(run, resolved(data, model, objective, train, start, seed))
        if step_of(newest_checkpoint(run)) == train.steps and is_model_dir(run):
            return
    train_model(str(run), data, model, objective, train, start=start, seed=seed, resume=resume)


def _check_round(run: Path, config: dict[str, Any]) -> None:
    """A distillation goes on as it began."""
    if options := changed(run, config).replace("`objective.", "`"):
        raise ConfigError(f"cannot resume: {options} in {run}; resume with the options of before")
