"""The general questions: well-formed, each with a right answer that scoring finds and that the question does not give away."""

from __future__ import annotations

from pathlib import Path

import pytest

from demask.general import GENERAL, general_questions, questions_or_general
from demask.scoring import score
from demask.types import InputError, question_record, read_questions, write_questions

QUESTIONS = general_questions()
BY_TEXT = {question.question: question for question in QUESTIONS}


def test_how_many_there_are() -> None:
    kinds = {question.group for question in QUESTIONS}
    assert 500 <= len(QUESTIONS) <= 700, "it is asked before and after every run"
    assert len(kinds) >= 20
    assert all(sum(question.group == kind for question in QUESTIONS) >= 5 for kind in kinds)


def test_every_wording_is_there_once() -> None:
    assert len(BY_TEXT) == len(QUESTIONS)
    assert not [text for text in BY_TEXT if any(mark in text for mark in "{}[]=;") or not text.endswith("?")]


def test_the_same_at_every_call() -> None:
    assert general_questions() == QUESTIONS


def test_every_answer_is_short_and_found_by_the_scoring() -> None:
    for question in QUESTIONS:
        assert question.answers, question.question
        for answer in question.answers:
            assert answer == answer.strip()
            assert 1 <= len(answer.split()) <= 4, answer
            found = score(f"I think it is {answer}.", question.answers)
            assert (found["rouge1_recall"], found["contains"]) == (1, 1), (question.question, answer)


def test_no_question_gives_its_answer_away() -> None:
    for question in QUESTIONS:
        found = score(question.question, question.answers)
        assert found["rouge1_recall"] < 1, question.question
        assert found["contains"] == 0, question.question


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("What is the capital of France?", ("Paris",)),
        ('What is the opposite of "big"?', ("small", "Small", "little", "Little")),
        ("How many days are there in a week?", ("7", "seven", "Seven")),
        ("How many years are there in a century?", ("100",)),
        ("What is the largest animal?", ("blue whale", "Blue whale", "Blue Whale")),
        ("What is the chemical formula of table salt?", ("NaCl",)),
    ],
)
def test_the_ways_to_write_an_answer(text: str, answers: tuple[str, ...]) -> None:
    assert BY_TEXT[text].answers == answers


def test_they_are_questions_like_any(tmp_path: Path) -> None:
    write_questions(tmp_path / "questions.jsonl", QUESTIONS)
    assert read_questions(tmp_path / "questions.jsonl") == QUESTIONS
    assert question_record(BY_TEXT["What is the capital of France?"]) == {
        "question": "What is the capital of France?",
        "answer": "Paris",
        "direction": "forward",
        "group": "capital",
        "split": "test",
    }


def test_general_in_place_of_a_file(tmp_path: Path) -> None:
    assert questions_or_general(GENERAL) == QUESTIONS
    write_questions(tmp_path / GENERAL, QUESTIONS[:2])
    assert questions_or_general(tmp_path / GENERAL) == QUESTIONS[:2], "a path is a file's"
    with pytest.raises(InputError, match=r"gone.jsonl: no such file"):
        questions_or_general("gone.jsonl")
