from random import Random

from hypothesis import given
from hypothesis import strategies as st

from sddlm.data.split import split_documents

docs = st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), max_size=60)
shares = st.floats(0.01, 0.99)


@given(docs=docs, share=shares, random=st.randoms(use_true_random=False))
def test_many_documents_are_chosen_whatever_their_order(
    docs: list[str], share: float, random: Random
) -> None:
    docs = docs + [f"document {i}" for i in range(20)]
    train, validation = split_documents(docs, share)
    assert sorted(train + validation) == sorted(docs)
    assert not set(train) & set(validation)
    assert validation
    assert [doc for doc in docs if doc in set(train)] == train  # the order is kept
    shuffled = random.sample(docs, len(docs))
    again = split_documents(shuffled, share)
    assert (set(again[0]), set(again[1])) == (set(train), set(validation))


@given(docs=docs.filter(lambda docs: len(docs) < 20), share=shares)
def test_few_documents_are_cut(docs: list[str], share: float) -> None:
    train, validation = split_documents(docs, share)
    assert sum(map(len, train + validation)) == sum(map(len, docs))
    assert all(any(doc.startswith(head) for doc in docs) for head in train)
    assert all(any(doc.endswith(tail) for doc in docs) for tail in validation)


def test_the_share_is_about_what_was_asked_for() -> None:
    _, validation = split_documents([f"document {i}" for i in range(5000)], 0.1)
    assert 400 < len(validation) < 600
    (head,), (tail,) = split_documents(["one two three four five\n" * 1000], 0.1)
    assert head.endswith("\n")
    assert tail.startswith("one")
    assert 2300 <= len(tail) < 2500
    (head,), (tail,) = split_documents(["word " * 1000], 0.1)
    assert (head[-1], tail[:4]) == (" ", "word")


def test_a_document_stays_where_it_is_when_others_come() -> None:
    docs = [f"document {i}" for i in range(200)]
    _, validation = split_documents(docs, 0.2)
    _, more = split_documents([*docs, *(f"another {i}" for i in range(200))], 0.2)
    assert set(validation) == set(more) & set(docs)
