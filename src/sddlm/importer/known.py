"""Public checkpoints and their conventions: one row a family, data and no code."""

from __future__ import annotations

from dataclasses import dataclass

from sddlm.models.config import TimeInput
from sddlm.process.base import Process
from sddlm.process.estimate import Estimate
from sddlm.process.hybrid import HybridProcess
from sddlm.process.masked import MaskedProcess
from sddlm.process.mixture import MixtureProcess
from sddlm.process.schedule import LogLinear
from sddlm.process.uniform import UniformProcess


@dataclass(frozen=True)
class Family:
    """Conventions of a family of checkpoints, which their files do not state.

    Attributes:
        process: the corruption; ``p_uniform`` of ``config.json`` replaces its share of uniform
            noise. None: as ``noise_type`` there has it.
        time_input: conditioning of the network; ``time_conditioning`` of ``config.json`` chooses
            between sigma and zero.
        estimate: what the network's output means.
        mask: id of the mask, for tokenizers that give it an unknown name. A process without masks
            leaves it out of the vocabulary.
        model_type: in ``config.json``.
        repositories: names on the hub, for those whose ``model_type`` is another or none.
        bos_eos: rows began with the beginning and ended with the end of text.
        published: perplexities that were published, to compare with.
    """

    process: Process | None
    time_input: TimeInput
    estimate: Estimate = Estimate.LEAVE_ONE_OUT
    mask: int | None = None
    model_type: str | None = None
    repositories: tuple[str, ...] = ()
    bos_eos: bool = True
    published: str = "unknown"


FAMILIES: dict[str, Family] = {
    "duo": Family(
        UniformProcess(), "sigma", model_type="DUO",
        repositories=("s-sahoo/duo", "s-sahoo/duo-distilled", "exdysa/duo"),
        published="25.2 on OpenWebText (Duo, before distillation)",
    ),
    "udlm": Family(
        UniformProcess(), "sigma", model_type="udlm",
        repositories=("kuleshov-group/udlm-lm1b", "kuleshov-group/udlm-qm9"),
    ),
    "mdlm": Family(
        MaskedProcess(), "zero", model_type="mdlm",
        repositories=("kuleshov-group/mdlm-owt", "ArsenyIvanov/mdlm-lm1b"),
        published="23.2 on OpenWebText",
    ),
    "xdlm": Family(
        MixtureProcess(uniform=0.1), "zero", repositories=("EER6/xdlm-owt", "Mzero17/XDLM"),
        published="34.4 on OpenWebText (EER6/xdlm-owt)",
    ),
    "gidd": Family(HybridProcess(LogLinear(1e-4)), "t", model_type="dit", bos_eos=False),
    "gidd-large": Family(
        None, "none", mask=3, model_type="gidd", bos_eos=False,
        published="11.7 (gidd-unif-3b), 11.3 (gidd-mask-3b), 9.15 (gidd-unif-10b) on training text",
    ),
    "ar": Family(UniformProcess(), "none", Estimate.NEXT_TOKEN),
}  # fmt: skip
"""Families by name, of which a repository's own row comes first."""

TOKENIZERS = {50257: "gpt2", 50258: "gpt2", 30522: "bert-base-uncased"}
"""Tokenizers on the hub by vocabulary size, for checkpoints without one."""


def family_of(name: str, model_type: object) -> str | None:
    """Key of a checkpoint's family; None if it is not known.

    Args:
        name: of the repository; any other text matches none.
        model_type: in its ``config.json``.
    """
    for key, family in FAMILIES.items():
        if name in family.repositories:
            return key
    of_type = (
        key for key, row in FAMILIES.items() if row.model_type and row.model_type == model_type
    )
    return next(of_type, None)
