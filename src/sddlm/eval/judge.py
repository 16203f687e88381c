"""The judge: another language model, left to right, that scores text and describes it.

It is an autoregressive model directory of ours or any causal model of Hugging Face. This file
alone knows which; what is done with its scores is in `sddlm.eval.generative` and
`sddlm.eval.mauve`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, first_line
from sddlm.jobs import ResumableJob, digest
from sddlm.model_dir import is_model_dir
from sddlm.objectives.autoregressive import Autoregressive
from sddlm.rng import Draw
from sddlm.sampling.base import evaluating

if TYPE_CHECKING:
    from sddlm.lm import LanguageModel


@dataclass(frozen=True)
class Judge:
    """A causal language model that scores text.

    Attributes:
        name: where it comes from.
        version: digest of its weights, or the hub's commit.
        encode: ``(texts, specials) -> ids``. With ``specials`` as the judge's tokenizer does by
            itself: it finds special tokens that are written in a text, and puts round it what it
            puts there. Without, nothing is added, and judges of ours find none.
        score: ``(ids [B, L], mask [B, L]) -> nats [B, L - 1]`` of ``ids[:, 1:]``, each given the
            tokens before it; ``mask`` is True at real tokens, which come first.
        hidden: ``(ids [B, L], mask [B, L]) -> [B, L, D]``, the states behind the last norm.
        start: the token that may stand in front of a text: begin-of-text, else end-of-text; None
            for a model of ours whose rows have neither.
        eos: end-of-text; None if it has none.
        limit: most tokens behind ``start`` that it can score at once.
    """

    name: str
    version: str
    encode: Callable[[Sequence[str], bool], list[list[int]]]
    score: Callable[[Tensor, Tensor], Tensor]
    hidden: Callable[[Tensor, Tensor], Tensor]
    start: int | None
    eos: int | None
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
        from sddlm.lm import LanguageModel

        if Path(spec).is_dir() and is_model_dir(spec):
            return cls.of_model_dir(LanguageModel.load(spec), spec, device=device)
        return _hub_judge(spec, device)

    @classmethod
    def of_model_dir(cls, loaded: LanguageModel, name: str, *, device: str = "cpu") -> Judge:
        """A judge from an autoregressive model of ours.

        Raises:
            ConfigError: a diffusion model.
        """
        if loaded.estimate.diffusion:
            raise ConfigError(
                f"judge {name} is a diffusion model (estimate {loaded.estimate.value}); a judge "
                "must be autoregressive: train one with the Autoregressive objective, or name a "
                "Hugging Face model such as gpt2-large"
            )
        model, tokenizer, objective = loaded.network, loaded.tokenizer, Autoregressive()
        model.to(device)

        def encode(texts: Sequence[str], specials: bool) -> list[list[int]]:
            if specials:
                return [_with_specials(tokenizer, text) for text in texts]
            return tokenizer.encode_batch(texts)

        def score(ids: Tensor, mask: Tensor) -> Tensor:
            draw = Draw.simple(0, 0, len(ids), device=device)
            with evaluating(model):
                return objective.bound(model, ids.to(device), draw)[:, 1:].cpu()

        def hidden(ids: Tensor, mask: Tensor) -> Tensor:
            with evaluating(model):
                return model(ids.to(device), torch.zeros(len(ids), device=device))  # [B, L, D]

        version = digest(*(parameter.cpu() for parameter in model.parameters()))
        start, end = loaded.first_id, tokenizer.eos_id
        return cls(name, version, encode, score, hidden, start, end, model.length - 1)

    def features(
        self,
        texts: Sequence[str],
        *,
        context: int | None = None,
        batch: int = 8,
        mean: bool = False,
        job: ResumableJob | None = None,
    ) -> Tensor:
        """The last hidden state at the last token of each text, or its mean over the tokens.

        The last token as in MAUVE (arXiv:2102.01454): no token in front, what is beyond the context
        cut off. It shows little of a text to a small judge; the mean shows all of it.

        Args:
            texts: each with at least one token.
            context: most tokens read per text; None for the judge's limit.
            batch: texts per call; changes nothing but time and memory.
            mean: whether it is the mean.
            job: does the batches.

        Returns:
            ``[n, D]`` float32.

        Raises:
            ConfigError: a text without a token, or a context or batch that is impossible.
        """
        most = self.checked_context(context, batch)
        rows = [row[:most] for row in self.encode(texts, False)] if texts else []
        if not rows or not all(rows):
            raise ConfigError(f"judge {self.name} can describe no text without a token")
        order = sorted(range(len(rows)), key=lambda k: len(rows[k]))
        parts = [order[k : k + batch] for k in range(0, len(order), batch)]

        def one(number: int) -> str:
            ids, mask = padded([rows[k] for k in parts[number]], self.start or 0)
            states = self.hidden(ids, mask).float()  # [B, L, D]
            mask = mask.to(states.device)
            if mean:
                sums = states.where(mask[..., None], 0).sum(1)  # a NaN times 0 would stay
                found = sums / mask.sum(1, keepdim=True)  # [B, D]
            else:
                found = states[torch.arange(len(ids), device=mask.device), mask.sum(1) - 1]
            # text of four thirds of a byte a byte, where JSON of floats takes five
            return base64.b64encode(found.cpu().numpy().astype("<f4").tobytes()).decode()

        cache_key = {
            "judge": self.name,
            "version": self.version,
            "text": digest(rows),
            "batch": batch,
            "mean": mean,
        }
        done = (job or ResumableJob()).run("features", len(parts), one, cache_key)
        flat = [np.frombuffer(base64.b64decode(text), "<f4").astype(np.float32) for text in done]
        found = torch.from_numpy(np.concatenate(flat)).reshape(len(rows), -1)  # [n, D]
        return found[torch.tensor(list(chain(*parts))).argsort()]

    def checked_context(self, context: int | None, batch: int) -> int:
        """The context, or the limit for None.

        Raises:
            ConfigError: a context or a batch that is impossible.
        """
        if batch < 1:
            raise ConfigError(f"`batch` is {batch}, must be at least 1")
        if context is not None and not 1 <= context <= self.limit:
            raise ConfigError(
                f"`context` is {context}, must lie in 1..{self.limit} for judge {self.name}"
            )
        return self.limit if context is None else context


def padded(rows: Sequence[Sequence[int]], filling: int) -> tuple[Tensor, Tensor]:
    """Rows of several lengths as ``(ids [B, L], mask [B, L])``, filled up on the right.

    Args:
        rows: token numbers.
        filling: what stands where ``mask`` is False.
    """
    ids = torch.full((len(rows), max(map(len, rows))), filling)  # [B, L]
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for k, row in enumerate(rows):
        ids[k, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[k, : len(row)] = True
    return ids, mask


def _with_specials(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text in which written special tokens are found, as Hugging Face finds them."""
    longest_first = sorted(tokenizer.special, key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, longest_first))})", text)
    ids: list[int] = []
    for piece in filter(None, pieces):
        known = tokenizer.special.get(piece)
        ids += tokenizer.encode_batch([piece])[0] if known is None else [known]
    return ids


def _hub_judge(spec: str, device: str) -> Judge:
    """A judge from a Hugging Face model by name or local path."""
    tokenizer, model = _hub_parts(spec)
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        raise ConfigError(f"judge {spec} has neither a begin- nor an end-of-text token")
    # as the published figures were reached; transformers 5 would take the file's bfloat16
    network: Any = model.float().to(device)

    def encode(texts: Sequence[str], specials: bool) -> list[list[int]]:
        # not verbose: text that is too long is cut off later
        encoded = tokenizer(list(texts), add_special_tokens=specials, verbose=False)
        return [list(ids) for ids in encoded.input_ids]

    def score(ids: Tensor, mask: Tensor) -> Tensor:
        ids = ids.to(device)
        with evaluating(network):
            logits = network(
                input_ids=ids[:, :-1], attention_mask=mask[:, :-1].long().to(device)
            ).logits  # [B, L - 1, V]
            rows = [  # row by row: the whole again in float32 would be a gigabyte and more
                F.cross_entropy(row.float(), target, reduction="none")
                for row, target in zip(logits, ids[:, 1:], strict=True)
            ]
        return torch.stack(rows).cpu()  # [B, L - 1]

    def hidden(ids: Tensor, mask: Tensor) -> Tensor:
        with evaluating(network):
            # the network without its vocabulary head, whose output would be thrown away
            found: Tensor = network.base_model(
                input_ids=ids.to(device), attention_mask=mask.long().to(device)
            ).last_hidden_state  # [B, L, D]
        return found

    limit = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    version = _hub_version(spec, model)
    eos = tokenizer.eos_token_id
    return Judge(spec, version, encode, score, hidden, int(start), eos, int(limit))


def _hub_parts(spec: str) -> tuple[Any, Any]:
    """Tokenizer and model of a Hugging Face name or path."""
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
        raise ConfigError(
            f"judge {spec} is neither a directory of ours nor a causal language model that "
            f"Hugging Face can load: {first_line(error)}"
        ) from error
    return tokenizer, model


def _hub_version(spec: str, model: Any) -> str:
    """The commit on the hub, else a digest of the files in a local folder."""
    files = sorted(file for file in Path(spec).glob("*") if file.suffix in (".safetensors", ".bin"))
    if files:
        return digest(*files)
    return str(getattr(model.config, "_commit_hash", None) or "unknown")
