"""The corpus of children's books: whole paragraphs, all of them, the same every time."""

import importlib.resources

from memory_source import read_texts

from sddlm.data.classics import Classics, books


def test_passages_are_the_books_in_whole_paragraphs():
    passages, whole = read_texts(Classics()), list(books())
    assert "\n".join(passages) == "\n".join(book["text"] for book in whole)
    assert sorted(map(len, passages))[len(whole)] >= 400  # all but the ends of the books
    assert not any(text != text.strip() for text in passages)


def test_the_books_are_those_that_the_page_names():
    found = {(book["title"], book["author"]) for book in books()}
    assert len(found) == 16
    assert ("The Wind in the Willows", "Kenneth Grahame") in found
    assert all(1865 <= book["year"] <= 1911 for book in books())  # in the public domain
    text = "".join(book["text"] for book in books())
    assert 4_000_000 < len(text) < 4_100_000
    assert not set("*\r\t") & set(text)


def test_the_file_is_small_and_part_of_the_package():
    file = importlib.resources.files("sddlm.data") / "classics.jsonl.xz"
    assert len(file.read_bytes()) < 1_500_000
    assert Classics().signature() == Classics().signature()
