"""Registry of named corpora: repository, splits and conversion of each.

A new corpus is one row here; ``python -m sddlm.data.corpora`` prints the table for people.

Repositories on the hub that hold a script instead of data cannot be read any more; for those the
rows name a copy that holds files. No corpus was downloaded to write or test this: the tests read
folders of the same layout. A comment beside each row states what was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

from sddlm.data.builtin import Builtin
from sddlm.data.corpus import Articles, Corpus, Role, Split, Text8
from sddlm.data.detokenizers import (
    Detokenizer,
    lambada,
    lm1b,
    ptb,
    scientific_papers,
    wikitext,
)
from sddlm.data.sources import Source

__all__ = ["CORPORA", "Corpus", "Role", "Split", "markdown"]


def _hub(
    dataset: str,
    splits: Mapping[Role, str],
    *,
    config: str | None = None,
    revision: str | None = None,
    field: str = "text",
    adapter: Callable[[Source], Source] | None = None,
    detokenizer: Detokenizer | None = None,
) -> dict[Role, Split]:
    """Hub splits by role."""
    return {
        role: Split(
            dataset,
            split,
            config=config,
            revision=revision,
            field=field,
            adapter=adapter,
            detokenizer=detokenizer,
        )
        for role, split in splits.items()
    }


_THREE: dict[Role, str] = {"train": "train", "validation": "validation", "test": "test"}
# the field validates on the test split of corpora that have no third one; so do the rows
_TWO: dict[Role, str] = {"train": "train", "validation": "test", "test": "test"}
_TEXT8: dict[Role, int] = {"train": 90_000_000, "validation": 5_000_000, "test": 5_000_000}
_PARQUET = "refs/convert/parquet"  # the branch that the hub itself makes, one folder a config

_ROWS = (
    Corpus(
        name="builtin",
        description="documentation that comes with Python (English)",
        licence="PSF-2.0",
        size="486 documents, 1.56 million characters on Python 3.11.7",
        hub=None,
        roles={"train": lambda streaming: Builtin()},
    ),
    Corpus(
        name="lm1b",
        description="One Billion Words: shuffled sentences of news, cut into words",
        licence="none stated; the news is its publishers'",
        size="30,301,028 / 306,688 sentences, 1.8 GB download",
        hub="billion-word-benchmark/lm1b, refs/convert/parquet",
        # main holds a script only. The branch has one config, so none is named. Seen to exist, the
        # test split as a whole; of 4.3 GB of text the training split should be whole too (the hub
        # converts the first 5 GB), which could not be looked at: it must give 30,301,028 sentences
        roles=_hub("billion-word-benchmark/lm1b", _TWO, revision=_PARQUET, detokenizer=lm1b),
        scored="test",
    ),
    Corpus(
        name="openwebtext",
        description="web pages that Reddit recommends, after GPT-2's training text",
        licence="CC0-1.0 for the collection; the pages are their authors'",
        size="8,013,769 documents, 40 GB of text",
        hub="Skylion007/openwebtext",
        # long a script, now Parquet on main (seen in a later copy of the repository, not itself).
        # The converted branch is no way out: it holds the first part only
        roles=_hub("Skylion007/openwebtext", {"train": "train"}),
        last=100_000,
    ),
    Corpus(
        name="slimpajama",
        description="web, code, books, papers: RedPajama without its duplicates",
        licence="those of its sources; the release is Apache-2.0",
        size="627 billion tokens, 895 GB download: use --data.streaming",
        hub="cerebras/SlimPajama-627B",
        roles=_hub("cerebras/SlimPajama-627B", _THREE),  # .jsonl.zst in a folder for each split
    ),
    Corpus(
        name="fineweb-edu",
        description="web pages chosen for what they teach; the sample of 10 billion tokens",
        licence="ODC-By-1.0, and Common Crawl's terms of use",
        size="10 billion tokens of GPT-2",
        hub="HuggingFaceFW/fineweb-edu, sample-10BT",
        roles=_hub("HuggingFaceFW/fineweb-edu", {"train": "train"}, config="sample-10BT"),
    ),
    Corpus(
        name="tinystories",
        description="short stories in the words of small children, written by GPT-3.5 and GPT-4",
        licence="CDLA-Sharing-1.0",
        size="2,119,719 / 21,990 stories, 1.0 GB download",
        hub="roneneldan/TinyStories",
        roles=_hub("roneneldan/TinyStories", {"train": "train", "validation": "validation"}),
    ),
    Corpus(
        name="text8",
        description="the first 100 million characters of Wikipedia in 2006, as a-z and blanks",
        licence="none stated; Wikipedia is CC BY-SA and GFDL",
        size="90 / 5 / 5 million characters, one document each, 54 MB download",
        hub="afmck/text8",
        # its card states 90,000,000, 5,000,000 and 5,000,000 bytes in one row each: cut as usual
        roles={
            role: Split("afmck/text8", role, adapter=Text8(size)) for role, size in _TEXT8.items()
        },
        scored="test",
    ),
    *(
        Corpus(
            name=name,
            description=f"good articles of Wikipedia, {words} million words, cut into words",
            licence="CC BY-SA 3.0 and GFDL",
            size=f"{articles} articles",
            hub=f"Salesforce/wikitext, {config}",
            roles=_hub(
                "Salesforce/wikitext",
                _THREE,
                config=config,
                adapter=Articles,
                detokenizer=wikitext,
            ),
        )
        for name, words, articles, config in (
            ("wikitext-2", 2, "600 / 60 / 60", "wikitext-2-raw-v1"),
            ("wikitext-103", 103, "28,475 / 60 / 60", "wikitext-103-raw-v1"),
        )
    ),
    Corpus(
        name="ptb",
        description="Penn Treebank: Wall Street Journal of 1989, 10,000 words, numbers as N",
        licence="LDC user agreement for non-members",
        size="42,068 / 3,370 / 3,761 sentences",
        hub="ptb-text-only/ptb_text_only, refs/convert/parquet",
        # main holds a script only; the branch was seen with all three splits, of one config
        roles=_hub(
            "ptb-text-only/ptb_text_only",
            _THREE,
            revision=_PARQUET,
            field="sentence",
            detokenizer=ptb,
        ),
    ),
    Corpus(
        name="lambada",
        description="passages of novels whose last word needs the whole passage; OpenAI's edition",
        licence="MIT for the edition; the passages are CC BY 4.0",
        size="5,153 passages",
        hub="EleutherAI/lambada_openai",
        # reported to hold Parquet now (it has held a script); the config default is the English one
        roles=_hub(
            "EleutherAI/lambada_openai", {"test": "test"}, config="default", detokenizer=lambada
        ),
        scored="test",
    ),
    Corpus(
        name="ag_news",
        description="titles and leads of news articles",
        licence="none stated; collected for non-commercial research",
        size="120,000 / 7,600 articles",
        hub="fancyzhx/ag_news",
        roles=_hub("fancyzhx/ag_news", _TWO),
        scored="test",
    ),
    *(
        Corpus(
            name=f"scientific_papers-{short}",
            description=f"papers of {long}, cut into words, numbers and formulas replaced",
            licence="none stated; the papers are their authors'",
            size=f"{size} papers",
            hub=f"ccdv/{short}-summarization, document",
            # scientific_papers itself is a script, and of arXiv's 7 GB its branch has a part. This
            # copy of the same files is Parquet and joins paragraphs with line ends too. PubMed's
            # splits were seen to be as large, in thousands; nothing was compared text by text
            roles=_hub(
                f"ccdv/{short}-summarization",
                _THREE,
                config="document",
                field="article",
                detokenizer=scientific_papers,
            ),
        )
        for short, long, size in (
            ("pubmed", "PubMed", "119,924 / 6,633 / 6,658"),
            ("arxiv", "arXiv", "203,037 / 6,436 / 6,440"),
        )
    ),
)

CORPORA: dict[str, Corpus] = {corpus.name: corpus for corpus in _ROWS}


def markdown() -> str:
    """Markdown table of the corpora, with the split used by evaluation in bold."""
    lines = [
        "| `--data.corpus` | what | splits | detokenizer | licence | size | where |",
        "|---|---|---|---|---|---|---|",
    ]
    for corpus in CORPORA.values():
        used = {split.detokenizer.name for split in _on_hub(corpus).values() if split.detokenizer}
        cells = [
            f"`{corpus.name}`",
            corpus.description,
            _splits(corpus),
            ", ".join(sorted(used)) or "none",
            corpus.licence,
            corpus.size,
            corpus.hub or "comes with Python",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _on_hub(corpus: Corpus) -> dict[Role, Split]:
    return {role: split for role, split in corpus.roles.items() if isinstance(split, Split)}


def _splits(corpus: Corpus) -> str:
    found = []
    for role in get_args(Role):
        split = _on_hub(corpus).get(role)
        text = role
        if split and split.split != role:
            text += f" (= {split.split})"
        elif role == "validation" and role not in corpus.roles and "train" in corpus.roles:
            text += f" (last {corpus.last:,} of train)" if corpus.last else " (a share of train)"
        elif role not in corpus.roles:
            continue
        found.append(f"**{text}**" if role == corpus.scored else text)
    return ", ".join(found)


if __name__ == "__main__":
    print(markdown())
