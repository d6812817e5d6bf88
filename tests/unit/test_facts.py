"""Names, dates, numbers and the direction of a question: expected values are read off the sentences by hand."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demask.writing.facts import content_words, direction, facts, key, place


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("On 3 May 2025 Ann Ash sold 40 boats.", [("date", "3 May 2025"), ("name", "Ann Ash"), ("number", "40")]),
        ("She was born on October 12, 1984 in New York.", [("date", "October 12, 1984"), ("name", "New York")]),
        ("It opened in March 2024 and closed on 2025-01-31.", [("date", "March 2024"), ("date", "2025-01-31")]),
        ("They paid $1,200.50, which is 3.5% more.", [("number", "$1,200.50"), ("number", "3.5%")]),
        ("We met the Harbour Board of Oslo.", [("name", "Harbour Board of Oslo")]),
        ("The Acme company's head was Bo Reed's friend.", [("name", "Acme"), ("name", "Bo Reed")]),
        ("Boats are sold here.", []),  # a capital at a sentence's beginning is no name by itself
        ("He likes Boats. Boats are sold here.", [("name", "Boats"), ("name", "Boats")]),
        ("A queen, Ida Öst, ruled Åland.", [("name", "Ida Öst"), ("name", "Åland")]),
        ("They saw Dr. Bo Reed and J. R. Ash. Oslo was far.", [("name", "Dr. Bo Reed"), ("name", "J. R. Ash")]),
        ("In 1984, there were 5.", [("number", "1984"), ("number", "5")]),
        ("", []),
    ],
)
def test_facts(text: str, expected: list[tuple[str, str]]) -> None:
    found = facts(text)
    assert [(fact.kind, fact.text) for fact in found] == expected
    assert all(text[fact.start : fact.end] == fact.text for fact in found)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("born 3 May 2025.", "born May 3rd, 2025."),
        ("born 3 May 2025.", "born on the 03 of May 2025"),
        ("born 2025-05-03.", "born on May 3, 2025"),
        ("in Sept 2024", "in September 2024"),
        ("paid 1,200 crowns", "paid 1200 crowns"),
        ("with Ann Ash", "with ANN ASH"),
    ],
)
def test_one_fact_in_other_words_has_the_same_key(one: str, other: str) -> None:
    assert [key(fact) for fact in facts(one)] == [key(fact) for fact in facts(other)]


def test_different_facts_have_different_keys() -> None:
    assert key(facts("on 3 May 2025")[0]) != key(facts("on 5 May 2025")[0])
    assert key(facts("some 1,200")[0]) != key(facts("some 12,000")[0])


@pytest.mark.parametrize(
    ("phrase", "at"),
    [("ann ash", 4), ("Ann\n Ash", 4), ("ash", 8), ("as", None), ("", None), ("bees of Ann", None)],
)
def test_place(phrase: str, at: int | None) -> None:
    assert place("Dr. Ann Ash keeps bees.", phrase) == at


TEXT = "The company Acme was founded by Bo Reed in 1984. Ann Ash runs it."


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        ("Who founded Acme?", "Bo Reed", "forward"),
        ("Which company did Bo Reed found?", "Acme", "backward"),  # "company" stands first, but the cue is the name
        ("When was Acme founded?", "1984", "forward"),
        ("What was founded in 1984?", "Acme", "backward"),
        ("Who runs it?", "Ann Ash", "backward"),  # no name: the cue is "runs"
        ("Who founded it?", "Bo Reed", "forward"),  # the cue is "founded"
        ("Who is it?", "Bo Reed", None),  # no cue
        ("Who founded Acme?", "Bo", "forward"),
        ("Who founded Acme?", "Bob Reed", None),  # not in the text
        ("Is Acme Acme?", "Acme", None),  # the answer is no cue
    ],
)
def test_direction(question: str, answer: str, expected: str | None) -> None:
    assert direction(TEXT, question, answer) == expected


def test_content_words() -> None:
    assert content_words("She was the keeper of Ann's bees in 1984.") == {"keeper", "ann's", "bees", "1984"}


@given(st.text(), st.text(), st.text())
def test_any_text_is_taken(text: str, question: str, answer: str) -> None:
    found = facts(text)
    assert all(text[fact.start : fact.end] == fact.text for fact in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    assert all(key(fact) for fact in found)
    assert direction(text, question, answer) in ("forward", "backward", None)
