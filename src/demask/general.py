"""General questions of ours, by which forgetting is measured on any instruct model: facts that do not change, with one short answer.

They are easy on purpose, for what counts is what a model no longer answers after training, not what it knows. They stand in general.txt,
by kind: "[kind] a question with a place for {}", then "what stands there = answer / another right answer; ...". docs/results.md tells how
many of each kind a small model answers.
"""

from __future__ import annotations

import os
from pathlib import Path

from demask.types import Question, read_questions

GENERAL = "general"  # in place of a file of questions: these
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]


def general_questions() -> list[Question]:
    """All of them, always the same and in the same order; `group` is the kind, and the golds hold the ways to write each answer."""
    questions = []
    for part in Path(__file__).with_name("general.txt").read_text(encoding="utf-8").strip().split("\n\n"):
        head, *rows = part.splitlines()
        kind, wording = head.removeprefix("[").split("] ", 1)
        for row in " ".join(rows).split(";"):
            subject, answers = row.split("=")
            golds = tuple(dict.fromkeys(form for answer in answers.split("/") for form in _spellings(answer.strip())))
            questions.append(Question(wording.format(subject.strip()), golds, "forward", group=kind, split="test"))
    return questions


def questions_or_general(source: str | os.PathLike[str]) -> list[Question]:
    """`general_questions` for "general", else those of a file. InputError as of `read_questions`."""
    return general_questions() if source == GENERAL else read_questions(source)


def _spellings(answer: str) -> list[str]:
    """Scores are case-sensitive: a common noun may open a sentence or stand in a title; and a small number may be written out."""
    if answer.isdecimal():
        return [answer, *(_spellings(_NUMBERS[int(answer)]) if int(answer) < len(_NUMBERS) else ())]
    return [answer, answer.capitalize(), answer.title()] if answer.islower() else [answer]
