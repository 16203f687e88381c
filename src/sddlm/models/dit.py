"""The network: tokens and a noise level to hidden states, with a vocabulary head.

The diffusion transformer of MDLM (arXiv:2406.07524) and Duo (arXiv:2506.10892), after DiT
(arXiv:2212.09748); with ``causal=True`` the autoregressive transformer of their baselines. With
``architecture="llama"`` the transformer of SMDM (arXiv:2410.18514), and with ``causal=True`` LLaMA.
With ``architecture="hollow"`` a hollow transformer (arXiv:2211.16750), see `models.hollow`. With
``architecture="gidd"`` that of scaled-up GIDD (arXiv:2512.10858).
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_model
from torch import Tensor, nn

from sddlm.errors import ConfigError
from sddlm.models.block import Stack, norm_of
from sddlm.models.cache import Cache
from sddlm.models.config import Checkpointing, DiTConfig
from sddlm.models.hollow import Hollow
from sddlm.models.layers import (
    Embedding,
    InputConv,
    Linear,
    Rotary,
    SigmaEmbedder,
    modulate,
    not_blind,
    of_rows,
    shifted,
    shifted_rows,
)
from sddlm.models.vocab_head import VocabHead
from sddlm.models.weights import check_weights
from sddlm.types import SoftTokens

WEIGHTS_NAME = "model.safetensors"
#: the beginning of the name of a block's parameter
_BLOCK = re.compile(r"blocks\.(?:towers\.\d\.blocks\.|queries\.)?\d+\.")
_WEIGHTS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class DiT(nn.Module, PyTorchModelHubMixin, library_name="sddlm", tags=["text-diffusion"]):
    """Diffusion transformer over noisy tokens, conditioned on the noise level.

    The constructor initialises the parameters (except on the meta device) independently of the
    global random state; see `init`. ``save_pretrained``, ``from_pretrained`` and ``push_to_hub``
    come from the hub's mixin: ``config.json`` and ``model.safetensors``, never a pickle.

    Args:
        config: sizes and options.
        seed: seed of `init`.

    Attributes:
        config: the configuration.
        vocab_size: V.
        length: training length L; other lengths work, because positions are relative.
        causal: whether each position sees only itself and earlier ones; the noise level is unused.
        time_free: whether the noise level is unused, so the output depends on the tokens alone.
        hollow: whether the output at a position does not depend on the token there.
        checkpointing: what the backward pass recomputes: ``none``; ``selective``, norms and
            activations, which is nearly free; ``full``, each block, a third more work.
        head: the vocabulary head (`VocabHead`).
    """

    def __init__(self, config: DiTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.causal = config.causal
        self.time_free = config.causal or config.time_input in ("zero", "none")
        self.hollow = config.architecture == "hollow"
        self.checkpointing: Checkpointing = "none"
        width, causal, architecture = config.width, config.causal, config.architecture
        cond_dim = config.cond_dim if config.conditioned else 0
        self.embedding = Embedding(config.vocab_size, width)
        kernel = 0 if self.hollow else config.input_conv  # the towers have their own
        self.input_conv = InputConv(width, kernel, causal) if kernel else None
        self.sigma = SigmaEmbedder(config) if cond_dim else None
        self.rotary = Rotary(width // config.heads)
        self.blocks = (Hollow if self.hollow else Stack)(config, cond_dim)
        self.norm = norm_of(architecture, width)
        self.modulation = Linear(cond_dim, 2 * width) if cond_dim else None
        extra, bias = config.num_extra_tokens, architecture not in ("llama", "gidd")
        self.head = VocabHead(width, config.vocab_size, bias=bias, num_extra_tokens=extra)
        self.init(seed)

    def new_cache(self, length: int | None = None) -> Cache:
        """Make an empty cache for ``length`` positions (default: the training length).

        Raises:
            ConfigError: the network is not causal: new positions would change earlier ones.
        """
        if not self.causal:
            raise ConfigError(
                "only a causal network can be cached, this one looks ahead: train with "
                "`objective=Autoregressive()`, or call the network without a cache"
            )
        return Cache(length or self.length)

    def forward(
        self,
        x_t: Tensor | SoftTokens,
        sigma: Tensor,
        *,
        rows: Tensor | None = None,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states, the input of the head.

        Args:
            x_t: noisy tokens ``[B, L]`` int64, or mixtures of tokens.
            sigma: noise level, -log alpha_t ``[B]``; unused by a time-free network.
            rows: flat indices ``b L + l`` of the positions to compute ``[N]`` int64; at the others
                the last block computes keys and values only. None is all.
            attention_mask: True for tokens, False for padding at the end of a row ``[B, L]`` bool;
                None is all. Padding affects no other position, and its own output is undefined. A
                causal network ignores the mask, so padding at the beginning is not hidden.
            cache: from `new_cache`; ``x_t`` are then the L positions after the cached ones, and are
                appended to it.

        Returns:
            ``[B, L, D]``, or ``[N, D]`` with ``rows``, in the dtype of the weights.

        Raises:
            ValueError: if ``x_t`` is not ``[B, L]`` with L > 0, ``sigma`` not ``[B]`` or
                ``attention_mask`` not ``[B, L]`` bool, or if the cache has no room or the network
                is not causal.
        """
        self._check(x_t, attention_mask, cache)
        seeing = None if attention_mask is None or self.causal else not_blind(attention_mask)
        L = x_t.shape[1]
        x = self.embedding(x_t)  # [B, L, D]
        if self.input_conv is not None:
            if seeing is not None:  # as if the row ended where its padding begins
                x = x.masked_fill(~seeing[:, :, None], 0)
            x = self.input_conv(x, cache)
        cond = self._condition(sigma, x_t.shape[0])  # [B, cond_dim]
        if self.config.shift and rows is not None:
            rows = shifted_rows(rows, L)
        x = self.blocks(x, cond, self.rotary, self.checkpointing, rows, seeing, cache)
        x = self.norm(x)  # [B, L, D] or [N, D]
        if self.config.shift and rows is None:
            x = shifted(x)
        if self.modulation is None:
            return x
        shift, scale = self.modulation(cond)[:, None].chunk(2, dim=-1)  # each [B, 1, D]
        return modulate(x, of_rows(shift, rows, L), of_rows(scale, rows, L))

    def _check(
        self, x_t: Tensor | SoftTokens, attention_mask: Tensor | None, cache: Cache | None
    ) -> None:
        """Check the arguments of `forward`."""
        if len(x_t.shape) != 2 or x_t.shape[1] == 0:
            raise ValueError(f"x_t must be [B, L] with L > 0, got {list(x_t.shape)}")
        mask = attention_mask
        if mask is not None and (mask.shape != x_t.shape or mask.dtype != torch.bool):
            raise ValueError(
                f"attention_mask must be {list(x_t.shape)} bool like x_t, "
                f"got {list(mask.shape)} {mask.dtype}"
            )
        if cache is not None:
            if not self.causal:
                raise ValueError("only a causal network takes a cache")
            cache.check(*x_t.shape)

    def _condition(self, sigma: Tensor, batch: int) -> Tensor | None:
        """Conditioning of the blocks ``[B, cond_dim]``; None in plain blocks."""
        if self.sigma is None:
            return None
        if sigma.shape != (batch,):
            raise ValueError(f"sigma must be [{batch}], got {list(sigma.shape)}")
        out: Tensor = self.sigma(sigma)
        return out

    def reset_parameters(self) -> None:
        """`init` from seed 0."""
        self.init(0)

    @torch.no_grad()
    def init(self, seed: int) -> None:
        """Initialise all parameters, as a function of the seed and each parameter's name alone.

        As published: embedding, matrices and their biases uniform in +-1/sqrt(fan-in), norms one,
        adaLN, sink and head zero (each block the identity, uniform predictions) except for
        ``gate_init`` and ``head_init``. Parameters on the meta device are skipped. Sharded ones
        (FSDP2) are distributed, so all processes must call it.
        """
        self._tie_embeddings()  # ``to_empty`` unties the pair
        for name, parameter in self.named_parameters():
            if parameter.is_meta:
                continue
            values = self._start(name, parameter.shape, seed)
            sharded: Any = parameter if hasattr(parameter, "placements") else None
            if sharded is not None:  # a DTensor, whose module takes half a second to import
                from torch.distributed.tensor import distribute_tensor

                values = distribute_tensor(values, sharded.device_mesh, sharded.placements)
            parameter.copy_(values)

    def _start(self, name: str, shape: torch.Size, seed: int) -> Tensor:
        """Initial values of a parameter, on the CPU in float32."""
        owner, _, leaf = name.rpartition(".")
        values = torch.zeros(shape, dtype=torch.float32, device="cpu")
        generator = torch.Generator(device="cpu").manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        if owner.endswith("modulation") or leaf == "sink":
            if leaf == "bias" and owner != "modulation":  # shift, scale, gate of each branch
                values.view(6, -1)[[2, 5]] = self.config.gate_init
            return values
        if owner == "head":
            wanted = leaf == "weight" and self.config.head_init
            return (
                values.normal_(0, self.config.head_init, generator=generator) if wanted else values
            )
        if "norm" in owner.rpartition(".")[2]:
            return values.fill_(1)
        if leaf == "first":  # as a row of the embedding
            return values.uniform_(-(shape[-1] ** -0.5), shape[-1] ** -0.5, generator=generator)
        bound = self.get_parameter(f"{owner}.weight").shape[1:].numel() ** -0.5
        return values.uniform_(-bound, bound, generator=generator)

    def _tie_embeddings(self) -> None:
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.get_parameter("weight")

    @classmethod
    def from_state(cls, config: DiTConfig, state: dict[str, Tensor]) -> DiT:
        """Build a network from given weights, without copying them.

        Args:
            config: sizes and options.
            state: all parameters by name; one of a tied pair suffices.

        Raises:
            ConfigError: names or shapes do not match, or a weight is not finite.
        """
        state = dict(state)
        _check_measures(config, state)
        with torch.device("meta"):
            model = cls(config)
        if config.tie_embeddings:
            pair = {"embedding.weight", "head.weight"}
            state.update(
                {name: state[twin] for name in pair - state.keys() for twin in pair & state.keys()}
            )
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        check_weights(state, shapes)
        model.load_state_dict(state, assign=True)
        model._tie_embeddings()
        return model.eval()

    def save_weights(self, path: Path) -> None:
        """Write the parameters as safetensors, a tied pair only once."""
        save_model(self, str(path))

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save_weights(save_directory / WEIGHTS_NAME)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        config: DiTConfig | dict[str, Any] | None = None,
        map_location: str = "cpu",
        **download: Any,
    ) -> DiT:
        """Hook of the mixin: load weights and configuration from a directory or the hub."""
        if config is None:
            raise ConfigError(f"{model_id} has no config.json")
        if isinstance(config, dict):
            config = DiTConfig.from_dict(config)
        path = Path(model_id) / WEIGHTS_NAME
        if not Path(model_id).is_dir():
            path = Path(hf_hub_download(model_id, WEIGHTS_NAME, **download))
        elif not path.is_file():
            raise ConfigError(f"{model_id} has no {WEIGHTS_NAME}")
        state = load_file(path, device=map_location)
        kinds = {tensor.dtype for tensor in state.values()}
        if len(kinds) != 1 or not kinds <= _WEIGHTS:
            listed = ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds))
            raise ConfigError(f"{path} holds {listed or 'no weights'}, must be one float type")
        return cls.from_state(config, state)


def _check_measures(config: DiTConfig, state: dict[str, Tensor]) -> None:
    """Check sizes against the weights, before a network of that size is built."""
    found = len({at[0] for name in state if (at := _BLOCK.match(name))})
    towers = config.blocks // 2 if config.architecture == "hollow" else 0  # there are two of them
    if found != config.blocks + towers:
        raise ConfigError(
            f"the weights have {found} blocks, not {config.blocks + towers} as of "
            f"`blocks={config.blocks}`"
        )
    shape = [config.vocab_size, config.width]
    for name in ("embedding.weight", "head.weight"):
        if name in state and list(state[name].shape) != shape:
            raise ConfigError(f"{name} is {list(state[name].shape)} instead of {shape}")
