"""Log-likelihoods of text: how likely is each continuation after its context?

The way from text to `sddlm.eval.conditional`. In front of every prompt stands what
`LanguageModel.prompt_ids` puts there, as in generation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sddlm.eval.conditional import Choice, Conditional, conditional_bounds, is_greedy
from sddlm.jobs import digest
from sddlm.lm import LanguageModel

#: (context, continuation)
Pair = tuple[str, str]


def split(
    encode: Callable[[str], list[int]], context: str, continuation: str
) -> tuple[list[int], list[int]]:
    """Tokens of a context and of its continuation, as lm-eval splits them for its own models.

    Spaces at the end of the context go to the continuation, and the tokens of the whole are cut
    where those of the context alone end. Where that would leave nothing to score, because a token
    reaches across, the cut is where the two rows of tokens part.

    Args:
        encode: text to tokens.
        context: may be empty.
        continuation: may be empty.
    """
    kept = context.rstrip()
    whole, first = encode(context + continuation), encode(kept)
    at = len(first)
    if at >= len(whole) > 0 and context + continuation != kept:
        same = (a == b for a, b in zip(first, whole[:-1], strict=False))
        at = next((i for i, equal in enumerate(same) if not equal), len(whole) - 1)
    return first[:at], whole[at:]


@dataclass(frozen=True)
class LoglikelihoodScorer:
    """Scores the continuations of a question.

    Attributes:
        lm: the model.
        draws: most noise levels of a question.
        seed: of the noise.
        batch: sequences per network call.
    """

    lm: LanguageModel
    draws: int
    seed: int
    batch: int

    def score(self, pairs: Sequence[Pair], *, greedy: bool = True) -> dict[str, Any]:
        """Score one question; the noise is a function of the seed and of its texts.

        All continuations share their noise, and drawing stops when the best one is certain, both
        by log p and by log p over the length of the continuation in characters (without a space in
        front). If some contexts are empty and some are not, the question is about differences
        (mutual information), for which a ranking is no answer, and every pair gets all draws.

        Args:
            pairs: contexts and continuations.
            greedy: compute ``greedy``, for a single pair.

        Returns:
            for JSON: ``log_p`` and ``stderr`` of each, nats; ``draws``, noise levels; ``cut``,
            prompts that were cut; ``greedy``, whether the only continuation is the model's greedy
            one, False if there are several; ``seconds``.
        """
        began = time.perf_counter()
        how = {"seed": self.seed, "batch": self.batch}
        how["question"] = int(digest(sorted(pairs))[:15], 16)  # 60 bits of its texts
        cuts, choices = zip(*(self._choice(*pair) for pair in pairs), strict=True)
        ranked = len({bool(context) for context, _ in pairs}) == 1
        found: list[Conditional] = []
        for some in [choices] if ranked else [(choice,) for choice in choices]:
            found += conditional_bounds(self.lm, some, draws=self.draws, **how)
        first = choices[0]
        return {
            "log_p": [each.log_p for each in found],
            "stderr": [each.stderr for each in found],
            "draws": max(each.draws for each in found),
            "cut": sum(own + each.cut > 0 for own, each in zip(cuts, found, strict=True)),
            "greedy": greedy
            and len(pairs) == 1
            and is_greedy(self.lm, first.prompt, first.continuation, **how),
            "seconds": time.perf_counter() - began,
        }

    def _choice(self, context: str, continuation: str) -> tuple[int, Choice]:
        """A choice, and how many tokens of its prompt are cut already.

        The prompt is cut on the left, but for the token that rows must begin with. Where the
        continuation leaves no room, it is left whole: `conditional_bounds` then scores in windows.
        """
        lm = self.lm
        prompt, scored = split(
            lambda text: lm.tokenizer.encode_batch([text])[0], context, continuation
        )
        norm = float(max(1, len(continuation.removeprefix(" "))))
        prompt, room = lm.prompt_ids(prompt), lm.network.length - len(scored)
        cut = max(0, len(prompt) - room) if room >= 1 else 0
        if cut:
            prompt = [prompt[0], *prompt[cut + 1 :]] if lm.bos_in_rows else prompt[cut:]
        return cut, Choice(prompt, scored, norm)
