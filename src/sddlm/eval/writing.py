"""Text after a context, as tasks ask for it: lm-eval's options for `Generator`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sddlm.errors import ConfigError
from sddlm.generation.config import SamplerConfig
from sddlm.generation.generator import Generator
from sddlm.generation.request import Request
from sddlm.lm import LanguageModel

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
    steps: int = 64,
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
