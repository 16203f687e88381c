"""Conventions of generative perplexity: how a judge reads samples.

Published figures differ in all of these choices, by more than the models do. A figure is comparable
only to one of the same convention and the same judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sddlm.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Convention:
    """From tokens of a sampler to tokens of a judge, and which of these are scored.

    Attributes:
        name: of the preset.
        special_tokens: samples are decoded with their special tokens written out.
        clean_up_spaces: spaces before punctuation and contractions are removed from the decoded
            text, as transformers before 4.45 did by default.
        bos: ``always``, the judge's begin-of-text token (else end-of-text) stands in front, and
            every token of the text is scored; ``tokenizer``, what the judge's tokenizer adds:
            nothing for GPT-2, whose first token is then context and not scored.
        sample_length: text is first cut to as many tokens of the judge as the longest sample has of
            its own.
        context: most tokens that the judge sees at once, a token in front not counted; None is
            the judge's limit.
        chunked: text beyond the context is scored in further chunks, each without context;
            otherwise it is cut off.
        eos: end-of-text tokens of the judge (not the one in front) are ``scored`` like any other,
            or only the ``first`` of a context is, even where it is padding.
        batch_size: number of samples that are padded together, with end-of-text tokens up to the
            longest of them; None is all. It matters only where padding counts (``eos`` is first).
    """

    name: str
    special_tokens: bool = False
    clean_up_spaces: bool = False
    bos: Literal["always", "tokenizer"] = "always"
    sample_length: bool = False
    context: int | None = None
    chunked: bool = False
    eos: Literal["scored", "first"] = "scored"
    batch_size: int | None = None

    def at(self, context: int | None, limit: int, judge: str) -> Convention:
        """This convention with the context that is used.

        Args:
            context: what the user wants; None for the convention's own.
            limit: most that the judge can.
            judge: its name.

        Raises:
            ConfigError: the convention needs more context than the judge has.
        """
        used = context or self.context or limit
        if context is None and used > limit:
            raise ConfigError(
                f"`convention` {self.name} reads {used} tokens at once but judge {judge} can "
                f"{limit}: set `context` to {limit}, and state it beside the figure"
            )
        return replace(self, context=used)


#: Duo's, as of s-sahoo/duo (metrics.py at 547fb15, main.py, scripts/gen_ppl_owt_duo.sh, read):
#: `batch_decode` with its defaults (transformers is pinned to 4.38.2, which cleans up spaces); the
#: judge's tokenizer with its defaults, truncation to the sampler's length and padding on the right
#: to the longest of the batch (GPT-2 has no padding token and gets end-of-text); chunks of 1024
#: tokens; the mean over all tokens. A target counts if it is no end-of-text, or if exactly one
#: end-of-text stands up to it and itself included. A text without one that is shorter than the
#: longest of its batch therefore gets its first padding counted. Its scripts draw and judge 8
#: samples at a time. MDLM's (kuleshov-group/mdlm, diffusion.py, of which copies in other
#: repositories were read) has the same lines.
_DUO = Convention(
    "duo", special_tokens=True, clean_up_spaces=True, bos="tokenizer", sample_length=True,
    context=1024, chunked=True, eos="first", batch_size=8,
)  # fmt: skip

#: by name; ours is the first
CONVENTIONS: dict[str, Convention] = {
    convention.name: convention for convention in (Convention("sddlm"), _DUO)
}


def convention_of(name: str) -> Convention:
    """The preset of a name; ``mdlm`` is another name of ``duo``.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {**CONVENTIONS, "mdlm": _DUO}
    if name in known:
        return known[name]
    meant = did_you_mean(name, known)
    raise ConfigError(f"`convention` is {name!r}, must be {', '.join(known)}{meant}")


#: what transformers' `clean_up_tokenization` replaces, in its order
_SPACED = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def clean_up_spaces(text: str) -> str:
    """Remove spaces before punctuation, as transformers does in decoded text."""
    for spaced, clean in _SPACED:
        text = text.replace(spaced, clean)
    return text
