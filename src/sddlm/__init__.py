"""Uniform-state diffusion language models: train, sample, evaluate, and believe the result.

    lm = sddlm.train("my.txt", preset="mini", steps=1000)  # or sddlm.load("run"), or a hub name
    lm.generate("The function", n=4, steps=64)  # texts
    lm.infill("The {3} fox {1:4}.")
    lm.correct("The quick brown dog jumps.").text
    lm.nll(["some text"])  # nats, with standard error
    sddlm.Lazy(steps=64).sample(lm, batch=8, length=128).tokens  # [B, L]
    sddlm.SDDLM().loss(network, x0, sddlm.Draw.simple(0, step, len(x0))).mean  # in your own loop

Where to begin: `load`, `train`, `LanguageModel`; the samplers `Lazy`, `Ancestral`, `Psi`,
`Adaptive`, `FirstHitting`; the objectives `SDDLM`, `NELBO`, `MDLM`, ...; `evaluate`.

Shapes: B sequences, L positions, V tokens in the vocabulary. Likelihoods and entropies are in nats.
A call returns a value and writes a file only where it is given a path. A wrong argument is a
`ConfigError` of one line that names the argument, what was given and what is allowed.

The public names load on first use; ``import sddlm`` imports nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "AdamW": "training.optimizers",
    "Adaptive": "sampling.adaptive",
    "Ancestral": "sampling.ancestral",
    "PaddingMasked": "models.padding",
    "Autoregressive": "objectives.autoregressive",
    "CalibratedDenoising": "objectives.denoising",
    "Condition": "sampling.condition",
    "ConfigError": "errors",
    "Cosine": "process.schedule",
    "CosinePower": "process.schedule",
    "D3PM": "objectives.discrete",
    "DCD": "objectives.distillation",
    "DataArgs": "data.config",
    "DiT": "models.dit",
    "DiTConfig": "models.config",
    "Draw": "rng",
    "DuoCurriculum": "objectives.curriculum",
    "Estimate": "process.estimate",
    "Geometric": "process.schedule",
    "Lazy": "sampling.lazy",
    "FirstHitting": "sampling.first_hitting",
    "Float32": "sampling.float32",
    "HybridProcess": "process.hybrid",
    "LogLinear": "process.schedule",
    "Loss": "types",
    "MDLM": "objectives.nelbo",
    "MaskedProcess": "process.masked",
    "Muon": "training.optimizers",
    "MixedNegatives": "objectives.negatives",
    "ModelArgs": "models.config",
    "LanguageModel": "lm",
    "NELBO": "objectives.nelbo",
    "NaiveDenoising": "objectives.denoising",
    "Noisy": "types",
    "NoisyToken": "objectives.negatives",
    "Polynomial": "process.schedule",
    "Psi": "sampling.psi",
    "Recorder": "demo.frames",
    "Request": "generation.request",
    "SDDLM": "objectives.denoising",
    "SDDLMV1": "objectives.contrastive",
    "SDDLMV2": "objectives.contrastive",
    "SEDD": "objectives.score_entropy",
    "SamplerConfig": "generation.config",
    "Samples": "types",
    "SequenceNegatives": "objectives.negatives",
    "Tokenizer": "data.tokenizer",
    "TopNegatives": "objectives.negatives",
    "TrainArgs": "training.args",
    "Truncation": "sampling.truncation",
    "UniformNegatives": "objectives.negatives",
    "UniformProcess": "process.uniform",
    "UnigramNegatives": "objectives.negatives",
    "World": "exact",
    "Generator": "generation.generator",
    "correct": "generation.correct",
    "distill": "training.distill",
    "evaluate": "eval.report",
    "evaluate_correction": "eval.correction",
    "evaluate_frontier": "eval.frontier",
    "evaluate_tasks": "eval.tasks",
    "evaluate_zero_shot": "eval.zero_shot",
    "load": "lm",
    "make_plan": "plan.run",
    "prepare": "data.prepare",
    "sample": "generation.sample",
    "train": "training.run",
    "train_model": "training.run",
    "write_page": "demo.page",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sddlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sddlm.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
