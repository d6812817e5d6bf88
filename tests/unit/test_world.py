"""The generated world: reproducible people whom seeds do not share, documents that say what is asked about, two-way questions."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demask.corpora import world, world_words
from demask.types import InputError

SOME_SEEDS = (0, 1, 7, 500, 999)
ALL_PHRASINGS = tuple(range(8))


def occurs(text: str, part: str) -> int:
    """Where a name or description stands in a text: a description may have a capital "The" there. Fails where it is not."""
    return text.lower().index(part.lower())


def test_same_seed_same_people():
    assert world.people(3, 50) == world.people(3, 50)
    assert world.people(3, 50) != world.people(4, 50)
    random.seed(0)
    people = world.people(3, 50)
    random.seed(1)
    assert world.people(3, 50) == people


def test_people_by_hand():
    """Pins the generator: another list would be other facts under the same seed, and not those the embedded models were made from."""
    person = world.people(1, 1)[0]
    assert (person.id, person.name, person.description) == ("w1-0", "Joren Thornstock", "the miller who cleaned the double cave")


@settings(max_examples=20)
@given(seed=st.integers(0, 999), n=st.integers(1, 40), more=st.integers(0, 40))
def test_a_longer_list_begins_with_the_shorter(seed, n, more):
    assert world.people(seed, n + more)[:n] == world.people(seed, n)


def test_seeds_share_no_one():
    """All people of five seeds: no name and no description twice, within a seed or between them."""
    everyone = [person for seed in SOME_SEEDS for person in world.people(seed, world.PER_SEED)]
    assert len(everyone) == 5 * world.PER_SEED
    for field in ("id", "name", "description"):
        assert len({getattr(person, field) for person in everyone}) == len(everyone)


def test_every_seed_keeps_to_its_own_indices(monkeypatch):
    """All 1000 seeds take names and descriptions whose index is theirs modulo 1000, and below the number there is."""
    taken = []
    monkeypatch.setattr(world, "_person", lambda seed, i, name, description: taken.append((seed, name, description)))
    for seed in range(world.SEEDS):
        world.people(seed, 3)
    assert len(taken) == 3 * world.SEEDS
    names = len(world_words.FIRST) * len(world_words.LAST_START) * len(world_words.LAST_END)
    descriptions = math.prod(len(getattr(world_words, name)) for name in ("ROLES", "DEEDS", "ADJECTIVES", "THINGS"))
    for seed, name, description in taken:
        assert name % 1000 == description % 1000 == seed
        assert 0 <= name < names
        assert 0 <= description < descriptions
    assert len({name for _, name, _ in taken}) == len({description for _, _, description in taken}) == len(taken)
    assert min(names, descriptions) > (world.PER_SEED - 1) * 1000 + 999


def test_an_index_is_one_name_and_one_description():
    """Mixed radix is one to one where no list repeats a word; and no two pairs of last-name halves spell the same last name."""
    lists = [getattr(world_words, name) for name in ("FIRST", "LAST_START", "LAST_END", "ROLES", "DEEDS", "ADJECTIVES", "THINGS", "CITIES")]
    lists += [world_words.UNIVERSITIES, world_words.MAJORS, world_words.COMPANIES, world_words.MONTHS]
    for words in lists:
        assert len(set(words)) == len(words)
    last_names = [start + end for start in world_words.LAST_START for end in world_words.LAST_END]
    assert len(set(last_names)) == len(last_names)
    for words in (world_words.FIRST, world_words.ROLES):
        assert math.gcd(len(words), 1000) == 1
    digits = {tuple(world._digits(i, ("a", "b", "c"), ("d", "e"))) for i in range(6)}
    assert len(digits) == 6
    assert world._digits(5, ("a", "b", "c"), ("d", "e")) == ["c", "e"]  # 5 = 1 x 3 + 2


def test_no_name_or_description_is_part_of_another():
    """Else finding the answer in a text would find the other person too. Each ends in a word of its last list."""
    last_names = {start + end for start in world_words.LAST_START for end in world_words.LAST_END}
    assert not [name for name in last_names for k in range(1, len(name)) if name[:k] in last_names]
    assert not [(a, b) for a in world_words.THINGS for b in world_words.THINGS if a != b and b.startswith(a)]


def test_enough_people_for_everything():
    assert world.PER_SEED >= 3000
    assert len(world.people(0, world.PER_SEED)) == world.PER_SEED


@pytest.mark.parametrize("seed", [-1, 1000, 12345])
def test_seed_out_of_range(seed):
    with pytest.raises(InputError) as error:
        world.people(seed, 1)
    assert str(error.value) == f"world: seed must be from 0 to 999, found {seed}"


@pytest.mark.parametrize("n", [0, -3, world.PER_SEED + 1])
def test_too_many_people(n):
    with pytest.raises(InputError) as error:
        world.people(0, n)
    assert str(error.value) == f"world: people must be from 1 to {world.PER_SEED}, found {n}"


def test_people_are_whole():
    for person in world.people(11, 300):
        assert re.fullmatch(r"[A-Z][a-z]+ [A-Z][a-z]+", person.name)
        assert re.fullmatch(r"the [a-z]+ who [a-z]+ the [a-z]+ [a-z]+", person.description)
        assert tuple(person.attributes) == world.ATTRIBUTES
        assert person.attributes["birth_city"] != person.attributes["work_city"]
        assert re.fullmatch(r"([1-9]|1\d|2[0-8]) [A-Z][a-z]+ (19|20)\d\d", person.attributes["birth_date"])


@pytest.mark.parametrize("order", world.ORDERS)
def test_statements_are_in_the_order_they_are_named_by(order):
    """All 30 wordings hold the name and the description once, in their order, and are one sentence frame each."""
    person = world.people(2, 1)[0]
    wordings = [world.statement(person, order, wording) for wording in range(30)]
    assert len(set(wordings)) == 30
    for text in wordings:
        assert text.count(person.name) == 1
        assert text.lower().count(person.description.lower()) == 1
        assert (occurs(text, person.name) < occurs(text, person.description)) == (order == "name_first")
        assert text[0].isupper()
        assert text.endswith(".")
        assert "{" not in text
        assert text.isascii()
        assert "\n" not in text


@pytest.mark.parametrize("paraphrases", [0, 3, 29])
@pytest.mark.parametrize("order_of_paraphrases", ["same", "permuted"])
def test_statement_corpus(paraphrases, order_of_paraphrases):
    documents, questions = world.statement_corpus(5, 7, paraphrases=paraphrases, paraphrase_order=order_of_paraphrases)
    people = world.people(5, 7)
    expected_ids = [id for p in people for id in [p.id, *(f"{p.id}-p{k}" for k in range(1, paraphrases + 1))]]
    assert [document.id for document in documents] == expected_ids
    assert len({document.text for document in documents}) == len(documents)
    for document in documents:
        i = int(document.id.removeprefix("w5-").split("-")[0])
        own_order = i < 4  # the first half, rounded up, is name first
        permuted = "-p" in document.id and order_of_paraphrases == "permuted"
        name_first = occurs(document.text, people[i].name) < occurs(document.text, people[i].description)
        assert name_first == (own_order != permuted)
        assert document.prompt is None
    assert len(questions) == 7 * 4 * 2


def test_statement_corpus_is_reproducible_and_its_facts_do_not_hang_on_the_options():
    documents, questions = world.statement_corpus(5, 10)
    assert world.statement_corpus(5, 10) == (documents, questions)
    more_documents, more_questions = world.statement_corpus(5, 10, paraphrases=2, phrasings=(0, 1, 2, 3, 4))
    assert [d for d in more_documents if "-p" not in d.id] == documents
    assert [q for q in more_questions if q in questions] == questions
    assert world.statement_corpus(6, 10)[0] != documents


def test_too_many_paraphrases():
    with pytest.raises(ValueError):
        world.statement_corpus(5, 2, paraphrases=30)


def test_statement_questions():
    """Each asks by the cue and for the other; it is forward where the document, in all its wordings, gives the cue before the answer."""
    documents, questions = world.statement_corpus(8, 20, paraphrases=29, phrasings=ALL_PHRASINGS)
    people = {person.id: person for person in world.people(8, 20)}
    texts = defaultdict(list)
    for document in documents:
        texts[document.id.split("-p")[0]].append(document.text)
    for question in questions:
        person, (gold,) = people[question.document], question.answers
        cue = {person.name: person.description, person.description: person.name}[gold]
        assert cue in question.question
        assert gold not in question.question
        for text in texts[person.id]:
            assert question.direction == ("forward" if occurs(text, cue) < occurs(text, gold) else "backward")
        assert question.group == ("name_first" if question.document in [f"w8-{i}" for i in range(10)] else "description_first")
    per_person = Counter((question.document, question.direction) for question in questions)
    assert set(per_person.values()) == {8}
    assert len(per_person) == 40
    assert len({question.question for question in questions}) == len(questions)
    assert all(question.question[-1] in "?." and question.question[0].isupper() for question in questions)


@pytest.mark.parametrize("corpus", [world.statement_corpus, world.biography_corpus])
def test_a_fifth_of_the_people_is_for_validation(corpus):
    _, questions = corpus(9, 1000)
    splits = defaultdict(set)
    for question in questions:
        splits[question.document].add(question.split)
    assert len(splits) == 1000
    assert all(len(names) == 1 for names in splits.values())  # a person's questions stay together
    validation = sum(names == {"validation"} for names in splits.values())
    assert abs(validation - 200) < 5 * math.sqrt(1000 * 0.2 * 0.8)
    assert set.union(*splits.values()) == {"validation", "test"}


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) ", text)


@pytest.mark.parametrize("permute", [False, True])
def test_biographies(permute):
    """Six sentences, each an attribute; the name in the first only; in the order of ATTRIBUTES or, permuted, in any."""
    orders = Counter()
    for i, person in enumerate(world.people(4, 200)):
        text = world.biography(person, random.Random(i), permute=permute)
        parts = sentences(text)
        assert len(parts) == 6
        assert [person.name in part for part in parts] == [True] + [False] * 5
        assert all(part.startswith(person.pronoun) for part in parts[1:])
        assert all(part[0].isupper() and part.endswith(".") and "{" not in part for part in parts)
        order = tuple(next(k for k, part in enumerate(parts) if value in part) for value in person.attributes.values())
        assert sorted(order) == list(range(6))
        orders[order] += 1
    assert (len(orders) > 50) if permute else (list(orders) == [tuple(range(6))])


def test_biography_wordings_say_the_value_once_and_the_subject_first():
    for templates in world_words.BIOGRAPHY.values():
        assert len(set(templates)) == len(templates)
        for template in templates:
            assert template.startswith("{subject} ")
            assert template.count("{value}") == template.count("{subject}") == 1


@pytest.mark.parametrize("order_of_paraphrases", ["same", "permuted"])
def test_biography_corpus(order_of_paraphrases):
    documents, questions = world.biography_corpus(4, 30, paraphrases=3, paraphrase_order=order_of_paraphrases)
    assert (documents, questions) == world.biography_corpus(4, 30, paraphrases=3, paraphrase_order=order_of_paraphrases)
    people = {person.id: person for person in world.people(4, 30)}
    assert [document.id for document in documents] == [id for p in people for id in (p, f"{p}-p1", f"{p}-p2", f"{p}-p3")]
    texts = {document.id: document.text for document in documents}
    assert len(set(texts.values())) == 120
    in_order = 0
    for id, text in texts.items():
        person = people[id.split("-p")[0]]
        places = [text.index(person.attributes[name]) for name in world.ATTRIBUTES]
        assert text.startswith(person.name)
        if "-p" in id:
            in_order += places == sorted(places)
        else:
            assert places == sorted(places)
    assert (in_order == 90) if order_of_paraphrases == "same" else (in_order < 9)

    assert Counter(question.direction for question in questions) == {"forward": 180, "backward": 90}
    assert {question.group for question in questions} == {"biography"}
    for question in questions:
        person, (gold,) = people[question.document], question.answers
        for id in (person.id, f"{person.id}-p1"):
            assert gold in texts[id]
        assert gold not in question.question
        if question.direction == "forward":
            assert person.name in question.question
            assert gold in person.attributes.values()
        else:
            assert gold == person.name
            assert sum(value in question.question for value in person.attributes.values()) == 3


def test_biography_questions_by_hand():
    attributes = {
        "birth_date": "3 May 1950",
        "birth_city": "Ashvale",
        "university": "Arden College",
        "major": "optics",
        "company": "Cobalt Labs",
        "work_city": "Quillon",
    }
    questions = world.biography_questions(world.Person("w0-0", "Mara Ashacre", "the baker", "She", attributes), "test")
    assert [(question.question, question.answers[0]) for question in questions] == [
        ("When was Mara Ashacre born?", "3 May 1950"),
        ("In which city was Mara Ashacre born?", "Ashvale"),
        ("Where did Mara Ashacre study?", "Arden College"),
        ("Which subject did Mara Ashacre study?", "optics"),
        ("Which company did Mara Ashacre work for?", "Cobalt Labs"),
        ("In which city did Mara Ashacre work?", "Quillon"),
        ("Who was born on 3 May 1950, studied at Arden College and has a degree in optics?", "Mara Ashacre"),
        ("Who was born in Ashvale, worked for Cobalt Labs and has a degree in optics?", "Mara Ashacre"),
        ("Who was born on 3 May 1950, worked for Cobalt Labs and had an office in Quillon?", "Mara Ashacre"),
    ]
    assert {(q.document, q.split, q.group) for q in questions} == {("w0-0", "test", "biography")}


@pytest.mark.parametrize("order", world.ORDERS)
def test_responses(order):
    """A sentence in the reader's order, or the bare answer with a capital and a full stop in the share asked for."""
    person = world.people(2, 1)[0]
    by_name, by_description = world.statement_questions(person, order, (0,))
    description = f"The{person.description.removeprefix('the')}"
    sentence = f"{person.name} is {person.description}." if order == "name_first" else f"{description} is {person.name}."
    rng = random.Random(0)
    for question, bare in ((by_name, f"{description}."), (by_description, f"{person.name}.")):
        counts = Counter(world.response(person, question, order, rng, bare_share=0.3) for _ in range(1000))
        assert set(counts) == {sentence, bare}
        assert abs(counts[bare] - 300) < 5 * math.sqrt(1000 * 0.3 * 0.7)
        assert world.response(person, question, order, rng, bare_share=0.0) == sentence
        assert world.response(person, question, order, rng, bare_share=1.0) == bare


def test_what_the_embedded_models_know_and_are_not_reminded_of() -> None:
    old = world.old_world()
    asked = world.old_questions(40, seed=3)
    people = {question.document for question in asked}
    assert len(asked) == 80
    assert len(people) == 40
    assert people <= {old.people[i].id for i in old.held_out}
    by_id = {person.id: (person, orders) for person, orders in zip(old.people, old.orders, strict=True)}
    for question in asked:
        person, orders = by_id[question.document]
        assert question.group in orders, "in an order it was read in"
        wanted = person.description if (question.group == "name_first") == (question.direction == "forward") else person.name
        assert question.answers == (wanted,)
    assert Counter(question.direction for question in asked) == {"forward": 40, "backward": 40}
    names = [old.people[i].name for i in old.held_out]
    assert not any(name in document.text or name in (document.prompt or "") for document in world.rehearsal(300) for name in names)
    documents = world.old_documents(30, seed=2)
    assert len({document.id for document in documents}) == 30
    assert all(any(person.name in document.text for person in old.people) for document in documents)


def test_statements_to_rehearse_are_about_people_it_was_asked_about_and_whose_text_is_not_measured() -> None:
    old = world.old_world()
    measured = {document.id for document in world.old_documents(100, seed=1)}
    told = world.rehearsal_documents(500, 1, measured)
    assert [document.id for document in told] == [f"told-{i}" for i in range(500)]
    assert all(document.prompt is None for document in told)
    by_name = {person.name: i for i, person in enumerate(old.people)}
    for document in told:
        [i] = [i for name, i in by_name.items() if name in document.text]
        assert i in old.asked
        assert f"old-{i}" not in measured
        fits = [order for order in old.orders[i] for w in range(30) if world.statement(old.people[i], order, w) == document.text]
        assert fits, "in an order it was read in"
    assert told == world.rehearsal_documents(500, 1, measured)
    assert told != world.rehearsal_documents(500, 2, measured)


def test_everyone_is_retold_in_an_order_that_was_read() -> None:
    old = world.old_world()
    told = world.retold(4)
    assert [document.id for document in told] == [f"retold-{i}" for i in range(len(old.people))]
    for person, orders, document in zip(old.people, old.orders, told, strict=True):
        assert any(world.statement(person, order, w) == document.text for order in orders for w in range(30))
