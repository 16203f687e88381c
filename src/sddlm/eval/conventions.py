"""How a judge reads samples: every choice that moves a generative perplexity, under a name.

Published figures differ in all of these, by more than the models do, so a figure is comparable
only to one of the same convention and the same judge. The presets say what public code does; they
are facts about that code, not advice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sddlm.errors import ConfigError, closest


@dataclass(frozen=True)
class Convention:
    """From tokens of a sampler to tokens of a judge, and which of these count.

    Attributes:
        name: of the preset.
        special: samples are decoded with their special tokens written out.
        tidy: spaces before punctuation and contractions are taken out of the decoded text, as
            transformers before 4.45 did to GPT-2's text unless it was told not to.
        retokenise: the judge's tokenizer reads the text. Otherwise the judge reads the sampler's
            own tokens, which needs the same tokenizer on both sides.
        front: ``start``, the judge's begin-of-text token (else end-of-text) stands in front, and
            every token of the text is scored; ``tokenizer``, what the judge's tokenizer puts there
            by itself: nothing for GPT-2, whose first token is then context and not scored.
        own_length: text is first cut to as many tokens of the judge as the longest sample has of
            its own.
        context: most tokens that the judge sees at once, a ``start`` in front not counted; None is
            all that it can.
        stride: None: what is beyond the context is cut off. Otherwise the context moves on by so
            many tokens, and the last ``stride`` of it are scored; the first token of a context
            never is.
        eos: end-of-text tokens of the judge (not the one in front) are ``scored`` like any other,
            ``ignored``, or only the ``first`` of a context counts, even where it is padding.
        call: so many samples are read and padded together, with end-of-text tokens up to the
            longest of them; None is all. It matters where padding counts (``eos`` is first), and
            for ``multiple``.
        multiple: samples of a call beyond a multiple of this are left out, if it has so many.
        mean: ``corpus``, exp(sum of nats / sum of tokens); ``texts``, the mean of each text's own
            perplexity.
    """

    name: str
    special: bool = False
    tidy: bool = False
    retokenise: bool = True
    front: Literal["start", "tokenizer"] = "start"
    own_length: bool = False
    context: int | None = None
    stride: int | None = None
    eos: Literal["scored", "first", "ignored"] = "scored"
    call: int | None = None
    multiple: int = 1
    mean: Literal["corpus", "texts"] = "corpus"

    def at(self, context: int | None, limit: int, judge: str) -> Convention:
        """This convention with the context that is used; a stride keeps its share of it.

        Args:
            context: what the user wants; None for the convention's own.
            limit: most that the judge can.
            judge: its name.

        Raises:
            ConfigError: a context that is impossible.
        """
        used = context or self.context or limit
        if context is None and used > limit:
            raise ConfigError(
                f"convention {self.name} reads {used} tokens at once but judge {judge} can "
                f"{limit}; type --context {limit}, and say so beside the figure"
            )
        stride = self.stride
        if stride is not None and self.context is not None:
            stride = max(1, stride * used // self.context)
        return replace(self, context=used, stride=stride)


#: Duo's, as of s-sahoo/duo (metrics.py at 547fb15, main.py, scripts/gen_ppl_owt_duo.sh, read):
#: `batch_decode` with its defaults (transformers is pinned to 4.38.2, which tidies); the judge's
#: tokenizer with its defaults, truncation to the sampler's length and padding on the right to the
#: longest of the call (GPT-2 has no padding token and gets end-of-text); pieces of 1024 tokens,
#: each without context; batches of 8, of which an incomplete one is left out; the mean over all
#: tokens. A target counts if it is no end-of-text, or if exactly one end-of-text stands up to it
#: and itself included. A text without one that is shorter than the longest of its call therefore
#: gets its first padding counted. Its scripts draw and judge 8 samples at a time. MDLM's
#: (kuleshov-group/mdlm, diffusion.py, of which copies in other repositories were read) has the
#: same lines.
_DUO = Convention(
    "duo", special=True, tidy=True, front="tokenizer", own_length=True, context=1024, stride=1024,
    eos="first", call=8, multiple=8,
)  # fmt: skip

#: BD3-LM's, as of kuleshov-group/bd3lms (metrics.py, of which a copy in another repository was
#: read): as Duo's, but a context of 1024 moves on by 512 and scores its last 512, and no
#: end-of-text counts, nor then any padding. Which transformers it was run with could not be read;
#: it is taken not to tidy. Its result files also list a perplexity per batch, which is not this.
_BD3 = Convention(
    "bd3", special=True, front="tokenizer", own_length=True, context=1024, stride=512,
    eos="ignored", call=8, multiple=8,
)  # fmt: skip

#: GIDD's, as of dvruette/gidd (gidd/eval/generative_ppl.py, of which two forks were read; they pin
#: transformers 4.45.1, which does not tidy): decoded without special tokens; the judge's
#: tokenizer with its defaults (Gemma's puts its begin-of-text in front, so every token of the text
#: is scored; GPT-2's does not), truncation to 512 tokens with that one counted. A target counts
#: where the token *before* it is no padding. With padding on the left, as Gemma's tokenizer has
#: it, or in batches of 1, as its page says, these are all tokens but the first, as here. With
#: padding on the right each text but the longest of its batch would have one padding token scored,
#: which is not imitated.
_GIDD = Convention("gidd", front="tokenizer", context=512)

#: by name; ours is the first
CONVENTIONS: dict[str, Convention] = {
    convention.name: convention for convention in (Convention("sddlm"), _DUO, _BD3, _GIDD)
}

_ALIASES = {"mdlm": "duo"}


def convention_of(name: str) -> Convention:
    """A preset by its name; ``mdlm`` is another name of ``duo``.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {**CONVENTIONS, **{alias: CONVENTIONS[to] for alias, to in _ALIASES.items()}}
    if name in known:
        return known[name]
    meant = closest(name, known)
    advice = f"did you mean {meant}? " if meant else ""
    raise ConfigError(f"--convention {name}: {advice}allowed are {', '.join(known)}")


#: what transformers' `clean_up_tokenization` replaces, in its order
_UNTIDY = (
    (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"), (" n't", "n't"),
    (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
)  # fmt: skip


def tidied(text: str) -> str:
    """Text without spaces before punctuation, as transformers tidies what it decoded."""
    for untidy, tidy in _UNTIDY:
        text = text.replace(untidy, tidy)
    return text
