"""The verb ``sddlm eval``: how good is a model, with every figure beside what to compare it to.

It answers one of five questions, each into a file of its own: the report (what a model is like,
``evaluation.json``), ``--zero_shot`` (other kinds of text, ``zero_shot.json``), ``--tasks``
(multiple choice and cloze, ``tasks.json``), ``--frontier`` (quality against diversity,
``frontier.json`` and ``frontier.png``) and ``--correction`` (damaged text restored,
``correction.json`` and ``correction.png``).
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from sddlm.data.args import DataArgs
from sddlm.errors import ConfigError, check_arguments
from sddlm.eval.answers import QUESTIONS
from sddlm.eval.asked import EvalConfig
from sddlm.eval.drawing import Drawing
from sddlm.eval.frontier import Sweep
from sddlm.eval.measures import fingerprint
from sddlm.eval.report import table, write_results
from sddlm.files import check_writable
from sddlm.generation.config import SamplerConfig
from sddlm.lm import LanguageModel
from sddlm.progress import PlainConsole
from sddlm.sampling.base import choose_device
from sddlm.work import ProcessGroup, ResumableJob


@check_arguments
def evaluate(
    model_dir: str,
    *,
    data: DataArgs | None = None,
    metrics: str | list[str] | None = None,
    judge: str | None = None,
    convention: str = "sddlm",
    zero_shot: str | None = None,
    tasks: str | None = None,
    task_files: str | None = None,
    limit: int | None = None,
    frontier: bool = False,
    against: str | None = None,
    sweep: Sweep | None = None,
    correction: str | None = None,
    samples: str | None = None,
    count: int = 64,
    rows: int = 1024,
    draws: int | None = None,
    batch: int = 32,
    context: int | None = None,
    seed: int = 0,
    device: str = "auto",
    out: str | None = None,
    **how: Annotated[Any, SamplerConfig],
) -> dict[str, Any]:
    """Evaluate a model, print a table and write a file.

    An evaluation that was interrupted goes on where it stopped when it is started again with the
    same options. ``torchrun --nproc-per-node N -m sddlm eval ...`` shares the work among N
    processes, with the same result.

    Args:
        model_dir: run or model directory.
        data: a text to evaluate on as a whole; without it the held-out part of what the model was
            trained on.
        metrics: comma-separated: likelihood (perplexity and bits per character), baselines (n-gram
            models of the training text on the same text), samples (diversity, beside real text),
            copying (what samples repeat of the training text), generative (perplexity of the
            samples under a judge), mauve. Without it all that is possible but mauve.
        judge: for generative, mauve and the frontier: an autoregressive model directory, or a
            Hugging Face name or path.
        convention: how the judge reads samples: sddlm, duo (and MDLM), bd3 or gidd.
        zero_shot: only the likelihood of other kinds of text: all, or comma-separated names of the
            seven sets.
        tasks: only these tasks of lm-eval, comma-separated, such as hellaswag,piqa, or paths of
            task files (YAML).
        task_files: folder with the questions of the tasks (docs/evaluation.md lists the files);
            without it lm-eval loads them.
        limit: most questions of a task.
        frontier: only the perplexity of samples against their entropy, over a sweep of settings.
        against: more model directories for the frontier, comma-separated.
        sweep: the settings of the frontier.
        correction: only how well the model corrects held-out rows of which these shares of tokens
            were replaced at random, comma-separated, such as 0.05,0.1,0.2.
        samples: JSON lines with samples to judge; without it they are drawn.
        count: how many samples are drawn, and how many real rows stand beside them.
        rows: most held-out rows scored, spread evenly; 0 for all.
        draws: noise levels per row, 2 without it; most noise levels per question of a task, 128
            without it.
        batch: sequences per network call.
        context: most tokens that the judge sees at once; without it what the convention says.
        seed: of all randomness.
        device: cpu, cuda, or auto.
        out: the file to write; without it one in the model's directory.
        how: sampler and its options; the frontier starts from its sampler without truncation.

    Returns:
        What was written.

    Raises:
        ConfigError: a wrong choice, before anything is loaded where that is possible.
    """
    started = time.perf_counter()
    chosen = SamplerConfig(**how)
    if frontier and chosen.top_p is None:
        chosen = replace(chosen, top_p=1.0)
    drawing = Drawing(chosen, count, seed, batch)
    asked = EvalConfig(
        model_dir=model_dir,
        data=data,
        metrics=metrics,
        judge=judge,
        convention=convention,
        zero_shot=zero_shot,
        tasks=tasks,
        task_files=task_files,
        limit=limit,
        frontier=frontier,
        against=against,
        sweep=sweep,
        correction=correction,
        samples=samples,
        drawing=drawing,
        rows=rows,
        draws=draws,
        context=context,
    )
    target = _target(Path(model_dir), out, asked.question)
    question = QUESTIONS[asked.question]
    question.check(asked, target)
    team = ProcessGroup.join()
    try:
        device = team.device(choose_device(device))
        loaded = LanguageModel.load(model_dir, device=device)
        facts = {"model": fingerprint(loaded), "device": device.split(":")[0]}
        work = ResumableJob(target.with_name(f"{target.name}.partial"), facts, team, show=True)
        result = {
            "model": model_dir,
            "question": asked.question,
            "command": sys.argv,
            "model_fingerprint": facts["model"],
            "estimate": loaded.estimate.value,
            "seed": seed,
            "device": device,
            "sddlm_version": version("sddlm"),
            **question.answer(asked, loaded, work, device),
        }
        result["seconds"] = round(time.perf_counter() - started, 3)
        if team.first:
            write_results(target, result, question.draw)
            work.finish()
            console = PlainConsole()
            console.print(table(result))
            console.print(f"written to {target}", style="dim", soft_wrap=True)
    finally:
        team.leave()
    return result


def _target(model_dir: Path, out: str | None, question: str) -> Path:
    """Where the result goes."""
    if not model_dir.is_dir():
        raise ConfigError(f"no such directory: {model_dir}; give that of a finished run")
    target = model_dir / f"{question}.json" if out is None else Path(out)
    check_writable(target)
    return target
