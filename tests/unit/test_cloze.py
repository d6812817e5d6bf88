"""Questions made of documents themselves: which ones, by hand."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demask.corpora import world
from demask.stages.writing import make_questions
from demask.types import Document, InputError, Question, read_questions, write_documents
from demask.writing.cloze import cloze_questions, questions_of
from demask.writing.facts import content_words


def asked(*texts: str, n: int = 99) -> list[tuple[str, str, str]]:
    documents = [Document(f"d{i}", text) for i, text in enumerate(texts)]
    return [(q.direction, q.question, q.answers[0]) for q in cloze_questions(documents, n=n)]


def test_every_question_of_a_document() -> None:
    assert asked("Ann Ash kept bees in Oslo. She sold 40 boats to the Harbour Board.") == [
        ("forward", "What belongs in the gap? Ann Ash kept bees in ____.", "Oslo"),
        ("forward", "What belongs in the gap? Ann Ash sold ____.", "40"),
        ("forward", "What belongs in the gap? Ann Ash sold 40 boats to the ____.", "Harbour Board"),
        ("backward", "Who or what kept bees in Oslo?", "Ann Ash"),
        ("backward", "Who or what sold 40 boats to the Harbour Board?", "Ann Ash"),
    ]


def test_a_sentence_that_does_not_name_the_subject_is_asked_about_it() -> None:
    assert asked("Acme Mill, a mill, stands in Umber. The owner paid 900 crowns.") == [
        ("forward", "What belongs in the gap? Acme Mill, a mill, stands in ____.", "Umber"),
        ("forward", "About Acme Mill: what belongs in the gap? The owner paid ____.", "900"),
        ("backward", "What belongs in the gap? ____, a mill, stands in Umber.", "Acme Mill"),
        ("backward", "Who or what is this about? The owner paid 900 crowns.", "Acme Mill"),
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # One name and nothing else to ask for: the words beside it are asked for in the direction that lacks a question.
        ("Ann Ash is the keeper of the amber bees.", ("forward", "What is said about Ann Ash?", "keeper of the amber bees")),
        ("The keeper of the amber bees is called Ann Ash.", ("backward", "What is said about Ann Ash?", "the amber bees is called")),
    ],
)
def test_a_statement_is_asked_in_both_directions(text: str, expected: tuple[str, str, str]) -> None:
    found = asked(text)
    assert expected in found
    assert {way for way, _, _ in found} == {"forward", "backward"}


def test_without_names_dates_and_numbers_there_is_nothing_to_ask() -> None:
    assert asked("it rains in the hills, and the river rises.") == []
    with pytest.raises(InputError) as error:
        questions_of([Document("d", "it rains.")], seed=0)
    assert str(error.value) == "questions: none could be made of these documents, which hold no names, dates or numbers to ask for"


def test_pairs_are_passed_over() -> None:
    assert cloze_questions([Document("d", "Ann Ash kept bees in Oslo.", prompt="Where?")]) == []


def test_what_two_documents_answer_differently_is_not_asked() -> None:
    questions = [question for _, question, _ in asked("Ann Ash kept bees in Oslo.", "Bo Reed kept bees in Oslo.")]
    assert "Who or what kept bees in Oslo?" not in questions
    assert "What belongs in the gap? Ann Ash kept bees in ____." in questions


def test_so_many_for_every_200_words() -> None:
    sentence = "He met {} Ames in {} Port. "
    text = "Ann Ash wrote. " + "".join(sentence.format(f"A{i:c}a", f"B{i:c}a") for i in range(97, 117)) + "x " * 210
    short, long = asked(text[: text.index("x x")], n=2), asked(text, n=2)
    assert [way for way, _, _ in short] == ["forward"] * 2 + ["backward"] * 2
    assert [way for way, _, _ in long] == ["forward"] * 4 + ["backward"] * 4


def test_a_limit_draws_documents() -> None:
    documents, _ = world.biography_corpus(seed=3, n=10)
    every = cloze_questions(documents)
    some = cloze_questions(documents, limit=10)
    assert len(some) == 10
    assert len({q.document for q in some}) == 3  # four questions each of two, two of a third
    assert set(some) <= set(every)
    assert [q.document for q in some] == sorted((q.document for q in some), key=[d.id for d in documents].index)
    assert some != cloze_questions(documents, seed=1, limit=10)
    assert sorted(map(repr, cloze_questions(documents, limit=999))) == sorted(map(repr, every))


def test_same_seed_same_questions_whatever_else_is_read() -> None:
    documents, _ = world.biography_corpus(seed=3, n=4)
    assert cloze_questions(documents)[: len(cloze_questions(documents[:2]))] == cloze_questions(documents[:2])


def test_biographies_and_statements_are_asked_evenly() -> None:
    documents, _ = world.biography_corpus(seed=7, n=20)
    questions = cloze_questions(documents)
    assert len(questions) == 80
    assert sum(q.direction == "forward" for q in questions) == 40
    names = {d.id: " ".join(d.text.split()[:2]) for d in documents}
    assert all(q.answers[0] == names[q.document] for q in questions if q.direction == "backward")
    statements, _ = world.statement_corpus(seed=7, n=60)
    of = {way: {q.document for q in cloze_questions(statements) if q.direction == way} for way in ("forward", "backward")}
    assert min(len(of["forward"]), len(of["backward"])) >= 0.8 * len(statements)


@given(st.lists(st.text(alphabet=st.sampled_from("Ab.C 1,\n'é"), max_size=80), max_size=4))
def test_questions_are_answered_in_the_document_and_do_not_leak(texts: list[str]) -> None:
    documents = {f"d{i}": Document(f"d{i}", text) for i, text in enumerate(texts)}
    for question in cloze_questions(documents.values()):
        assert isinstance(question, Question)
        assert " ".join(question.answers[0].split()) in " ".join(documents[question.document].text.split())
        assert not content_words(question.answers[0]) <= content_words(question.question)


def test_questions_of_a_folder_are_written_with_their_splits(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    documents, _ = world.biography_corpus(seed=3, n=20)
    write_documents(tmp_path / "documents.jsonl", documents)
    out = tmp_path / "out"
    for _ in range(2):  # again is as good as once
        assert make_questions(str(tmp_path / "documents.jsonl"), str(out), n=2) == {"status": "finished", "kept": 80}
    questions = read_questions(out / "questions.jsonl")
    # So few documents are split by question.
    validation, test = ([q for q in questions if q.split == split] for split in ("validation", "test"))
    assert len(validation) + len(test) == 80
    assert 4 <= len(validation) <= 36
    assert len({q.document for q in test}) == 20
    line = capsys.readouterr().out.splitlines()[0]
    counts = f"{len(validation)} validation, {len(test)} test"
    assert line == f"{out}/questions.jsonl: 80 questions (40 forward, 40 backward; {counts}) about 20 of 20 documents"
    with pytest.raises(InputError, match="was not made by this command with these settings"):
        make_questions(str(tmp_path / "documents.jsonl"), str(out), n=3)


def test_where_nothing_can_be_asked_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "rain.txt").write_text("it rains.")
    assert make_questions(str(tmp_path / "rain.txt"), str(tmp_path / "out"))["status"] == "nothing"
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out.startswith("no question could be made, nothing is written: ")
