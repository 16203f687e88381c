"""A network of ``transformers`` behind the contract of `DiT`: every position attends to all.

Its weights keep their names and values. Its vocabulary head becomes a `VocabHead`. A causal network
gets a mask that hides nothing; the classes of `CAUSAL` are known to keep to it in every layer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from sddlm.errors import ConfigError
from sddlm.models.config import Checkpointing
from sddlm.models.dit import WEIGHTS_NAME
from sddlm.models.layers import not_blind, select_rows, shifted, shifted_rows
from sddlm.models.row_losses import RowLoss
from sddlm.models.vocab_head import HeadOutput, VocabHead
from sddlm.models.weights import check_weights
from sddlm.types import SoftTokens

#: ``architecture`` in ``config.json``
ARCHITECTURE = "transformers"
#: autoregressive models whose causal mask can be lifted, by ``model_type``
CAUSAL = ("gpt2", "llama", "qwen2", "qwen3")
_DIFFUSION_GEMMA = "diffusion_gemma"
#: classes of transformers by ``model_type``
CLASSES = {
    **dict.fromkeys(CAUSAL, "AutoModelForCausalLM"),
    _DIFFUSION_GEMMA: "DiffusionGemmaForBlockDiffusion",
}
#: rows whose capped logits exist at once
_ROWS = 256


def library() -> Any:
    """The package ``transformers``.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise ConfigError(
            "this network needs the package transformers: pip install 'sddlm[adapt]'"
        ) from error
    return transformers


@dataclass(kw_only=True)
class BackboneConfig:
    """Configuration of a `Backbone`.

    Attributes:
        vocab_size: V.
        length: L, the training length.
        backbone: the configuration of ``transformers``.
        shift: the output at a position is read from the state of the position before, as in the
            autoregressive network that it was; the first position has its own.
        architecture: marks it in a ``config.json``.
    """

    vocab_size: int
    length: int
    backbone: dict[str, Any]
    shift: bool = False
    architecture: str = ARCHITECTURE
    causal: ClassVar[bool] = False
    num_extra_tokens: ClassVar[int] = 0
    dropout: ClassVar[float] = 0.0

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneConfig:
        """Configuration from a ``config.json``; other keys are ignored."""
        return cls(**{f.name: values[f.name] for f in fields(cls)})


class Backbone(nn.Module):
    """Network of ``transformers`` in the place of a `DiT`, without a noise level.

    Results are rounded differently in batches of another size, unlike those of a `DiT`.

    Args:
        config: sizes, and the configuration of ``transformers``.
        model: the model with its head.

    Attributes:
        config: the configuration.
        vocab_size: V, which may be less than the rows of the model's embedding.
        head: the vocabulary head; it has the embedding's weights if the model ties them.
        causal: False.
        time_free: True.
        hollow: False.
    """

    causal, time_free, hollow = False, True, False
    _recomputes = False

    def __init__(self, config: BackboneConfig, model: Any) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.inner: Any = model.base_model
        output, sizes = model.get_output_embeddings(), model.config.get_text_config()
        if output is None:
            raise ConfigError(f"{type(model).__name__} has no vocabulary head")
        self.length = _checked_length(config.length, sizes)
        cap = getattr(sizes, "final_logit_softcapping", None)
        D, V, bias = output.weight.shape[1], config.vocab_size, output.bias
        self.head = CappedHead(D, V, cap) if cap else VocabHead(D, V, bias=bias is not None)
        for name, weight in output.named_parameters():
            # the same object, if whole: it may be that of the embedding
            rows = weight if len(weight) == V else nn.Parameter(weight.detach()[:V].clone())
            setattr(self.head, name, rows)
        self._bos: Any = getattr(sizes, "bos_token_id", None)

    @property
    def blocks(self) -> nn.ModuleList:
        """The transformer blocks."""
        inner = self.inner.decoder if self._type == _DIFFUSION_GEMMA else self.inner
        return next(part for part in inner.modules() if isinstance(part, nn.ModuleList))

    @property
    def checkpointing(self) -> Checkpointing:
        """What the backward pass recomputes: ``none``, or each block."""
        return "full" if self._recomputes else "none"

    @checkpointing.setter
    def checkpointing(self, how: Checkpointing) -> None:
        self._recomputes = how != "none"
        if self._recomputes:
            enable = getattr(self.inner, "activation_checkpointing_enable", None)
            (enable or self.inner.gradient_checkpointing_enable)({"use_reentrant": False})

    @property
    def _type(self) -> str:
        return str(self.config.backbone["model_type"])

    def resize(self, length: int) -> None:
        """Change the training length; no parameter depends on it."""
        self.length = self.config.length = _checked_length(length, self.inner.config)

    def forward(
        self,
        x_t: Tensor | SoftTokens,
        sigma: Tensor,
        *,
        rows: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Hidden states, the input of the head; see `DiT.forward`.

        Raises:
            ConfigError: ``x_t`` are mixtures of tokens.
        """
        if isinstance(x_t, SoftTokens):
            raise ConfigError("a network of transformers takes no mixtures of tokens")
        seeing = None if attention_mask is None else not_blind(attention_mask)  # [B, L]
        x = self._states(x_t, seeing)  # [B, L, D]
        if not self.config.shift:
            return select_rows(x, rows)
        return shifted(x) if rows is None else select_rows(x, shifted_rows(rows, x.shape[1]))

    def _states(self, x_t: Tensor, seeing: Tensor | None) -> Tensor:
        """Hidden states ``[B, L, D]`` of tokens that attend to all ``seeing``."""
        inputs: dict[str, Any]
        if self._type == _DIFFUSION_GEMMA:  # its decoder reads the states of a prompt: no text
            bos = torch.full_like(x_t[:, :1], self._bos)
            mask = None if seeing is None else torch.cat((torch.ones_like(bos), seeing), 1).bool()
            inputs = {"input_ids": bos, "decoder_input_ids": x_t, "decoder_attention_mask": mask}
        elif self._type in CAUSAL:
            # four dimensions: taken for the whole mask. None, or [B, L], would become causal
            mask = torch.ones_like(x_t, dtype=torch.bool) if seeing is None else seeing
            inputs = {"input_ids": x_t, "attention_mask": mask[:, None, None], "use_cache": False}
        else:
            mask = None if seeing is None else seeing.long()
            inputs = {"input_ids": x_t, "attention_mask": mask}
        out: Tensor = self.inner(**inputs).last_hidden_state
        return out

    def save_weights(self, path: Path) -> None:
        """Write the parameters as safetensors, tied ones only once.

        Raises:
            ConfigError: the network is code that is not in ``transformers``.
        """
        if self._type not in CLASSES:
            raise ConfigError(
                f"a {self._type} is code of its repository, which a model directory does not hold: "
                "open it with `sddlm.wrap` each time"
            )
        save_model(self, str(path))

    @classmethod
    def from_folder(cls, place: Path, config: Mapping[str, Any], device: str = "cpu") -> Backbone:
        """Read a network from a model directory.

        Args:
            place: the directory.
            config: its ``config.json``.
            device: device of the weights.

        Raises:
            ConfigError: names or shapes do not match, or a weight is not finite.
        """
        state, sizes = load_file(place / WEIGHTS_NAME), BackboneConfig.from_dict(config)
        network = cls(sizes, _built(sizes.backbone, next(iter(state.values())).dtype))
        _load(network, state)
        return network.to(device).eval()


class CappedHead(VocabHead):
    """Head whose logits are ``cap * tanh(logits / cap)``, for inference alone.

    Args:
        width: D.
        vocab_size: V.
        cap: bound of the logits.
    """

    def __init__(self, width: int, vocab_size: int, cap: float) -> None:
        super().__init__(width, vocab_size, bias=False)
        self.cap = cap

    def forward(self, hidden: Tensor, term: RowLoss, weight: Tensor | None = None) -> HeadOutput:
        """See `VocabHead.forward`.

        Raises:
            ConfigError: gradients are wanted.
        """
        if torch.is_grad_enabled() and hidden.requires_grad:
            raise ConfigError("a network with capped logits is sampled and scored, not trained")
        slices = (slice(start, start + _ROWS) for start in range(0, len(hidden), _ROWS))
        parts = [term(self.logits(hidden[at]), at, False)[0] for at in slices]
        values = torch.cat(parts) if parts else hidden.new_zeros(0)
        return HeadOutput((values if weight is None else values * weight).sum(), values)

    def logits(self, hidden: Tensor) -> Tensor:
        """See `VocabHead.logits`."""
        return self.cap * torch.tanh(super().logits(hidden) / self.cap)


def _built(backbone: dict[str, Any], dtype: torch.dtype) -> Any:
    """A model of transformers with undefined weights, which leaves the random state alone.

    It is built in its precision: converted later, its rotary frequencies would lose theirs.
    """
    transformers = library()
    kind = CLASSES.get(str(backbone.get("model_type")))
    if kind is None:
        raise ConfigError(f"no network of `model_type` {backbone.get('model_type')!r} is known")
    config = type(transformers.AutoConfig.for_model(backbone["model_type"])).from_dict(backbone)
    from transformers.initialization import no_init_weights

    with no_init_weights():
        make = getattr(transformers, kind)
        make = getattr(make, "from_config", None) or make._from_config
        model = make(config, attn_implementation="sdpa", dtype=dtype)
    model.tie_weights()  # which is a part of the initialisation
    return model


def _checked_length(length: int, config: Any) -> int:
    """A training length that the positions of the model have room for."""
    most = getattr(config.get_text_config(), "max_position_embeddings", None) or length
    if not 1 <= length <= most:
        raise ConfigError(f"`length` is {length}, but the network has positions for 1 to {most}")
    return length


def _load(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy weights into a network, of tied ones those that are there.

    Raises:
        ConfigError: one is missing, unexpected, misshapen or not finite.
    """
    there = network.state_dict(keep_vars=True)
    found = {id(there[name]) for name in state if name in there}
    wanted = {n: v.shape for n, v in there.items() if n in state or id(v) not in found}
    check_weights(state, wanted)
    network.load_state_dict(state, strict=False)


def plain(config: Any) -> dict[str, Any]:
    """A configuration of transformers as plain data."""
    found: dict[str, Any] = json.loads(config.to_json_string())
    return found
