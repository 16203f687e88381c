"""The verbs of the command line: plain data, so that help imports nothing."""

from __future__ import annotations

#: verb: (module, function, required arguments are positional, what it does); a verb of two words is
#: a subcommand, the first one listed of its kind is what the first word alone means
VERBS: dict[str, tuple[str, str, bool, str]] = {
    "prepare": ("sddlm.data.prepare", "prepare_text", False, "tokenise text ahead of training"),
    "plan": ("sddlm.plan.run", "make_plan", False, "estimate memory, time and GPU-hours of a run"),
    "train": ("sddlm.training.run", "train_model", False, "train a model on text"),
    "import": ("sddlm.importer.run", "import_model", True, "convert a public checkpoint"),
    "adapt": ("sddlm.adaptation", "adapt", True, "lift the causal mask of a next-token model"),
    "distill": ("sddlm.training.distill", "distill", True, "make a trained model need fewer steps"),
    "sample": ("sddlm.generation.sample", "sample", True, "write text with a trained model"),
    "correct": ("sddlm.generation.correct", "correct", True, "replace what a model finds wrong"),
    "demo": ("sddlm.demo.run", "demo", True, "watch a trained model write"),
    "eval report": ("sddlm.eval.report", "evaluate", True, "measure a trained model"),
    "eval frontier": ("sddlm.eval.frontier", "evaluate_frontier", True, "quality and diversity"),
    "eval zero-shot": ("sddlm.eval.zero_shot", "evaluate_zero_shot", True, "other kinds of text"),
    "eval tasks": ("sddlm.eval.tasks", "evaluate_tasks", True, "tasks of lm-eval"),
    "eval correction": ("sddlm.eval.correction", "evaluate_correction", True, "corrupted text"),
    "eval retention": ("sddlm.eval.retention", "evaluate_retention", True, "tokens that stay"),
    "suite": ("sddlm.suite.run", "run_suite", True, "train and evaluate a grid of variants"),
    "report": ("sddlm.suite.report", "write_report", True, "tables and curves of a suite"),
}

#: verbs that take a recipe for ``train`` and leave aside the sections that are not theirs
READS_RECIPES = {"prepare", "plan"}

USAGE = """usage: sddlm VERB [options]

Uniform-state diffusion language models: train, sample, evaluate, and believe the result.

{verbs}

sddlm VERB --help lists a verb's options. --config FILE reads them from YAML; flags win.
sddlm --completion prints a script that completes verbs and options in bash.
"""
