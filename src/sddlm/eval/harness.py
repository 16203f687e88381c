"""Our models for lm-eval: a translation of its requests, and a run of its tasks.

lm-eval knows the model as ``sddlm`` once this module is imported; it imports lm-eval itself, so
import it only when tasks are asked for. lm-eval has no entry points (0.4.13). Its own command line
finds the model in two ways: by ``python -m sddlm.eval.harness`` in place of ``lm_eval``, with the
same arguments; or by a task file that names this module, with the line
``metadata: {adapter: !function sddlm.eval.harness.NAME}``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from sddlm.errors import ConfigError, closest, one_line
from sddlm.eval.metrics import fingerprint
from sddlm.eval.questions import LoglikelihoodScorer, figures
from sddlm.eval.tasks import check_tasks, task_files
from sddlm.eval.writing import GenerationConfig, write
from sddlm.generation.config import SamplerConfig
from sddlm.jobs import ProcessGroup, ResumableJob, digest
from sddlm.lm import LanguageModel
from sddlm.sampling.base import choose_device

NAME = "sddlm"
"""The name of our models in lm-eval."""


class SDDLM(LM):
    """A model directory as lm-eval sees it.

    The requests of one document are one question (`LoglikelihoodScorer`), and questions are the
    shards of `ResumableJob`. No question changes another, so their order and company do not matter.

    Whether a continuation is the greedy one is computed only for questions of one request, such as
    LAMBADA's. A model does not learn from lm-eval which metrics a task has; with several choices
    ``exact_match`` alone uses it, and it is reported as False.

    Args:
        path: run or model directory, or one that is loaded.
        draws: most noise levels of a question.
        seed: of the noise.
        batch: sequences per network call.
        batch_size: lm-eval's option; a number above 1 (its default) is taken for ``batch``.
        steps: of the sampler, where a diffusion model writes.
        device: cpu, cuda, or auto; lm-eval's own default, cuda:0, is auto.
        keep: folder in which finished questions are kept, so that the same call can go on.
        job: does the questions, in place of ``keep``.

    Raises:
        ConfigError: no directory, or none of ours.
    """

    def __init__(
        self,
        path: str | Path | LanguageModel = "",
        *,
        draws: int = 128,
        seed: int = 0,
        batch: int = 64,
        batch_size: int | str = 1,
        steps: int = SamplerConfig.steps,
        device: str = "auto",
        keep: str | None = None,
        job: ResumableJob | None = None,
    ) -> None:
        super().__init__()
        if not path:
            raise ConfigError("no model: give lm-eval --model_args path=RUN")
        team = job.team if job else ProcessGroup.join()
        if not isinstance(path, LanguageModel):
            device = choose_device("auto" if device == "cuda:0" else device)
            path = LanguageModel.load(str(path), device=team.device(device))
        if job is None:
            cache_key = {} if keep is None else {"model": fingerprint(path)}
            job = ResumableJob(None if keep is None else Path(keep), cache_key, team, show=True)
        asked = int(batch_size) if str(batch_size).isdigit() else 1
        self.scorer = LoglikelihoodScorer(path, draws, seed, asked if asked > 1 else batch)
        self.steps = steps
        self.job = job
        #: results of each task, in the order of its questions
        self.found: dict[str | None, list[dict[str, Any]]] = {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log p of each request's continuation after its context, and whether it is greedy.

        A lower bound for diffusion models, estimated; exact for autoregressive ones.
        """
        groups = _documents(requests)
        texts = [list(dict.fromkeys(requests[i].args for i in places)) for _, places in groups]
        done = self._run("likelihood", texts, lambda n: self.scorer.score(texts[n]))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for (task, places), pairs, each in zip(groups, texts, done, strict=True):
            self.found.setdefault(task, []).append(each)
            for i in places:
                results[i] = (each["log_p"][pairs.index(requests[i].args)], each["greedy"])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of whole texts; long ones in windows, each after what is before it."""
        texts = [[("", request.args[0])] for request in requests]
        done = self._run("texts", texts, lambda n: self.scorer.score(texts[n], greedy=False))
        for request, each in zip(requests, done, strict=True):
            self.found.setdefault(request.task_name, []).append(each)
        return [each["log_p"][0] for each in done]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Text after each context, up to the first stop string.

        Requests that are asked several times get as many texts.
        """
        places: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            places.setdefault(digest(*request.args), []).append(i)
        asked = [(requests[same[0]], len(same)) for same in places.values()]
        # refuses before the work
        configs = [GenerationConfig.of(request.args[1]) for request, _ in asked]

        def shard(n: int) -> dict[str, Any]:
            request, count = asked[n]
            own = self.scorer
            how = {"steps": self.steps, "seed": own.seed, "batch": own.batch}
            return write(own.lm, request.args[0], configs[n], count=count, **how)

        texts = [[*request.args, count] for request, count in asked]
        done = self._run("writing", texts, shard)
        results = [""] * len(requests)
        for (request, _), same, each in zip(asked, places.values(), done, strict=True):
            self.found.setdefault(request.task_name, []).append(each)
            for i, text in zip(same, each["texts"], strict=True):
                results[i] = text
        return results

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the model's name."""
        tasks = {str(task): figures(each) for task, each in self.found.items()}
        return {NAME: self._settings | {"tasks": tasks}}

    @property
    def _settings(self) -> dict[str, int]:
        return {"draws": self.scorer.draws, "seed": self.scorer.seed, "steps": self.steps}

    def _run(self, name: str, texts: list[Any], shard: Callable[[int], Any]) -> list[Any]:
        cache_key = {"texts": digest(texts)} | self._settings
        return self.job.run(f"tasks {name}", len(texts), shard, cache_key)


def _documents(requests: Sequence[Any]) -> list[tuple[str | None, list[int]]]:
    """Task and places of the requests of each document, in order of appearance."""
    found: dict[Any, tuple[str | None, list[int]]] = {}
    for i, request in enumerate(requests):
        # requests that are made by hand may have no number
        own = ("request", i) if request.doc_id is None else request.doc_id
        found.setdefault((request.task_name, own), (request.task_name, []))[1].append(i)
    return list(found.values())


def load_tasks(names: Sequence[str], *, limit: int | None = None) -> Any:
    """Tasks of lm-eval with their questions, before any model is loaded.

    Args:
        names: of tasks, groups and tags of lm-eval; or YAML files of tasks, or folders with some.
        limit: most questions of a task; only checked here.

    Raises:
        ConfigError: see `check_tasks`; or a name that lm-eval does not know, or questions that
            cannot be loaded.
    """
    check_tasks(names, limit)
    own = [str(path) for name in names for path in task_files(name)]
    names = [name for name in names if not task_files(name)]
    with _quiet():
        # its list of all tasks takes half a minute
        manager = TaskManager(include_defaults=bool(names))
        for name in names:
            if name not in manager.all_tasks:
                near = closest(name, manager.all_tasks)
                meant = f"did you mean {near}?" if near else "type: lm_eval ls tasks"
                raise ConfigError(f"lm-eval has no task {name}: {meant}")
        try:
            found = manager.load([*own, *names])
        except Exception as error:  # anything can be wrong in a file, or missing in its data
            raise ConfigError(
                f"{', '.join([*own, *names])} cannot be loaded: {one_line(error)} (questions "
                "in files of your own need a task file: docs/evaluation.md)"
            ) from error
    for task in found["tasks"].values():  # as lm-eval's own command line does
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=1234)
    return found


def run_tasks(
    loaded: LanguageModel,
    tasks: Any,
    *,
    limit: int | None = None,
    draws: int = 128,
    seed: int = 0,
    batch: int = 64,
    job: ResumableJob | None = None,
) -> dict[str, Any]:
    """Evaluate a model on tasks by lm-eval's own code.

    Args:
        loaded: the model.
        tasks: of `load_tasks`.
        limit: most questions of a task, its first ones.
        draws: most noise levels of a question.
        seed: of the noise.
        batch: sequences per network call.
        job: does the questions; None does them here and keeps nothing.

    Returns:
        for each task (and group) ``metrics`` and their ``stderr`` over documents, as lm-eval
        computes them, ``version`` of its definition, ``documents``, and its `figures`.
    """
    lm = SDDLM(loaded, draws=draws, seed=seed, batch=batch, job=job or ResumableJob())
    with _quiet():
        result = evaluate(lm, tasks, limit=limit, log_samples=False)
    return {
        name: _metrics(values)
        | {
            "version": result["versions"].get(name),
            "documents": result["n-samples"].get(name, {}).get("effective"),
        }
        | (figures(lm.found[name]) if name in lm.found else {})
        for name, values in result["results"].items()
    }


def _metrics(values: dict[str, Any]) -> dict[str, dict[str, float]]:
    """lm-eval's figures of a task, such as ``acc,none`` and ``acc_stderr,none``."""
    found: dict[str, dict[str, float]] = {"metrics": {}, "stderr": {}}
    for key, value in values.items():
        metric, _, chain = key.partition(",")
        if not chain or isinstance(value, str):  # an alias, or N/A
            continue
        kind = "stderr" if metric.endswith("_stderr") else "metrics"
        name = metric.removesuffix("_stderr") + (f",{chain}" if chain != "none" else "")
        found[kind][name] = float(value)
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """What lm-eval prints goes to stderr, and it makes no processes."""
    before = os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.environ.pop("DISABLE_MULTIPROC")
        os.environ.update({} if before is None else {"DISABLE_MULTIPROC": before})


def main() -> None:
    """lm-eval's own command line, with our model in its list."""
    cli_evaluate()


if __name__ == "__main__":
    from sddlm.eval import harness  # the module that task files name, so that there is one

    harness.main()
else:
    register_model(NAME)(SDDLM)
