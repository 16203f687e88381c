"""The verb ``sddlm import``: a public checkpoint as a model directory."""

from __future__ import annotations

import logging
import shlex
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from sddlm.data.ids import filled, without
from sddlm.data.tokenizer import Tokenizer
from sddlm.errors import ConfigError, check_arguments, check_choices, did_you_mean
from sddlm.importer.files import CheckpointFiles, read_files
from sddlm.importer.gidd import build_gidd, process_of
from sddlm.importer.known import FAMILIES, TOKENIZERS, Family, family_of
from sddlm.importer.network import build, is_conditioned, is_gidd, parameters, vocabulary_of
from sddlm.lm import LanguageModel
from sddlm.models.config import TimeInput
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.hybrid import HybridProcess
from sddlm.process.masked import MaskedProcess

logger = logging.getLogger(__name__)

_MASKS = ("[MASK]", "<mask>")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What the files of a checkpoint may not state; each has precedence over what they do.

    Attributes:
        like: family of checkpoints with the same conventions: duo, udlm, mdlm, xdlm, gidd,
            gidd-large or ar.
        process: corruption that the network undoes.
        time_input: conditioning of the network: sigma, the noise level -log alpha; t, GIDD's time;
            zero in place of sigma, for networks without time conditioning.
        estimate: what the network's output means; training on a bound gives leave_one_out, on
            cross-entropy at all positions denoiser.
        mask: id of the mask; without it that of the tokenizer's mask, else the last one.
        label: row of a label embedding; without it the last, which stands for no label.
        averaged: take the averaged weights of a Lightning checkpoint, if it has some.
        tokenizer: file, folder or hub name; without it that of the checkpoint, else by the size of
            the vocabulary gpt2 or bert-base-uncased.
        length: training length, where no config.json has it.
        heads: number of attention heads, where no config.json has it.
        revision: branch, tag or commit of a repository on the hub.
    """

    like: str | None = None
    process: Process | None = None
    time_input: TimeInput | None = None
    estimate: (
        Literal[
            "leave_one_out", "leave_one_out_without_x_t", "truncated_leave_one_out", "denoiser",
            "score", "next_token",
        ]
        | None
    ) = None  # fmt: skip
    mask: int | None = None
    label: int | None = None
    averaged: bool = True
    tokenizer: str | None = None
    length: int | None = None
    heads: int | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        check_choices(self)
        if self.like is not None and self.like not in FAMILIES:
            raise ConfigError(
                f"`like` is {self.like!r}, must be one of {', '.join(FAMILIES)}"
                f"{did_you_mean(self.like, FAMILIES)}"
            )


@check_arguments
def import_model(source: str, out: str, **how: Annotated[Any, ImportConfig]) -> LanguageModel:
    """Convert a public checkpoint to a model directory.

    Args:
        source: file of weights (.safetensors, or .ckpt of Lightning), folder with one, or name
            owner/name of a repository on the hub.
        out: the model directory.
        how: what the files do not state (`ImportConfig`).

    Returns:
        the model.

    Raises:
        ConfigError: something must be decided, or the weights are not those of a DiT; all missing,
            unexpected and misshapen ones are named.
    """
    lm = open_checkpoint(source, ImportConfig(**how))
    lm.save(out)
    place = shlex.quote(out)
    logger.info(
        "the model is in %s; next: sddlm sample %s, or to compare with the published perplexity: "
        "sddlm eval %s --data.path TEXT --rows 64 --metrics likelihood", out, place, place,
    )  # fmt: skip
    return lm


def open_checkpoint(source: str, config: ImportConfig | None = None) -> LanguageModel:
    """Read a public checkpoint; see `import_model`."""
    config = config or ImportConfig()
    files = read_files(source, config.revision)
    state = parameters(files, averaged=config.averaged)
    vocabulary, large = vocabulary_of(state), is_gidd(state)
    looks_ahead = large or is_conditioned(state)
    name = config.like or family_of(source, files.config.get("model_type"))
    name = name or (None if looks_ahead else "ar")
    family = FAMILIES[name] if name else None
    process, time_input, estimate = _decide(files, config, family)
    if estimate.diffusion != looks_ahead:
        kind = "looks ahead" if looks_ahead else "has no conditioning"
        raise ConfigError(f"`estimate` is {estimate.value}, but the network {kind}")
    tokenizer = _tokenizer(files, config.tokenizer, vocabulary)
    mask = _mask(process, config.mask, family.mask if family else None, tokenizer, vocabulary)
    ids = [i for i in range(vocabulary) if i != mask]
    if mask is not None:
        ids += [mask] * process.extra_tokens
    sizes: dict[str, Any] = {
        "time_input": time_input, "ids": ids, "extra": process.extra_tokens,
        "label": config.label, "length": config.length, "heads": config.heads,
    }  # fmt: skip
    if large:
        _check_ends(tokenizer, files.config)
        network = build_gidd(state, files.config, **sizes)
    else:
        uniform = _time_uniform(process, time_input)
        network = build(state, files.config, time_uniform=uniform, **sizes)
    if mask is not None and mask < tokenizer.vocab_size:
        tokenizer = without(tokenizer, mask)
    tokenizer = filled(tokenizer, len(ids) - process.extra_tokens)
    logger.info(
        "%s: family %s, %s, time_input %s, estimate %s%s; published perplexity: %s",
        source, name, process, time_input, estimate.value,
        "" if mask is None else f", mask {mask}", family.published if family else "unknown",
    )  # fmt: skip
    packing = {"packing": "wrap", "bos_eos": bool(family and family.bos_eos), "eos": True}
    data = {"source": f"unknown, imported from {source}", "packing": packing}
    return LanguageModel(network, process, estimate, tokenizer, {}, data)


def _time_uniform(process: Process, time_input: TimeInput) -> float:
    """Share of uniform noise that GIDD's time depends on."""
    return process.uniform if time_input == "t" and isinstance(process, HybridProcess) else 0.0


def _decide(
    files: CheckpointFiles, config: ImportConfig, family: Family | None
) -> tuple[Process, TimeInput, Estimate]:
    """Process, conditioning and estimate: as chosen, else as the files or the family have them.

    Raises:
        ConfigError: some of them are known from nowhere.
    """
    process, time_input = config.process, config.time_input
    estimate = Estimate(config.estimate) if config.estimate else None
    if estimate is None and family:
        estimate = family.estimate
    if process is None and family:
        process = _as_stated(family.process, files.config)
    if time_input is None and family:
        time_input = family.time_input
        if time_input in ("sigma", "zero") and "time_conditioning" in files.config:
            time_input = "sigma" if files.config["time_conditioning"] else "zero"
    if process is None or time_input is None or estimate is None:
        needed = {"process": process, "time_input": time_input, "estimate": estimate}
        unknown = ", ".join(f"`{name}`" for name, value in needed.items() if value is None)
        raise ConfigError(
            f"`source` {files.name} does not state all that its network was trained for: give "
            f"{unknown}, or `like` one of {', '.join(FAMILIES)}"
        )
    return process, time_input, estimate


def _as_stated(process: Process | None, config: dict[str, Any]) -> Process | None:
    """A family's process with what ``config.json`` has of it; None if that is unknown."""
    if process is None:
        return process_of(config)
    if not isinstance(process, HybridProcess):
        return process
    share = config.get("p_uniform")
    if share is None:
        return None
    return replace(process, uniform=share) if share else MaskedProcess(process.schedule)


def _tokenizer(files: CheckpointFiles, name: str | None, vocabulary: int) -> Tokenizer:
    """The tokenizer that was chosen, else the checkpoint's own, else a known one."""
    found = name or files.tokenizer or TOKENIZERS.get(vocabulary)
    if found is None:
        raise ConfigError(f"`source` {files.name} has no tokenizer: give `tokenizer`")
    try:
        return Tokenizer.load(found)
    except ConfigError as error:
        raise ConfigError(str(error).replace("`data.tokenizer`", "`tokenizer`")) from error


def _check_ends(tokenizer: Tokenizer, config: dict[str, Any]) -> None:
    """Check that beginning and end of a text have the ids of ``config.json``."""
    own = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    if wrong := [f"{key} {config[key]}" for key in own if config.get(key, own[key]) != own[key]]:
        raise ConfigError(
            f"`tokenizer`: a text begins with id {tokenizer.bos_id} and ends with "
            f"{tokenizer.eos_id}, but config.json has {', '.join(wrong)}; in its tokenizer.json "
            "name these tokens <|begin_of_text|> and <|end_of_text|>"
        )


def _mask(
    process: Process,
    chosen: int | None,
    known: int | None,
    tokenizer: Tokenizer,
    vocabulary: int,
) -> int | None:
    """Id of the mask; None if the vocabulary has none.

    Without a choice that of the family, else by the rule of MDLM: the tokenizer's mask token, else
    an id behind all of them.
    """
    if not process.extra_tokens and known is None:
        if chosen is not None:
            raise ConfigError(f"`mask` is {chosen}, but {type(process).__name__} has no mask")
        return None
    own = (tokenizer.special[name] for name in _MASKS if name in tokenizer.special)
    candidates = (chosen, known, *own, vocabulary - 1)
    mask = next(id for id in candidates if id is not None)
    if not 0 <= mask < vocabulary:
        raise ConfigError(f"`mask` is {mask}, must be an id below {vocabulary}")
    return mask
