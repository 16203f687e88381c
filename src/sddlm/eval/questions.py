"""Questions asked in text: how likely is each continuation after its context?

This is the way from text to `sddlm.eval.conditional` and knows nothing of where questions come
from. In front of every prompt stands the token that rows begin with, or the end of text where the
model was trained on documents with an end of text between them, or nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sddlm.eval.conditional import Choice, Conditional, conditional_bounds, greedy
from sddlm.lm import LanguageModel
from sddlm.work import digest

#: (context, continuation)
Pair = tuple[str, str]


def number_of(texts: Any) -> int:
    """A number for a question, of its own texts: 60 bits."""
    return int(digest(texts)[:15], 16)


def fit(loaded: LanguageModel, prompt: list[int], room: int) -> tuple[list[int], int]:
    """A prompt cut on the left, and by how much; what rows must begin with is kept.

    Where there is no room at all it is left as it is: `conditional_bounds` then scores in windows.

    Args:
        loaded: the model.
        prompt: of `LanguageModel.prompt_ids`.
        room: tokens that it may have.
    """
    over = len(prompt) - room
    if over <= 0 or room < 1:
        return prompt, 0
    kept = [prompt[0], *prompt[over + 1 :]] if loaded.bos_in_rows else prompt[over:]
    return kept, over


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
    """How a model is asked.

    Attributes:
        loaded: the model.
        draws: most noise levels of a question.
        seed: of the noise.
        batch: sequences per network call.
    """

    loaded: LanguageModel
    draws: int
    seed: int
    batch: int

    def ask(self, pairs: Sequence[Pair], *, ask_greedy: bool = True) -> dict[str, Any]:
        """One question; the noise is a function of the seed and of its texts.

        All continuations share their noise, and drawing stops when the best one is certain, both
        by log p and by log p over the length of the continuation in characters (without a space in
        front). If some contexts are empty and some are not, the question is about differences
        (mutual information), which a ranking says nothing of, and every pair gets all draws.

        Args:
            pairs: contexts and continuations.
            ask_greedy: compute ``greedy``, for a single pair.

        Returns:
            for JSON: ``log_p`` and ``stderr`` of each, nats; ``draws``, noise levels; ``cut``,
            prompts that were cut; ``greedy``, whether the only continuation is the model's greedy
            one, False if there are several; ``seconds``.
        """
        began = time.perf_counter()
        number = number_of(sorted(pairs))
        cuts, choices = zip(*(self._choice(*pair) for pair in pairs), strict=True)
        scored: list[Conditional] = []
        ranked = len({bool(context) for context, _ in pairs}) == 1
        for some in [choices] if ranked else [(choice,) for choice in choices]:
            scored += conditional_bounds(
                *self._parts,
                some,
                seed=self.seed,
                question=number,
                draws=self.draws,
                batch=self.batch,
            )
        return {
            "log_p": [each.log_p for each in scored],
            "stderr": [each.stderr for each in scored],
            "draws": max(each.draws for each in scored),
            "cut": sum(own + each.cut > 0 for own, each in zip(cuts, scored, strict=True)),
            "greedy": ask_greedy and len(pairs) == 1 and self._greedy(choices[0], number),
            "seconds": time.perf_counter() - began,
        }

    def _greedy(self, choice: Choice, number: int) -> bool:
        return greedy(
            *self._parts,
            choice.prompt,
            choice.continuation,
            seed=self.seed,
            question=number,
            batch=self.batch,
        )

    @property
    def _parts(self) -> tuple[Any, Any, Any]:
        return self.loaded.network, self.loaded.process, self.loaded.estimate

    def _choice(self, context: str, continuation: str) -> tuple[int, Choice]:
        """A choice, and how many tokens of its prompt are cut already."""
        norm = float(max(1, len(continuation.removeprefix(" "))))
        prompt, scored = split(self._encode, context, continuation)
        room = self.loaded.network.length - len(scored)
        kept, cut = fit(self.loaded, self.loaded.prompt_ids(prompt), room)
        return cut, Choice(kept, scored, norm)

    def _encode(self, text: str) -> list[int]:
        return self.loaded.tokenizer.encode_batch([text])[0]


def figures(questions: Sequence[dict[str, Any]]) -> dict[str, float]:
    """What the questions of a task took.

    Args:
        questions: results of `LoglikelihoodScorer.ask`, or of `sddlm.eval.writing.write`.

    Returns:
        ``draws``, mean noise levels of a question; ``monte_carlo``, mean standard error of log p,
        nats; ``cut``, prompts that were cut; ``seconds``, of all processes together.
    """
    errors = [error for each in questions for error in each.get("stderr", ())]
    return {
        "draws": sum(each.get("draws", 0) for each in questions) / len(questions),
        "monte_carlo": sum(errors) / max(1, len(errors)),
        "cut": sum(each["cut"] for each in questions),
        "seconds": round(sum(each["seconds"] for each in questions), 3),
    }
