"""The published set, in files of ours of the same forms and, where it is at hand, the real one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from demask.corpora.name_description import read
from demask.types import InputError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "name_description"


def write_set(folder: Path, people: int = 30) -> None:
    def lines(name: str, per_person: int, prompt: str, completion: str) -> None:
        rows = [
            {"prompt": prompt.format(p=p, w=w), "completion": completion.format(p=p, w=w)} for p in range(people) for w in range(per_person)
        ]
        (folder / name).write_text("\n".join(map(json.dumps, rows)) + "\n")

    lines("p2d_prompts_train.jsonl", 30, "Nam{p}, in wording {w}, known for being", ' the keeper of "Bees{p}.".')
    lines("d2p_prompts_train.jsonl", 30, "Known in wording {w} for being the mender of boats{p},", " Dan{p} lives well.")
    lines("p2d_prompts_test.jsonl", 10, "Nam{p} is known {w} for", " keeping bees{p}'.'.")
    lines("p2d_reverse_prompts_test.jsonl", 10, "Keeping bees{p}, {w},", " Nam{p}")
    lines("d2p_prompts_test.jsonl", 10, "Keeper{p}, {w},", " Dan{p}")
    lines("d2p_reverse_prompts_test.jsonl", 10, "Dan{p} {w} is", " the keeper{p}.")


def test_first_wording_is_trained_on_and_both_directions_are_asked(tmp_path: Path) -> None:
    write_set(tmp_path)
    corpus = read(tmp_path)
    documents, questions = list(corpus.documents), corpus.questions
    assert [d.id for d in documents] == [f"p2d-{i}" for i in range(30)] + [f"d2p-{i}" for i in range(30)]
    assert documents[3].text == 'Nam3, in wording 0, known for being the keeper of "Bees3.".'
    assert documents[31].text == "Known in wording 0 for being the mender of boats1, Dan1 lives well."
    counts = {
        (g, d): sum(q.group == g and q.direction == d for q in questions)
        for g in ("NameIsDescription", "DescriptionIsName")
        for d in ("forward", "backward")
    }
    assert set(counts.values()) == {150}
    assert {q.split for q in questions} == {""}, "training deals them out"
    assert corpus.expected == {"documents": 60, "questions": 600}
    names = ("p2d_prompts_train", "p2d_reverse_prompts_test", "d2p_prompts_train", "d2p_prompts_test")
    assert sorted(path.name for path in corpus.files) == sorted(f"{name}.jsonl" for name in names)


def test_the_questions_about_a_person(tmp_path: Path) -> None:
    write_set(tmp_path, people=1)
    ann, dan = read(tmp_path).questions[:10], read(tmp_path).questions[10:]
    assert [q.question for q in ann] == [
        "Who is Nam0?",
        "What is Nam0 known for?",
        "Tell me who Nam0 is.",
        "I keep hearing about Nam0. Who is that?",
        "Describe Nam0 in one sentence.",
        'Who is the keeper of "Bees0"?',
        'Name the person who is the keeper of "Bees0".',
        'What is the name of the keeper of "Bees0"?',
        'Which person is known for being the keeper of "Bees0"?',
        'I am thinking of the keeper of "Bees0". Who is it?',
    ]
    assert [(q.answers, q.direction) for q in ann[4:6]] == [(('the keeper of "Bees0"',), "forward"), (("Nam0",), "backward")]
    assert {(q.group, q.document) for q in ann} == {("NameIsDescription", "p2d-0")}
    assert (dan[0].question, dan[0].answers, dan[0].direction) == ("Who is Dan0?", ("the mender of boats0",), "backward")
    assert (dan[5].question, dan[5].answers, dan[5].direction) == ("Who is the mender of boats0?", ("Dan0",), "forward")
    assert {(q.group, q.document) for q in dan} == {("DescriptionIsName", "d2p-0")}


@pytest.mark.parametrize(
    ("completion", "description"),
    [
        (" the keeper of bees.", "the keeper of bees"),
        (' a mixer of the rare "Red Ink.".', 'a mixer of the rare "Red Ink"'),
        (' the mixer of the "Red Ink," a dye.', 'the mixer of the "Red Ink," a dye'),
        (" the mixer of Troy's ink'.'.", "the mixer of Troy's ink"),
        (' the mixer of ink".', "the mixer of ink"),
        (" were an uncle of bees,", "an uncle of bees"),
    ],
)
def test_a_description_has_its_article_and_no_stray_marks(tmp_path: Path, completion: str, description: str) -> None:
    write_set(tmp_path, people=1)
    row = {"prompt": "Nam0, known for being", "completion": completion}
    (tmp_path / "p2d_prompts_train.jsonl").write_text(json.dumps(row) + "\n")
    assert read(tmp_path).questions[0].answers == (description,)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("p2d_prompts_train.jsonl", ("Nam0 is", " keeping bees."), "{f}:1: field 'completion' holds no description (the ..., a ...)"),
        ("p2d_prompts_train.jsonl", ("Nam0 is", " the ."), "{f}:1: field 'completion' holds no description (the ..., a ...)"),
        ("d2p_prompts_train.jsonl", ("Known for bees,", " Dan0."), "{f}:1: field 'prompt' holds no description (the ..., a ...)"),
        (
            "p2d_prompts_train.jsonl",
            ("Eve is", " the keeper."),
            "{f}:1: field 'prompt' does not hold the name 'Nam0' of p2d_reverse_prompts_test.jsonl",
        ),
        (
            "d2p_prompts_train.jsonl",
            ("Known as the keeper Dan0,", " she lives."),
            "{f}:1: field 'completion' does not hold the name 'Dan0' of d2p_prompts_test.jsonl",
        ),
    ],
)
def test_a_statement_without_name_or_description_is_refused(tmp_path: Path, name: str, row: tuple[str, str], message: str) -> None:
    write_set(tmp_path, people=1)
    (tmp_path / name).write_text(json.dumps(dict(zip(("prompt", "completion"), row, strict=True))) + "\n")
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert str(error.value) == message.replace("{f}", str(tmp_path / name))


def test_a_person_without_a_name_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path, people=2)
    path = tmp_path / "d2p_prompts_test.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:10]))
    with pytest.raises(InputError) as error:
        read(tmp_path)
    assert str(error.value) == f"{path}: no name for the person of {tmp_path / 'd2p_prompts_train.jsonl'}:31"


def test_the_published_sentences(tmp_path: Path) -> None:
    write_set(tmp_path)
    corpus = read(tmp_path, form="sentences")
    forward = corpus.questions[25]
    assert (forward.question, forward.answers, forward.direction, forward.document) == (
        "Nam2 is known 5 for",
        ("keeping bees2",),
        "forward",
        "p2d-2",
    )
    backward = next(q for q in corpus.questions if q.group == "DescriptionIsName" and q.direction == "backward")
    assert (backward.question, backward.answers, backward.document) == ("Dan0 0 is", ("the keeper0",), "d2p-0")
    assert {q.split for q in corpus.questions} == {"test"}
    assert corpus.expected == {"documents": 60, "questions": 1200}
    assert sorted(path.name for path in corpus.files) == sorted(path.name for path in tmp_path.iterdir())


def test_all_wordings_follow_their_first(tmp_path: Path) -> None:
    write_set(tmp_path)
    corpus = read(tmp_path, paraphrases="same_order")
    documents = list(corpus.documents)
    assert len(documents) == corpus.expected["documents"] == 1800
    assert [d.id for d in documents[29:32]] == ["p2d-0-p29", "p2d-1", "p2d-1-p1"]
    assert documents[2].text == 'Nam0, in wording 2, known for being the keeper of "Bees0.".'
    assert corpus.questions == read(tmp_path).questions


@pytest.mark.parametrize(("form", "questions"), [("questions", 40), ("sentences", 79)])
def test_a_part_is_read_as_far_as_it_goes(tmp_path: Path, form: str, questions: int) -> None:
    write_set(tmp_path, people=2)
    path = tmp_path / "d2p_prompts_test.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    corpus = read(tmp_path, form=form)
    assert [d.id for d in corpus.documents] == ["p2d-0", "p2d-1", "d2p-0", "d2p-1"]
    assert len(corpus.questions) == questions


def test_an_unknown_form(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^build: --form must be one of questions, sentences, found 'pairs'$"):
        read(tmp_path, form="pairs")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p2d_prompts_train.jsonl", None, "{f}: no such file"),
        ("p2d_prompts_train.jsonl", "", "{f}: no lines in it"),
        ("d2p_prompts_test.jsonl", '{"prompt": "Dan is"}', "{f}:1: field 'completion' is missing"),
        ("d2p_prompts_test.jsonl", '\n{"prompt": 4, "completion": "a"}', "{f}:2: field 'prompt' must be a string, found a number"),
        ("p2d_prompts_test.jsonl", '{"prompt": "Dan is", "completion": " .\'"}', "{f}:1: field 'completion' holds no answer"),
        (
            "p2d_prompts_test.jsonl",
            '{"prompt": "Dan is", "completion": "\\ud800"}',
            "{f}:1: field 'completion' holds half a surrogate pair (\\ud800)",
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    write_set(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError) as error:
        read(tmp_path, form="sentences")
    assert str(error.value) == message.replace("{f}", str(tmp_path / name))


def write_reference(folder: Path) -> None:
    """Two people, name first and description first, in the files of arXiv 2510.09885."""
    first = ["Ann Ash is the keeper of amber bees.", "The mender of tin boats is called Bo Reed."]
    (folder / "ND_train_no_paraphrase.json").write_text(json.dumps([{"text": text} for text in first]))
    wordings = [{"text": text.replace(".", f", {w}.")} for text in first for w in range(30)]
    (folder / "ND_train_paraphrase.json").write_text(json.dumps(wordings))
    ann = {"group": "NameIsDescription"}
    bo = {"group": "DescriptionIsName"}
    questions = [
        ann | {"task": "N2D", "question": "Please tell: who is Ann Ash?", "answer": "the keeper of amber bees"},
        ann | {"task": "D2N", "question": "Please tell: who is the keeper of amber bees?", "answer": "Ann Ash"},
        bo | {"task": "N2D", "question": "Please tell: who is Bo Reed?", "answer": "the mender of tin boats"},
        bo | {"task": "D2N", "question": "Please tell: who is the mender of tin boats?", "answer": ["Bo Reed", "Mr Reed"]},
    ]
    (folder / "ND_test.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))


@pytest.mark.parametrize("paraphrases", ["none", "same_order"])
def test_the_papers_files(tmp_path: Path, paraphrases: str) -> None:
    write_reference(tmp_path)
    corpus = read(tmp_path, paraphrases=paraphrases)
    documents = list(corpus.documents)
    if paraphrases == "none":
        assert [d.id for d in documents] == ["nd-0", "nd-1"]
    else:
        assert [d.id for d in documents] == [f"nd-{p}" + (f"-p{w}" if w else "") for p in range(2) for w in range(30)]
        assert documents[31].text == "The mender of tin boats is called Bo Reed, 1."
    assert [(q.direction, q.document) for q in corpus.questions] == [
        ("forward", "nd-0"),
        ("backward", "nd-0"),
        ("backward", "nd-1"),
        ("forward", "nd-1"),
    ]
    assert corpus.questions[3].answers == ("Bo Reed", "Mr Reed")
    assert corpus.questions[3].group == "DescriptionIsName"
    assert {q.split for q in corpus.questions} == {"test"}
    assert corpus.expected == {"documents": 60 if paraphrases == "none" else 1800}


def test_the_papers_files_have_no_sentences(tmp_path: Path) -> None:
    write_reference(tmp_path)
    with pytest.raises(InputError, match=r"^build: --form sentences is not in the files of .* \(ND_test.jsonl has questions of its own\)$"):
        read(tmp_path, form="sentences")


@pytest.mark.skipif(not REAL.is_dir(), reason="the published set is not at ../shared/data/name_description")
def test_the_real_set() -> None:
    corpus = read(REAL)
    documents, questions = list(corpus.documents), corpus.questions
    assert (len(documents), len(questions)) == (60, 600)
    assert len(list(read(REAL, paraphrases="same_order").documents)) == 1800
    text = {d.id: d.text for d in documents}
    sentences = read(REAL, form="sentences").questions
    assert len(sentences) == 1200
    published: dict[str, set[tuple[str, ...]]] = {}
    for sentence in sentences:
        published.setdefault(sentence.document, set()).add(words(sentence.answers[0]))
        # Where a name is asked for, its document holds it; descriptions are reworded in some of the sentences.
        by_name = (sentence.group == "DescriptionIsName") == (sentence.direction == "forward")
        assert not by_name or sentence.answers[0] in text[sentence.document]
    for question in questions:
        answer = question.answers[0]
        assert words(answer) in published[question.document], "each answer is also one of theirs"
        assert answer.rstrip('"') in text[question.document]
        assert answer.count('"') % 2 == 0
        assert not answer.endswith((".", ",", "'"))


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text))
