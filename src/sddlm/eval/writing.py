"""Text after a prompt, as tasks ask for it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sddlm.errors import ConfigError
from sddlm.eval.questions import fit
from sddlm.generation.config import SamplerConfig
from sddlm.generation.windows import pad_batch
from sddlm.lm import LanguageModel

#: tokens written where a task does not say how many
MOST = 256

_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


@dataclass(frozen=True)
class GenerationConfig:
    """How text is to be written.

    Attributes:
        until: strings that end it.
        most: tokens.
        sample: draw, instead of taking the most likely token.
        temperature: of what is drawn.
        top_p: of what is drawn.
    """

    until: tuple[str, ...] = ()
    most: int = MOST
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> GenerationConfig:
        """From lm-eval's options; it samples if ``temperature`` is above 0, unless told not to.

        Raises:
            ConfigError: an option that would change the text and that there is none of here.
        """
        given = dict(options)
        until = given.pop("until", None) or ()
        most = [int(given.pop(name)) for name in _LENGTHS if name in given]
        temperature = float(given.pop("temperature", None) or 0)
        sample = bool(given.pop("do_sample", True)) and temperature > 0
        top_p = float(given.pop("top_p", None) or 1)
        if given:
            raise ConfigError(
                f"generation option {', '.join(given)} is unknown here; allowed: until, "
                f"{', '.join(_LENGTHS)}, do_sample, temperature, top_p: leave it out of the task"
            )
        return cls(
            (until,) if isinstance(until, str) else tuple(until),
            most[0] if most else MOST,
            sample,
            temperature if sample else 1.0,
            top_p if sample else 1.0,
        )

    def sampler(self, steps: int, *, diffusion: bool) -> SamplerConfig:
        """The sampler; left to right, a nucleus of one token is greedy decoding."""
        alone = not self.sample and not diffusion
        return SamplerConfig(
            steps=steps,
            tail="sample" if self.sample else "greedy",
            temperature=self.temperature,
            top_p=1e-12 if alone else self.top_p,
        )


def write(
    loaded: LanguageModel,
    context: str,
    plan: GenerationConfig,
    *,
    steps: int,
    seed: int,
    copy: int = 0,
) -> dict[str, Any]:
    """Write after a context, up to the first end of text or stop string.

    A long context is cut on the left, so that there is room for at least half a row. A diffusion
    model writes all its tokens at once and has no greedy decoding: without sampling it draws its
    text too, but takes the most likely token of p(x0 | x_t) at each position in the last step.

    Args:
        loaded: the model.
        context: what comes before.
        plan: how.
        steps: of a diffusion model's sampler.
        seed: of all randomness.
        copy: number of the text, where several are written after one context.

    Returns:
        for JSON: ``text``; ``cut``, 1 if the context was cut; ``seconds``.
    """
    began = time.perf_counter()
    model, tokenizer = loaded.network, loaded.tokenizer
    whole = loaded.prompt_ids(tokenizer.encode_batch([context])[0])
    room = max(model.length - len(whole), model.length // 2)
    wanted = max(1, min(plan.most, room))
    prompt, cut = fit(loaded, whole, model.length - wanted)
    sampler = plan.sampler(steps, diffusion=loaded.estimate.diffusion).build(loaded)
    given = torch.tensor(prompt + [0] * wanted)  # [L]
    known = torch.arange(len(given)) < len(prompt)
    condition = pad_batch([(given, known)], len(given), pad=tokenizer.pad_id, padded=False)
    drawn = sampler.sample(loaded, seed=seed, index=copy, condition=condition)
    ids = drawn.tokens[0, len(prompt) :].tolist()
    if tokenizer.eos_id in ids:
        ids = ids[: ids.index(tokenizer.eos_id)]
    text = tokenizer.decode(ids)
    for stop in plan.until:
        text = text.partition(stop)[0] if stop else text
    return {"text": text, "cut": int(cut > 0), "seconds": time.perf_counter() - began}
