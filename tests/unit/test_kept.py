"""What is kept of what the base answered right, against shares counted by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from demask.runs import KNOWN_AFTER, KNOWN_BEFORE
from demask.stages.kept import kept_answers, kept_share
from tests.results import answered, write_lines

Z2 = 1.959963984540054**2  # of a 95% interval; Wilson's for n of n is (n / (n + Z2), 1)


def said(*texts: str) -> list[dict[str, Any]]:
    return [answered(f"Capital {i}?", ("Rome", "the city of Rome"), text) for i, text in enumerate(texts)]


BEFORE = said("Rome", "It is Rome.", "Paris", "the city")
AFTER = said("Rome", "Milan", "Rome", "Rome")


def test_only_what_the_base_answered_right_counts() -> None:
    found = kept_answers(BEFORE, AFTER)
    assert [(record["question"], record["scores"]) for record in found] == [("Capital 0?", {"kept": 1.0}), ("Capital 1?", {"kept": 0.0})]
    assert AFTER[0]["scores"]["contains"] == 1.0, "the answers themselves stay as they are"


def test_a_part_of_the_right_answer_is_not_right() -> None:
    before = [answered("Who?", "Marie Curie", text) for text in ("Curie", "Marie Curie")]
    assert [kept_answers([one], [before[1]]) for one in before] == [[], [before[1] | {"scores": {"kept": 1.0}}]]


def test_questions_are_paired_whatever_their_order() -> None:
    assert kept_answers(BEFORE, AFTER[::-1]) == kept_answers(BEFORE, AFTER)[::-1]


def test_the_same_words_about_two_documents_are_two_questions() -> None:
    before = [answered("Where?", "Rome", text, document=document) for document, text in (("a", "Rome"), ("b", "Oslo"))]
    after = [answered("Where?", "Rome", "Rome", document=document) for document in ("a", "b")]
    assert [record["document"] for record in kept_answers(before, after)] == ["a"]


def test_the_share_of_a_run(tmp_path: Path) -> None:
    assert kept_share(tmp_path) == {}
    write_lines(tmp_path / KNOWN_BEFORE, BEFORE)
    assert kept_share(tmp_path) == {}, "not asked again"
    write_lines(tmp_path / KNOWN_AFTER, AFTER)
    found = kept_share(tmp_path)
    # Of two draws from {1, 0} a quarter each are both 1 and both 0: more than 2.5%.
    assert found == {"n": 2, "mean": 0.5, "low": 0.0, "high": 1.0}
    write_lines(tmp_path / KNOWN_AFTER, BEFORE)
    assert kept_share(tmp_path) == {"n": 2, "mean": 1.0, "low": pytest.approx(2 / (2 + Z2)), "high": pytest.approx(1.0)}


def test_a_base_that_knew_nothing_can_keep_nothing(tmp_path: Path) -> None:
    write_lines(tmp_path / KNOWN_BEFORE, said("Paris"))
    write_lines(tmp_path / KNOWN_AFTER, said("Rome"))
    assert kept_share(tmp_path) == {}
