"""Configuration of the network: as stored in a checkpoint, and as command-line options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from sddlm.errors import ConfigError, check_choices
from sddlm.io import current_names

Checkpointing = Literal["none", "selective", "full"]
Architecture = Literal["dit", "llama", "hollow", "gidd"]
TimeInput = Literal["sigma", "t", "zero", "none"]
Preset = Literal["mini", "tiny", "small", "medium", "1b", "1.1b", "10b"]

PRESETS: dict[str, dict[str, Any]] = {
    "mini": {"width": 192, "blocks": 4, "heads": 6},
    "tiny": {"width": 256, "blocks": 8, "heads": 8},
    "small": {"width": 768, "blocks": 12, "heads": 12},
    "medium": {"width": 1024, "blocks": 24, "heads": 16},
    "1b": {"width": 2048, "blocks": 21, "heads": 32},
    "1.1b": {"width": 1792, "blocks": 20, "heads": 14, "architecture": "llama"},
    "10b": {"width": 4096, "blocks": 36, "heads": 32, "architecture": "llama"},
}
"""Sizes by name. tiny, small and medium are Duo's (arXiv:2506.10892); 1b has 1.09 billion
parameters beside the embeddings; 1.1b is the 1,028 million of SMDM (arXiv:2410.18514), 1.14 billion
with the embeddings of 32,000 tokens; 10b has 9.7 billion beside them; mini is for a CPU."""


#: architectures without noise-level input, gates and a bias of the head
_PLAIN = ("llama", "gidd")
#: largest scale of initial weights: above it, a network of any size overflows
_LARGEST_INIT = 100.0
#: largest size: a larger one is a mistake, and would take hours or all memory before it failed
LARGEST = 1 << 20


@dataclass(kw_only=True)
class DiTKnobs:
    """Options that do not depend on the size, as listed in `ModelArgs`."""

    cond_dim: int = 128
    dropout: float = 0.0
    tie_embeddings: bool = False
    gate_init: float = 0.0
    head_init: float = 0.0
    head_bias: Literal["zero", "unigram"] = "zero"
    embedding_init: Literal["uniform", "pmi"] = "uniform"
    input_conv: int = 0
    time_input: TimeInput = "sigma"


@dataclass(kw_only=True)
class DiTConfig(DiTKnobs):
    """Configuration of a `DiT`: everything that determines its shapes and initialisation.

        DiTConfig.preset("mini", vocab_size=4096, length=128)

    The other fields are those of `ModelArgs`.

    Attributes:
        vocab_size: V, with the extra tokens of the process.
        length: L, the training length.
        width: D, the width of the residual stream.
        blocks: number of transformer blocks.
        heads: number of attention heads.
        architecture: type of the blocks: see `ModelArgs`.
        causal: an autoregressive network: causal attention and no noise level.
        num_extra_tokens: noise-only tokens at the end of the vocabulary, never predicted (a mask).
        shift: the output at a position is read from the state of the position before, as in the
            autoregressive network that it was (`adapt`); the first position has its own.
        time_uniform: share of uniform noise in GIDD's process, whose time is the input ``t``.
        labels: rows of a label embedding that is added to the conditioning; 0 for none.
        label: the row that is added; the last one stands for no label.

    Raises:
        ConfigError: the values contradict each other.
    """

    vocab_size: int
    length: int
    width: int
    blocks: int
    heads: int
    architecture: Architecture = "dit"
    causal: bool = False
    num_extra_tokens: int = 0
    shift: bool = False
    time_uniform: float = 0.0
    labels: int = 0
    label: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        if self.architecture in _PLAIN:
            if self.time_input not in ("sigma", "none"):  # the default may be no choice
                kind = f"a {self.architecture}"
                raise _wrong("time_input", f"is {self.time_input}, must be none in {kind}")
            self.time_input = "none"
        self._check_sizes()
        self._check_combinations()

    @property
    def conditioned(self) -> bool:
        """Whether the blocks have a conditioning: on a noise level, on zero, on a label."""
        return self.time_input != "none" and not self.causal

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "length", "width", "blocks", "cond_dim", "input_conv"):
            if getattr(self, name) > LARGEST:
                raise _wrong(name, f"is {getattr(self, name)}, must be at most {LARGEST}")
        for name, least in (
            ("vocab_size", 2),
            ("length", 1),
            ("width", 1),
            ("blocks", 1),
            ("heads", 1),
            ("cond_dim", 1),
            ("input_conv", 0),
            ("num_extra_tokens", 0),
            ("labels", 0),
            ("label", 0),
        ):
            if getattr(self, name) < least:
                raise _wrong(name, f"is {getattr(self, name)}, must be at least {least}")
        if self.width % self.heads:
            raise _wrong("heads", f"is {self.heads}, must divide `width` {self.width}")
        if self.width // self.heads % 2:
            raise _wrong(
                "heads",
                f"is {self.heads}: width / heads = {self.width // self.heads} must be even "
                "for rotary positions",
            )
        if not 0 <= self.dropout < 1:
            raise _wrong("dropout", f"is {self.dropout}, must be in [0, 1)")
        for name, low in (("head_init", 0), ("gate_init", -_LARGEST_INIT)):
            if not low <= (value := getattr(self, name)) <= _LARGEST_INIT:
                raise _wrong(name, f"is {value}, must be {low:g} to {_LARGEST_INIT:g}")

    def _check_combinations(self) -> None:
        if self.tie_embeddings and self.head_init:
            raise _wrong("head_init", "has no meaning with `tie_embeddings=True`; leave one out")
        if self.gate_init and not self.conditioned:
            kind = "an autoregressive network" if self.causal else "a time-free network"
            kind = f"a {self.architecture}" if self.architecture in _PLAIN else kind
            raise _wrong(
                "gate_init",
                f"has no meaning in {kind}, which has no gates; leave it out, or where a file has "
                "it, add `gate_init=0`",
            )
        if self.architecture in _PLAIN and self.cond_dim != DiTKnobs.cond_dim:
            raise _wrong(
                "cond_dim",
                f"has no meaning in a {self.architecture}, which has no noise-level input; leave "
                f"it out, or where a file has it, add `cond_dim={DiTKnobs.cond_dim}`",
            )
        if self.architecture in ("hollow", "gidd") and self.causal:
            raise _wrong(
                "architecture",
                f"is {self.architecture}, which looks ahead; an autoregressive network is a dit or "
                "a llama",
            )
        if self.architecture in _PLAIN and self.head_bias != DiTKnobs.head_bias:
            raise _wrong(
                "head_bias",
                f"has no meaning in a {self.architecture}, whose head has none; leave it out",
            )
        if not 0 <= self.time_uniform < 1:
            raise _wrong("time_uniform", f"is {self.time_uniform}, must be in [0, 1)")
        if (self.labels or self.label) and not (self.conditioned and self.label < self.labels):
            raise _wrong(
                "label",
                f"is {self.label}, must be below `labels` {self.labels}, in a network with a "
                "conditioning",
            )
        one_way = self.causal or self.architecture == "hollow"
        if not one_way and self.input_conv and self.input_conv % 2 == 0:
            raise _wrong("input_conv", f"is {self.input_conv}, must be odd (or 0 for none)")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> DiTConfig:
        """Configuration of a named size.

        Args:
            name: a key of `PRESETS`.
            overrides: fields of `DiTConfig`; ``vocab_size`` and ``length`` are required.

        Raises:
            ConfigError: the name is not a key.
        """
        if name not in PRESETS:
            raise _wrong("preset", f"is {name!r}, must be one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> DiTConfig:
        """Configuration from a dictionary (a ``config.json``); other keys are ignored.

        Raises:
            ConfigError: a key is missing, or a value has the wrong type.
        """
        known = {f.name for f in fields(cls)}
        try:
            return cls(**{k: v for k, v in current_names(values).items() if k in known})
        except TypeError as error:
            raise ConfigError(f"config.json does not describe a DiT: {error}") from error


@dataclass(kw_only=True)
class ModelArgs(DiTKnobs):
    """Options of the network: a named size, and changes to it. The defaults are as published.

    Attributes:
        preset: size by name: mini (192 wide, 4 blocks), tiny (256, 8), small (768, 12), medium
            (1024, 24), 1b (2048, 21), and as llama 1.1b (1792, 20) and 10b (4096, 36).
        architecture: type of the blocks, instead of the preset's. dit: LayerNorm, GELU and adaLN
            conditioning on the noise level (published); llama: RMSNorm, SwiGLU, no biases, no
            conditioning; hollow: blocks as in dit, in two causal towers from both ends and a stream
            of queries, so that a prediction does not depend on the token at its position and every
            position can train it; gidd: RMSNorm also of queries and keys, capped attention scores,
            an attention sink, squared ReLU, no conditioning.
        width: width of the residual stream, instead of the preset's.
        blocks: number of transformer blocks, instead of the preset's.
        heads: number of attention heads, instead of the preset's.
        cond_dim: width of the noise-level conditioning.
        dropout: dropout on both residual branches of a block.
        tie_embeddings: one matrix for the token embedding and the vocabulary head.
        gate_init: initial bias of the adaLN gates: 0 makes every block the identity (published), 1
            leaves the plateau sooner in short runs.
        head_init: standard deviation of the head's weights at the start: 0 predicts uniformly
            (published).
        head_bias: initial bias of the head: zero (published); unigram, the logarithm of each
            token's share of the training rows, so that no step is spent on learning it.
        embedding_init: initial token embedding: uniform (published); pmi, factors of the pointwise
            mutual information of neighbours in the training rows (`training.pmi`).
        input_conv: kernel size of a residual convolution over the token embeddings, 0 for none
            (published).
        time_input: conditioning of the blocks: sigma, the noise level -log alpha (published); t, 1
            - alpha, or GIDD's time; zero in place of sigma (MDLM); none: plain blocks without
            adaLN, as in a llama. With zero or none the bound is slightly worse, and sampling reuses
            a prediction as long as no token has changed.
    """

    preset: Preset = "tiny"
    architecture: Architecture | None = None
    width: int | None = None
    blocks: int | None = None
    heads: int | None = None

    def __post_init__(self) -> None:
        check_choices(self)

    def build(
        self, *, vocab_size: int, length: int, causal: bool = False, num_extra_tokens: int = 0
    ) -> DiTConfig:
        """Configuration for a vocabulary, a length and an objective.

        Args:
            vocab_size: V, including the extra tokens.
            length: L.
            causal: whether to build an autoregressive network.
            num_extra_tokens: number of noise-only tokens at the end of the vocabulary.

        Raises:
            ConfigError: the options contradict each other.
        """
        chosen = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "preset"}
        overrides = {name: value for name, value in chosen.items() if value is not None}
        return DiTConfig.preset(
            self.preset,
            vocab_size=vocab_size,
            length=length,
            causal=causal,
            num_extra_tokens=num_extra_tokens,
            **overrides,
        )


def _wrong(name: str, what: str) -> ConfigError:
    return ConfigError(f"`{name}` {what}")
