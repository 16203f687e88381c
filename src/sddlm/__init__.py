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
    "Autoregressive": "objectives.autoregressive",
    "CalibratedDenoising": "objectives.denoising",
    "Condition": "sampling.condition",
    "ConfigError": "errors",
    "Correction": "generation.corrector",
    "Cosine": "process.schedule",
    "CosinePower": "process.schedule",
    "CrossEntropy": "models.row_losses",
    "D3PM": "objectives.discrete",
    "DCD": "objectives.distillation",
    "DataArgs": "data.config",
    "DiT": "models.dit",
    "DiTConfig": "models.config",
    "DiffusionObjective": "objectives.base",
    "Draw": "rng",
    "DuoCurriculum": "objectives.curriculum",
    "Estimate": "process.estimate",
    "FirstHitting": "sampling.first_hitting",
    "Generation": "generation.generator",
    "Generator": "generation.generator",
    "Geometric": "process.schedule",
    "HybridProcess": "process.hybrid",
    "LanguageModel": "lm",
    "Lazy": "sampling.lazy",
    "LogLinear": "process.schedule",
    "Loss": "types",
    "MDLM": "objectives.nelbo",
    "MaskedProcess": "process.masked",
    "MixedNegatives": "objectives.negatives",
    "MixtureProcess": "process.mixture",
    "ModelArgs": "models.config",
    "Muon": "training.optimizers",
    "NELBO": "objectives.nelbo",
    "NLL": "types",
    "NaiveDenoising": "objectives.denoising",
    "NoisyToken": "objectives.negatives",
    "Objective": "objectives.base",
    "Polynomial": "process.schedule",
    "Process": "process.base",
    "Psi": "sampling.psi",
    "Recorder": "demo.frames",
    "Request": "generation.request",
    "SDDLM": "objectives.denoising",
    "SDDLMV1": "objectives.contrastive",
    "SDDLMV2": "objectives.contrastive",
    "SEDD": "objectives.score_entropy",
    "Sampler": "sampling.base",
    "SamplerConfig": "generation.config",
    "Samples": "types",
    "Schedule": "process.schedule",
    "SequenceNegatives": "objectives.negatives",
    "Tokenizer": "data.tokenizer",
    "TopNegatives": "objectives.negatives",
    "TrainArgs": "training.args",
    "Truncation": "sampling.truncation",
    "UniformNegatives": "objectives.negatives",
    "UniformProcess": "process.uniform",
    "UnigramNegatives": "objectives.negatives",
    "VocabHead": "models.vocab_head",
    "World": "exact",
    "adapt": "adaptation",
    "distill": "training.distill",
    "evaluate": "eval.report",
    "evaluate_correction": "eval.correction",
    "evaluate_frontier": "eval.frontier",
    "evaluate_tasks": "eval.tasks",
    "evaluate_zero_shot": "eval.zero_shot",
    "import_model": "importer.run",
    "load": "hub",
    "make_plan": "plan.run",
    "prepare": "data.prepare",
    "train": "training.run",
    "train_model": "training.run",
    "wrap": "adaptation",
    "write_page": "demo.page",
}

__all__ = sorted([*_PUBLIC, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'sddlm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sddlm.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return list(__all__)
