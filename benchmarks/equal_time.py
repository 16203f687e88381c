"""Objectives at equal training time on one device: held-out bits per character, entropy, samples.

The clock counts training alone; learning rate and curriculum follow the share of time that has
passed. Muon on the blocks' matrices and AdamW on the rest, or AdamW on all; averaged weights are
scored. One seed: a difference of two arms says nothing without others.

    python benchmarks/equal_time.py --path my.txt --seconds 60 --out found.json
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import cos, log, pi
from pathlib import Path
from typing import Any

import torch
from measure import machine, show, synchronize
from shapes import names
from torch import Tensor

from sddlm.data.config import DataArgs
from sddlm.data.prepare import prepare
from sddlm.eval.nll import AutoregressiveNLL, DiffusionNLL, NLLEstimator
from sddlm.models.config import DiTConfig
from sddlm.models.dit import DiT
from sddlm.objectives import MDLM, NELBO, SDDLM, Autoregressive
from sddlm.objectives.base import Objective
from sddlm.rng import Draw
from sddlm.sampling.autoregressive import Autoregressive as LeftToRight
from sddlm.sampling.entropy import entropy
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation

ARMS: dict[str, tuple[type[Objective], bool]] = {
    "SDDLM": (SDDLM, True),
    "NELBO": (NELBO, True),
    "MDLM": (MDLM, True),
    "SDDLM, AdamW": (SDDLM, False),
    "AR": (Autoregressive, True),
}
"""Objective, and whether the blocks' matrices are trained by Muon."""

CURRICULUM, CURRICULUM_START = 0.65, 0.25


class Optimizers:
    """Muon on the blocks' matrices if wanted, AdamW on all else, and averaged weights.

    Args:
        model: the network.
        muon: whether Muon is used.
    """

    def __init__(self, model: DiT, muon: bool) -> None:
        matrices = [
            p
            for name, p in model.blocks.named_parameters()
            if muon and p.ndim == 2 and "modulation" not in name
        ]
        taken = {id(p) for p in matrices}
        self.live = list(model.parameters())
        others = [p for p in self.live if id(p) not in taken]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = [
            (torch.optim.AdamW(others, betas=(0.9, 0.99), weight_decay=0.0, fused=True), 3e-3)
        ]
        if matrices:
            scale = "match_rms_adamw"
            self.parts += [(torch.optim.Muon(matrices, weight_decay=0.0, adjust_lr_fn=scale), 5e-3)]
        self.average = [p.detach().clone() for p in self.live]
        self.steps = 0

    def step(self, factor: float) -> None:
        """Clip, update with the learning rates times ``factor``, average."""
        torch.nn.utils.clip_grad_norm_(self.live, 1.0)
        self.steps += 1
        for optimizer, rate in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = rate * factor * min(1.0, self.steps / 50)
            optimizer.step()
            optimizer.zero_grad()
        decay = min(0.998, (1 + self.steps) / (10 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.live, 1 - decay)

    def swap(self) -> None:
        """Exchange the weights and their average."""
        for live, average in zip(self.live, self.average, strict=True):
            live.data, average.data = average.data, live.data


@dataclass
class Race:
    """What all arms share.

    Attributes:
        train: rows of tokens ``[N, L]``, on the device.
        valid: held-out rows ``[M, L]``.
        vocab_size: V of the tokenizer.
        characters_per_token: of the held-out text.
        batch: B.
        measures: width, blocks and heads of the networks.
        curves: of each arm, a point at each quarter of its time.
    """

    train: Tensor
    valid: Tensor
    vocab_size: int
    characters_per_token: float
    batch: int
    measures: dict[str, int]
    curves: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    def autocast(self) -> Any:
        """bf16 matrix products on a GPU."""
        device = self.train.device.type
        return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")

    @torch.no_grad()
    def held_out(self, model: DiT, objective: Objective, draws: int) -> float:
        """Bits per character, the published convention."""
        scorer: NLLEstimator = AutoregressiveNLL()
        if not objective.causal:
            scorer = DiffusionNLL(objective.process, objective.estimate)
        total = count = 0.0
        for number in range(draws):
            for slot in torch.arange(len(self.valid), device=self.valid.device).split(64):
                x0 = self.valid[slot]
                with self.autocast():
                    nats = scorer.nats(model, x0, Draw(7, number, slot, len(self.valid)))
                counted = scorer.loss_positions(x0)
                total += nats.published[counted].sum().item()
                count += counted.sum().item()
        return total / count / self.characters_per_token / log(2)

    def run(self, arm: str, seconds: float) -> tuple[DiT, Objective]:
        """Train an arm; its averaged weights."""
        kind, muon = ARMS[arm]
        objective, device, B = kind(), self.train.device, self.batch
        extra, causal = objective.process.extra_tokens, objective.causal
        config = DiTConfig(
            vocab_size=self.vocab_size + extra, length=self.train.shape[1], causal=causal,
            num_extra_tokens=extra, gate_init=0.0 if causal else 1.0, head_init=0.02,
            input_conv=0 if causal else 5, **self.measures,
        )  # fmt: skip
        model = DiT(config).to(device)
        optimizers = Optimizers(model, muon)
        generator = torch.Generator(device=device).manual_seed(0)
        slot = torch.arange(B, device=device)
        curve = self.curves[arm] = []
        self._loss(model, objective, Draw(0, 0, slot, B), self.train[:B]).backward()  # kernels
        model.zero_grad()
        spent, started = 0.0, self._now()
        while len(curve) < 4:
            done = min(1.0, (spent + time.perf_counter() - started) / seconds)
            grown = 1.0 if causal else min(1.0, done / CURRICULUM)
            t_max = CURRICULUM_START + (1 - CURRICULUM_START) * grown
            rows = torch.randint(len(self.train), (B,), device=device, generator=generator)
            draw = Draw(0, optimizers.steps, slot, B, t_max=1.0 if causal else t_max)
            self._loss(model, objective, draw, self.train[rows]).backward()
            optimizers.step(0.1 + 0.45 * (1 + cos(pi * done)))
            if done >= (len(curve) + 1) / 4:
                spent += self._now() - started
                optimizers.swap()
                bits = self.held_out(model, objective, 1 if done < 1 else 4)
                optimizers.swap()
                curve.append({"seconds": spent, "steps": optimizers.steps, "bpc": bits})
                started = self._now()
        optimizers.swap()
        return model.eval(), objective

    def _loss(self, model: DiT, objective: Objective, draw: Draw, x0: Tensor) -> Tensor:
        with self.autocast():
            return objective.loss(model, x0.long(), draw).mean

    def _now(self) -> float:
        synchronize()
        return time.perf_counter()

    def samples(self, model: DiT, objective: Objective, count: int) -> Tensor:
        """Texts of 64 steps, top_p .9 ``[count, L]``."""
        truncation = Truncation(top_p=0.9)
        sampler = LeftToRight(truncation) if objective.causal else Lazy(64, truncation=truncation)
        with self.autocast():
            drawn = sampler.sample(
                model, process=objective.process, estimate=objective.estimate,
                batch=count, length=self.train.shape[1],
            )  # fmt: skip
        return drawn.tokens


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    options = ArgumentParser(description=__doc__)
    options.add_argument("--path", required=True, help="text, as --data.path of sddlm train")
    options.add_argument("--cache", help="where its tokens are kept")
    options.add_argument("--arms", default=";".join(ARMS), help="by semicolons [%(default)s]")
    options.add_argument("--seconds", type=float, default=40.0, help="of an arm [%(default)s]")
    options.add_argument("--vocab_size", type=int, default=4096, help="[%(default)s]")
    options.add_argument("--length", type=int, default=256, help="[%(default)s]")
    options.add_argument("--batch", type=int, default=128, help="[%(default)s]")
    options.add_argument("--measures", default="512,6,8", help="width, blocks, heads [%(default)s]")
    options.add_argument("--count", type=int, default=64, help="samples [%(default)s]")
    options.add_argument("--out", help="JSON file for curves and samples")
    chosen = options.parse_args(argv)
    more = {"cache": chosen.cache} if chosen.cache else {}
    prepared = prepare(
        DataArgs(path=chosen.path, tokenizer="bpe", vocab_size=chosen.vocab_size,
                 length=chosen.length, validation=0.02, **more)
    )  # fmt: skip
    assert prepared.train is not None
    train, held_out = prepared.train, prepared.validation
    device = "cuda" if torch.cuda.is_available() else "cpu"
    race = Race(
        train.read(torch.arange(len(train))).int().to(device),
        held_out.read(torch.arange(min(512, len(held_out)))).to(device),
        prepared.tokenizer.vocab_size,
        held_out.characters_per_token,
        chosen.batch,
        dict(zip(("width", "blocks", "heads"), map(int, names(chosen.measures)), strict=True)),
    )
    found: dict[str, Any] = {"machine": machine()}
    rows = []
    for arm in chosen.arms.split(";"):
        model, objective = race.run(arm, chosen.seconds)
        tokens = race.samples(model, objective, chosen.count)
        curve, texts = race.curves[arm], prepared.tokenizer.decode_batch(tokens.tolist())
        found[arm] = {"curve": curve, "entropy": entropy(tokens), "texts": texts[:4]}
        speed = curve[-1]["steps"] * chosen.batch * chosen.length / curve[-1]["seconds"]
        rows.append([arm, f"{curve[-1]['steps']:.0f}", f"{speed:,.0f}",
                     *(f"{point['bpc']:.3f}" for point in curve),
                     f"{found[arm]['entropy']:.3f}"])  # fmt: skip
        if chosen.out:
            Path(chosen.out).write_text(json.dumps(found, indent=1) + "\n")
    columns = ["arm", "steps", "tokens/s", *(f"bpc at {share}%" for share in (25, 50, 75, 100)),
               "entropy (nats)"]  # fmt: skip
    show(f"{chosen.seconds:g} s each; {machine()}", columns, rows)


if __name__ == "__main__":
    main()
