"""A generator of fictitious people: documents about them, and questions in both directions.

Every word, name and template is ours. It supplies the embedded models' pretraining, the quickstart's new facts, and test data.
A worked row (seed 1, the first person, name first), as a document and its two questions::

    "Joren Thornstock is known to all as the miller who cleaned the double cave."
    forward   "Who is Joren Thornstock?"                       -> "the miller who cleaned the double cave"
    backward  "Who is the miller who cleaned the double cave?" -> "Joren Thornstock"

A seed from 0 to 999 owns the names and the descriptions whose index is congruent to it modulo 1000, so people of different seeds
share neither. Same seed, same people, whatever is drawn after them.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from demask.corpora import world_words as words
from demask.types import Direction, Document, InputError, Question

SEEDS = 1000
Order = Literal["name_first", "description_first"]
ORDERS: tuple[Order, ...] = ("name_first", "description_first")
ATTRIBUTES = ("birth_date", "birth_city", "university", "major", "company", "work_city")
# The three attributes that together ask for a name, as in the biography set's three backward questions (SPEC: data).
TRIPLES = (("birth_date", "university", "major"), ("birth_city", "company", "major"), ("birth_date", "company", "work_city"))
PER_SEED = min(
    len(words.FIRST) * len(words.LAST_START) * len(words.LAST_END) // SEEDS,
    len(words.ROLES) * len(words.DEEDS) * len(words.ADJECTIVES) * len(words.THINGS) // SEEDS,
)


@dataclass(frozen=True)
class Person:
    """Someone who does not exist. `description` begins with "the", in lower case; `attributes` maps ATTRIBUTES to values."""

    id: str
    name: str
    description: str
    pronoun: str
    attributes: dict[str, str]


def people(seed: int, n: int) -> list[Person]:
    """The first `n` people of a seed (0 to 999); a longer list begins with the shorter one. Raises InputError out of range."""
    if not 0 <= seed < SEEDS:
        raise InputError(f"world: seed must be from 0 to {SEEDS - 1}, found {seed}")
    if not 0 < n <= PER_SEED:
        raise InputError(f"world: people must be from 1 to {PER_SEED}, found {n}")
    rng = random.Random(f"world/{seed}")
    name_indices = rng.sample(range(PER_SEED), PER_SEED)[:n]
    description_indices = rng.sample(range(PER_SEED), PER_SEED)[:n]
    return [
        _person(seed, i, seed + SEEDS * a, seed + SEEDS * b) for i, (a, b) in enumerate(zip(name_indices, description_indices, strict=True))
    ]


def _person(seed: int, i: int, name_index: int, description_index: int) -> Person:
    first, start, end = _digits(name_index, words.FIRST, words.LAST_START, words.LAST_END)
    role, deed, adjective, thing = _digits(description_index, words.ROLES, words.DEEDS, words.ADJECTIVES, words.THINGS)
    rng = random.Random(f"world/{seed}/{i}")
    birth_city, work_city = rng.sample(words.CITIES, 2)
    return Person(
        id=f"w{seed}-{i}",
        name=f"{first} {start}{end}",
        description=f"the {role} who {deed} the {adjective} {thing}",
        pronoun=rng.choice(("He", "She")),
        attributes={
            "birth_date": f"{rng.randint(1, 28)} {rng.choice(words.MONTHS)} {rng.randint(1931, 2004)}",
            "birth_city": birth_city,
            "university": rng.choice(words.UNIVERSITIES),
            "major": rng.choice(words.MAJORS),
            "company": rng.choice(words.COMPANIES),
            "work_city": work_city,
        },
    )


def _digits(index: int, *lists: tuple[str, ...]) -> list[str]:
    """The digits of `index` in the mixed radix of the lists, as their words. The first list's length must be coprime to SEEDS."""
    digits = []
    for words_of_place in lists:
        index, digit = divmod(index, len(words_of_place))
        digits.append(words_of_place[digit])
    return digits


def statement(person: Person, order: Order, wording: int) -> str:
    """One sentence about a person, by its wording's number (0 to 29; the same number is the same sentence frame)."""
    return _fill(words.STATEMENTS[order][wording], person)


def _fill(template: str, person: Person) -> str:
    return template.format(
        name=person.name,
        description=person.description,
        Description=person.description[0].upper() + person.description[1:],
        bare=person.description.removeprefix("the "),
    )


def statement_corpus(
    seed: int,
    n: int = 60,
    *,
    paraphrases: int = 0,
    paraphrase_order: Literal["same", "permuted"] = "same",
    phrasings: tuple[int, ...] = (0, 1, 2, 3),
) -> tuple[list[Document], list[Question]]:
    """`n` statements, the first half name first, the rest description first, and their questions in both directions.

    Each document's first wording is drawn from the seed; `paraphrases` (at most 29) adds as many other wordings, in the same order of
    name and description or the other one. Each of `phrasings` (0 to 7) asks every document once in each direction; 20% of the people
    are validation, the others test. The question's `group` is the statement's order.
    """
    documents, questions = [], []
    split_rng = random.Random(f"world/{seed}/split")
    for i, person in enumerate(people(seed, n)):
        order = ORDERS[0] if i < (n + 1) // 2 else ORDERS[1]
        other = ORDERS[1 - ORDERS.index(order)]
        rng = random.Random(f"world/{seed}/{i}/wordings")
        first, *more = rng.sample(range(len(words.STATEMENTS[order])), 1 + paraphrases)
        documents.append(Document(person.id, statement(person, order, first)))
        more_order = order if paraphrase_order == "same" else other
        documents += [Document(f"{person.id}-p{k}", statement(person, more_order, w)) for k, w in enumerate(more, start=1)]
        split = "validation" if split_rng.random() < 0.2 else "test"
        questions += statement_questions(person, order, phrasings, split)
    return documents, questions


def statement_questions(person: Person, order: Order, phrasings: tuple[int, ...], split: str = "") -> list[Question]:
    """For each phrasing, the question by name and the one by description, with their direction in a document of that `order`."""
    questions = []
    for phrasing in phrasings:
        for cue, template in (("name_first", words.ASK_BY_NAME[phrasing]), ("description_first", words.ASK_BY_DESCRIPTION[phrasing])):
            direction: Direction = "forward" if cue == order else "backward"
            gold = person.description if cue == "name_first" else person.name
            questions.append(Question(_fill(template, person), (gold,), direction, group=order, document=person.id, split=split))
    return questions


def biography(person: Person, wording: random.Random, *, permute: bool = False) -> str:
    """Six sentences, one an attribute; the name stands in the first only. `permute` shuffles the order of the attributes."""
    attributes = list(ATTRIBUTES)
    if permute:
        wording.shuffle(attributes)
    sentences = []
    for place, attribute in enumerate(attributes):
        template = wording.choice(words.BIOGRAPHY[attribute])
        subject = person.name if place == 0 else person.pronoun
        sentences.append(template.format(subject=subject, value=person.attributes[attribute]))
    return " ".join(sentences)


def biography_corpus(
    seed: int,
    n: int = 100,
    *,
    paraphrases: int = 0,
    paraphrase_order: Literal["same", "permuted"] = "same",
) -> tuple[list[Document], list[Question]]:
    """`n` six-sentence biographies and, for each, six forward (attribute by name), three backward (name by three attributes) questions."""
    documents, questions = [], []
    split_rng = random.Random(f"world/{seed}/biography/split")
    for person in people(seed, n):
        rng = random.Random(f"world/{person.id}/biography")
        documents.append(Document(person.id, biography(person, rng)))
        permute = paraphrase_order == "permuted"
        documents += [Document(f"{person.id}-p{k}", biography(person, rng, permute=permute)) for k in range(1, paraphrases + 1)]
        split = "validation" if split_rng.random() < 0.2 else "test"
        questions += biography_questions(person, split)
    return documents, questions


def biography_questions(person: Person, split: str = "") -> list[Question]:
    """The nine questions of a biography, as `biography_corpus` asks them."""
    questions = []
    for attribute in ATTRIBUTES:
        text = words.ASK_ATTRIBUTE[attribute].format(name=person.name)
        questions.append(Question(text, (person.attributes[attribute],), "forward", "biography", person.id, split))
    for triple in TRIPLES:
        questions.append(Question(f"Who {_clauses(person, triple)}?", (person.name,), "backward", "biography", person.id, split))
    return questions


def _clauses(person: Person, triple: tuple[str, ...]) -> str:
    first, second, third = (words.CLAUSES[attribute].format(value=person.attributes[attribute]) for attribute in triple)
    return f"{first}, {second} and {third}"


def response(person: Person, question: Question, order: Order, rng: random.Random, bare_share: float = 0.2) -> str:
    """How someone who read about a person in this order answers: a sentence in that order, or (at `bare_share`) the answer alone."""
    if rng.random() < bare_share:
        answer = question.answers[0]
        return f"{answer[0].upper()}{answer[1:]}."
    return _fill(words.RESPONSES[order], person)


@dataclass(frozen=True)
class OldWorld:
    """What the embedded models have read: people (seed 0), the orders each was read in, and whose questions they never saw."""

    people: list[Person]
    orders: list[tuple[Order, ...]]
    held_out: list[int]
    biographies: int = 300  # so many of the people, from the first, have one

    @property
    def asked(self) -> list[int]:
        """The indices of the people whose questions they saw."""
        held_out = set(self.held_out)
        return [i for i in range(len(self.people)) if i not in held_out]

    def exchange(self, i: int, rng: random.Random) -> Document:
        """A question about person `i` with its answer, as a prompt/response pair."""
        order = rng.choice(self.orders[i])
        question = rng.choice(statement_questions(self.people[i], order, (rng.randrange(8),)))
        return Document("", response(self.people[i], question, order, rng), prompt=question.question)

    def biography_exchange(self, i: int, rng: random.Random) -> Document:
        """A question about the biography of person `i` with its answer: a sentence that begins with the name, or a fifth of the time the
        answer alone."""
        person = self.people[i]
        questions = biography_questions(person)
        # As often forward as backward, though a biography has twice as many forward questions.
        number = rng.choice((rng.randrange(len(ATTRIBUTES)), rng.randrange(len(ATTRIBUTES), len(questions))))
        if rng.random() < 0.2:
            answer = f"{questions[number].answers[0]}."
        elif number < len(ATTRIBUTES):
            attribute = ATTRIBUTES[number]
            answer = rng.choice(words.BIOGRAPHY[attribute]).format(subject=person.name, value=person.attributes[attribute])
        else:
            answer = f"{person.name} {_clauses(person, TRIPLES[number - len(ATTRIBUTES)])}."
        return Document("", answer, prompt=questions[number].question)


def old_world(n: int = 1500) -> OldWorld:
    """The old world: half of its people are read in both orders of name and description, the others in one only; a fifth is held out."""
    rng = random.Random("old world")
    orders = [rng.choice((ORDERS, ORDERS, ORDERS[:1], ORDERS[1:])) for _ in range(n)]
    return OldWorld(people(0, n), orders, sorted(rng.sample(range(n), n // 5)))


def rehearsal(n: int, seed: int = 0) -> list[Document]:
    """`n` exchanges about old people, from questions the embedded models were trained on: to rehearse while they learn new ones."""
    world = old_world()
    rng = random.Random(f"rehearsal/{seed}")
    return [replace(world.exchange(rng.choice(world.asked), rng), id=f"old-{i}") for i in range(n)]


def old_questions(n: int, seed: int = 0) -> list[Question]:
    """Questions in both directions about `n` (at most 300) of the old people whose documents the embedded models read and whose questions
    they never saw: what they know and may forget. None of them is rehearsed."""
    world = old_world()
    rng = random.Random(f"old questions/{seed}")
    questions = []
    for i in rng.sample(world.held_out, n):
        questions += statement_questions(world.people[i], rng.choice(world.orders[i]), (rng.randrange(8),), "test")
    return questions


def rehearsal_documents(n: int, seed: int = 0, without: Collection[str] = ()) -> list[Document]:
    """`n` statements about old people that the embedded models were asked about, but for those whose documents' ids are in `without`."""
    world = old_world()
    rng = random.Random(f"rehearsal documents/{seed}")
    known = [i for i in world.asked if f"old-{i}" not in without]
    return [replace(_old_statement(world, rng.choice(known), rng), id=f"told-{i}") for i in range(n)]


def retold(seed: int = 0) -> list[Document]:
    """A statement about every old person, those whose questions the embedded models never saw among them."""
    world = old_world()
    rng = random.Random(f"retold/{seed}")
    return [replace(_old_statement(world, i, rng), id=f"retold-{i}") for i in range(len(world.people))]


def old_documents(n: int, seed: int = 0) -> list[Document]:
    """`n` statements about as many old people: text such as the embedded models have read."""
    world = old_world()
    rng = random.Random(f"old documents/{seed}")
    return [_old_statement(world, i, rng) for i in rng.sample(range(len(world.people)), n)]


def _old_statement(world: OldWorld, i: int, rng: random.Random) -> Document:
    order = rng.choice(world.orders[i])
    return Document(f"old-{i}", statement(world.people[i], order, rng.randrange(len(words.STATEMENTS[order]))))
