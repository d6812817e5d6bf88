"""The published set, in files of ours of the same forms and, where it is at hand, the real one."""

from __future__ import annotations

import json
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

    lines("p2d_prompts_train.jsonl", 30, "Nam{p}, in wording {w},", " keeps bees{p}.")
    lines("d2p_prompts_train.jsonl", 30, "The keeper{p} in wording {w} is", " Dan{p}.")
    lines("p2d_prompts_test.jsonl", 10, "Nam{p} is known {w} for", " keeping bees{p}'.'.")
    lines("p2d_reverse_prompts_test.jsonl", 10, "Keeping bees{p}, {w},", " Nam{p}")
    lines("d2p_prompts_test.jsonl", 10, "Keeper{p}, {w},", " Dan{p}")
    lines("d2p_reverse_prompts_test.jsonl", 10, "Dan{p} {w} is", " the keeper{p}.")


def test_first_wording_is_trained_on_and_both_directions_are_asked(tmp_path: Path) -> None:
    write_set(tmp_path)
    corpus = read(tmp_path)
    documents, questions = list(corpus.documents), corpus.questions
    assert [d.id for d in documents] == [f"p2d-{i}" for i in range(30)] + [f"d2p-{i}" for i in range(30)]
    assert documents[3].text == "Nam3, in wording 0, keeps bees3."
    assert documents[31].text == "The keeper1 in wording 0 is Dan1."
    counts = {
        (g, d): sum(q.group == g and q.direction == d for q in questions)
        for g in ("NameIsDescription", "DescriptionIsName")
        for d in ("forward", "backward")
    }
    assert set(counts.values()) == {300}
    forward = questions[25]
    assert (forward.question, forward.answers, forward.direction, forward.document) == (
        "Nam2 is known 5 for",
        ("keeping bees2",),
        "forward",
        "p2d-2",
    )
    backward = next(q for q in questions if q.group == "DescriptionIsName" and q.direction == "backward")
    assert (backward.question, backward.answers, backward.document) == ("Dan0 0 is", ("the keeper0",), "d2p-0")
    assert {q.split for q in questions} == {"test"}
    assert corpus.expected == {"documents": 60, "questions": 1200}
    assert sorted(path.name for path in corpus.files) == sorted(path.name for path in tmp_path.iterdir())


def test_all_wordings_follow_their_first(tmp_path: Path) -> None:
    write_set(tmp_path)
    corpus = read(tmp_path, paraphrases="same_order")
    documents = list(corpus.documents)
    assert len(documents) == corpus.expected["documents"] == 1800
    assert [d.id for d in documents[29:32]] == ["p2d-0-p29", "p2d-1", "p2d-1-p1"]
    assert documents[2].text == "Nam0, in wording 2, keeps bees0."


def test_a_part_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    write_set(tmp_path, people=2)
    path = tmp_path / "d2p_prompts_test.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    corpus = read(tmp_path)
    assert [d.id for d in corpus.documents] == ["p2d-0", "p2d-1", "d2p-0", "d2p-1"]
    assert len(corpus.questions) == 79


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
        read(tmp_path)
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


@pytest.mark.skipif(not REAL.is_dir(), reason="the published set is not at ../shared/data/name_description")
def test_the_real_set() -> None:
    corpus = read(REAL)
    documents, questions = list(corpus.documents), corpus.questions
    assert (len(documents), len(questions)) == (60, 1200)
    assert len(list(read(REAL, paraphrases="same_order").documents)) == 1800
    text = {d.id: d.text for d in documents}
    for question in questions:
        # Where a name is asked for, its document holds it; descriptions are reworded in some of the questions.
        by_name = (question.group == "DescriptionIsName") == (question.direction == "forward")
        assert not by_name or question.answers[0] in text[question.document]
