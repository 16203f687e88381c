"""Samples for an evaluation: how they are drawn, and drawn in units."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor, tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.eval.texts import SampleSet
from sddlm.generation.args import begins, sampler_for
from sddlm.generation.batching import cuts
from sddlm.lm import LanguageModel
from sddlm.sampling.base import Sampler
from sddlm.sampling.float32 import Float32
from sddlm.sampling.lazy import Lazy
from sddlm.sampling.truncation import Truncation
from sddlm.work import ResumableJob

Precision = Literal["float64", "float32"]


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        count: how many.
        steps: of a diffusion sampler.
        temperature: of every prediction.
        top_p: the most likely tokens up to this mass.
        tail_cut: every probability below tail_cut / V is cut to zero.
        precision: of the draw from each prediction; float32 is for reproducing published figures
            (see `sampling.float32` for what it changes).
        seed: of all randomness; sample k has the same noise in every drawing with this seed.
        batch: samples drawn together; changes nothing but time and memory.

    Raises:
        ConfigError: a value that cannot be used.
    """

    count: int = 64
    steps: int = 128
    temperature: float = 1.0
    top_p: float = 1.0
    tail_cut: float = 0.0
    precision: Precision = "float64"
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        check_choices(self, "--")
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}, must be at least 1")
        if self.precision not in get_args(Precision):
            raise ConfigError(f"--precision is {self.precision}, must be float64 or float32")
        Lazy(self.steps, truncation=self.truncation)  # refuses wrong values

    @property
    def truncation(self) -> Truncation:
        """What is done to every prediction."""
        return Truncation(self.temperature, self.top_p, self.tail_cut)

    def sampler(self, loaded: LanguageModel) -> Sampler:
        """The sampler for a model.

        Raises:
            ConfigError: float32 for an autoregressive model.
        """
        right = sampler_for(
            loaded.estimate,
            loaded.tokenizer,
            steps=self.steps,
            truncation=self.truncation,
            ends=begins(loaded.data),
        )
        if self.precision == "float64":
            return right
        if not isinstance(right, Lazy):
            raise ConfigError("--precision float32 is for diffusion models; leave it out")
        return Float32(right.steps, right.tail, right.truncation)


def draw_set(
    loaded: LanguageModel, drawing: Drawing, work: ResumableJob, label: str = "samples"
) -> SampleSet:
    """Draw samples, a batch a unit.

    Args:
        loaded: the model.
        drawing: how.
        work: does the batches.
        label: of the bar.
    """
    sampler = drawing.sampler(loaded)
    parts, _ = cuts(loaded, count=drawing.count, batch=drawing.batch)

    def one(number: int) -> dict[str, Any]:
        cut = parts[number]
        drawn = sampler.sample(
            loaded, batch=cut.count, length=cut.length, seed=drawing.seed, index=cut.first
        )
        return {
            "tokens": drawn.tokens.tolist(),
            "nfe": drawn.nfe.tolist(),
            "seconds": drawn.seconds,
        }

    found = work.run(label, len(parts), one, {"drawing": asdict(drawing)})
    rows: list[Tensor] = [tensor(row) for part in found for row in part["tokens"]]
    nfe = [n for part in found for n in part["nfe"]]
    origin = {
        "sampler": type(sampler).__name__,
        **{k: v for k, v in asdict(drawing).items() if k not in ("count", "batch")},
        "nfe": round(sum(nfe) / len(nfe), 2),
        "seconds": round(sum(part["seconds"] for part in found), 3),
    }
    if not loaded.estimate.diffusion:
        del origin["steps"]
    texts = loaded.tokenizer.decode_batch([row.tolist() for row in rows])
    return SampleSet(rows, texts, origin)
