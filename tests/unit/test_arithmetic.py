"""Word problems whose answers are worked out again from their text."""

from __future__ import annotations

import re

import pytest

from demask.corpora import CORPORA
from demask.corpora.arithmetic import LARGEST, Problem, arithmetic_corpus, problems
from demask.scoring import contains
from demask.types import InputError

MORE = ("finds", "buys", "is given", "makes")
LESS = ("loses", "gives", "sells", "breaks")


def read(prompt: str) -> int:
    """The result, from the words of the prompt."""
    opening, *rest = prompt.split(". ")
    numbers = [int(number) for number in re.findall(r"\d+", opening)]
    value = numbers[0] * numbers[1] if "box" in opening else numbers[0]
    assert len(numbers) == 1 + ("box" in opening)
    for change in rest[0].split(" and ") if len(rest) > 1 else []:
        (number,) = map(int, re.findall(r"\d+", change))
        assert any(word in change for word in MORE) != any(word in change for word in LESS)
        value += number if any(word in change for word in MORE) else -number
    return value


@pytest.mark.parametrize("held_out", [False, True])
def test_every_step_and_answer_is_right(held_out: bool) -> None:
    for problem, document in problems(3, 400, held_out=held_out):
        assert document.prompt
        *worked, answer = re.findall(r"[^.]+\.", document.text)
        previous = None
        for step in worked:
            left, operation, right, result = re.fullmatch(r" ?(\d+) ([-+*]) (\d+) = (\d+)\.", step).groups()  # type: ignore[union-attr]
            assert eval(f"{left} {operation} {right}") == int(result)
            assert previous in (None, left)
            assert int(right) >= 2, "as in 2 bells"
            assert all(1 <= int(number) <= LARGEST for number in (left, right, result))
            previous = result
        assert answer == f" The answer is {previous}."
        assert read(document.prompt) == int(previous or 0)
        assert len(worked) == document.metadata["steps"] in (2, 3)
        assert problem.held_out == held_out


def test_steps_by_hand() -> None:
    assert Problem(3, 4, (("+", 7), ("-", 5))).lines() == (["3 * 4 = 12.", "12 + 7 = 19.", "19 - 5 = 14."], 14)
    assert Problem(9, None, (("-", 2),)).lines() == (["9 - 2 = 7."], 7)


def test_no_combination_is_trained_on_and_tested_by_any_seed() -> None:
    train = {problem for seed in (1, 2) for problem, _ in problems(seed, 1000)}
    test = {problem for seed in (1, 2) for problem, _ in problems(seed, 300, held_out=True)}
    assert not train & test
    assert len({document.prompt for _, document in problems(1, 1000)}) == 1000


def test_the_same_seed_gives_the_same_and_a_longer_list_begins_with_the_shorter() -> None:
    assert problems(5, 50) == problems(5, 80)[:50]
    assert problems(5, 50) != problems(6, 50)
    assert {document.metadata["steps"] for _, document in problems(5, 50, steps=(1, 1))} == {1}
    with pytest.raises(InputError, match=r"^arithmetic: there are only \d+ such problems of 1 to 1 steps, not 9999$"):
        problems(5, 9999, steps=(1, 1))


def test_the_corpus() -> None:
    documents, questions = CORPORA["arithmetic"](4, n=20, n_test=40, steps=[2, 2])
    assert (documents, questions) == arithmetic_corpus(4, 20, n_test=40, steps=(2, 2))
    assert len(documents) == 20
    assert [question.split for question in questions] == ["test"] * 40 + ["validation"] * 10
    assert {question.group for question in questions} == {"2 steps"}
    worked = {document.prompt: document.text for _, document in problems(4, 50, steps=(2, 2), held_out=True)}
    for question in questions:
        assert contains(worked[question.question], question.answers) == 1
        wrong = re.sub(r"answer is \d+", "answer is 99", worked[question.question])
        assert contains(wrong, question.answers) == 0, "a right step in between is no answer"
