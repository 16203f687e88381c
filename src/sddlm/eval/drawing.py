"""Samples for an evaluation: how they are drawn, and drawn in units."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor, tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.eval.texts import SampleSet
from sddlm.generation.args import SamplerConfig
from sddlm.generation.batching import cuts
from sddlm.lm import LanguageModel
from sddlm.work import ResumableJob


@dataclass(frozen=True)
class Drawing:
    """How samples are drawn.

    Attributes:
        how: sampler and its options.
        count: how many.
        seed: of all randomness; sample k has the same noise in every drawing with this seed.
        batch: samples drawn together; changes nothing but time and memory.

    Raises:
        ConfigError: a value that cannot be used.
    """

    how: SamplerConfig = field(default_factory=SamplerConfig)
    count: int = 64
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("count", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name} is {getattr(self, name)}, must be at least 1")


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
    sampler = drawing.how.build(loaded)
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
        **drawing.how.settings(),
        "sampler": type(sampler).__name__,
        "seed": drawing.seed,
        "nfe": round(sum(nfe) / len(nfe), 2),
        "seconds": round(sum(part["seconds"] for part in found), 3),
    }
    if not loaded.estimate.diffusion:
        del origin["steps"]
    texts = loaded.tokenizer.decode_batch([row.tolist() for row in rows])
    return SampleSet(rows, texts, origin)
