"""One training: the parts of the loop, its records, and the averaged weights at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import torch

from sddlm.data.order import order
from sddlm.data.prepare import Prepared
from sddlm.data.rows import Rows
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.lm import LanguageModel, bos_in_rows
from sddlm.models.dit import DiT
from sddlm.models.padding import hide_padding
from sddlm.objectives import Objective
from sddlm.rng import Draw
from sddlm.sampling.base import device_of
from sddlm.sampling.entropy import entropy
from sddlm.spec import to_spec
from sddlm.training.args import TrainArgs, is_first
from sddlm.training.checkpoints import check_network
from sddlm.training.diagnostics import diagnostics, rows_for
from sddlm.training.loop import Trainer
from sddlm.training.lora import merge_adapters
from sddlm.training.module import TrainModule
from sddlm.training.monitor import Monitor
from sddlm.training.processes import joined
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

    Raises:
        KeyboardInterrupt: it was stopped; the message has the command that goes on.
    """
    assert prepared.train is not None  # both splits were asked for
    with warnings.catch_warnings():
        if not is_first():  # every process calls it, one warns
            warnings.simplefilter("ignore")
        counts = prepared.train.counts
        objective.setup(network.vocab_size, lambda: counts(network.vocab_size))
    module = TrainModule(network, objective, args, seed=seed)
    if state:
        check_network(state, module, run)
    lm = LanguageModel(
        network,
        objective.process,
        objective.estimate,
        prepared.tokenizer,
        to_spec(objective),
        prepared.meta,
    )
    with joined(args) as processes:
        trainer = Trainer(module, args, processes)
        if state:
            trainer.load(state)
        spent = (state or {}).get("spent")
        monitor = _monitor(run, trainer, spent, lm, prepared) if processes.rank == 0 else None
        with monitor or nullcontext():
            trainer.fit(run, prepared.train, prepared.validation, monitor)
        if monitor:
            with trainer.ema.applied():
                merge_adapters(network)
                steps, batch = trainer.step, args.batch
                tokens = steps * batch * monitor.length
                training = {"steps": steps, "batch": batch, "tokens": tokens}
                replace(lm, data={**lm.data, "training": training}).save(run / "model")
    if trainer.stopped:
        raise KeyboardInterrupt(
            f"stopped at step {trainer.step} of {args.steps}; go on with:  sddlm train "
            f"--config {quote(str(run / 'config.yaml'))} --out {quote(str(run))} --resume true"
        )


def _monitor(
    run: Path,
    trainer: Trainer,
    spent: dict[str, float] | None,
    lm: LanguageModel,
    prepared: Prepared,
) -> Monitor:
    """Records of the run, with the step that it begins from."""
    assert prepared.train is not None
    objective, seed, held_out = trainer.module.objective, trainer.module.seed, prepared.validation
    length = max(1, round(prepared.train.mean_length))

    def preview() -> tuple[list[str], float]:
        # the defaults of `sample`; what their nucleus takes from the entropy that an alarm reads is
        # small beside its threshold (docs/evaluation.md)
        requests = [Request(count=2, length=length)]
        drawn = Generator(lm, requests, SamplerConfig(), seed).generate(whole=True)
        tokens = [torch.tensor(each.tokens) for each in drawn]
        return [each.text for each in drawn], entropy(tokens)

    return Monitor(
        run,
        trainer.args,
        start_step=trainer.step,
        spent=spent,
        length=length,
        characters_per_token=_characters_per_token(held_out, objective, prepared),
        preview=preview,
        averaged=trainer.ema.applied,
        probe=_diagnostics_probe(lm.network, objective, held_out, seed),
        text_entropy=_text_entropy(held_out, length),
        vocab_size=lm.network.vocab_size,
    )


def _diagnostics_probe(
    network: DiT, objective: Objective, rows: Rows, seed: int
) -> Callable[[], dict[str, float]]:
    """The network's diagnostics on fixed rows and noise, whatever the number of processes."""
    chosen = rows.subsample(rows_for(rows.length))
    x0, lengths = rows.read(chosen), rows.lengths(chosen) if rows.padded else None
    prompts = rows.prompts(chosen) if rows.paired else None
    slots = torch.as_tensor(order(0, 0, len(chosen)))  # as in validation

    def look() -> dict[str, float]:
        device = device_of(network)
        tokens = x0.to(device)
        model, loss_mask = hide_padding(network, lengths, tokens, prompts)
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
