"""Our models for lm-eval: a translation of its requests, and a run of its tasks.

lm-eval knows the model as ``sddlm`` once this module is imported; it imports lm-eval itself, so
import it only when tasks are asked for. lm-eval loads no foreign packages of itself, and has no
entry points (0.4.13). Its own command line finds the model in two ways: by a task file that names
this module, ``lm_eval --tasks OUT/NAME.yaml`` (`sddlm.eval.tasks` writes them, for tasks of the hub
too); or by ``python -m sddlm.eval.harness`` in place of ``lm_eval``, with the same arguments.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from itertools import count
from pathlib import Path
from typing import Any

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager

from sddlm.errors import ConfigError, closest
from sddlm.eval.measures import fingerprint
from sddlm.eval.questions import LoglikelihoodScorer, figures, number_of
from sddlm.eval.tasks import check_tasks, local_tasks, task_files
from sddlm.eval.writing import GenerationConfig, write
from sddlm.generation.config import SamplerConfig
from sddlm.lm import LanguageModel
from sddlm.sampling.base import choose_device
from sddlm.work import ProcessGroup, ResumableJob, digest

NAME = "sddlm"
"""What lm-eval calls our models."""


class SDDLM(LM):
    """A model directory as lm-eval sees it.

    The requests of one document are one question (`LoglikelihoodScorer`), and questions are the
    units of `ResumableJob`. No question changes another, so their order and company do not matter.

    Whether a continuation is the greedy one is computed only for questions of one request, such as
    LAMBADA's. lm-eval does not tell a model which metrics a task has; with several choices
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
        work: does the questions, in place of ``keep``.

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
        work: ResumableJob | None = None,
    ) -> None:
        super().__init__()
        if not path:
            raise ConfigError("no model: give lm-eval --model_args path=RUN")
        team = work.team if work else ProcessGroup.join()
        if not isinstance(path, LanguageModel):
            device = choose_device("auto" if device == "cuda:0" else device)
            path = LanguageModel.load(str(path), device=team.device(device))
        if work is None:
            facts = {} if keep is None else {"model": fingerprint(path)}
            work = ResumableJob(None if keep is None else Path(keep), facts, team, show=True)
        asked = int(batch_size) if str(batch_size).isdigit() else 1
        self.questions = LoglikelihoodScorer(path, draws, seed, asked if asked > 1 else batch)
        self.steps = steps
        self.work = work
        #: what was found, for each task in the order of its questions
        self.found: dict[str | None, list[dict[str, Any]]] = {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """log p of each request's continuation after its context, and whether it is greedy.

        A lower bound for diffusion models, estimated; exact for autoregressive ones.
        """
        groups = _documents(requests)
        texts = [list(dict.fromkeys(requests[i].args for i in places)) for _, places in groups]
        done = self._run("likelihood", texts, lambda n: self.questions.ask(texts[n]))
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for (task, places), pairs, each in zip(groups, texts, done, strict=True):
            self.found.setdefault(task, []).append(each)
            for i in places:
                results[i] = (each["log_p"][pairs.index(requests[i].args)], each["greedy"])
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """log p of whole texts; long ones in windows, each after what is before it."""
        texts = [[("", request.args[0])] for request in requests]
        done = self._run("texts", texts, lambda n: self.questions.ask(texts[n], ask_greedy=False))
        for request, each in zip(requests, done, strict=True):
            self.found.setdefault(request.task_name, []).append(each)
        return [each["log_p"][0] for each in done]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """What the model writes after each context, up to the first stop string."""
        copies: dict[str, Iterator[int]] = {}  # of requests that are asked several times
        asked = []
        for request in requests:
            same = copies.setdefault(digest(*request.args), count())
            asked.append((*request.args, next(same)))
        plans = [GenerationConfig.of(options) for _, options, _ in asked]  # refuses before the work

        def unit(n: int) -> dict[str, Any]:
            context, options, copy = asked[n]
            seed = (self.questions.seed + number_of([context, options])) % (1 << 62)
            loaded = self.questions.loaded
            return write(loaded, context, plans[n], steps=self.steps, seed=seed, copy=copy)

        done = self._run("writing", asked, unit)
        for request, each in zip(requests, done, strict=True):
            self.found.setdefault(request.task_name, []).append(each)
        return [each["text"] for each in done]

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes into its results beside the model's name."""
        tasks = {str(task): figures(each) for task, each in self.found.items()}
        own = {"draws": self.questions.draws, "seed": self.questions.seed, "steps": self.steps}
        return {NAME: own | {"tasks": tasks}}

    def _run(self, name: str, texts: list[Any], unit: Callable[[int], Any]) -> list[Any]:
        own = {"draws": self.questions.draws, "seed": self.questions.seed, "steps": self.steps}
        return self.work.run(f"tasks {name}", len(texts), unit, {"texts": digest(texts)} | own)


def _documents(requests: Sequence[Any]) -> list[tuple[str | None, list[int]]]:
    """Task and places of the requests of each document, in order of appearance."""
    found: dict[Any, tuple[str | None, list[int]]] = {}
    for i, request in enumerate(requests):
        # who asks by hand may give no number
        own = ("request", i) if request.doc_id is None else request.doc_id
        found.setdefault((request.task_name, own), (request.task_name, []))[1].append(i)
    return list(found.values())


def load_tasks(
    names: Sequence[str],
    *,
    files: Path | None,
    limit: int | None,
    out_folder: Path,
    team: ProcessGroup,
) -> Any:
    """Tasks of lm-eval with their questions, before any model is loaded.

    Args:
        names: of tasks; without ``files`` also groups and tags of lm-eval. YAML files of tasks, or
            folders with some, are the user's own (`task_files`).
        files: folder with local questions (`local_tasks`); None fetches them from the hub.
        limit: most questions of a task; only checked here.
        out_folder: where local tasks are written.
        team: the processes; the first one writes.

    Raises:
        ConfigError: see `check_tasks` and `local_tasks`; or a name that lm-eval does not know, or
            questions that cannot be fetched.
    """
    check_tasks(names, files, limit)
    own = [str(path) for name in names for path in task_files(name, files)]
    names = [name for name in names if not task_files(name, files)]
    if files is not None and names:
        if team.first:
            local_tasks(names, files, out_folder)
        team.from_first(None)  # wait for it
    with _quiet(offline=files is not None):
        manager = TaskManager(
            include_path=None if files is None else str(out_folder), include_defaults=files is None
        )
        for name in names:
            if name not in manager.all_tasks:
                near = closest(name, manager.all_tasks)
                meant = f"did you mean {near}?" if near else "type: lm_eval ls tasks"
                raise ConfigError(f"lm-eval has no task {name}: {meant}")
        try:
            found = manager.load(own) if own else {"tasks": {}, "groups": {}, "group_map": {}}
        except Exception as error:  # whatever is wrong in them, or missing in their data
            line = " ".join(str(error).split())
            raise ConfigError(f"{', '.join(own)} cannot be loaded: {line}") from error
        try:
            for key, value in manager.load(list(names)).items():
                found[key] |= value
        except OSError as error:
            raise ConfigError(
                f"questions of {', '.join(names)} cannot be fetched from the hub "
                f"({str(error).splitlines()[0]}); give a folder with them: --task_files"
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
    work: ResumableJob | None = None,
) -> dict[str, Any]:
    """Evaluate a model on tasks by lm-eval's own code.

    Args:
        loaded: the model.
        tasks: of `load_tasks`.
        limit: most questions of a task, its first ones.
        draws: most noise levels of a question.
        seed: of the noise.
        batch: sequences per network call.
        work: does the questions; None does them here and keeps nothing.

    Returns:
        for each task (and group) ``metrics`` and their ``stderr`` over documents, as lm-eval
        computes them, ``version`` of its definition, ``documents``, and its `figures`.
    """
    lm = SDDLM(loaded, draws=draws, seed=seed, batch=batch, work=work or ResumableJob())
    with _quiet(offline=True):
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
def _quiet(*, offline: bool) -> Iterator[None]:
    """What lm-eval prints goes to stderr, it makes no processes, and maybe asks no server.

    ``datasets`` tells a server when it reads local files too, and waits for it where there is no
    network.
    """
    before = os.environ.get("DISABLE_MULTIPROC")
    config = sys.modules["datasets"].config
    was = config.HF_HUB_OFFLINE  # read from the environment when it was imported
    os.environ["DISABLE_MULTIPROC"] = "1"
    config.HF_HUB_OFFLINE = offline or was
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        config.HF_HUB_OFFLINE = was
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
