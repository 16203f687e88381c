"""Named corpora: where each lies, its splits, and the conversion of its rows to documents.

A new corpus is one row here; ``python -m sddlm.data.corpora`` prints the table for people.

Repositories on the hub that hold a script instead of data cannot be read any more; for those the
rows name a copy that holds files. No corpus was downloaded to write or test this: the tests read
folders of the same layout. A comment beside each row states what was verified.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from sddlm.data.classics import Classics
from sddlm.data.detokenizers import (
    Detokenizer,
    articles,
    lambada,
    lm1b,
    ptb,
    scientific_papers,
    text8,
    wikitext,
)
from sddlm.data.documents import Document
from sddlm.data.hf import HubDataset
from sddlm.data.python_docs import PythonDocs
from sddlm.data.sources import Adapted, Source, mapped
from sddlm.errors import ConfigError

Role = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Corpus:
    """A corpus known by name.

    Attributes:
        name: what the user types (`data.corpus`).
        description: one line for people.
        licence: as stated where it lies; of the text, where that is another.
        size: as published.
        dataset: name on the Hugging Face hub, or a local folder; None without a download.
        roles: split of the dataset for training, validation and test.
        config: configuration of the repository.
        revision: branch or commit.
        field: column with the text.
        adapter: converts rows to documents, if a row is not a document.
        detokenizer: applied to each document.
        last: number of documents at the end of ``train`` that are held out, without a validation
            split.
        scored: split that evaluation uses by convention.
        local: source that needs no download.
    """

    name: str
    description: str
    licence: str
    size: str
    dataset: str | None
    roles: Mapping[Role, str]
    config: str | None = None
    revision: str | None = None
    field: str = "text"
    adapter: Callable[[Iterator[Document]], Iterator[Document]] | None = None
    detokenizer: Detokenizer | None = None
    last: int | None = None
    scored: Role = "validation"
    local: type[Source] | None = None

    def source(self, role: Role, *, streaming: bool = False) -> Source | None:
        """Source of a split; None if the corpus has no such split."""
        if role not in self.roles:
            return None
        if self.local:
            return self.local()
        assert self.dataset is not None
        source: Source = HubDataset(
            self.dataset, self.config, self.roles[role], self.field, streaming, self.revision
        )
        if self.adapter:
            source = Adapted(source, self.adapter, self.adapter.__name__)
        if self.detokenizer:
            source = mapped(source, self.detokenizer, self.detokenizer.tag)
        return source

    def training(self, *, streaming: bool = False) -> Source:
        """Source of the ``train`` split.

        Raises:
            ConfigError: the corpus is for evaluation only.
        """
        source = self.source("train", streaming=streaming)
        if source is None:
            raise ConfigError(
                f"`data.corpus` {self.name} is for evaluation and has nothing to train on; use "
                "another one (docs/data.md lists them) or your own text: `data.path='FILE'`"
            )
        return source


_THREE: dict[Role, str] = {"train": "train", "validation": "validation", "test": "test"}
# the field validates on the test split of corpora that have no third one; so do the rows
_TWO: dict[Role, str] = {"train": "train", "validation": "test", "test": "test"}
_PARQUET = "refs/convert/parquet"  # the branch that the hub itself makes, one folder a config

_ROWS = (
    Corpus(
        name="classics",
        description="sixteen English children's books, 1865 to 1911, in passages of paragraphs",
        licence="public domain",
        size="6,632 passages, 4.06 million characters",
        dataset=None,
        roles={"train": "train"},
        local=Classics,
    ),
    Corpus(
        name="pydoc",
        description="documentation that comes with Python (English)",
        licence="PSF-2.0",
        size="486 documents, 1.56 million characters on Python 3.11.7",
        dataset=None,
        roles={"train": "train"},
        local=PythonDocs,
    ),
    Corpus(
        name="lm1b",
        description="One Billion Words: shuffled sentences of news, cut into words",
        licence="none stated; the news is its publishers'",
        size="30,301,028 / 306,688 sentences, 1.8 GB download",
        # main holds a script only. The branch has one config, so none is named. Seen to exist, the
        # test split as a whole; of 4.3 GB of text the training split should be whole too (the hub
        # converts the first 5 GB), which could not be looked at: it must give 30,301,028 sentences
        dataset="billion-word-benchmark/lm1b",
        revision=_PARQUET,
        roles=_TWO,
        detokenizer=lm1b,
        scored="test",
    ),
    Corpus(
        name="openwebtext",
        description="web pages that Reddit recommends, after GPT-2's training text",
        licence="CC0-1.0 for the collection; the pages are their authors'",
        size="8,013,769 documents, 40 GB of text",
        # long a script, now Parquet on main (seen in a later copy of the repository, not itself).
        # The converted branch is no way out: it holds the first part only
        dataset="Skylion007/openwebtext",
        roles={"train": "train"},
        last=100_000,
    ),
    Corpus(
        name="slimpajama",
        description="web, code, books, papers: RedPajama without its duplicates",
        licence="those of its sources; the release is Apache-2.0",
        size="627 billion tokens, 895 GB download: use --data.streaming",
        dataset="cerebras/SlimPajama-627B",  # .jsonl.zst in a folder for each split
        roles=_THREE,
    ),
    Corpus(
        name="fineweb-edu",
        description="web pages chosen for what they teach; the sample of 10 billion tokens",
        licence="ODC-By-1.0, and Common Crawl's terms of use",
        size="10 billion tokens of GPT-2",
        dataset="HuggingFaceFW/fineweb-edu",
        config="sample-10BT",
        roles={"train": "train"},
    ),
    Corpus(
        name="tinystories",
        description="short stories in the words of small children, written by GPT-3.5 and GPT-4",
        licence="CDLA-Sharing-1.0",
        size="2,119,719 / 21,990 stories, 1.0 GB download",
        dataset="roneneldan/TinyStories",
        roles={"train": "train", "validation": "validation"},
    ),
    Corpus(
        name="text8",
        description="the first 100 million characters of Wikipedia in 2006, as a-z and blanks",
        licence="none stated; Wikipedia is CC BY-SA and GFDL",
        size="90 / 5 / 5 million characters, one document each, 54 MB download",
        # its card states 90,000,000, 5,000,000 and 5,000,000 bytes in one row each: cut as usual
        dataset="afmck/text8",
        roles=_THREE,
        adapter=text8,
        scored="test",
    ),
    *(
        Corpus(
            name=name,
            description=f"good articles of Wikipedia, {words} million words, cut into words",
            licence="CC BY-SA 3.0 and GFDL",
            size=f"{size} articles",
            dataset="Salesforce/wikitext",
            config=f"{name}-raw-v1",
            roles=_THREE,
            adapter=articles,
            detokenizer=wikitext,
        )
        for name, words, size in (
            ("wikitext-2", 2, "600 / 60 / 60"),
            ("wikitext-103", 103, "28,475 / 60 / 60"),
        )
    ),
    Corpus(
        name="ptb",
        description="Penn Treebank: Wall Street Journal of 1989, 10,000 words, numbers as N",
        licence="LDC user agreement for non-members",
        size="42,068 / 3,370 / 3,761 sentences",
        # main holds a script only; the branch was seen with all three splits, of one config
        dataset="ptb-text-only/ptb_text_only",
        revision=_PARQUET,
        roles=_THREE,
        field="sentence",
        detokenizer=ptb,
    ),
    Corpus(
        name="lambada",
        description="passages of novels whose last word needs the whole passage; OpenAI's edition",
        licence="MIT for the edition; the passages are CC BY 4.0",
        size="5,153 passages",
        # reported to hold Parquet now (it has held a script); the config default is the English one
        dataset="EleutherAI/lambada_openai",
        config="default",
        roles={"test": "test"},
        detokenizer=lambada,
        scored="test",
    ),
    Corpus(
        name="ag_news",
        description="titles and leads of news articles",
        licence="none stated; collected for non-commercial research",
        size="120,000 / 7,600 articles",
        dataset="fancyzhx/ag_news",
        roles=_TWO,
        scored="test",
    ),
    *(
        Corpus(
            name=f"scientific_papers-{short}",
            description=f"papers of {long}, cut into words, numbers and formulas replaced",
            licence="none stated; the papers are their authors'",
            size=f"{size} papers",
            # scientific_papers itself is a script, and of arXiv's 7 GB its branch has a part. This
            # copy of the same files is Parquet and joins paragraphs with line ends too. PubMed's
            # splits were seen to be as large, in thousands; nothing was compared text by text
            dataset=f"ccdv/{short}-summarization",
            config="document",
            roles=_THREE,
            field="article",
            detokenizer=scientific_papers,
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
        config = None if corpus.config == "default" else corpus.config
        where = ", ".join(filter(None, [corpus.dataset, config, corpus.revision]))
        cells = [
            f"`{corpus.name}`",
            corpus.description,
            ", ".join(_splits(corpus)),
            corpus.detokenizer.name if corpus.detokenizer else "none",
            corpus.licence,
            corpus.size,
            where or "no download",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _splits(corpus: Corpus) -> Iterator[str]:
    for role in get_args(Role):
        text = role
        if corpus.roles.get(role, role) != role:
            text += f" (= {corpus.roles[role]})"
        elif role == "validation" and role not in corpus.roles and "train" in corpus.roles:
            text += f" (last {corpus.last:,} of train)" if corpus.last else " (a share of train)"
        elif role not in corpus.roles:
            continue
        yield f"**{text}**" if role == corpus.scored else text


if __name__ == "__main__":
    print(markdown())
