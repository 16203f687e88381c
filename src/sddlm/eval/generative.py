"""Generative perplexity: what another language model, the judge, thinks of samples.

Conventions, all of them in the result too, because figures with others are not comparable:

- text is decoded by the sampler's tokenizer and *retokenised* by the judge's;
- a begin-of-text token (else end-of-text) stands in front, so that the first token is scored;
- the first ``context`` tokens of each text are scored, the rest is cut off and counted;
- corpus level: ``exp(sum of nats / sum of tokens)`` over all tokens of all texts, not the mean of
  each text's perplexity;
- special tokens written in the text are scored like any other token;
- padding stands on the right, is hidden from attention and never scored.

Low is not good by itself: repetitive text scores low. Print it beside ``entropy`` and beside the
same judge's figure for real text of the same length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sddlm.draw import Draw
from sddlm.errors import ConfigError
from sddlm.eval.perplexity import exp
from sddlm.objectives.autoregressive import Autoregressive
from sddlm.progress import track
from sddlm.sampling.base import evaluating

if TYPE_CHECKING:
    from sddlm.model_dir import ModelDir


@dataclass(frozen=True)
class Judge:
    """A causal language model that scores text.

    Attributes:
        name: where it comes from.
        encode: texts to token numbers, no special token added.
        score: ``(ids [B, 1 + L], mask [B, 1 + L]) -> nats [B, L]`` of ``ids[:, 1:]``, each given
            the tokens before it; ``mask`` is True at real tokens.
        start: the token in front of every text.
        limit: most tokens of one text that it can score.
    """

    name: str
    encode: Callable[[Sequence[str]], list[list[int]]]
    score: Callable[[Tensor, Tensor], Tensor]
    start: int
    limit: int

    @classmethod
    def load(cls, spec: str, *, device: str = "cpu") -> Judge:
        """A judge from a directory of ours (autoregressive), else a Hugging Face name or path.

        Args:
            spec: run or model directory, or what ``AutoModelForCausalLM.from_pretrained`` takes.
            device: where it computes.

        Raises:
            ConfigError: a diffusion model, nothing loadable there, or no ``transformers``.
        """
        if _is_ours(Path(spec)):
            from sddlm.model_dir import ModelDir

            return cls.of_model_dir(ModelDir.load(spec), spec, device=device)
        return _hub_judge(spec, device)

    @classmethod
    def of_model_dir(cls, loaded: ModelDir, name: str, *, device: str = "cpu") -> Judge:
        """A judge from an autoregressive model of ours."""
        if loaded.estimate.diffusion:
            raise ConfigError(
                f"judge {name} is a diffusion model (estimate {loaded.estimate.value}); a judge "
                "must be autoregressive: train one with the Autoregressive objective, or name a "
                "Hugging Face model such as gpt2-large"
            )
        model, tokenizer, objective = loaded.model, loaded.tokenizer, Autoregressive()
        model.to(device)

        def score(ids: Tensor, mask: Tensor) -> Tensor:
            draw = Draw.simple(0, 0, len(ids), device=device)
            with evaluating(model):
                return objective.bound(model, ids.to(device), draw)[:, 1:].cpu()

        return cls(name, tokenizer.encode_batch, score, tokenizer.eos_id, model.length - 1)


def _is_ours(path: Path) -> bool:
    """Whether it looks like a run or model directory of this library."""
    from sddlm.model_dir import ModelDir

    return path.is_dir() and ModelDir.is_model_dir(path)


def _hub_judge(spec: str, device: str) -> Judge:
    """A judge from a Hugging Face model by name or local path."""
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            f"judge {spec} needs transformers; type: pip install 'sddlm[eval]'"
        ) from error
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(spec)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(spec)
    except (OSError, ValueError) as error:
        first_line = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"judge {spec} is neither a directory of ours nor a causal language model that "
            f"Hugging Face can load: {first_line}"
        ) from error
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ConfigError(f"judge {spec} has neither a begin- nor an end-of-text token")
    network: Any = model.to(device)

    def encode(texts: Sequence[str]) -> list[list[int]]:
        # not verbose: text that is too long is cut off below
        encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False)
        return [list(ids) for ids in encoded.input_ids]

    def score(ids: Tensor, mask: Tensor) -> Tensor:
        ids = ids.to(device)
        with evaluating(network):
            logits = model(
                input_ids=ids[:, :-1], attention_mask=mask[:, :-1].long().to(device)
            ).logits  # [B, L, V]
        nats = F.cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        return nats.cpu()  # [B, L]

    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    return Judge(spec, encode, score, int(start), int(limit))


@dataclass(frozen=True)
class GenerativePerplexity:
    """A judge's verdict with the conventions it was reached under (see the module's docstring).

    Attributes:
        ppl: ``exp(nll)``.
        nll: nats per token of the judge, corpus level.
        nats_per_character: the same per character of the scored text; NaN if any text was cut.
        tokens: tokens of the judge scored.
        samples: texts scored.
        empty: texts without a token, not scored.
        cut: texts longer than ``context``, scored up to it.
        judge: its name.
        context: most tokens scored per text.
        convention: one line for a report.
    """

    ppl: float
    nll: float
    nats_per_character: float
    tokens: int
    samples: int
    empty: int
    cut: int
    judge: str
    context: int
    convention: str = (
        "retokenised by the judge, begin-of-text in front, corpus mean over tokens, "
        "special tokens in the text scored, text beyond the context cut off"
    )


def generative_perplexity(
    judge: Judge,
    texts: Iterable[str],
    *,
    context: int | None = None,
    batch: int = 8,
    progress: bool = False,
) -> GenerativePerplexity:
    """Perplexity of ``texts`` under ``judge``, float64 sums.

    Args:
        judge: the scoring model.
        texts: decoded samples.
        context: most tokens scored per text; None for the judge's limit.
        batch: texts per call; changes nothing but time and memory.
        progress: show a bar on a terminal.

    Raises:
        ConfigError: no text with a token, or a context or batch outside what is possible.
    """
    context = judge.limit if context is None else context
    if not 1 <= context <= judge.limit:
        raise ConfigError(f"context must lie in 1..{judge.limit} for judge {judge.name}: {context}")
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, not {batch}")
    texts = list(texts)
    encoded = judge.encode(texts) if texts else []
    ids = sorted((row[:context] for row in encoded if row), key=len)
    if not ids:
        raise ConfigError("generative perplexity needs text; every sample is empty")
    total = torch.zeros((), dtype=torch.float64)
    starts = range(0, len(ids), batch)
    for i in track(starts, total=len(starts), label=f"judge {judge.name}", show=progress):
        total += _score_rows(judge, ids[i : i + batch])
    tokens = sum(len(row) for row in ids)
    cut = sum(len(row) > context for row in encoded)
    characters = sum(len(text) for text, row in zip(texts, encoded, strict=True) if row)
    nll = float(total) / tokens
    return GenerativePerplexity(
        ppl=exp(nll),
        nll=nll,
        nats_per_character=math.nan if cut else float(total) / characters,
        tokens=tokens,
        samples=len(ids),
        empty=len(texts) - len(ids),
        cut=cut,
        judge=judge.name,
        context=context,
    )


def _score_rows(judge: Judge, rows: list[list[int]]) -> Tensor:
    """Sum of nats of all tokens in ``rows``, float64 scalar."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), 1 + longest), judge.start)  # [B, 1 + L]; padding is `start` too
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for k, row in enumerate(rows):
        ids[k, 1 : 1 + len(row)] = torch.tensor(row)
        mask[k, : 1 + len(row)] = True
    nats = judge.score(ids, mask).double()  # [B, L]
    return nats.where(mask[:, 1:], nats.new_zeros(())).sum()
