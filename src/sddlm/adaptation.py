"""The verb ``sddlm adapt``: an autoregressive model becomes a start for a diffusion model.

Its causal mask is lifted, and the output at a position is read from the state of the position
before, which predicted that token already (DiffuLLaMA, arXiv:2410.17891).
"""

from __future__ import annotations

import logging
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sddlm.data.ids import filled
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments, first_line
from sddlm.hub import download, is_repo_id
from sddlm.io import read_json
from sddlm.lm import LanguageModel
from sddlm.model_dir import CONFIG_NAME, is_model_dir, is_public
from sddlm.models.backbone import CAUSAL, CLASSES, Backbone, BackboneConfig, library, plain
from sddlm.models.dit import DiT
from sddlm.process.estimate import Estimate
from sddlm.process.uniform import UniformProcess

logger = logging.getLogger(__name__)

_FILES = ("*.json", "*.safetensors", "merges.txt", "vocab.txt")
#: diffusion models by ``model_type``, and what their outputs mean
_DIFFUSION = {"diffusion_gemma": Estimate.DENOISER}


@check_arguments
def adapt(source: str, out: str, revision: str | None = None) -> Path:
    """Make an autoregressive model a start for the training of a diffusion model.

    Every position attends to all, and nothing depends on the noise level. The model directory
    cannot be sampled before ``sddlm train --start OUT`` has trained it.

    Args:
        source: run or model directory of an autoregressive model; or a model of transformers, as a
            folder or a name on the hub: GPT-2, Llama, Qwen2 or Qwen3. DiffusionGemma needs no
            training and becomes an ordinary model directory.
        out: the model directory.
        revision: branch, tag or commit of a repository on the hub.

    Returns:
        ``out``.

    Raises:
        ConfigError: the model is another one, or its files are incomplete.
    """
    lm = _lifted(source) if is_model_dir(source) else _opened(source, revision)
    lm.save(out)
    place = shlex.quote(out)
    then = f"sddlm train --start {place} --data.path TEXT --out RUN"
    then = f"sddlm sample {place}" if lm.estimate.diffusion else then
    logger.info("written to %s; next: %s", out, then)
    return Path(out)


@check_arguments
def wrap(
    source: str,
    *,
    estimate: Literal["leave_one_out", "denoiser"] | None = None,
    length: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> LanguageModel:
    """Open a uniform-state diffusion model of ``transformers``, to sample and score it.

        lm = sddlm.wrap("google/diffusiongemma-26B-A4B-it")

    Its weights are not converted and stay in their precision.

    Args:
        source: folder, or name of a repository on the hub.
        estimate: what its output means; None where that is known (DiffusionGemma).
        length: length of samples; None is that of its canvas, else all positions.
        revision: branch, tag or commit of the repository.
        trust_remote_code: run the code of the repository, which can do anything, if the model is
            not a part of ``transformers``.

    Returns:
        the model, its network in evaluation mode on the CPU.

    Raises:
        ConfigError: the model is autoregressive, its code is not trusted, or files are incomplete.
    """
    return _opened(source, revision, estimate, length, trust_remote_code, causal=False)


def _lifted(source: str) -> LanguageModel:
    """An autoregressive model of ours without its causal mask."""
    lm = LanguageModel.load(source)
    if lm.estimate.diffusion:
        raise ConfigError(
            f"`source` {source} is a diffusion model already; go on with sddlm train --start"
        )
    config, state = lm.network.config, lm.network.state_dict()
    kernel, name = config.input_conv, "input_conv.conv.weight"
    if kernel:  # the same convolution, with room for the positions behind
        state[name] = F.pad(state[name], (0, kernel - 1))
        kernel = 2 * kernel - 1
    config = replace(config, causal=False, time_input="none", input_conv=kernel, shift=True)
    return replace(lm, network=DiT.from_state(config, state))


def _opened(
    source: str,
    revision: str | None,
    estimate: str | None = None,
    length: int | None = None,
    trust_remote_code: bool = False,
    causal: bool = True,
) -> LanguageModel:
    """A model of transformers; an autoregressive one, where it may be ``causal``, is lifted."""
    transformers = library()
    files = (*_FILES, "*.py") if trust_remote_code else _FILES
    place = download(source, revision, files) if is_repo_id(source) else Path(source)
    if not is_public(place):
        raise ConfigError(f"`source` {source} is no model: no config.json there has a model_type")
    kind = str(read_json(place / CONFIG_NAME)["model_type"])
    lift = kind in CAUSAL
    meaning = Estimate.NEXT_TOKEN if lift else _DIFFUSION.get(kind)
    meaning = Estimate(estimate) if estimate else meaning
    if kind not in CLASSES and not trust_remote_code:
        raise ConfigError(
            f"`source` {source} is a {kind}; sddlm adapt reads {', '.join(CLASSES)}, other "
            "diffusion models only sddlm.wrap with `trust_remote_code=True`, which runs their code"
        )
    if meaning is None:
        raise ConfigError(f"`source` {source} does not state what it predicts: give `estimate`")
    if lift and not causal:
        raise ConfigError(f"`source` {source} is a {kind}: sddlm adapt makes it a diffusion model")
    model = _model(transformers, place, kind, trust_remote_code)
    try:
        tokenizer = Tokenizer.load(place)
    except ConfigError as error:
        raise ConfigError(str(error).replace("`data.tokenizer`", "`source`")) from error
    sizes = model.config.get_text_config()
    V = len(model.get_input_embeddings().weight)
    if lift:
        filled(tokenizer, V)  # or refused: it has more
        V = tokenizer.vocab_size
        model.resize_token_embeddings(V)  # what is no token must not be noise
        for name in vars(sizes):
            if name.endswith(("dropout", "pdrop")):
                setattr(sizes, name, 0.0)
    else:
        V = min(V, sizes.vocab_size)
        tokenizer = filled(tokenizer, V)
    length = length or getattr(model.config, "canvas_length", None)
    length = length or sizes.max_position_embeddings
    config = BackboneConfig(vocab_size=V, length=length, backbone=plain(model.config), shift=lift)
    network: Any = Backbone(config, model).eval()
    if not lift:
        _check_bidirectional(network, source)
    packing = {"packing": "wrap", "bos_eos": False, "eos": True}
    data = {"source": f"unknown, adapted from {source}", "packing": packing}
    return LanguageModel(network, UniformProcess(), meaning, tokenizer, {}, data)


def _model(transformers: Any, place: Path, kind: str, trust_remote_code: bool) -> Any:
    """The model with its head, if all its weights are in the files.

    Raises:
        ConfigError: some are missing or misshapen, which transformers would draw at random.
    """
    names = read_json(place / CONFIG_NAME).get("auto_map", {})
    remote = next((name for name in names if name.startswith("AutoModelFor")), "AutoModel")
    make = getattr(transformers, CLASSES.get(kind, remote))
    try:
        model, found = make.from_pretrained(
            place,
            dtype="auto",
            attn_implementation="sdpa" if kind in CLASSES else None,
            trust_remote_code=trust_remote_code and kind not in CLASSES,
            output_loading_info=True,
        )
    except Exception as error:  # whatever a file or its code may raise
        raise ConfigError(f"`source`: {place} cannot be read: {first_line(error)}") from error
    lacking = sorted(found["missing_keys"]) + [str(each[0]) for each in found["mismatched_keys"]]
    if lacking:
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        raise ConfigError(
            f"`source`: {place} lacks weights of its network, or has them in another shape: "
            f"{', '.join(lacking[:4])}{more}"
        )
    return model


@torch.inference_mode()
def _check_bidirectional(network: Any, source: str) -> None:
    """Refuse a network whose first position does not see the second."""
    x = torch.tensor([[0, 0], [0, 1]])
    states: Tensor = network(x, torch.zeros(2))  # [2, 2, D]
    if torch.equal(states[0, 0], states[1, 0]):
        raise ConfigError(f"`source` {source} is causal: no position sees those behind it")
