"""A language model: network, process, estimate and tokenizer in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sddlm.data.tokenizers import Tokenizer
from sddlm.errors import ConfigError, check_arguments
from sddlm.model_dir import read_model_dir, write_model_dir
from sddlm.models.dit import DiT
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate

if TYPE_CHECKING:
    from sddlm.generation.corrector import Correction
    from sddlm.generation.generator import Generation
    from sddlm.generation.request import Request


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood of a text.

    Attributes:
        nats: an upper bound on -log p(text), Monte Carlo; exact for an autoregressive model.
        stderr: standard error of ``nats`` over noise levels; 0 where it is exact.
        tokens: length of the text.
    """

    nats: float
    stderr: float
    tokens: int


@dataclass(frozen=True)
class LanguageModel:
    """A trained model with all that is needed to use it.

    Every method returns a value: none prints, and only `save` writes. Methods that write or score
    text import the rooms that do it when they are called.

    Attributes:
        network: in evaluation mode when loaded.
        process: what it undoes.
        estimate: what its output means.
        tokenizer: text to tokens and back.
        objective: spec of what it was trained with (`to_spec`), for the record.
        data: what it was trained on: description of the corpus, key of the prepared data,
            characters per token.
    """

    network: DiT
    process: Process
    estimate: Estimate
    tokenizer: Tokenizer
    objective: dict[str, Any]
    data: dict[str, Any]

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> LanguageModel:
        """Read a model directory, or that of a run directory.

        Args:
            path: ``run/`` or ``run/model/``.
            device: where the weights go.

        Raises:
            ConfigError: in one line, if there is none or something in it is missing or damaged.
        """
        return cls(**read_model_dir(path, device))

    def save(self, path: str | Path) -> None:
        """Write a model directory, or replace one: there is always a complete one or none.

        Raises:
            ConfigError: if something stands there that is not a model directory, or a weight is not
                a finite number.
            OSError: it cannot be written; what was there before is intact.
        """
        write_model_dir(path, **vars(self))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub; `load` takes its name.

        Args:
            repo_id: ``owner/name``; made if there is none. A model card is written if there is
                none.
            private: whether a new repository is; None is the owner's setting.
            token: for the hub; None is that of ``hf auth login``.
            commit_message: of the upload.

        Returns:
            address of the repository.

        Raises:
            ConfigError: no permission, or no network.
        """
        from sddlm.hub import upload

        return upload(self, repo_id, private=private, token=token, commit_message=commit_message)

    @property
    def bos_in_rows(self) -> bool:
        """Whether training rows began with the beginning-of-text token."""
        return bos_in_rows(self.data)

    @property
    def first_id(self) -> int | None:
        """What stands in front of a text in training rows: the beginning of a text where rows begin
        with one, else the end of the text before; None if there is neither."""
        if self.bos_in_rows:
            return self.tokenizer.bos_id
        return self.tokenizer.eos_id if self.data.get("packing", {}).get("eos", True) else None

    def prompt_ids(self, tokens: Sequence[int]) -> list[int]:
        """A prompt's tokens behind `first_id`, if there is one.

        A next-token model predicts nothing behind an empty prompt, so there it gets the end of
        text, with which its sampler begins too.
        """
        first = self.first_id
        if first is None and not tokens and not self.estimate.diffusion:
            first = self.tokenizer.eos_id
        return [*tokens] if first is None else [first, *tokens]

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        """Leave-one-out log-probabilities: of the clean token at each position, given all others.

        Args:
            x_t: noisy tokens ``[B, L]``.
            t: their noise level in (0, 1].

        Returns:
            ``[B, L, V]`` float64. All of it is held in memory; samplers and bounds never do that.

        Raises:
            ConfigError: for an autoregressive model, or a level outside (0, 1].
            FloatingPointError: the network's output is not finite.
        """
        from sddlm.sampling.base import device_of, evaluating, finite, hidden_at, leave_one_out

        if not self.estimate.diffusion:
            raise ConfigError("an autoregressive model predicts only from the tokens before")
        if not 0 < t <= 1:
            raise ConfigError(f"`t` is {t}, must be above 0 and at most 1")
        x_t = x_t.to(device_of(self.network))
        with evaluating(self.network):
            hidden, alpha = hidden_at(self, x_t, t)
            parts = (self.network, hidden, self.estimate, self.process, x_t.flatten())
            log_p = leave_one_out(*parts, alpha).log_softmax(-1)  # [B L, V]
            finite(log_p.amax(-1))  # of a row with one NaN or infinity, all are NaN
            return log_p.view(*x_t.shape, -1)

    def nll(
        self, texts: str | Sequence[str], *, draws: int = 128, seed: int = 0, batch: int = 64
    ) -> list[NLL]:
        """How unlikely texts are, as documents of their own; long ones are scored in windows.

        Args:
            texts: one or several.
            draws: noise levels per text; more make the standard error smaller.
            seed: of the noise.
            batch: sequences per network call.
        """
        from sddlm.eval.questions import LoglikelihoodScorer

        score = LoglikelihoodScorer(self, draws=draws, seed=seed, batch=batch).score
        texts = [texts] if isinstance(texts, str) else list(texts)
        found = [score([("", text)], greedy=False) for text in texts]
        lengths = map(len, self.tokenizer.encode_batch(texts))
        return [
            NLL(-each["log_p"][0], each["stderr"][0], tokens)
            for each, tokens in zip(found, lengths, strict=True)
        ]

    @check_arguments
    def generate(
        self,
        prompt: str | None = None,
        *,
        n: int = 1,
        suffix: str | None = None,
        length: int | None = None,
        seed: int = 0,
        batch: int = 16,
        **how: Any,
    ) -> list[Generation]:
        """Write text.

        Args:
            prompt: what the text begins with; None is a text of its own.
            n: number of texts.
            suffix: what the text ends with.
            length: tokens of a text, prompt included; None is the model's.
            seed: same seed, same texts.
            batch: texts drawn together; changes no text.
            how: sampler options, such as ``steps`` and ``top_p`` (`sddlm.SamplerConfig`).
        """
        from sddlm.generation.request import Request

        _check_count(n)
        request = Request(prompt=prompt, suffix=suffix, length=length, count=n)
        return self._generate(request, seed, batch, how)

    @check_arguments
    def infill(
        self, text: str, *, n: int = 1, seed: int = 0, batch: int = 16, **how: Any
    ) -> list[Generation]:
        """Fill the blanks of a text.

        Args:
            text: a blank is ``{3}`` or ``{1:8}``, tokens; a brace is ``{{`` or ``}}``.
            n: number of texts.
            seed: same seed, same texts.
            batch: texts drawn together; changes no text.
            how: sampler options (`sddlm.SamplerConfig`).
        """
        from sddlm.generation.request import Request

        _check_count(n)
        return self._generate(Request(infill=text, count=n), seed, batch, how)

    @check_arguments
    def correct(
        self,
        text: str,
        *,
        t: float | None = None,
        protect: str | None = None,
        seed: int = 0,
        batch: int = 16,
        **how: Any,
    ) -> Correction:
        """Replace what the model finds wrong in a text; no token is put in or taken out.

        Args:
            text: the draft.
            t: noise level that it is taken for, about the share of wrong tokens; None is the level
                at which the model finds it most likely.
            protect: regular expression; what it matches stays.
            seed: same seed, same text.
            batch: parts of a long text that are read together; changes no text.
            how: sampler options (`sddlm.SamplerConfig`); by default one greedy call without
                truncation.
        """
        from sddlm.generation.config import CORRECTION
        from sddlm.generation.corrector import Corrector

        corrector = Corrector(self, replace(CORRECTION, **how), t=t, seed=seed, batch=batch)
        return corrector.correct([text], protect=protect)[0]

    def _generate(
        self, request: Request, seed: int, batch: int, how: Mapping[str, Any]
    ) -> list[Generation]:
        from sddlm.generation.config import SamplerConfig
        from sddlm.generation.generator import Generator

        return Generator(self, [request], SamplerConfig(**how), seed, batch).generate()


def _check_count(n: int) -> None:
    if n < 1:
        raise ConfigError(f"`n` is {n}, must be at least 1")


def load(path: str | Path, device: str = "auto", *, revision: str | None = None) -> LanguageModel:
    """Load a trained model.

    Args:
        path: run or model directory, or the name of a repository on the Hugging Face hub,
            ``owner/name``.
        device: cpu, cuda, or auto, which is cuda where there is one.
        revision: branch, tag or commit of the repository.

    Raises:
        ConfigError: in one line, if there is none or something in it is missing or damaged.
    """
    from sddlm.hub import download, is_repo_id
    from sddlm.sampling.base import choose_device

    if is_repo_id(path):
        path = download(str(path), revision)
    return LanguageModel.load(path, choose_device(device))


def bos_in_rows(data: Mapping[str, Any]) -> bool:
    """Whether rows begin with the beginning-of-text token, from a record of prepared data."""
    return bool(data.get("packing", {}).get("bos_eos", False))
