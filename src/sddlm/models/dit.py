"""The network: tokens and a noise level to hidden states, with the vocabulary head beside it.

The diffusion transformer of MDLM (arXiv:2406.07524) and Duo (arXiv:2506.10892), after DiT
(arXiv:2212.09748); with ``causal=True`` the autoregressive transformer that they compare with.
With ``architecture="llama"`` the transformer of SMDM (arXiv:2410.18514), causal that of LLaMA.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from safetensors.torch import load_file, save_model
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sddlm.errors import ConfigError
from sddlm.models.block import Block, norm_of
from sddlm.models.cache import Cache
from sddlm.models.config import Checkpointing, DiTConfig
from sddlm.models.layers import (
    Embedding,
    InputConv,
    Linear,
    Rotary,
    SigmaEmbedder,
    modulate,
    of_rows,
)
from sddlm.models.vocab_head import VocabHead
from sddlm.types import SoftTokens

WEIGHTS_NAME = "model.safetensors"
_WEIGHTS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}


class DiT(nn.Module, PyTorchModelHubMixin, library_name="sddlm", tags=["text-diffusion"]):
    """A transformer over noisy tokens, told the noise level.

    Building it fills its parameters (but on the meta device), without the global random state;
    `init` does so again. ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` come from the
    hub's mixin: ``config.json`` and ``model.safetensors``, never a pickle.

    Args:
        config: its measures.
        seed: for `init`.

    Attributes:
        config: what it was built from.
        vocab_size: V.
        length: the sequence length it was built for; any other works, positions are relative.
        causal: a position sees only itself and earlier ones, and the noise level is not used.
        time_free: the noise level is not used, so the output depends on the tokens alone.
        checkpointing: what the backward pass computes again instead of keeping it: ``none``;
            ``light``, norms and what stands between the MLP's products, which is nearly free;
            ``full``, each block, a third more work.
        head: `VocabHead`, hidden states to the vocabulary.
    """

    def __init__(self, config: DiTConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.causal = config.causal
        self.time_free = config.time_free or config.causal
        self.checkpointing: Checkpointing = "none"
        width, causal, architecture = config.width, config.causal, config.architecture
        cond_dim = 0 if self.time_free else config.cond_dim
        self.embedding = Embedding(config.vocab_size, width)
        self.input_conv = InputConv(width, config.input_conv, causal) if config.input_conv else None
        self.sigma = SigmaEmbedder(cond_dim) if cond_dim else None
        self.rotary = Rotary(width // config.heads)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, cond_dim, config.dropout, causal, architecture)
            for _ in range(config.blocks)
        )
        self.norm = norm_of(architecture, width)
        self.modulation = Linear(cond_dim, 2 * width) if cond_dim else None
        self.head = VocabHead(
            width, config.vocab_size, bias=architecture == "dit", input_only=config.input_only
        )
        self.init(seed)

    def new_cache(self, length: int | None = None) -> Cache:
        """An empty cache with room for ``length`` positions (default: those trained for).

        Raises:
            ConfigError: if the network is not causal, so that new positions change the old ones.
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
        attend: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Hidden states, ready for the head.

        Args:
            x_t: noisy tokens ``[B, L]`` int64, or mixtures of tokens in their place.
            sigma: noise level, -log alpha_t ``[B]``; a time-free network does not look at it.
            rows: positions whose hidden states are wanted, ``b L + l`` of each ``[N]`` int64: of
                the others the last block computes only what is attended to. None is all.
            attend: positions that may be looked at ``[B, L]`` bool, the others being padding at
                the end of a row; None is all. Padding changes nothing elsewhere, and what comes out
                there means nothing. In a causal network no position sees what is behind it, so
                there this changes nothing (and does not hide padding at the beginning).
            cache: of `new_cache`; ``x_t`` are then the L positions after those it has seen, and
                are added to it.

        Returns:
            ``[B, L, D]``, or ``[N, D]`` of the given rows, in the dtype of the weights.

        Raises:
            ValueError: if ``x_t`` is not ``[B, L]`` with L > 0, ``sigma`` not ``[B]`` or ``attend``
                not ``[B, L]`` bool, or if the cache has no room or the network is not causal.
        """
        self._check(x_t, attend, cache)
        attend = None if attend is None or self.causal else _not_blind(attend)
        L = x_t.shape[1]
        x = self.embedding(x_t)  # [B, L, D]
        if self.input_conv is not None:
            if attend is not None:  # as if the row ended where its padding begins
                x = x.masked_fill(~attend[:, :, None], 0)
            x = self.input_conv(x, cache)
        mask = None if attend is None else attend[:, None, None]  # [B, 1, 1, L]
        seen = cache.seen if cache else 0
        turns = self.rotary(seen + L, x.device, x.dtype)
        cos, sin = (part[seen:] for part in turns)  # each [L, D / heads / 2]
        cond = self._condition(sigma, x_t.shape[0])  # [B, cond_dim]
        for number, block in enumerate(self.blocks, start=1):
            more = (
                (cache, number) if cache else None,
                rows if number == len(self.blocks) else None,
                mask,
            )
            if self.checkpointing == "full" and torch.is_grad_enabled():
                x = checkpoint(block, x, cond, cos, sin, *more, use_reentrant=False)
            else:
                x = block(x, cond, cos, sin, *more, light=self.checkpointing == "light")
        if cache:
            cache.seen += L
        x = self.norm(x)  # [B, L, D] or [N, D]
        if self.modulation is None:
            return x
        shift, scale = self.modulation(cond)[:, None].chunk(2, dim=-1)  # each [B, 1, D]
        return modulate(x, of_rows(shift, rows, L), of_rows(scale, rows, L))

    def _check(self, x_t: Tensor | SoftTokens, attend: Tensor | None, cache: Cache | None) -> None:
        """Refuse what `forward` cannot take."""
        if len(x_t.shape) != 2 or x_t.shape[1] == 0:
            raise ValueError(f"x_t must be [B, L] with L > 0, got {list(x_t.shape)}")
        if attend is not None and (attend.shape != x_t.shape or attend.dtype != torch.bool):
            raise ValueError(
                f"attend must be {list(x_t.shape)} bool like x_t, "
                f"got {list(attend.shape)} {attend.dtype}"
            )
        if cache is not None:
            if not self.causal:
                raise ValueError("only a causal network takes a cache")
            cache.check(*x_t.shape)

    def _condition(self, sigma: Tensor, batch: int) -> Tensor | None:
        """What the blocks are told of the noise level ``[B, cond_dim]``."""
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
        """Fill all parameters, a function of the seed and each parameter's name alone.

        As published: embedding, matrices and their biases uniform in +-1/sqrt(fan-in), norms one,
        adaLN and head zero (each block the identity, uniform predictions) but for ``gate_init``
        and ``head_init``. Parameters on the meta device are passed over; of sharded ones (FSDP2)
        each process gets its part, so all must call.
        """
        self._tie()  # ``to_empty`` takes a pair apart
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
        """The values that a parameter starts from, on the CPU in float32."""
        owner, _, leaf = name.rpartition(".")
        values = torch.zeros(shape, dtype=torch.float32, device="cpu")
        generator = torch.Generator(device="cpu").manual_seed(zlib.crc32(f"{seed} {name}".encode()))
        if owner.endswith("modulation"):
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
        bound = self.get_parameter(f"{owner}.weight").shape[1:].numel() ** -0.5
        return values.uniform_(-bound, bound, generator=generator)

    def _tie(self) -> None:
        if self.config.tie:
            self.head.weight = self.embedding.get_parameter("weight")

    @classmethod
    def from_state(cls, config: DiTConfig, state: dict[str, Tensor]) -> DiT:
        """A network around given weights, which are taken as they are and not copied.

        Args:
            config: its measures.
            state: all its parameters by name; of a tied pair one suffices.

        Raises:
            ConfigError: if names or shapes do not fit, or a weight is no finite number; the message
                lists them.
        """
        state = dict(state)
        _check_measures(config, state)
        with torch.device("meta"):
            model = cls(config)
        if config.tie:
            pair = {"embedding.weight", "head.weight"}
            state.update(
                {name: state[twin] for name in pair - state.keys() for twin in pair & state.keys()}
            )
        shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
        problems = [f"{name} is missing" for name in shapes if name not in state]
        problems += [f"{name} is unexpected" for name in state if name not in shapes]
        problems += [
            f"{name} is {list(state[name].shape)} instead of {list(shape)}"
            for name, shape in shapes.items()
            if name in state and state[name].shape != shape
        ]
        problems += not_finite(state)
        if problems:
            more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
            raise ConfigError(
                f"the weights do not fit the network: {'; '.join(problems[:4])}{more}"
            )
        model.load_state_dict(state, assign=True)
        model._tie()
        return model.eval()

    def save_weights(self, path: Path) -> None:
        """Write the parameters as safetensors, a tied pair once."""
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
        """The mixin's hook: weights and configuration of a local directory or of the hub."""
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
    """Refuse measures that the weights do not have, before a network of that size is built."""
    found = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
    if found != config.blocks:
        raise ConfigError(f"the weights have {found} blocks, not `blocks={config.blocks}`")
    shape = [config.vocab_size, config.width]
    for name in ("embedding.weight", "head.weight"):
        if name in state and list(state[name].shape) != shape:
            raise ConfigError(f"{name} is {list(state[name].shape)} instead of {shape}")


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """A line for each tensor with a NaN or an infinity, from which only noise can come."""
    return [
        f"{name} is not finite: the training diverged, or the file is damaged"
        for name, tensor in state.items()
        if not tensor.isfinite().all()
    ]


def _not_blind(attend: Tensor) -> Tensor:
    """The same, but all positions of a row that has none: 0 / 0 in some attention kernels."""
    return attend | ~attend.any(1, keepdim=True)
