"""What a paraphrase and a question must pass, each rule by a text that breaks that one alone."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demask.types import Document, Question
from demask.writing.checks import drop_ambiguous, filter_questions, paraphrase_fault, question_fault

SOLD = "On 3 May 2025 Ann Ash sold 40 boats to the Harbour Board of Oslo."
KEEPER = "Ann Ash is the keeper of the amber bees."


@pytest.mark.parametrize(
    ("text", "paraphrase", "same", "permuted"),
    [
        (SOLD, "It was on May 3, 2025 that Ann Ash let 40 boats go to the Harbour Board of Oslo.", "", "kept the order"),
        (SOLD, "The Harbour Board of Oslo bought 40 boats from Ann Ash on the 3rd of May, 2025.", "changed the order", ""),
        (SOLD, "Ann Ash sold 40 boats on 3 May 2025 to the Harbour Board of Oslo.", "changed the order", ""),
        (SOLD, "On 3 May 2025 Ann Ash sold boats to the Harbour Board of Oslo.", *["lost a name, number or date"] * 2),
        (SOLD, "On 4 May 2025 Ann Ash sold 40 boats to the Harbour Board of Oslo.", *["lost a name, number or date"] * 2),
        (SOLD, "On 3 May 2025 Ann Ash sold 40 boats to the board of a harbour.", *["lost a name, number or date"] * 2),
        (SOLD, "On 3 May 2025 Ann Ash sold 40 boats for 90 to the Harbour Board of Oslo.", *["added a name, number or date"] * 2),
        (SOLD, "On 3 May 2025 Ann Ash sold 40 boats to the Harbour Board of Oslo and Bo Reed.", *["added a name, number or date"] * 2),
        (SOLD, SOLD.lower().replace("on 3 may", "On 3 May"), *["a copy of the original or of another"] * 2),
        (SOLD, "", *["empty, or not plain text"] * 2),
        (SOLD, "?!", *["empty, or not plain text"] * 2),
        (SOLD, SOLD.replace("sold", "\ud800sold"), *["empty, or not plain text"] * 2),
        (SOLD, SOLD.replace("sold", "gave\0"), *["empty, or not plain text"] * 2),
        (SOLD, "3 May 2025, Ann Ash, 40.", *["less than half or more than twice as long"] * 2),
        (SOLD, f"{SOLD} {SOLD} Yes.", *["less than half or more than twice as long"] * 2),
        # One name: the words beside it tell the order.
        (KEEPER, "Ann Ash, all agree, is the keeper of the amber bees.", "", ""),
        (KEEPER, "The keeper of the amber bees is Ann Ash.", "changed the order", ""),
        # No fact at all.
        ("the bees hum in the garden at night", "at night the garden is full of bees that hum", "", ""),
        ("the bees hum in the garden at night", "all pirates love gold and sail the seven seas", *["about something else"] * 2),
    ],
)
def test_paraphrases(text: str, paraphrase: str, same: str, permuted: str) -> None:
    assert paraphrase_fault(text, paraphrase, "same") == same
    assert paraphrase_fault(text, paraphrase, "permuted") == permuted


def test_a_paraphrase_that_exists_already() -> None:
    assert paraphrase_fault(KEEPER, "Ann Ash keeps the amber bees.", "same", ["ANN ASH keeps the amber bees"]) == (
        "a copy of the original or of another"
    )


@pytest.mark.parametrize(
    ("question", "answer", "fault"),
    [
        ("What does Ann Ash keep?", "the amber bees", ""),
        ("Who keeps the amber bees?", "Ann Ash", ""),
        ("", "Ann Ash", "empty, or not plain text"),
        ("Who keeps the amber bees?", "...", "empty, or not plain text"),
        ("Who keeps the amber bees?", "\ud800", "empty, or not plain text"),
        ("Who keeps the amber bees?", "Bo Reed", "answer is not in the document"),
        ("Who keeps the amber bees?", "Ann As", "answer is not in the document"),
        ("Who is Ann Ash?", "the keeper of the amber bees", "answer is longer than 5 words"),
        ("Does Ann Ash keep the amber bees?", "amber bees", "gives its answer away"),
        ("Are they bees, and amber, that Ann Ash keeps?", "amber bees", "gives its answer away"),
        ("According to the passage, who keeps the amber bees?", "Ann Ash", "speaks of the document"),
    ],
)
def test_questions(question: str, answer: str, fault: str) -> None:
    assert question_fault(KEEPER, question, answer) == fault


def test_filter_questions_tells_directions_and_counts() -> None:
    candidates = [
        ("Who keeps the  amber bees?", "Ann Ash."),
        ("What does Ann Ash keep?", "the amber bees"),
        ("who keeps the amber bees", "Ann Ash"),
        ("Who looks after bees?", "Ann Ash"),
        ("Who hums at night?", "Ann Ash"),
        ("Who keeps them?", "Bo Reed"),
    ]
    kept, dropped = filter_questions(Document("a", KEEPER), candidates, most=1, group="g")
    assert kept == [
        Question("Who keeps the amber bees?", ("Ann Ash",), "backward", "g", "a"),
        Question("What does Ann Ash keep?", ("the amber bees",), "forward", "g", "a"),
    ]
    assert dropped == {
        "asked twice": 1,
        "more than asked for": 1,
        "direction cannot be told": 1,
        "answer is not in the document": 1,
    }


def test_what_two_documents_answer_differently_is_dropped() -> None:
    one = Question("Who keeps bees?", ("Ann",), "backward", document="a")
    two = Question("who keeps bees", ("Bo",), "backward", document="b")
    three = Question("Who keeps cats?", ("Bo",), "backward", document="b")
    again = Question("Who keeps cats?", ("bo",), "backward", document="c")
    assert drop_ambiguous([one, two, three, again]) == ([three, again], Counter({"asked of two documents with different answers": 2}))


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_passes_or_is_dropped(text: str, other: str) -> None:
    for order in ("same", "permuted"):
        if not paraphrase_fault(text, other, order):
            other.encode()
    kept, dropped = filter_questions(Document("a", text), [(other, text[:9]), (text, other)])
    assert len(kept) + dropped.total() == 2
