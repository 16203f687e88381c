"""One training: Lightning's engine, our callbacks, and the averaged weights at the end."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from lightning.pytorch import Trainer

from sddlm.data.packed import Rows
from sddlm.data.prepare import Prepared
from sddlm.data.shuffle import order
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.lm import LanguageModel, bos_in_rows
from sddlm.model_dir import to_spec
from sddlm.models.dit import DiT
from sddlm.models.padding import hide_padding
from sddlm.objectives import Objective
from sddlm.rng import Draw
from sddlm.sampling.base import device_of
from sddlm.sampling.entropy import entropy
from sddlm.training.args import LAST, TrainArgs, is_first, micro_batch
from sddlm.training.checkpoints import CheckpointFiles, Checkpoints, check_network, step_of
from sddlm.training.data_module import TrainData
from sddlm.training.diagnostics import diagnostics, rows_for
from sddlm.training.ema import EMA
from sddlm.training.module import TrainModule
from sddlm.training.monitor import Monitor
from sddlm.types import unpadded


def fit(
    run: Path,
    args: TrainArgs,
    seed: int,
    state: dict[str, Any] | None,
    network: DiT,
    objective: Objective,
    prepared: Prepared,
) -> None:
    """Train, then write the averaged weights, also if stopped by Ctrl-C.

    Args:
        run: run directory.
        args: options of the training.
        seed: seed of all noise.
        state: checkpoint to continue from (`newest_checkpoint`), or None.
        network: the initial network.
        objective: the objective.
        prepared: tokens of both splits.
    """
    start_step = step_of(state) if state else 0
    train_rows, held_out = _rows(prepared)
    with warnings.catch_warnings():
        if not is_first():  # every process calls it, one warns
            warnings.simplefilter("ignore")
        objective.setup(network.vocab_size, lambda: train_rows.counts(network.vocab_size))
    module = TrainModule(network, objective, args, seed=seed)
    if state:
        check_network(state, module, run)
    ema = EMA(network, args)
    checkpoints = Checkpoints(run, args, start_step=start_step)
    lm = LanguageModel(
        network,
        objective.process,
        objective.estimate,
        prepared.tokenizer,
        to_spec(objective),
        prepared.meta,
    )
    length = max(1, round(train_rows.mean_length))

    def preview(step: int) -> tuple[list[str], float]:
        # the defaults of `sample`; what their nucleus takes from the entropy that an alarm reads is
        # small beside its threshold (docs/evaluation.md)
        requests = [Request(count=2, length=length)]
        drawn = Generator(lm, requests, SamplerConfig(), seed).generate(whole=True)
        tokens = [torch.tensor(each.tokens) for each in drawn]
        return [each.text for each in drawn], entropy(tokens)

    monitor = Monitor(
        run,
        args,
        start_step=start_step,
        length=length,
        characters_per_token=_characters_per_token(held_out, objective, prepared),
        preview=preview,
        averaged=ema.applied,
        probe=_diagnostics_probe(network, objective, held_out, seed),
        text_entropy=_text_entropy(held_out, length),
        vocab_size=network.vocab_size,
    )
    data = TrainData(train_rows, held_out, args, seed=seed, start_step=start_step)
    with _quiet_lightning():
        # the order matters: after a validation the monitor sees the weights, not their average, and
        # its record is on disk before the checkpoint
        trainer = _trainer(args, [ema, monitor, checkpoints], state)
        try:
            # also after the last step: it loads the weights of a run killed before the export
            trainer.fit(module, data, ckpt_path=run / LAST if state else None)
        except SystemExit as end:  # raised by Lightning after a second Ctrl-C
            raise KeyboardInterrupt from end
    if not trainer.is_global_zero:
        return
    with ema.applied():
        lm.save(run / "model")
    if checkpoints.stopping:
        print(
            f"stopped at step {trainer.global_step} of {args.steps}; go on with:  sddlm train "
            f"--config {quote(str(run / 'config.yaml'))} --out {quote(str(run))} --resume true",
            file=sys.stderr,
        )
        raise KeyboardInterrupt


def _rows(prepared: Prepared) -> tuple[Rows, Rows]:
    assert prepared.train is not None  # both splits were asked for
    return prepared.train, prepared.validation


def _diagnostics_probe(
    network: DiT, objective: Objective, rows: Rows, seed: int
) -> Callable[[], dict[str, float]]:
    """The network's diagnostics on fixed rows and noise, whatever the number of processes."""
    chosen = rows.subsample(rows_for(rows.length))
    x0, lengths = rows.read(chosen), rows.lengths(chosen) if rows.padded else None
    slots = torch.as_tensor(order(0, 0, len(chosen)))  # as in validation

    def look() -> dict[str, float]:
        device = device_of(network)
        tokens = x0.to(device)
        model, loss_mask = hide_padding(network, lengths, tokens)
        draw = Draw(seed, -1, slots.to(device), len(tokens))
        return diagnostics(model, objective, tokens, draw, loss_mask)

    return look


def _text_entropy(rows: Rows, length: int) -> float:
    """Mean entropy within held-out rows, cut to the length of previews."""
    chosen = rows.subsample(64)
    lengths = rows.lengths(chosen).clamp(max=length)
    return entropy(unpadded(rows.read(chosen)[:, :length], lengths))


def _characters_per_token(rows: Rows, objective: Objective, prepared: Prepared) -> float:
    """Characters per scored token; a first token that represents no text is not scored."""
    silent = objective.causal and bos_in_rows(prepared.meta)
    n = rows.mean_length
    return rows.characters_per_token * (n / (n - 1) if silent else 1.0)


def _trainer(args: TrainArgs, callbacks: list[Any], state: dict[str, Any] | None) -> Trainer:
    """Lightning's trainer, without its own output on the screen or on disk."""
    cuda = torch.cuda.is_available() and args.accelerator != "cpu"
    precision = {"auto": "bf16-mixed" if cuda else "32-true", "32": "32-true", "bf16": "bf16-mixed"}
    kind: Any = args.accelerator if args.accelerator != "auto" else "gpu" if cuda else "cpu"
    devices = args.devices if args.devices != "auto" else -1 if cuda else 1
    world = devices if devices != -1 else torch.cuda.device_count()
    accumulate = args.batch // world // micro_batch(args, world)
    return Trainer(
        accelerator=kind,
        devices=devices,
        strategy="ddp" if world > 1 else "auto",
        precision=precision[args.precision],
        max_epochs=-1,
        max_steps=args.steps,
        accumulate_grad_batches=accumulate,
        val_check_interval=args.validate_every * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=callbacks,
        plugins=[CheckpointFiles(state, accumulate)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's hints; warnings of this library and of torch stay."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        yield
