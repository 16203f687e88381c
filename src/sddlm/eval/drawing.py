"""Samples for an evaluation: how they are drawn, and drawn in units."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from torch import tensor

from sddlm.errors import ConfigError, check_choices
from sddlm.eval.texts import SampleSet
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.generation.sample import generate_resumably
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
    requests = [Request(count=drawing.count)]
    generator = Generator(loaded, requests, drawing.how, drawing.seed, drawing.batch)
    generate_resumably(generator, work.about(drawing=asdict(drawing)), label=label)
    drawn = generator.generations(whole=True)
    origin = {
        **drawing.how.settings(),
        "sampler": type(drawing.how.build(loaded)).__name__,
        "seed": drawing.seed,
        "nfe": round(sum(each.nfe for each in drawn) / len(drawn), 2),
        "seconds": round(sum(each.seconds for each in drawn), 3),
    }
    if not loaded.estimate.diffusion:
        del origin["steps"]
    return SampleSet([tensor(each.tokens) for each in drawn], [each.text for each in drawn], origin)
