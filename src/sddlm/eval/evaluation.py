"""What all evaluations share: options, each declared once, and one way to run."""

# no annotations from the future here: the command line reads those of inherited options in the
# module of each subclass, which need not know their names
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Literal, TypeVar

from sddlm.data.config import DataArgs
from sddlm.errors import ConfigError, check_choices
from sddlm.eval.conventions import convention_of
from sddlm.eval.result import Provenance, Result, SeenByJudge
from sddlm.eval.texts import HeldOut, TrainingText, held_out
from sddlm.eval.unseen import real_text
from sddlm.generation.config import SamplerConfig
from sddlm.io import check_writable
from sddlm.jobs import ProcessGroup, ResumableJob, digest
from sddlm.lm import LanguageModel
from sddlm.model_dir import locate
from sddlm.process.estimate import Estimate
from sddlm.sampling.base import choose_device, device_of
from sddlm.spec import to_spec

logger = logging.getLogger(__name__)

#: options of any evaluation: smallest value
_LEAST = {"batch": 1, "rows": 0, "draws": 1, "count": 1, "context": 1}


@dataclass(frozen=True)
class Subject:
    """A model that is evaluated.

    Attributes:
        lm: the model.
        place: its run or model directory; None for one that was given loaded.
        job: does the work in shards.
    """

    lm: LanguageModel
    place: Path | None
    job: ResumableJob

    @property
    def device(self) -> str:
        """Where the model is."""
        return str(device_of(self.lm.network))


@dataclass(frozen=True)
class EvalConfig:
    """Options of every evaluation.

    Raises:
        ConfigError: a value that cannot be used.
    """

    batch: int = 32
    """sequences per network call; changes nothing but time and memory"""
    seed: int = 0
    """of all randomness"""
    estimate: Literal["leave_one_out", "denoiser"] | None = None
    """how the network's output is read, instead of as its objective estimates it; public code reads
    all of them as leave_one_out"""

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in _LEAST.items():
            value = getattr(self, name, None)
            if value is not None and value < least:
                raise ConfigError(f"`{name}` is {value}, must be at least {least}")


@dataclass(frozen=True)
class TextConfig(EvalConfig):
    """Options of evaluations on held-out text."""

    data: DataArgs | None = None
    """a text to evaluate on as a whole; without it the held-out part of the training text"""
    rows: int = 1024
    """most held-out rows, spread evenly; 0 for all"""

    def held_out(self, subject: Subject) -> tuple[HeldOut, TrainingText | None]:
        """The rows to score, and the training text if it is there."""
        return held_out(subject.place, subject.lm, self.data, self.rows or None)


@dataclass(frozen=True)
class JudgedConfig(TextConfig, SamplerConfig):
    """Options of evaluations that draw samples, and let a judge read them."""

    count: int = 64
    """number of samples, and of real rows for reference"""
    judge: str | None = None
    """an autoregressive model directory, or a Hugging Face name or path"""
    convention: str = "sddlm"
    """how the judge reads samples (docs/evaluation.md): sddlm, or duo (and MDLM)"""
    context: int | None = None
    """most tokens that the judge sees at once; without it that of the convention"""

    def __post_init__(self) -> None:
        TextConfig.__post_init__(self)
        SamplerConfig.__post_init__(self)
        convention_of(self.convention)

    @property
    def how(self) -> SamplerConfig:
        """The options of the sampler alone."""
        return SamplerConfig(**{f.name: getattr(self, f.name) for f in fields(SamplerConfig)})

    def real_text(self, subject: Subject, text: HeldOut) -> tuple[HeldOut, SeenByJudge]:
        """Rows that the judge was not trained on either, with a warning where there are none."""
        parts = (text, subject.place, subject.lm, self.data, self.judge or "", self.rows or None)
        real, found = real_text(*parts)
        if subject.job.team.first and found.seen_by_judge in ("yes", "maybe"):
            logger.warning(
                "%s: its perplexity of real text is too low to compare with; train a judge with "
                "the `data.validation` of the model, or give another text: `data.path`",
                found.reason,
            )
        return real, found


C = TypeVar("C", bound=EvalConfig)
R = TypeVar("R", bound=Result)


def run(
    question: str,
    measure: Callable[[C, Subject], R],
    config: C,
    model: LanguageModel | str | Path,
    device: str,
    out: str | Path | None,
    *,
    picture: bool = False,
) -> R:
    """Load a model, measure, and write the result if there is a place for it.

    With ``out`` finished shards are kept in ``OUT.partial``: the same call after an interruption
    continues there. Processes that ``torchrun`` started share the shards, with the same result.

    Args:
        question: name of the evaluation, for the record.
        measure: ``(config, subject)`` to the result.
        config: its options, checked.
        model: run or model directory, or a loaded model.
        device: cpu, cuda, or auto; a loaded model stays where it is.
        out: JSON file; None writes nothing.
        picture: a picture is written beside ``out``.
    """
    started = time.perf_counter()
    place = None if isinstance(model, LanguageModel) else locate(model)
    name = "a loaded model" if place is None else str(model)
    target = None if out is None else _target(Path(out), picture)
    team = ProcessGroup.join()
    try:
        if not isinstance(model, LanguageModel):
            model = LanguageModel.load(model, device=team.device(choose_device(device)))
        model = _read_as(config.estimate, model)
        at = str(device_of(model.network))
        cache_key = {"model": fingerprint(model), "device": at.split(":")[0]}
        partial = target and target.with_name(f"{target.name}.partial")
        job = ResumableJob(partial, cache_key, team, show=target is not None)
        result = measure(config, Subject(model, place, job))
        made = Provenance(
            model=name,
            question=question,
            command=sys.argv,
            model_fingerprint=cache_key["model"],
            estimate=model.estimate.value,
            seed=config.seed,
            device=at,
            sddlm_version=version("sddlm"),
            seconds=round(time.perf_counter() - started, 3),
        )
        result = replace(result, provenance=made)
        if target and team.first:
            result.save(target)
            job.finish()
    finally:
        team.leave()
    return result


def _read_as(estimate: str | None, lm: LanguageModel) -> LanguageModel:
    """The model with another reading of its network, if one is given."""
    if estimate is None:
        return lm
    if not lm.estimate.diffusion:
        raise ConfigError("`estimate` is for diffusion models: leave it out")
    return replace(lm, estimate=Estimate(estimate))


def fingerprint(lm: LanguageModel) -> str:
    """A hash of the weights, the process and the estimate."""
    meaning = [to_spec(lm.process), lm.estimate.value]
    return digest(meaning, *lm.network.state_dict().values())


def _target(out: Path, picture: bool) -> Path:
    """The JSON file, if it and its picture can be written."""
    check_writable(out)
    if picture:
        if out.suffix == ".png":
            raise ConfigError(f"`out` is {out}: the picture is put beside the file, name it .json")
        check_writable(out.with_suffix(".png"))
    return out


def names_in(given: str | list[str]) -> list[str]:
    """The names of a comma-separated list."""
    parts = given.split(",") if isinstance(given, str) else given
    return [name.strip() for name in parts]
