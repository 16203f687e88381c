"""Our models for lm-eval: a translation of its requests.

lm-eval knows the model as ``sddlm`` once this module is imported; it imports lm-eval itself, so
import it only when tasks are asked for. lm-eval has no entry points (0.4.13). Its own command line
finds the model in two ways: by ``python -m sddlm.eval.harness`` in place of ``lm_eval``, with the
same arguments; or by a task file that names this module, with the line
``metadata: {adapter: !function sddlm.eval.harness.NAME}``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from sddlm.errors import ConfigError
from sddlm.eval.evaluation import fingerprint
from sddlm.eval.questions import LoglikelihoodScorer
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
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
        return {NAME: self._settings | {"tasks": self.figures}}

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        """Cost and Monte-Carlo error of the questions of each task.

        ``draws``, mean noise levels of a question; ``monte_carlo``, mean standard error of log p,
        nats; ``cut``, prompts that were cut; ``seconds``, of all processes together.
        """
        found = {}
        for task, questions in self.found.items():
            errors = [error for each in questions for error in each.get("stderr", ())]
            found[str(task)] = {
                "draws": sum(each.get("draws", 0) for each in questions) / len(questions),
                "monte_carlo": sum(errors) / max(1, len(errors)),
                "cut": sum(each["cut"] for each in questions),
                "seconds": round(sum(each["seconds"] for each in questions), 3),
            }
        return found

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


#: names under which lm-eval's tasks state the number of tokens
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class GenerationConfig:
    """How a task wants its text written.

    Attributes:
        until: strings that end it.
        tokens: how many.
        temperature: 0 takes the most likely token instead of a draw.
        top_p: of what is drawn.
    """

    until: tuple[str, ...] = ()
    tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """From lm-eval's options; a ``temperature`` above 0 samples unless ``do_sample`` is false.

        Raises:
            ConfigError: an option that would change the text and is not supported here.
        """
        given = dict(options)
        until = given.pop("until", None) or ()
        tokens = [int(given.pop(name)) for name in _LENGTHS if name in given]
        temperature = float(given.pop("temperature", None) or 0)
        sample = bool(given.pop("do_sample", True)) and temperature > 0
        top_p = float(given.pop("top_p", None) or 1)
        if given:
            raise ConfigError(
                f"generation option {', '.join(given)} is unknown, must be until, "
                f"{', '.join(_LENGTHS)}, do_sample, temperature or top_p: leave it out of the task"
            )
        return cls(
            until=(until,) if isinstance(until, str) else tuple(until),
            tokens=tokens[0] if tokens else cls.tokens,
            temperature=temperature if sample else 0.0,
            top_p=top_p if sample else 1.0,
        )

    def sampler(self, diffusion: bool, steps: int) -> SamplerConfig:
        """The sampler.

        A diffusion model writes all its tokens at once and has no greedy decoding: at temperature 0
        it draws too, but takes the most likely token at each position in the last step.
        """
        greedy = not self.temperature
        temperature = self.temperature or 1.0
        if diffusion:
            tail: Literal["sample", "greedy"] = "greedy" if greedy else "sample"
            return SamplerConfig(steps=steps, tail=tail, temperature=temperature, top_p=self.top_p)
        # a nucleus of one token is greedy decoding
        return SamplerConfig(temperature=temperature, top_p=1e-12 if greedy else self.top_p)


def write(
    lm: LanguageModel,
    context: str,
    config: GenerationConfig,
    *,
    count: int = 1,
    steps: int = SamplerConfig.steps,
    seed: int = 0,
    batch: int = 16,
) -> dict[str, Any]:
    """Write texts after a context, each up to the first end of text or stop string.

    What does not fit beside the context is written block by block, as by ``sddlm sample``.

    Args:
        lm: the model.
        context: what comes before.
        config: how.
        count: number of texts.
        steps: of a diffusion model's sampler.
        seed: of all randomness.
        batch: texts drawn together.

    Returns:
        for JSON: ``texts``; ``cut``, 1 if the model did not see the whole context; ``seconds``.
    """
    began = time.perf_counter()
    taken = len(lm.prompt_ids(lm.tokenizer.encode_batch([context])[0]))
    width = lm.network.length
    # a task must not end at a character that the tokenizer lacks
    request = Request(context, length=taken + config.tokens, count=count, allow_unknown=True)
    how = config.sampler(lm.estimate.diffusion, steps)
    found = Generator(lm, [request], how, seed, batch).generate()
    texts = [each.blanks[0] for each in found]
    for stop in filter(None, config.until):
        texts = [text.partition(stop)[0] for text in texts]
    cut = taken > width // 2 and taken + config.tokens > width
    return {"texts": texts, "cut": int(cut), "seconds": time.perf_counter() - began}


def main() -> None:
    """lm-eval's own command line, with our model in its list."""
    cli_evaluate()


if __name__ == "__main__":
    from sddlm.eval import harness  # the module that task files name, so that there is one

    harness.main()
else:
    register_model(NAME)(SDDLM)
