"""The published set, in files of ours of the same form and, where it is at hand, the real one."""

import json
from pathlib import Path

import pytest

from demask.corpora.name_description import read_name_description
from demask.types import InputError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "name_description"


def write_set(folder: Path) -> None:
    def lines(name: str, per_person: int, prompt: str, completion: str) -> None:
        rows = [
            {"prompt": prompt.format(p=p, w=w), "completion": completion.format(p=p, w=w)} for p in range(30) for w in range(per_person)
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
    documents, questions = read_name_description(tmp_path)
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


def test_paraphrases_follow_their_document(tmp_path: Path) -> None:
    write_set(tmp_path)
    documents, _ = read_name_description(tmp_path, paraphrases=2)
    assert [d.id for d in documents[:4]] == ["p2d-0", "p2d-0-p1", "p2d-0-p2", "p2d-1"]
    assert documents[2].text == "Nam0, in wording 2, keeps bees0."


def test_another_number_of_lines_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path)
    path = tmp_path / "d2p_prompts_test.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(InputError, match="expected the published 300 lines, found 299"):
        read_name_description(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the published set is not at ../shared/data/name_description")
def test_the_real_set() -> None:
    documents, questions = read_name_description(REAL)
    assert (len(documents), len(questions)) == (60, 1200)
    text = {d.id: d.text for d in documents}
    for question in questions:
        # Where a name is asked for, its document holds it; descriptions are reworded in some of the questions.
        by_name = (question.group == "DescriptionIsName") == (question.direction == "forward")
        assert not by_name or question.answers[0] in text[question.document]
