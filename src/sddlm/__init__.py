"""Uniform-state diffusion language models: train, sample, evaluate, and believe the result.

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
    "DataArgs": "data.args",
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
    "Tokenizer": "data.tokenizers",
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
    "evaluate_tasks": "eval.task_scores",
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
