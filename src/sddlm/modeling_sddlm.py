"""A language model for ``transformers.AutoModel``: `write_repository` copies this file.

Nothing imports it here. It needs ``sddlm`` where it is used, which loads the model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput

import sddlm
from sddlm.hub import write_repository
from sddlm.sampling.base import evaluating, hidden_at

#: arguments that ``AutoModel`` adds to the user's
_ADDED = {"adapter_kwargs", "trust_remote_code", "_commit_hash", "_from_auto"}


class SddlmConfig(PretrainedConfig):
    """``config.json`` of a model directory."""

    model_type = "sddlm"


class SddlmModel(PreTrainedModel):
    """A language model for inference.

    Attributes:
        lm: the `sddlm.LanguageModel`, which generates, infills, corrects and scores.
        network: its network.
    """

    config_class = SddlmConfig

    def __init__(self, config: SddlmConfig, lm: sddlm.LanguageModel) -> None:
        super().__init__(config)
        self.lm, self.network = lm, lm.network

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, config: SddlmConfig, revision: str | None = None, **more: Any
    ) -> SddlmModel:
        """Load the model on the CPU (`sddlm.load`).

        Raises:
            TypeError: an option that ``sddlm`` does not have, such as ``dtype``.
        """
        if others := sorted(more.keys() - _ADDED):
            raise TypeError(f"sddlm has no option {others[0]}: leave it out, then use model.to()")
        return cls(config, sddlm.load(path, "cpu", revision=revision)).eval()

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write what `from_pretrained` reads."""
        write_repository(self.lm, Path(save_directory))

    def forward(self, input_ids: Tensor, t: float = 1e-3) -> MaskedLMOutput:
        """Log-probabilities of clean tokens, without gradients.

        Args:
            input_ids: tokens ``[B, L]`` int64 of noise level ``t``.
            t: noise level in (0, 1]; by default that of clean text. Unused by an autoregressive
                model.

        Returns:
            ``logits`` ``[B, L, V]`` float32. A diffusion model: of the token at l given all others
            (`sddlm.LanguageModel.predict`); an autoregressive one: of the token at l + 1.
        """
        if self.lm.estimate.diffusion:
            return MaskedLMOutput(logits=self.lm.predict(input_ids, t).float())
        with evaluating(self.network):
            hidden, _ = hidden_at(self.lm, input_ids, t)  # [B L, D]
            logits = self.network.head.logits(hidden).log_softmax(-1)  # [B L, V]
        return MaskedLMOutput(logits=logits.view(*input_ids.shape, -1))
