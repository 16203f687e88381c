"""Options of a training: steps, optimiser, noise curriculum, output intervals."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from math import cos, pi
from pathlib import Path
from typing import Literal

from sddlm.errors import ConfigError, check_choices, did_you_mean
from sddlm.training.optimizers import AdamW, Optimizer, wrong_rates

#: a run's checkpoint, and the one before it
LAST = Path("checkpoints") / "last.ckpt"
PREVIOUS = LAST.with_name("previous.ckpt")

LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")


@dataclass
class TrainArgs:
    """Options of a training run: steps, optimiser, noise curriculum, output intervals.

    Attributes:
        steps: optimiser steps.
        batch: sequences in an optimiser step, over all processes and micro-batches.
        micro_batch: sequences in one forward pass on one process; default: the process's whole
            share.
        lora: rank of low-rank adapters of the blocks' matrices: they alone are trained, and merged
            into the weights at the end. Without it all weights are trained. Needs start.
        optimizer: AdamW, or Muon for the matrices of the blocks with AdamW for the rest.
        lr: largest learning rate of AdamW.
        warmup: steps of linear warm-up.
        schedule: learning rate after the warm-up: cosine to a tenth at the last step, or constant.
        weight_decay: AdamW's weight decay.
        beta2: AdamW's second beta (the first is 0.9).
        clip: largest norm of the gradient.
        ema: decay of the averaged weights that are validated, sampled and exported; step k uses
            min(ema, (1 + k) / (10 + k)).
        curriculum: share of the steps over which the largest noise level grows to 1 (0: none).
            Without one, short runs of small models do not leave the unigram plateau; with 0.6 to
            0.7 they do.
        curriculum_start: largest time t at the first step of the curriculum.
        precision: auto: bf16 matrix products on a GPU, float32 on a CPU.
        activation_checkpointing: what the backward pass recomputes, with the same result: none;
            selective, norms and GELU (two fifths less activation memory); full, each block (a third
            more work).
        validate_every: steps between validations.
        validation_rows: held-out sequences in a validation during training (fewer if there are
            fewer).
        logger: records of the metrics, separated by commas: csv (always written), tensorboard,
            wandb, mlflow.
        compile: compile the network with torch.compile: a slower start and other last digits.
        preview_every: steps between sample previews, 0 for none.
        checkpoint_every: steps between checkpoints.
        workers: processes that load data, beside the training process.
        devices: processes (a CPU) or GPUs.
        accelerator: kind of device.
    """

    steps: int = 2000
    batch: int = 32
    micro_batch: int | None = None
    lora: int | None = None
    optimizer: Optimizer = field(default_factory=AdamW)
    lr: float = 3e-4
    warmup: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: float = 0.0
    beta2: float = 0.999
    clip: float = 1.0
    ema: float = 0.9999
    curriculum: float = 0.0
    curriculum_start: float = 0.25
    precision: Literal["auto", "32", "bf16"] = "auto"
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    validate_every: int = 500
    validation_rows: int = 512
    logger: str = "csv"
    compile: bool = False
    preview_every: int = 500
    checkpoint_every: int = 500
    workers: int = 0
    devices: int | Literal["auto"] = "auto"
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"

    def __post_init__(self) -> None:
        """Refuse what cannot be meant, all at once."""
        check_choices(self)
        counts = {
            "steps": 1, "batch": 1, "warmup": 0, "validate_every": 1, "validation_rows": 1,
            "preview_every": 0, "checkpoint_every": 1, "workers": 0, "devices": 1,
        }  # fmt: skip
        most = dict.fromkeys(counts, 10**12) | {"batch": 10**7, "workers": 1024, "devices": 10**6}
        wrong = [
            f"`{name}` is {value}, must be at least {least}, at most {most[name]:,}"
            for name, least in counts.items()
            if (value := getattr(self, name)) != "auto" and not least <= value <= most[name]
        ]
        shares = {"ema": self.ema, "curriculum": self.curriculum, "beta2": self.beta2}
        wrong += [
            f"`{name}` is {value}, must be at least 0 and below 1"
            for name, value in shares.items()
            if not 0 <= value < 1
        ]
        if self.lora is not None and not 1 <= self.lora <= 10**5:
            wrong.append(f"`lora` is {self.lora}, must be at least 1, at most 100,000; try 8")
        wrong += wrong_rates(self.lr, self.weight_decay)
        if not self.clip > 0:
            wrong.append(f"`clip` is {self.clip}, must be above 0")
        if not 0 < self.curriculum_start <= 1:
            wrong.append(
                f"`curriculum_start` is {self.curriculum_start}, must be above 0, at most 1"
            )
        if self.micro_batch is not None and (self.micro_batch < 1 or self.batch % self.micro_batch):
            wrong.append(f"`micro_batch` is {self.micro_batch}, must divide `batch` {self.batch}")
        wrong += [
            f"`logger` is {name}, must be some of {', '.join(LOGGERS)}{did_you_mean(name, LOGGERS)}"
            for name in self.logger.split(",")
            if name not in LOGGERS
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))

    @property
    def loggers(self) -> tuple[str, ...]:
        """Loggers beside the table."""
        return tuple(name for name in LOGGERS[1:] if name in self.logger.split(","))

    def bf16(self, *, gpu: bool) -> bool:
        """Whether the matrix products are in bfloat16 on that kind of device."""
        return self.precision == "bf16" or (self.precision == "auto" and gpu)

    def t_max(self, step: int) -> float:
        """Largest time sampled at a step (0-based)."""
        ramp = self.curriculum * self.steps
        if step >= ramp:
            return 1.0
        return self.curriculum_start + (1 - self.curriculum_start) * step / ramp

    def lr_factor(self, step: int) -> float:
        """Learning rate at a step (0-based), relative to the largest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "constant":
            return 1.0
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.1 + 0.45 * (1 + cos(pi * min(1.0, done)))

    def ema_decay(self, update: int) -> float:
        """Decay of the averaged weights at an update (1-based), as in MDLM and Duo."""
        return min(self.ema, (1 + update) / (10 + update))


def micro_batch(args: TrainArgs, world: int) -> int:
    """Number of sequences in a forward pass of one process.

    Raises:
        ConfigError: the batch cannot be divided equally.
    """
    if args.batch % world:
        raise ConfigError(
            f"`train.batch` is {args.batch}, must be a multiple of the {world} processes"
        )
    share = args.batch // world
    size = args.micro_batch or share
    if share % size:
        raise ConfigError(
            f"`train.micro_batch` is {size}, must divide the {share} sequences of a process"
        )
    return size


def is_first() -> bool:
    """Whether this is the first process of a run, by the variables of torchrun."""
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def has_checkpoint(run: Path) -> bool:
    """Whether a run directory holds a checkpoint, damaged or not."""
    return (run / LAST).is_file() or (run / PREVIOUS).is_file()
