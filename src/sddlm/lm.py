"""A language model: network, process, estimate and tokenizer in one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments
from sddlm.model_dir import read_model_dir, write_model_dir
from sddlm.models.dit import DiT
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.types import NLL

# rooms that import this module are imported by the methods that need them
if TYPE_CHECKING:
    from sddlm.generation.corrector import Correction
    from sddlm.generation.generator import Generation
    from sddlm.generation.request import Request


@dataclass(frozen=True)
class LanguageModel:
    """A trained language model: network, process, estimate and tokenizer.

        lm = sddlm.load("run")
        lm.generate("The function", n=4, steps=64, top_p=0.9)

    Every method returns a value and prints nothing. Only `save` and `push_to_hub` write.

    Attributes:
        network: the network, in evaluation mode when loaded.
        process: the corruption that the network undoes.
        estimate: what the network's output means.
        tokenizer: the tokenizer.
        objective: class and options of the training objective, for the record.
        data: record of the training data: description of the corpus, key of the prepared data,
            characters per token; and the steps, batch and tokens of the training.
        path: model directory that it was loaded from; None for any other.
    """

    network: DiT
    process: Process
    estimate: Estimate
    tokenizer: Tokenizer
    objective: dict[str, Any]
    data: dict[str, Any]
    path: Path | None = field(default=None, init=False, compare=False)

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> LanguageModel:
        """Load a model from a run directory or a model directory.

        Args:
            path: ``run/`` or ``run/model/``, or the name of a model in the package.
            device: device of the weights.

        Raises:
            ConfigError: there is no model, or a file of it is missing or damaged, or the model was
                adapted and not trained.
        """
        place, parts = read_model_dir(path, device)
        lm = cls(**parts)
        if not lm.estimate.diffusion and not lm.network.causal:
            raise ConfigError(
                f"{path} was adapted and is not trained yet: sddlm train --start {path} "
                "--data.path TEXT --out RUN"
            )
        object.__setattr__(lm, "path", place)
        return lm

    def save(self, path: str | Path) -> None:
        """Write a model directory, or replace one, atomically.

        Args:
            path: the directory.

        Raises:
            ConfigError: the path is something else than a model directory, or a weight is not
                finite.
            OSError: the directory cannot be written; the former one is intact.
        """
        saved = {name: value for name, value in vars(self).items() if name != "path"}
        write_model_dir(path, **saved)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Upload the model to the Hugging Face hub, where `sddlm.load` finds it by name.

        ``transformers.AutoModel`` loads it too, with ``trust_remote_code=True``. The model card
        states what is recorded of data, objective and training, and the likelihoods of the run that
        the model was loaded from.

        Args:
            repo_id: ``owner/name``. A missing repository is created, and a missing model card.
            private: whether a new repository is private; None is the owner's setting.
            token: access token of the hub; None is that of ``hf auth login``.
            commit_message: message of the upload.

        Returns:
            address of the repository.

        Raises:
            ConfigError: no permission, or no network.
        """
        from sddlm.hub import upload

        return upload(self, repo_id, private=private, token=token, commit_message=commit_message)

    def predict(self, x_t: Tensor, t: float) -> Tensor:
        """Leave-one-out log-probabilities log p(x0 at l | all noisy tokens but the one at l).

        Args:
            x_t: noisy tokens ``[B, L]`` int64.
            t: noise level of the tokens, in (0, 1].

        Returns:
            ``[B, L, V]`` float64. All of it is held in memory; samplers and bounds never do that.

        Raises:
            ConfigError: the model is autoregressive, or ``t`` is outside (0, 1].
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
        """Negative log-likelihood of each text, as a document of its own.

        A bound for a diffusion model, exact for an autoregressive one; long texts in windows.

        Args:
            texts: one text or several.
            draws: noise levels per text; more give a smaller standard error.
            seed: seed of the noise.
            batch: sequences per network call.

        Returns:
            for each text ``nats``, ``stderr`` and ``tokens``.

        Raises:
            ConfigError: the tokenizer has no token for a character.
            FloatingPointError: the network's output is not finite.
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
        """Generate text.

        Args:
            prompt: beginning of the text; None generates a whole text.
            n: number of texts.
            suffix: end of the text.
            length: tokens of a text, prompt included; None is the model's length.
            seed: seed of all randomness; same seed, same texts.
            batch: texts sampled together; does not change a text.
            how: sampler options, such as ``steps`` and ``top_p`` (`sddlm.SamplerConfig`).

        Returns:
            n texts, each with its ``text``, ``tokens`` and ``nfe`` (network calls).

        Raises:
            ConfigError: an option is wrong, or the request does not fit the model.
        """
        from sddlm.generation.request import Request

        _check_count(n)
        request = Request(prompt=prompt, suffix=suffix, length=length, count=n)
        return self._generate(request, seed, batch, how)

    @check_arguments
    def infill(
        self, text: str, *, n: int = 1, seed: int = 0, batch: int = 16, **how: Any
    ) -> list[Generation]:
        """Fill the blanks of a text; all other tokens stay.

        Args:
            text: text with blanks: ``{3}`` is one of 3 tokens, ``{1:8}`` one of 1 to 8 (drawn
                evenly); ``{{`` and ``}}`` are braces.
            n: number of texts.
            seed: seed of all randomness; same seed, same texts.
            batch: texts sampled together; does not change a text.
            how: sampler options (`sddlm.SamplerConfig`).

        Returns:
            n texts, each with its ``text``, ``blanks`` and ``nfe``.

        Raises:
            ConfigError: a blank is malformed, the text is too long, or the model is autoregressive.
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
        """Replace unlikely tokens of a text; none is inserted or deleted.

        The text is taken for noise of level ``t`` and denoised.

        Args:
            text: the draft.
            t: noise level, in (0, 1], about the share of wrong tokens; None chooses the level at
                which the model finds the draft most likely, at 13 more network calls.
            protect: regular expression; its matches are not changed.
            seed: seed of all randomness; same seed, same text.
            batch: windows of a long text per network call; does not change the text.
            how: sampler options (`sddlm.SamplerConfig`); by default one greedy call without
                truncation.

        Returns:
            the corrected ``text``, ``t``, the ``changes``, and the ``confidence`` of each token.

        Raises:
            ConfigError: an option is wrong, or the model cannot change tokens (masks,
                autoregressive).
        """
        from sddlm.generation.config import CORRECTION
        from sddlm.generation.corrector import Corrector

        corrector = Corrector(self, replace(CORRECTION, **how), t=t, seed=seed, batch=batch)
        return corrector.correct([text], protect=protect)[0]

    @property
    def bos_in_rows(self) -> bool:
        """Whether training rows began with the beginning-of-text token."""
        return bos_in_rows(self.data)

    @property
    def first_id(self) -> int | None:
        """Token in front of a text in training rows: beginning of text, else the end of text of the
        document before; None if rows have neither, or each is a single document."""
        if self.bos_in_rows:
            return self.tokenizer.bos_id
        packing = self.data.get("packing", {})
        before = packing.get("packing", "wrap") == "wrap" and packing.get("eos", True)
        return self.tokenizer.eos_id if before else None

    def prompt_ids(self, tokens: Sequence[int]) -> list[int]:
        """Tokens of a prompt, with `first_id` in front.

        An autoregressive model without `first_id` gets the end of text in front of an empty prompt,
        because it predicts nothing from no tokens.

        Args:
            tokens: ids of the prompt.
        """
        first = self.first_id
        if first is None and not tokens and not self.estimate.diffusion:
            first = self.tokenizer.eos_id
        return [*tokens] if first is None else [first, *tokens]

    def _generate(
        self, request: Request, seed: int, batch: int, how: Mapping[str, Any]
    ) -> list[Generation]:
        from sddlm.generation.config import SamplerConfig
        from sddlm.generation.generator import Generator

        return Generator(self, [request], SamplerConfig(**how), seed, batch).generate()


def _check_count(n: int) -> None:
    if n < 1:
        raise ConfigError(f"`n` is {n}, must be at least 1")


def bos_in_rows(data: Mapping[str, Any]) -> bool:
    """Whether rows begin with the beginning-of-text token, from a record of prepared data."""
    return bool(data.get("packing", {}).get("bos_eos", False))
