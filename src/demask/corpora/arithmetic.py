"""A generator of arithmetic word problems with worked answers, for masked SFT against plain SFT. Every word is ours.

A worked row (a prompt/response pair)::

    prompt    "Mara Larkmond has 3 boxes with 4 bells in each. Mara Larkmond finds 7 bells and gives 5 bells away. How many bells are left?"
    response  "3 * 4 = 12. 12 + 7 = 19. 19 - 5 = 14. The answer is 14."

Every number, also those in between, lies from 1 to 28: such numbers are one token each for the embedded models. None in the text is 1.
Whether a problem is for training or held out depends on its numbers and operations alone, so that no seed trains on what another one tests.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

from demask.corpora import world_words as words
from demask.types import Document, InputError, Question

LARGEST = 28
_START = ("{name} has {a} {things}.", "There are {a} {things} in the {place} of {name}.", "{name} begins the day with {a} {things}.")
_BOXES = ("{name} has {a} boxes with {b} {things} in each.", "In each of the {a} boxes of {name} there are {b} {things}.")
_CHANGE = {
    "+": ("finds {b} {things}", "buys {b} more {things}", "is given {b} {things}", "makes {b} new {things}"),
    "-": ("loses {b} {things}", "gives {b} {things} away", "sells {b} {things}", "breaks {b} of the {things}"),
}
_ASK = ("How many {things} are left?", "How many {things} does {name} have now?", "What is the number of {things} in the end?")
_PLACES = ("house", "garden", "workshop", "cellar")
HELD_OUT = 0.2  # the share of all combinations of numbers and operations that is never trained on


@dataclass(frozen=True)
class Problem:
    """What is counted: `first` things, or `first` boxes of `each`; then, in order, (operation, number)."""

    first: int
    each: int | None
    changes: tuple[tuple[str, int], ...]

    @property
    def held_out(self) -> bool:
        return crc32(repr(self).encode()) % 1000 < 1000 * HELD_OUT

    def lines(self) -> tuple[list[str], int]:
        """The worked steps, and the result."""
        worked, value = [], self.first
        steps = [*([] if self.each is None else [("*", self.each)]), *self.changes]
        for operation, number in steps:
            result = {"+": value + number, "-": value - number, "*": value * number}[operation]
            worked.append(f"{value} {operation} {number} = {result}.")
            value = result
        return worked, value


def problems(seed: int, n: int, *, steps: tuple[int, int] = (2, 3), held_out: bool = False) -> list[tuple[Problem, Document]]:
    """`n` different problems of `steps` (fewest, most) steps, for training or held out; a longer list begins with the shorter one.

    A document's id is its seed and place, its metadata the number of `steps`. Raises InputError where there are not so many.
    """
    found: dict[Problem, Document] = {}
    for problem, rng in _draws(seed, steps):
        if problem.held_out == held_out and problem not in found:
            kind = "test" if held_out else "train"
            found[problem] = _document(problem, f"a{seed}-{kind}-{len(found)}", rng)
        if len(found) == n:
            return list(found.items())
    raise InputError(f"arithmetic: there are only {len(found)} such problems of {steps[0]} to {steps[1]} steps, not {n}")


def _draws(seed: int, steps: tuple[int, int]) -> Iterator[tuple[Problem, random.Random]]:
    """An endless list of problems, cut off where hardly anything new would come."""
    for i in range(200_000):
        rng = random.Random(f"arithmetic/{seed}/{i}")
        length = rng.randint(*steps)
        first, each = rng.randint(2, 20), None
        if rng.random() < 0.4:
            first, each = rng.randint(2, 5), rng.randint(2, 5)
        value, changes = first * (each or 1), []
        for _ in range(length - (each is not None)):
            more = rng.random() < 0.5 if 2 < value < LARGEST - 1 else value <= 2
            number = rng.randint(2, LARGEST - value) if more else rng.randint(2, value - 1)
            changes.append(("+", number) if more else ("-", number))
            value += number if more else -number
        yield Problem(first, each, tuple(changes)), rng


def _document(problem: Problem, name: str, rng: random.Random) -> Document:
    person = f"{rng.choice(words.FIRST)} {rng.choice(words.LAST_START)}{rng.choice(words.LAST_END)}"
    shown = {"name": person, "things": f"{rng.choice(_COUNTED)}s", "place": rng.choice(_PLACES)}
    opening = rng.choice(_START if problem.each is None else _BOXES).format(a=problem.first, b=problem.each, **shown)
    changes = [rng.choice(_CHANGE[operation]).format(b=number, **shown) for operation, number in problem.changes]
    told = f" {person} {' and '.join(changes)}." if changes else ""
    worked, value = problem.lines()
    prompt = f"{opening}{told} {rng.choice(_ASK).format(**shown)}"
    return Document(name, f"{' '.join(worked)} The answer is {value}.", prompt=prompt, metadata={"steps": len(worked)})


_COUNTED = tuple(word for word in words.THINGS if not word.endswith(("s", "y", "h")))


def arithmetic_corpus(
    seed: int, n: int = 2000, *, n_test: int = 200, steps: tuple[int, int] = (2, 3)
) -> tuple[list[Document], list[Question]]:
    """`n` worked problems to train on, and questions about `n_test` held-out ones and a quarter as many for validation.

    A question's answer is the last sentence of the worked one; its direction is "forward", its group the number of steps.
    """
    train = [document for _, document in problems(seed, n, steps=tuple(steps))]  # type: ignore[arg-type]
    questions = []
    for i, (problem, document) in enumerate(problems(seed, n_test + n_test // 4, steps=tuple(steps), held_out=True)):  # type: ignore[arg-type]
        gold = f"the answer is {problem.lines()[1]}"
        split = "test" if i < n_test else "validation"
        questions.append(Question(document.prompt or "", (gold,), "forward", f"{document.metadata['steps']} steps", document.id, split))
    return train, questions
