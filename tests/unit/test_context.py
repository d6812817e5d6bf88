"""What is shown before a question: by the document it names, and by BM25, whose scores are worked out by hand."""

from __future__ import annotations

import math

import pytest

from demask.context import context_settings, passages, recall, with_passages
from demask.types import Document, InputError, Question

DOCUMENTS = [
    Document("ann", "Ann keeps bees."),
    Document("bo", "Bo keeps a boat, a red boat."),
    Document("cy", "Cy sings."),
    Document("ann-p1", "Bees are kept by Ann."),
    Document("long#1", "The first part."),
    Document("long#2", "The second part."),
]


def ask(text: str, document: str = "") -> Question:
    return Question(text, ("x",), "forward", document=document)


def ids(found: list[list[Document]]) -> list[list[str]]:
    return [[document.id for document in documents] for documents in found]


def test_the_document_that_a_question_names() -> None:
    asked = [ask("Who?", "bo"), ask("What?", "ann"), ask("Which part?", "long")]
    assert ids(passages(asked, DOCUMENTS, "document")) == [["bo"], ["ann"], ["long#1"]]
    with pytest.raises(InputError) as error:
        passages([ask("Who sails?", "di")], DOCUMENTS, "document")
    assert str(error.value) == "question 'Who sails?': its document 'di' is not among the documents"


def test_bm25_ranks_by_hand() -> None:
    """Lucene's variant, k1 1.5, b 0.75: idf log(1 + (N - n + .5) / (n + .5)), tf / (tf + k1 (1 - b + b length / mean length))."""
    words = [3, 7, 2, 5, 3, 3]
    mean = sum(words) / 6

    def score(tf: int, n: int, length: int) -> float:
        return math.log(1 + (6 - n + 0.5) / (n + 0.5)) * tf / (tf + 1.5 * (0.25 + 0.75 * length / mean))

    keeps = {"ann": score(1, 2, 3), "bo": score(1, 2, 7)}
    boat = {"bo": score(2, 1, 7)}
    ann = {"ann": score(1, 2, 3), "ann-p1": score(1, 2, 5)}
    assert keeps["ann"] > keeps["bo"]
    assert keeps["bo"] + boat["bo"] > keeps["ann"]
    assert ann["ann"] > ann["ann-p1"]
    found = passages([ask("Who keeps it?"), ask("Who KEEPS the boat"), ask("ann"), ask("nothing")], DOCUMENTS, "bm25", 2)
    assert ids(found) == [["ann", "bo"], ["bo", "ann"], ["ann", "ann-p1"], ["ann", "bo"]], "without a word in common: the first"
    assert ids(passages([ask("part")], DOCUMENTS, "bm25", 9))[0][:2] == ["long#1", "long#2"]


def test_pages_are_not_taken_for_paraphrases() -> None:
    pages = [Document("book-p1", "One."), Document("book-p2", "Two."), Document("tale-p2#1", "Three.")]
    asked = [ask("Which?", "book-p2"), ask("Which?", "book"), ask("Which?", "tale-p2"), ask("Which?", "tale")]
    assert ids(passages(asked, pages, "document")) == [["book-p2"], ["book-p1"], ["tale-p2#1"], ["tale-p2#1"]]
    assert recall(asked[:1], [pages[:1]]) == 0.0


def test_recall() -> None:
    asked = [ask("a", "ann"), ask("b", "bo"), ask("c")]
    shown = [[DOCUMENTS[3]], [DOCUMENTS[0]], [DOCUMENTS[1]]]
    assert recall(asked, shown) == 0.5, "a paraphrase counts, and a question that names no document does not"
    assert recall(asked[2:], shown[2:]) is None
    assert context_settings(None, 3, asked, shown) == {}
    assert context_settings("document", 3, asked, shown) == {"context": "document"}
    assert context_settings("bm25", 1, asked, shown) == {"context": "bm25", "context_size": 1, "recall": 0.5}


def test_the_turn() -> None:
    assert with_passages("Who keeps bees?", DOCUMENTS[:2]) == "Ann keeps bees.\n\nBo keeps a boat, a red boat.\n\nWho keeps bees?"
    assert with_passages("Who keeps bees?", []) == "Who keeps bees?"
