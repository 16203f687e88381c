import hashlib
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from memory_source import MemorySource

from sddlm.data.split import assign, scan, valid_documents

docs = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=60)
some = docs.filter(lambda docs: docs and not any(doc.startswith("!") for doc in docs))
shares = st.floats(0.01, 0.99)


def split(docs: list, held_out: float) -> tuple[list[str], list[str]]:
    """Documents of both splits."""
    source = MemorySource(docs)
    found = scan(source)
    assigned = list(assign(valid_documents(source, found), held_out, found))
    train, validation = ([t for s, t in assigned if s == name] for name in ("train", "validation"))
    assert len(train) + len(validation) == len(assigned)
    return train, validation


def plainly(docs: list[str], share: float) -> tuple[list[str], list[str]]:
    """The rule, written another way."""
    if len(docs) < 20:
        halves = []
        for text in docs:
            cut = round(len(text) * (1 - share))
            for mark in ("\n", " "):
                near = text.rfind(mark, max(0, cut - 1000), cut)
                if near > 0:
                    cut = near + 1
                    break
            halves.append((text[:cut], text[cut:]))
        return [a for a, _ in halves if a], [b for _, b in halves if b]
    places = [int(hashlib.sha256(d.encode()).hexdigest()[:12], 16) / 2**48 for d in docs]
    limit = max(share, min(places))
    chosen = [place <= limit for place in places]
    return (
        [doc for doc, held in zip(docs, chosen, strict=True) if not held],
        [doc for doc, held in zip(docs, chosen, strict=True) if held],
    )


@pytest.mark.slow
@given(docs=some, share=shares)
def test_the_rule(docs: list[str], share: float) -> None:
    for texts in (docs, docs + [f"document {i}" for i in range(20)]):
        assert split(texts, share) == plainly(texts, share)


@pytest.mark.slow
@given(share=shares, random=st.randoms(use_true_random=False), n=st.integers(1, 6000))
def test_a_long_document(share: float, random: Random, n: int) -> None:
    text = "".join(random.choices("abcdef \n", weights=[9] * 6 + [1, 0.01], k=n))
    assert split([text], share) == plainly([text], share)


def test_many_documents_are_chosen_whatever_their_order() -> None:
    docs = [f"document {i}" for i in range(5000)]
    train, validation = split(docs, 0.1)
    assert 400 < len(validation) < 600
    assert sorted(train + validation) == sorted(docs)
    shuffled = Random(0).sample(docs, len(docs))
    again = split(shuffled, 0.1)
    assert (set(again[0]), set(again[1])) == (set(train), set(validation))
    _, more = split([*docs, *(f"another {i}" for i in range(200))], 0.1)
    assert set(validation) == set(more) & set(docs)  # nothing moves when others come


def test_few_documents_are_cut_at_lines_or_blanks() -> None:
    (head,), (tail,) = split(["one two three four five\n" * 1000], 0.1)
    assert head.endswith("\n")
    assert tail.startswith("one")
    assert 2300 <= len(tail) < 2500
    (head,), (tail,) = split(["word " * 1000], 0.1)
    assert (head[-1], tail[:4]) == (" ", "word")


def test_the_last_documents() -> None:
    docs = [f"document {i}" for i in range(30)]
    assert split(docs, 4) == (docs[:26], docs[26:])
