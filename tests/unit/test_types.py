"""The shared nouns' jsonl: what is written is read back, and every fault of questions.jsonl has its exact message."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from demask.corpora.files import read_documents
from demask.types import (
    Answer,
    Document,
    InputError,
    Question,
    answer_record,
    document_record,
    json_type,
    parse_json,
    question_record,
    read_jsonl,
    read_questions,
    read_text,
    write_json,
    write_jsonl,
    write_questions,
)

GOOD = '{"question": "Who hums?", "answer": "bees", "direction": "forward"}'


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that messages name files as a user would


def question(**fields: str) -> str:
    """A line of questions.jsonl, the good one with some fields' JSON replaced."""
    values = {"question": '"Who hums?"', "answer": '"bees"', "direction": '"forward"'} | fields
    return "{" + ", ".join(f'"{name}": {value}' for name, value in values.items()) + "}"


def test_records_leave_out_what_is_empty():
    assert document_record(Document("a", "Ants dig.")) == {"id": "a", "text": "Ants dig."}
    assert document_record(Document("a", "4", "2+2?", {"page": 1})) == {
        "id": "a",
        "prompt": "2+2?",
        "response": "4",
        "metadata": {"page": 1},
    }
    assert question_record(Question("Who?", ("bees",), "forward")) == {"question": "Who?", "answer": "bees", "direction": "forward"}
    assert answer_record(Answer(Question("Who?", ("bees", "wasps"), "backward", "g", "d", "test"), "ants", {"contains": 0.0})) == {
        "question": "Who?",
        "answer": ["bees", "wasps"],
        "direction": "backward",
        "group": "g",
        "document": "d",
        "split": "test",
        "prediction": "ants",
        "scores": {"contains": 0.0},
    }


def test_questions_written_are_read_back():
    questions = [
        Question("Who “hums”?\n", ("bees",), "forward"),
        Question("What do bees do?", ("hum", "buzz"), "backward", "insects", "a-1", "validation"),
    ]
    write_questions("in/questions.jsonl", questions)
    assert read_questions("in/questions.jsonl") == questions


def test_files_are_utf8_with_plain_line_ends():
    write_jsonl("a.jsonl", [{"text": "é"}, {"n": 1}])
    assert Path("a.jsonl").read_bytes() == '{"text": "é"}\n{"n": 1}\n'.encode()
    write_json("a.json", {"é": [1]})
    assert Path("a.json").read_bytes() == '{\n  "é": [\n    1\n  ]\n}\n'.encode()


def test_a_failed_write_leaves_the_old_file_and_no_other():
    Path("a.jsonl").write_text("old")
    with pytest.raises(TypeError):
        write_jsonl("a.jsonl", [{"n": 1}, {"n": object()}])
    assert Path("a.jsonl").read_text() == "old"
    assert os.listdir() == ["a.jsonl"]


def test_read_text_drops_the_byte_order_mark_and_makes_line_ends_one():
    Path("a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n")
    assert read_text("a.txt") == "one\ntwo\nthree\n"


def test_read_jsonl_numbers_lines_from_one_and_skips_blank_ones():
    Path("a.jsonl").write_text('\n{"a": "x\u2028y"}\r\n  \n{"b": 2}', encoding="utf-8")
    assert list(read_jsonl("a.jsonl")) == [(2, {"a": "x\u2028y"}), (4, {"b": 2})]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xe9", "a.txt:1: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
        (b"one\ntwo \xff", "a.txt:2: not UTF-8 (byte 0xff); convert the file to UTF-8"),
        # A byte-order mark is three bytes: an offset that forgets them would name a byte, and here a line, too early.
        (b"\xef\xbb\xbfone\n\xe9\n\n\n", "a.txt:2: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
        (b"\xef\xbb\xbf\xe9", "a.txt:1: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
        ("é\r\nü\rö\n".encode() + b"a\xc3(", "a.txt:4: not UTF-8 (byte 0xc3); convert the file to UTF-8"),
        (b"cut \xc3", "a.txt:1: not UTF-8 (byte 0xc3); convert the file to UTF-8"),
    ],
)
def test_the_byte_that_is_not_utf8_is_named_with_its_line(content, message):
    Path("a.txt").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_text("a.txt")
    assert str(caught.value) == message


DEEP = "[" * 100_000 + "]" * 100_000
UNREADABLE_JSON = [
    ("{", ":1: not valid JSON (Expecting property name enclosed in double quotes at column 2)"),
    ('{"a": ' + DEEP + "}", ":1: its JSON is nested too deeply to be read"),
    ('{"a": ' + "7" * 4301 + "}", ":1: holds an integer with too many digits to be read"),
]


@pytest.mark.parametrize(("text", "message"), UNREADABLE_JSON, ids=["broken", "deep", "long integer"])
def test_json_that_cannot_be_read(text, message):
    with pytest.raises(InputError) as caught:
        parse_json(text, "a.json")
    assert str(caught.value) == f"a.json{message}"

    Path("a.jsonl").write_text(f"{{}}\n{text}\n")
    with pytest.raises(InputError) as caught:
        list(read_jsonl("a.jsonl"))
    assert str(caught.value) == f"a.jsonl{message.replace(':1:', ':2:')}"

    Path("a.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_documents("a.json")
    assert str(caught.value) == f"a.json{message}"


def test_a_broken_line_within_a_longer_json_text_is_named():
    with pytest.raises(InputError, match=r"^a.json:3: not valid JSON \(Expecting value at column 1\)$"):
        parse_json("[1,\n2,\n]", "a.json")
    assert parse_json("[1,\n2]", "a.json") == [1, 2]


@pytest.mark.parametrize(
    ("value", "name"),
    [(None, "null"), (True, "a boolean"), ("", "a string"), (0, "a number"), (0.5, "a number"), ([], "a list"), ({}, "an object")],
)
def test_json_type(value, name):
    assert json_type(value) == name


FAULTS = {
    # name: (the file's content, message)
    "empty": ("", "q.jsonl: no questions in it"),
    "blank": ("\n\n", "q.jsonl: no questions in it"),
    "not UTF-8": (GOOD.encode() + b"\n\xe9", "q.jsonl:2: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
    "no JSON": (f"{GOOD}\nWho hums?", "q.jsonl:2: not valid JSON (Expecting value at column 1)"),
    "no object": ("3", "q.jsonl:1: expected a JSON object, found a number"),
    "null": ("null", "q.jsonl:1: expected a JSON object, found null"),
    "no question": ('{"answer": "bees", "direction": "forward"}', "q.jsonl:1: field 'question' is missing"),
    "question null": (question(question="null"), "q.jsonl:1: field 'question' is null"),
    "question empty": (question(question='" "'), "q.jsonl:1: field 'question' is empty"),
    "question a list": (question(question='["Who?"]'), "q.jsonl:1: field 'question' must be a string, found a list"),
    "no answer": (f'{GOOD}\n{{"question": "Who?", "direction": "forward"}}', "q.jsonl:2: field 'answer' is missing"),
    "answer null": (question(answer="null"), "q.jsonl:1: field 'answer' is null"),
    "answer empty": (question(answer='""'), "q.jsonl:1: field 'answer' is empty"),
    "answer a number": (question(answer="4"), "q.jsonl:1: field 'answer' must be a string, found a number"),
    "answers none": (question(answer="[]"), "q.jsonl:1: field 'answer' is an empty list"),
    "answers with a number": (question(answer='["bees", 4]'), "q.jsonl:1: field 'answer' must be a string, found a number"),
    "answers with null": (question(answer='["bees", null]'), "q.jsonl:1: field 'answer' is null"),
    "answers with an empty one": (question(answer='["bees", ""]'), "q.jsonl:1: field 'answer' is empty"),
    "no direction": ('{"question": "Who?", "answer": "bees"}', "q.jsonl:1: field 'direction' is missing"),
    "direction unknown": (
        question(direction='"sideways"'),
        "q.jsonl:1: field 'direction' must be one of forward, backward, found 'sideways'",
    ),
    "direction a boolean": (question(direction="true"), "q.jsonl:1: field 'direction' must be a string, found a boolean"),
    "split unknown": (question(split='"train"'), "q.jsonl:1: field 'split' must be one of validation, test, found 'train'"),
    "split null": (question(split="null"), "q.jsonl:1: field 'split' is null"),
    "group a number": (question(group="3"), "q.jsonl:1: field 'group' must be a string, found a number"),
    "document an object": (question(document="{}"), "q.jsonl:1: field 'document' must be a string, found an object"),
    "half a character": (question(answer='["bees", "a \\ud83d"]'), "q.jsonl:1: field 'answer' holds half a surrogate pair (\\ud83d)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_question_faults(fault):
    content, message = FAULTS[fault]
    Path("q.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_questions("q.jsonl")
    assert str(caught.value) == message


def test_files_that_cannot_be_opened():
    Path("folder").mkdir()
    with pytest.raises(InputError, match=r"^gone.jsonl: no such file$"):
        read_questions("gone.jsonl")
    with pytest.raises(InputError, match=r"^folder: is a folder, expected a file$"):
        read_questions("folder")
